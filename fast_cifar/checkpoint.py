"""Checkpoints: written whole or not at all, read without running anything, and describing themselves."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.errors import UserError
from fast_cifar.files import atomic_write

FORMAT = "fast_cifar checkpoint 1"
NETWORK = "CustomResNet"
DESCRIPTION = frozenset({"classes", "mean", "std", "size", "options", "epoch", "model"})
TRAINING = frozenset({"best", "optimizer", "scheduler", "scaler", "random_state", "steps_per_epoch"})


def save(path: Path, contents: dict[str, Any]) -> None:
    """Writes `contents`, which `torch.load(weights_only=True)` reads again; see `load` for the keys."""
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, "network": NETWORK, **_on_cpu(contents)}, file)


def _on_cpu(value: Any) -> Any:
    """The same with every tensor on the CPU, so that any machine can read it."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(entry) for key, entry in value.items()}
    return [_on_cpu(entry) for entry in value] if isinstance(value, list) else value


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint; its tensors are on the CPU.

    Returns:
        A dictionary with at least `network`, `classes` (list of str), `mean` and `std` (3 floats each, 0..1 scale),
        `size` (pixels), `options` (dict), `epoch` (epochs done) and `model` (a state dict).

    Raises:
        UserError: the file is missing, empty, no checkpoint, or one of another network.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint file")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path} is empty; use another checkpoint of the run")
    unreadable = f"{path} is no readable checkpoint: it is damaged, or something else"
    if not zipfile.is_zipfile(path):
        raise UserError(unreadable)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise UserError(unreadable) from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of fast_cifar ({FORMAT!r})")
    if contents.get("network") != NETWORK:
        raise UserError(f"{path} holds the network {contents.get('network')!r}; only {NETWORK!r} can be used here")
    _require(contents, DESCRIPTION, path)
    return contents


def load_training(path: str | Path) -> dict[str, Any]:
    """Reads a last.pt, which holds what `load` returns and all that training needs to go on.

    Raises:
        UserError: as `load`, and where it lacks something; a best.pt does.
    """
    contents = load(path)
    _require(contents, TRAINING, path)
    return contents


def _require(contents: dict[str, Any], keys: frozenset[str], path: str | Path) -> None:
    missing = sorted(keys - contents.keys())
    if missing:
        raise UserError(f"{path} is incomplete: it has no {', '.join(missing)}")


def network_of(contents: dict[str, Any], path: str | Path) -> CustomResNet:
    """The network of a loaded checkpoint, weights in place.

    Raises:
        UserError: the weights do not fit a `CustomResNet` of as many classes as the checkpoint names.
    """
    model = CustomResNet(len(contents["classes"]), dropout=contents["options"]["dropout"])
    load_weights(model, contents, path)
    return model


def load_weights(model: torch.nn.Module, contents: dict[str, Any], path: str | Path) -> None:
    """Copies a checkpoint's weights into `model`.

    Raises:
        UserError: they belong to another network.
    """
    try:
        model.load_state_dict(contents["model"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} holds the weights of another network ({reason})") from error
