"""Checkpoints: self-describing files, written whole or not at all, and read without running any code in them."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast_cifar.options import HIGHEST_WIDTH
from fast_cifar.system.device import record_work
from fast_cifar.system.errors import UserError
from fast_cifar.system.files import atomic_write, is_number, is_whole

FORMAT = "fast_cifar checkpoint 1"
NETWORK = "CustomResNet"
DESCRIPTION = {"classes": list, "mean": list, "std": list, "size": int, "options": dict, "epoch": int, "model": dict}
TRAINING = {
    "best": float,
    "optimizer": dict,
    "scheduler": dict,
    "scaler": dict,
    "random_state": dict,
    "steps_per_epoch": int,
    "metrics": dict,
    "threads": int,
}
FULL_WIDTH = 64  # the network's width where the options do not give it


def save(path: Path, contents: dict[str, Any], previous: Path | None = None) -> None:
    """Writes a checkpoint that `torch.load(weights_only=True)` can read.

    Args:
        contents: see `load` for the keys; with tensors on the CPU, so that any machine can read it.
        previous: where to keep the file that was at `path`.

    Raises:
        UserError: the folder cannot be written to, or is full.
    """
    buffer = io.BytesIO()  # writing to a file, torch would report a full disk without saying so
    torch.save({"format": FORMAT, "network": NETWORK, **contents}, buffer)
    with atomic_write(path, previous=previous) as file:
        file.write(buffer.getbuffer())


class Writer:
    """Writes checkpoints in a background thread, so that training does not wait for the disk.

        with Writer(device, keep={folder.last: folder.previous}) as writer:
            writer.save({folder.best: contents, folder.last: contents})
        # all files are written

    When `save` is called faster than the disk can write, newer contents of a file replace those that still wait. Files
    are written in the order of their `save`, and those of one `save` in the order of the dictionary.

    Args:
        device: where the tensors are.
        keep: maps a file to the name under which its previous contents are kept.

    Raises:
        UserError: a file could not be written. Raised by the next `save` or at the end of the block.
    """

    def __init__(self, device: torch.device, keep: Mapping[Path, Path] | None = None) -> None:
        self._device = device
        self._keep = keep or {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._lock = threading.Lock()
        self._waiting: dict[Path, tuple[Callable[[], None], dict[str, Any]]] = {}
        self._writes: list[Future[None]] = []  # not yet checked for errors

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self._raise_errors()

    def save(self, files: Mapping[Path, dict[str, Any]]) -> None:
        """Queues `files` to be written with the contents they have now; the tensors may change afterwards."""
        self._raise_errors()
        copies = {path: _copy_to_cpu(contents) for path, contents in files.items()}
        wait_for_copies = record_work(self._device)
        with self._lock:
            for path, contents in copies.items():
                self._waiting.pop(path, None)  # so that the newer contents go to the end of the queue
                self._waiting[path] = (wait_for_copies, contents)
        self._writes.append(self._thread.submit(self._write_waiting))

    def _write_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for path, (wait_for_copies, contents) in waiting.items():
            wait_for_copies()
            save(path, contents, self._keep.get(path))

    def _raise_errors(self) -> None:
        done = [write for write in self._writes if write.done()]
        self._writes = [write for write in self._writes if write not in done]
        for write in done:
            write.result()


def _copy_to_cpu(value: Any) -> Any:
    """A copy on the CPU of every tensor in nested dictionaries and lists; from CUDA it is asynchronous, in order with
    the work submitted before and after it."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True, non_blocking=value.is_cuda)
    if isinstance(value, dict):
        return {key: _copy_to_cpu(entry) for key, entry in value.items()}
    return [_copy_to_cpu(entry) for entry in value] if isinstance(value, list) else value


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint; its tensors are on the CPU.

    Returns:
        A dictionary with at least `network`, `classes` (list of str), `mean` and `std` (3 floats each, 0..1 scale),
        `size` (pixels), `options` (dict), `epoch` (epochs done) and `model` (a state dict).

    Raises:
        UserError: the file is missing, empty, not a checkpoint, or one of another network.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint file")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path} is empty; use another checkpoint of the run")
    unreadable = f"{path} is not a readable checkpoint: it is damaged, or another kind of file"
    if not is_whole(path):
        raise UserError(unreadable)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make torch raise almost anything
        raise UserError(unreadable) from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of fast_cifar ({FORMAT!r})")
    if contents.get("network") != NETWORK:
        raise UserError(f"{path} holds the network {contents.get('network')!r}; only {NETWORK!r} can be used here")
    _require(contents, DESCRIPTION, path)
    _check_description(contents, path)
    return contents


def load_training(path: str | Path) -> dict[str, Any]:
    """Reads a last.pt: what `load` returns, and everything that training needs to continue.

    Raises:
        UserError: as `load`, and if a part is missing, as in a best.pt.
    """
    contents = load(path)
    _require(contents, TRAINING, path)
    return contents


def _require(contents: dict[str, Any], kinds: Mapping[str, type], path: str | Path) -> None:
    missing = sorted(kinds.keys() - contents.keys())
    if missing:
        raise UserError(f"{path} is incomplete: it has no {', '.join(missing)}")
    for key, kind in kinds.items():
        if not isinstance(contents[key], kind):
            raise UserError(f"{path} cannot be used: its {key} is not a {kind.__name__}")


def _check_description(contents: dict[str, Any], path: str | Path) -> None:
    """Refuses values that no run could have written, so that they need no check later."""
    classes, mean, std, model = (contents[key] for key in ("classes", "mean", "std", "model"))
    dropout, width = contents["options"].get("dropout"), contents["options"].setdefault("width", FULL_WIDTH)
    checks = {
        "classes": classes and all(isinstance(name, str) for name in classes),
        "mean": len(mean) == 3 and all(is_number(value) and 0 <= value <= 1 for value in mean),
        "std": len(std) == 3 and all(is_number(value) and 0 < value <= 1 for value in std),
        "model": all(isinstance(key, str) and isinstance(value, Tensor) for key, value in model.items()),
        "dropout": is_number(dropout) and 0 <= dropout < 1,
        "width": type(width) is int and 1 <= width <= HIGHEST_WIDTH,
    }
    for key, is_valid in checks.items():
        if not is_valid:
            raise UserError(f"{path} cannot be used: its {key} has an impossible value")


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Copies the weights of the checkpoint `path` into `model`.

    Raises:
        UserError: they do not fit.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} holds the weights of another network ({reason})") from error
