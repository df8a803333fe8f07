"""Decoded data sets kept on disk, so that images are decoded once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from fast_cifar.data.splits import Dataset, Split
from fast_cifar.system.errors import UserError
from fast_cifar.system.files import atomic_write, is_whole

FORMAT = "fast_cifar data 2"
REMEDY = "fix that or choose another --data-dir"


def load(path: Path, keys: Mapping[str, str]) -> Dataset | None:
    """The data set that `save` wrote to `path`.

    Args:
        keys: for each wanted split ("train", and "test" if the test images are wanted) the key that it was saved with.
            A file that also holds a split that is not wanted is fine.

    Returns:
        None if the file is missing or damaged, or if a wanted split is missing or has another key.
    """
    if not os.path.isfile(path) or not is_whole(path):
        return None
    try:
        stored = torch.load(path, weights_only=True)
    except Exception:  # a damaged file can make torch raise almost anything
        return None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT or not keys.items() <= stored["keys"].items():
        return None
    splits = {name: Split(**stored[name]) for name in keys}
    return Dataset(stored["name"], splits["train"], splits.get("test"), stored["classes"])


def save(path: Path, keys: Mapping[str, str], dataset: Dataset) -> None:
    """Writes a data set for `load`; no other process ever sees a part of it.

    Args:
        keys: a key for each of its splits; a changed key makes the file useless.

    Raises:
        UserError: the folder cannot be created or written to.
    """
    splits = {name: vars(getattr(dataset, name)) for name in keys}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            contents = {"format": FORMAT, "keys": dict(keys), "name": dataset.name, "classes": dataset.classes}
            torch.save(contents | splits, file)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
        raise UserError(f"cannot write {path} ({reason}); {REMEDY}") from error
