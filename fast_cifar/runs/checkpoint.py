"""Checkpoints: written whole or not at all, read without running anything, and describing themselves."""

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

from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.options import HIGHEST_WIDTH
from fast_cifar.system.device import record_work
from fast_cifar.system.errors import UserError
from fast_cifar.system.files import atomic_write, is_whole

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
HIGHEST_NUMBER = 1e30
FULL_WIDTH = 64  # of the first checkpoints, which do not say it


def save(path: Path, contents: dict[str, Any], previous: Path | None = None) -> None:
    """Writes `contents`, which `torch.load(weights_only=True)` reads again; see `load` for the keys. What was there is
    kept as `previous`.

    Raises:
        UserError: the folder cannot be written to, or is full.
    """
    buffer = io.BytesIO()  # torch turns the errors of a file, such as a full disk, into ones that say nothing
    on_cpu = _with_tensors(contents, Tensor.cpu)  # so that any machine can read it
    torch.save({"format": FORMAT, "network": NETWORK, **on_cpu}, buffer)
    with atomic_write(path, previous=previous) as file:
        file.write(buffer.getbuffer())


class Writer:
    """Writes checkpoints beside the training, which waits for nothing but a place in the queue.

        with Writer(device, keep={folder.last: folder.previous}) as writer:
            writer.save({folder.best: contents, folder.last: contents})
        # now all is written

    An epoch may take less time than the disk does. Then what waits to be written gives way to newer contents of the
    same file. Files of one `save` are written in their order, and none before those of an earlier `save` that remain.

    Args:
        device: where the tensors are.
        keep: for a file, under which name its contents before the last are kept.

    Raises, from `save` or at the end of the block:
        UserError: a file could not be written.
    """

    def __init__(self, device: torch.device, keep: Mapping[Path, Path] | None = None) -> None:
        self._device = device
        self._keep = keep or {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._lock = threading.Lock()
        self._waiting: dict[Path, tuple[Callable[[], None], dict[str, Any]]] = {}
        self._writes: list[Future[None]] = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self._raise_what_failed()

    def save(self, files: Mapping[Path, dict[str, Any]]) -> None:
        """Orders `files` to be written with their contents of this moment."""
        self._raise_what_failed()
        copies = {path: _with_tensors(contents, _copy_soon) for path, contents in files.items()}
        until_copied = record_work(self._device)
        with self._lock:
            for path, contents in copies.items():
                self._waiting.pop(path, None)  # dictionaries keep the order: the newer contents go to its end
                self._waiting[path] = (until_copied, contents)
        self._writes.append(self._thread.submit(self._write_what_waits))

    def _write_what_waits(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for path, (until_copied, contents) in waiting.items():
            until_copied()
            save(path, contents, self._keep.get(path))

    def _raise_what_failed(self) -> None:
        running = [write for write in self._writes if not write.done()]
        done, self._writes = [write for write in self._writes if write.done()], running
        for write in done:
            write.result()


def _copy_soon(tensor: Tensor) -> Tensor:
    """A copy on the CPU; one from CUDA is there once the device has come to it."""
    return tensor.detach().to("cpu", copy=True, non_blocking=tensor.is_cuda)


def _with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of dictionaries and lists with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _with_tensors(entry, change) for key, entry in value.items()}
    return [_with_tensors(entry, change) for entry in value] if isinstance(value, list) else value


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
    if not is_whole(path):
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
    _check_description(contents, path)
    return contents


def load_training(path: str | Path) -> dict[str, Any]:
    """Reads a last.pt, which holds what `load` returns and all that training needs to go on.

    Raises:
        UserError: as `load`, and where it lacks something; a best.pt does.
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
            raise UserError(f"{path} cannot be used: its {key} is no {kind.__name__}")


def _check_description(contents: dict[str, Any], path: str | Path) -> None:
    """Refuses what no run could have written, so that nothing later has to ask."""
    classes, mean, std, model = (contents[key] for key in ("classes", "mean", "std", "model"))
    dropout = contents["options"].get("dropout")
    width = contents["options"].get("width", FULL_WIDTH)
    sound = {
        "classes": classes and all(isinstance(name, str) for name in classes),
        "mean": len(mean) == 3 and all(map(_is_number, mean)),
        "std": len(std) == 3 and all(_is_number(value) and value > 0 for value in std),
        "model": all(isinstance(key, str) and isinstance(value, Tensor) for key, value in model.items()),
        "dropout": _is_number(dropout) and 0 <= dropout < 1,
        "width": type(width) is int and 1 <= width <= HIGHEST_WIDTH,
    }
    for what, is_sound in sound.items():
        if not is_sound:
            raise UserError(f"{path} cannot be used: its {what} makes no sense")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= HIGHEST_NUMBER


def network_of(contents: dict[str, Any], path: str | Path) -> CustomResNet:
    """The network of a loaded checkpoint, weights in place.

    Raises:
        UserError: the weights do not fit a `CustomResNet` of as many classes as the checkpoint names.
    """
    options = contents["options"]
    width = options.get("width", FULL_WIDTH)
    model = CustomResNet(len(contents["classes"]), options["dropout"], width)
    load_weights(model, contents["model"], path)
    return model


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Copies the weights of the checkpoint `path` into `model`.

    Raises:
        UserError: they belong to another network.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} holds the weights of another network ({reason})") from error
