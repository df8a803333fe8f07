"""Name what is in a picture.

    python -m fast_cifar.predict runs/NAME/best.pt cat.jpg dog.png

Prints for each image file the five likeliest classes with their softmax probabilities. A picture of another size than
the network's is cropped to its central square and scaled.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fast_cifar import checkpoint
from fast_cifar.assembly import loader_in_order
from fast_cifar.command_line import Parser
from fast_cifar.custom_resnet import probabilities
from fast_cifar.engine import evaluate
from fast_cifar.errors import UserError, run_script
from fast_cifar.images import read_image
from fast_cifar.runtime import resolve_device, resolve_precision
from fast_cifar.splits import Split


def predict(path: str | Path, images: Sequence[str | Path], device: str = "auto") -> tuple[list[str], Tensor]:
    """What the network of a checkpoint makes of some image files.

    Args:
        path: a checkpoint of a run.
        images: files of any format that Pillow reads.
        device: as in `run_train.py --device`.

    Returns:
        The names of the classes, and float32 [images, classes] on the CPU: softmax probabilities.

    Raises:
        UserError: the checkpoint, an image or the device cannot be used.
    """
    place = resolve_device(device)
    contents = checkpoint.load(path)
    model = checkpoint.network_of(contents, path).to(place)
    pictures = torch.stack([torch.from_numpy(read_image(image, resize=True)) for image in images])
    unknown = torch.zeros(len(pictures), dtype=torch.int64)
    precision = resolve_precision(place, amp=False, amp_dtype="auto")
    loader = loader_in_order(Split(pictures, unknown), 512, place, precision, contents["mean"], contents["std"])
    evaluation = evaluate(model, loader, precision)
    return contents["classes"], probabilities(evaluation.logits).cpu()


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(lambda: script(arguments))


def script(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m fast_cifar.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="best.pt or last.pt of a run folder")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to name for each image (default: 5)")
    options = parser.parse_args(arguments)
    if options.top < 1:
        raise UserError(f"--top {options.top} must be at least 1")
    classes, answers = predict(options.checkpoint, options.images, options.device)
    for image, answer in zip(options.images, answers, strict=True):
        print(image)
        for share, index in zip(*answer.topk(min(options.top, len(classes))), strict=True):
            print(f"  {share:7.2%}  {classes[index]}")


if __name__ == "__main__":
    sys.exit(main())
