"""A checkpoint put to the test."""

from __future__ import annotations

from fast_cifar import checkpoint
from fast_cifar.assembly import limited, loader_in_order, placed
from fast_cifar.datasets import load_dataset
from fast_cifar.engine import Evaluation, evaluate
from fast_cifar.errors import UserError
from fast_cifar.memory import enough_memory
from fast_cifar.options import TrainOptions
from fast_cifar.runtime import resolve_device, resolve_precision


def evaluate_checkpoint(options: TrainOptions) -> Evaluation:
    """Tests the checkpoint `options.eval_only`, on the data and in the way of its training where `options` do not
    name others.

    Raises:
        UserError: the checkpoint, the data or the device cannot be had, or the classes are not the checkpoint's.
    """
    options.check()
    path = options.eval_only
    contents = checkpoint.load(path)
    model = checkpoint.network_of(contents, path)
    device = resolve_device(options.device)
    precision = resolve_precision(device, options.amp, options.amp_dtype)
    # What was not said anew is as it was in training, so that the answer is the one that training gave.
    as_trained = {"data", "resize", "limit_test", "tta"} - options.explicit
    if missing := sorted(as_trained - contents["options"].keys()):
        raise UserError(f"{path} is incomplete: its options have no {', '.join(missing)}")
    options = options.replace(**{name: contents["options"][name] for name in as_trained})
    options.check()
    data = load_dataset(options.data, options.data_dir, mirrors=options.mirror, resize=options.resize)
    if data.classes != contents["classes"]:
        raise UserError(
            f"{path} knows the classes {_first(contents['classes'])}, ...; "
            f"{options.data} has {_first(data.classes)}, ...: give the data it was trained on with --data"
        )
    test = limited(data.test, options.limit_test)
    loader = loader_in_order(test, options.batch_size, device, precision, contents["mean"], contents["std"])
    with enough_memory(options.batch_size):
        return evaluate(placed(model, options, device), loader, precision, tta=options.tta, title="test")


def _first(classes: list[str]) -> str:
    return ", ".join(" ".join(name.split()) for name in classes[:3])  # on one line, whatever they are called
