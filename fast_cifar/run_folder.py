"""The run folder: configuration, history, summary, checkpoints and pictures of one run."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_cifar.errors import UserError
from fast_cifar.files import atomic_write


class RunFolder:
    """The files of a run below `path`; every file but `metrics.jsonl` is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.pt"
        self.previous = path / "previous.pt"
        self.best = path / "best.pt"

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Makes the folder.

        Raises:
            UserError: it exists already, or cannot be made.
        """
        check_new(path)
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {path}: {error.strerror}; choose another with --out"
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            UserError: `path` is not a run folder.
        """
        if not os.path.isfile(path / "config.json"):
            raise UserError(f"{path} is not a run folder: it has no config.json")
        return cls(path)

    def tidy(self) -> None:
        """Removes what a killed process had begun to write, here and in the folders of single runs."""
        for temporary in self.path.rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def config(self) -> dict[str, Any]:
        """The options that the run was started with.

        Raises:
            UserError: `config.json` is damaged.
        """
        return _read_object(self / "config.json")

    def write_config(self, options: Mapping[str, Any]) -> None:
        self._write("config.json", options)

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None before it is finished."""
        return _read_object(self / "summary.json") if (self / "summary.json").is_file() else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write("summary.json", summary)

    def write_range_test(self, contents: Mapping[str, Any]) -> None:
        self._write("lrfind.json", contents)

    def history(self) -> list[dict[str, Any]]:
        """One dictionary for each epoch that is done, in order. A line cut short by a kill ends the history."""
        if not (self / "metrics.jsonl").is_file():
            return []
        rows: list[dict[str, Any]] = []
        for line in (self / "metrics.jsonl").read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`.

        Raises:
            UserError: the folder cannot be written to, or is full.
        """
        path = self / "metrics.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}); make room and --resume {self.path}") from error

    def cut_history(self, epochs: int) -> list[dict[str, Any]]:
        """Drops what came after `epochs` epochs, and returns the rest."""
        rows = self.history()[:epochs]
        with atomic_write(self / "metrics.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        return rows

    def _write(self, name: str, contents: Mapping[str, Any]) -> None:
        with atomic_write(self / name) as file:
            file.write((json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())


def new_path(out: str, name: str | None, data: str) -> Path:
    """Where a new run goes: `out`/`name`, named after the data and the time where no name is given."""
    if name is not None:
        return Path(out) / name
    title = Path(data).resolve().name.split(".")[0] or "run"
    first = Path(out) / f"{title}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (first.with_name(f"{first.name}-{k}") for k in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not os.path.lexists(path))


def check_new(path: Path) -> None:
    """Makes sure, before any work is done, that a run folder can be made at `path`.

    Raises:
        UserError: it exists already, or what it lies in is no folder or cannot be written to.
    """
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; choose another --name, or go on with it: --resume {path}")
    nearest = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not os.path.isdir(nearest):
        raise UserError(f"cannot make the run folder {path}: {nearest} is not a folder; choose another with --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot make the run folder {path}: {nearest} cannot be written to; choose another with --out")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: it is no JSON") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return contents
