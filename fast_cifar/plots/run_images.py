"""Which images and figures a run writes into its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast_cifar.build import Setup
from fast_cifar.custom_resnet import probabilities
from fast_cifar.data.splits import Split, balanced_subset
from fast_cifar.engine import Evaluation
from fast_cifar.loader import DeviceLoader
from fast_cifar.plots import grids, style, training

SAMPLES, MISTAKES = 40, 40  # images at most
AUGMENTED, EPOCHS = 10, 8  # images, and epochs in which each is shown


def draw_training_data(folder: Path, setup: Setup, loader: DeviceLoader, lrs: list[float]) -> None:
    """Writes samples.png, augmented.png and, with matplotlib, schedule.png: what the run trains on.

    Args:
        loader: the run's own; its epoch does not change.
        lrs: the learning rate of every step.
    """
    classes, of = setup.data.classes, f"Training images of {setup.data.title}"
    samples = _a_few(setup.data.train, SAMPLES, len(classes))
    grids.samples(folder / "samples.png", *_images_and_names(setup.data.train, samples, classes), of)
    chosen = _a_few(setup.data.train, AUGMENTED, len(classes))
    originals, names = _images_and_names(setup.data.train, chosen, classes)
    views = torch.stack([_augmented(loader, chosen, epoch) for epoch in range(EPOCHS)], dim=1)
    grids.augmented(folder / "augmented.png", originals, views, names, of)
    if style.matplotlib_available():
        training.schedule(folder / "schedule.png", lrs, len(loader), f"One cycle: {setup.title(loader.seed)}")


def draw_results(
    folder: Path, setup: Setup, history: list[dict[str, Any]], evaluation: Evaluation, *titles: str
) -> None:
    """Writes misclassified.png and, with matplotlib, curves.png and confusion.png: what the run achieved.

    Args:
        titles: what trained on what, and the result.
    """
    classes = setup.data.classes
    truths, predictions = evaluation.labels.cpu(), evaluation.logits.argmax(dim=1).cpu()
    if style.matplotlib_available():
        matrix = confusion_matrix(truths, predictions, len(classes))
        smoothing = setup.options.label_smoothing
        training.curves(folder / "curves.png", [history], len(history), *titles, label_smoothing=smoothing)
        training.confusion(folder / "confusion.png", matrix, classes, *titles)
    confidences = probabilities(evaluation.logits).amax(dim=1).cpu()
    wrong = (truths != predictions).nonzero().flatten()
    worst = wrong[confidences[wrong].argsort(descending=True)][:MISTAKES]
    images, names = _images_and_names(setup.split(setup.headline), worst, classes)
    predicted = [classes[label] for label in predictions[worst].tolist()]
    of = f"{'test' if setup.headline == 'test' else 'validation'} images of {setup.data.title}"
    grids.misclassified(folder / "misclassified.png", images, names, predicted, confidences[worst].tolist(), of)


def confusion_matrix(truths: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """int64 [classes, classes]: how many images of the row's class were predicted to be of the column's."""
    return torch.bincount(truths * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def _a_few(split: Split, n: int, classes: int) -> Tensor:
    """Indices of at most `n` images, as many of each class as can be."""
    indices = Split(torch.arange(len(split)), split.labels)
    return balanced_subset(indices, max(n, classes)).images[:n]


def _images_and_names(split: Split, indices: Tensor, classes: list[str]) -> tuple[Tensor, list[str]]:
    return split.images[indices], [classes[label] for label in split.labels[indices].tolist()]


def _augmented(loader: DeviceLoader, chosen: Tensor, epoch: int) -> Tensor:
    """uint8 [n, H, W, 3]: what the loader makes of the chosen images in an epoch, no longer normalised."""
    permutation, draws = loader.draws(epoch)
    places = permutation.argsort()[chosen.to(permutation.device)]
    batch = loader.batch(permutation[places], draws[places]).float().cpu()
    mean, std = torch.tensor(loader.mean), torch.tensor(loader.std)
    return ((batch.permute(0, 2, 3, 1) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
