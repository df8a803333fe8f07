"""Classify images with the network of a checkpoint.

    python -m fast_cifar.predict runs/NAME/last.pt cat.jpg dog.png

Prints the five likeliest classes of each image file, with their softmax probabilities. An image of another size than
the network's is cropped to its central square and scaled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fast_cifar.build import eval_loader, limited, to_device
from fast_cifar.command_line import Parser
from fast_cifar.custom_resnet import CustomResNet, probabilities
from fast_cifar.data.image_folder import read_image
from fast_cifar.data.load import load_dataset
from fast_cifar.data.splits import Split
from fast_cifar.engine import Evaluation, evaluate
from fast_cifar.options import TrainOptions
from fast_cifar.runs import checkpoint as checkpoints
from fast_cifar.runs.run_folder import predicted_by
from fast_cifar.system.device import explain_out_of_memory, resolve_device, resolve_precision
from fast_cifar.system.errors import UserError, percent, run_script


def predict(
    checkpoint: str | Path, image_files: Sequence[str | Path], device: str = "auto"
) -> tuple[list[str], Tensor]:
    """Class probabilities of image files.

    Args:
        checkpoint: a checkpoint of a run.
        image_files: of any format that Pillow reads.
        device: as in `run_train.py --device`.

    Returns:
        The names of the classes, and float32 [images, classes] on the CPU: softmax probabilities.

    Raises:
        UserError: the checkpoint, an image or the device cannot be used.
    """
    place = resolve_device(device)
    contents = checkpoints.load(checkpoint)
    precision = resolve_precision(place, amp=False, amp_dtype="auto")
    with explain_out_of_memory():
        model = network_of(contents, checkpoint).to(place)
        images = torch.stack([torch.from_numpy(read_image(file, resize=True)) for file in image_files])
        unknown = torch.zeros(len(images), dtype=torch.int64)
        loader = eval_loader(Split(images, unknown), 512, place, precision, contents["mean"], contents["std"])
        evaluation = evaluate(model, loader, precision)
    return contents["classes"], probabilities(evaluation.logits).cpu()


def evaluate_checkpoint(options: TrainOptions, *, log: Callable[[str], None] = tqdm.write) -> Evaluation:
    """Evaluates the checkpoint `options.eval_only` on the test images, with the data and `--tta` of its training unless
    `options` set others. `log` takes the line for the screen.

    Raises:
        UserError: the checkpoint, the data or the device cannot be used, or the classes are not the checkpoint's.
    """
    options.check()
    path = options.eval_only
    contents = checkpoints.load(path)
    model = network_of(contents, path)
    device = resolve_device(options.device)
    precision = resolve_precision(device, options.amp, options.amp_dtype)
    # Otherwise the accuracy would not be the one that training reported.
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
    with explain_out_of_memory(options.batch_size):
        loader = eval_loader(test, options.batch_size, device, precision, contents["mean"], contents["std"])
        result = evaluate(to_device(model, options, device), loader, precision, tta=options.tta, title="test")
    log(
        f"test accuracy {percent(result.accuracy)}{predicted_by(contents['options'] | {'tta': options.tta})}: "
        f"{result.correct} of {result.count} images in {precision.name}, loss {result.loss:.4f}"
    )
    return result


def network_of(contents: dict[str, Any], path: str | Path) -> CustomResNet:
    """The network of a loaded checkpoint, with its weights.

    Raises:
        UserError: the weights do not fit a `CustomResNet` with the checkpoint's classes and width.
    """
    options = contents["options"]
    model = CustomResNet(len(contents["classes"]), options["dropout"], options["width"])
    checkpoints.load_weights(model, contents["model"], path)
    return model


def _first(classes: list[str]) -> str:
    return ", ".join(" ".join(name.split()) for name in classes[:3])  # on one line, whatever they are called


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(lambda: script(arguments))


def script(arguments: Sequence[str] | None) -> None:
    parser = Parser(__doc__, prog="python -m fast_cifar.predict")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="last.pt or best.pt of a run folder")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to name for each image (default: 5)")
    options = parser.parse_args(arguments)
    if options.top < 1:
        raise UserError(f"--top {options.top} must be at least 1")
    classes, probabilities_of = predict(options.checkpoint, options.images, options.device)
    for file, row in zip(options.images, probabilities_of, strict=True):
        print(file)
        for probability, index in zip(*row.topk(min(options.top, len(classes))), strict=True):
            print(f"  {percent(probability):>8}  {classes[index]}")


if __name__ == "__main__":
    sys.exit(main())
