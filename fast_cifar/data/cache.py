"""Decoded data sets kept on disk, so that pictures are decoded once."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fast_cifar.data.splits import Dataset, Split
from fast_cifar.system.errors import UserError
from fast_cifar.system.files import atomic_write, is_whole

FORMAT = "fast_cifar data 1"


def load(path: Path, key: str) -> Dataset | None:
    """The data set that `save` left at `path` under the same key.

    Returns:
        None when there is none, when it has another key, or when the file is damaged: it is then to be made again.
    """
    if not os.path.isfile(path) or not is_whole(path):
        return None
    try:
        stored = torch.load(path, weights_only=True)
    except Exception:  # torch promises nothing about what a damaged file raises, and any damage has the same remedy
        return None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT or stored.get("key") != key:
        return None
    return Dataset(stored["name"], Split(**stored["train"]), Split(**stored["test"]), stored["classes"])


def save(path: Path, key: str, dataset: Dataset) -> None:
    """Keeps a data set for `load`; no other process ever reads a part of it.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save({"format": FORMAT, "key": key, **_contents(dataset)}, file)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError to torch.save
        reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
        raise UserError(f"cannot write {path} ({reason}); mend that or give another --data-dir") from error


def require_writable(folder: Path) -> None:
    """Finds out, before minutes of work and without making anything, whether `folder` can be made and written to.

    Raises:
        UserError: it cannot.
    """
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    if not nearest.is_dir():
        raise UserError(f"{nearest} is not a folder, so nothing can be kept in it; give another --data-dir")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest} cannot be written to; change its permissions or give another --data-dir")


def _contents(dataset: Dataset) -> dict[str, object]:
    return {
        "name": dataset.name,
        "train": {"images": dataset.train.images, "labels": dataset.train.labels},
        "test": {"images": dataset.test.images, "labels": dataset.test.labels},
        "classes": dataset.classes,
    }
