"""Which pictures a run draws, and from what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast_cifar.augment import apply, draw
from fast_cifar.build import Setup
from fast_cifar.custom_resnet import probabilities
from fast_cifar.data.load import Split, balanced_subset
from fast_cifar.engine import Evaluation
from fast_cifar.loader import DeviceLoader
from fast_cifar.plots import grids, style, training

NO_MATPLOTLIB = "no curves without matplotlib; to have them: pip install matplotlib"


def opening_pictures(folder: Path, setup: Setup, loader: DeviceLoader, lrs: list[float]) -> None:
    """samples.png, augmented.png and, with matplotlib, schedule.png: what the run is about to do."""
    data = setup.data
    samples = _a_few(data.train, max(40, len(data.classes)))
    grids.samples(folder / "samples.png", samples.images[:40], _names(samples.labels[:40], data.classes))
    originals = _a_few(data.train, max(8, len(data.classes)))
    images, names = originals.images[:8], _names(originals.labels[:8], data.classes)
    views = torch.stack([_augmented(images, setup, loader, view) for view in range(8)], dim=1)
    grids.augmented(folder / "augmented.png", images, views, names)
    if style.matplotlib_available():
        training.schedule(folder / "schedule.png", lrs, len(loader))


def closing_pictures(
    folder: Path, setup: Setup, history: list[dict[str, Any]], evaluation: Evaluation, title: str
) -> None:
    """misclassified.png and, with matplotlib, curves.png and confusion.png: what has come of it."""
    classes = setup.data.classes
    truths, answers = evaluation.labels.cpu(), evaluation.logits.argmax(dim=1).cpu()
    if style.matplotlib_available():
        training.curves(folder / "curves.png", history, title)
        training.confusion(folder / "confusion.png", confusion_matrix(truths, answers, len(classes)), classes)
    confidences = probabilities(evaluation.logits).amax(dim=1).cpu()
    wrong = (truths != answers).nonzero().flatten()
    worst = wrong[confidences[wrong].argsort(descending=True)][:40]
    grids.misclassified(
        folder / "misclassified.png",
        setup.split(setup.headline).images[worst],
        _names(truths[worst], classes),
        _names(answers[worst], classes),
        confidences[worst].tolist(),
    )


def confusion_matrix(truths: Tensor, answers: Tensor, classes: int) -> Tensor:
    """int64 [classes, classes]: how many images of the row's class were taken for the column's."""
    return torch.bincount(truths * classes + answers, minlength=classes * classes).reshape(classes, classes)


def _a_few(split: Split, n: int) -> Split:
    return balanced_subset(split, min(n, len(split)))


def _names(labels: Tensor, classes: list[str]) -> list[str]:
    return [classes[label] for label in labels.tolist()]


def _augmented(images: Tensor, setup: Setup, loader: DeviceLoader, seed: int) -> Tensor:
    """uint8 [n, H, W, 3]: one draw of the run's augmentation, made visible again."""
    options = setup.options
    draws = draw(
        len(images),
        padding=options.padding,
        cutout=options.cutout,
        flip=options.flip,
        generator=torch.Generator().manual_seed(seed),
    )
    batch = apply(
        images,
        draws,
        mean=loader.mean,
        std=loader.std,
        padding=options.padding,
        cutout=options.cutout,
        pad_mode=options.pad_mode,
    )
    mean, std = torch.tensor(loader.mean), torch.tensor(loader.std)
    return ((batch.permute(0, 2, 3, 1) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
