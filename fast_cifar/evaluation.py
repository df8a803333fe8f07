"""A checkpoint put to the test."""

from __future__ import annotations

from fast_cifar import checkpoint
from fast_cifar.assembly import limited, placed
from fast_cifar.datasets import load_dataset
from fast_cifar.engine import Evaluation, evaluate
from fast_cifar.errors import UserError
from fast_cifar.loader import DeviceLoader
from fast_cifar.options import TrainOptions
from fast_cifar.runtime import resolve_device, resolve_precision


def evaluate_checkpoint(options: TrainOptions) -> Evaluation:
    """Tests the checkpoint `options.eval_only` on the test split of `options.data`, or, where no data were named, of
    the data that it was trained on.

    Raises:
        UserError: the checkpoint, the data or the device cannot be had, or the classes are not the checkpoint's.
    """
    options.check()
    path = options.eval_only
    contents = checkpoint.load(path)
    model = checkpoint.network_of(contents, path)
    device = resolve_device(options.device)
    precision = resolve_precision(device, options.amp, options.amp_dtype)
    trained_with = contents["options"]
    name = options.data if "data" in options.explicit else trained_with["data"]
    resize = options.resize or trained_with["resize"]
    data = load_dataset(name, options.data_dir, mirrors=options.mirror, resize=resize)
    if data.classes != contents["classes"]:
        raise UserError(
            f"{path} knows the classes {', '.join(contents['classes'][:3])}, ...; "
            f"{name} has {', '.join(data.classes[:3])}, ...: give the data it was trained on with --data"
        )
    test = limited(data.test, options.limit_test)
    loader = DeviceLoader(
        test.images,
        test.labels,
        min(options.batch_size, len(test)),
        train=False,
        device=device,
        mean=contents["mean"],
        std=contents["std"],
        dtype=precision.dtype,
    )
    return evaluate(placed(model, options, device), loader, precision, tta=options.tta, title="test")
