"""Loaded data sets, and how a class-balanced part of one is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fast_cifar.system.errors import UserError


@dataclass(frozen=True)
class Split:
    """Images and their labels: `images` uint8 [N, H, W, 3], `labels` int64 [N] (indices into the classes)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the same classes; `test` is None if the test images were not loaded.

    `name` is short enough to show and to name a run after.
    """

    name: str
    train: Split
    test: Split | None
    classes: list[str]

    @property
    def title(self) -> str:
        """The name as it stands in a figure: that of a folder in full."""
        return {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}.get(self.name, self.name)


def balanced_subset(split: Split, n: int) -> Split:
    """`n` images of the split, equally many of each class if possible, in the split's own order.

    The choice depends on the labels and `n` alone, not on the run's seed, and a smaller subset lies inside a larger
    one. If `n` is not a multiple of the number of classes, or a class has too few images, other classes fill up.

    Args:
        split: the images to choose from.
        n: at least the number of classes; as many images as the split has, or more, means all.

    Raises:
        UserError: `n` is smaller than the number of classes.
    """
    if n >= len(split):
        return split
    classes = _class_count(split.labels)
    if n < classes:
        raise UserError(
            f"{n} images cannot hold all {classes} classes; --limit-train and --limit-test take {classes} or more"
        )
    return _take(split, _round_robin(split.labels)[:n])


def hold_out(split: Split, n: int) -> tuple[Split, Split]:
    """Divides a split into a training part and `n` held-out images, equally many of each class if possible.

    The choice depends on the labels and `n` alone, and both parts keep the split's own order.

    Returns:
        (train, val), with len(val) == n.

    Raises:
        UserError: a class would have no image in one of the two parts.
    """
    order = _round_robin(split.labels)
    least, most = _class_count(split.labels), _before_first_exhausted(split.labels[order])
    if most < least:
        raise UserError(f"--val-split {n} needs at least two training images of every class, and a class has only one")
    if not least <= n <= most:
        raise UserError(
            f"--val-split {n} would leave a class empty; give {least} to {most} for these {len(split)} images"
        )
    return _take(split, order[n:]), _take(split, order[:n])


def _take(split: Split, indices: Tensor) -> Split:
    indices = indices.sort().values
    return Split(split.images[indices], split.labels[indices])


def _class_count(labels: Tensor) -> int:
    return int(labels.bincount().count_nonzero())


def _round_robin(labels: Tensor) -> Tensor:
    """All indices, int64 [N], in a fixed random order: one image of each class, then a second of each, and so on."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return by_class[rank_in_class.argsort(stable=True)]


def _before_first_exhausted(labels: Tensor) -> int:
    """How many leading labels can be removed before some class is missing from the rest."""
    last_of_class = {label: i for i, label in enumerate(labels.tolist())}
    return min(last_of_class.values())
