"""The run folder: configuration, history, summary, checkpoints and pictures of one run."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_cifar.system.errors import UserError
from fast_cifar.system.files import atomic_write

# What a sound row of the history and a sound summary hold: numbers, and in a row null where no test was due.
ROW = ("epoch", "lr", "train_loss", "train_accuracy", "images_per_second", "seconds", "evaluation_seconds")
TESTED = ("test_loss", "test_accuracy")
HELD_OUT = ("val_loss", "val_accuracy")
SUMMARY = (
    "test_accuracy",
    "best_test_accuracy",
    "train_accuracy",
    "seconds",
    "images_per_second",
    "compile_seconds",
)
HIGHEST_NUMBER = 1e100


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
    def create_new(cls, out: str, name: str | None, data: str) -> RunFolder:
        """Makes a folder at `new_path`, and at the next one where another process was quicker.

        Raises:
            UserError: `name` is given and taken, or no folder can be made.
        """
        while True:
            path = new_path(out, name, data)
            try:
                return cls.create(path)
            except UserError:
                if name is not None or not path.is_dir():
                    raise

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
        return _read_object(self / "config.json", "restore it, or begin a new run")

    def write_config(self, options: Mapping[str, Any]) -> None:
        self._write("config.json", options)

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None before it is finished.

        Raises:
            UserError: `summary.json` is damaged.
        """
        path, remedy = self / "summary.json", "delete it, and --resume makes it again"
        if not path.is_file():
            return None
        summary = _read_object(path, remedy)
        untested = summary.get("test_accuracy") is None and "val_accuracy" in summary  # --no-test
        needed = [name for name in SUMMARY if "test" not in name] + ["val_accuracy"] if untested else SUMMARY
        for name in needed:
            if not _is_number(summary.get(name)):
                raise UserError(f"{path} is damaged: {name} is no number in it; {remedy}")
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write("summary.json", summary)

    def write_range_test(self, contents: Mapping[str, Any]) -> None:
        self._write("lrfind.json", contents)

    def range_test(self) -> dict[str, Any] | None:
        """The contents of `lrfind.json`, its three lists sound and of one length; None where no rates were looked for.

        Raises:
            UserError: `lrfind.json` is damaged.
        """
        path, remedy = self / "lrfind.json", "delete it, and measure again with run_lrfind.py"
        if not path.is_file():
            return None
        test = _read_object(path, remedy)
        lists = [test.get(name) for name in ("lrs", "losses", "smoothed")]
        whole = all(isinstance(values, list) and values and all(map(_is_number, values)) for values in lists)
        if not whole or len({len(values) for values in lists}) != 1 or not all(lr > 0 for lr in lists[0]):
            raise UserError(f"{path} is damaged: lrs, losses and smoothed are not as many numbers; {remedy}")
        return test

    def history(self) -> list[dict[str, Any]]:
        """One dictionary for each epoch that is done, in order. A line cut short by a kill ends the history.

        Raises:
            UserError: `metrics.jsonl` cannot be read.
        """
        path = self / "metrics.jsonl"
        rows: list[dict[str, Any]] = []
        if path.is_file():
            for line in _read_bytes(path).splitlines():
                row = _parsed(line)
                if not isinstance(row, dict):
                    break
                rows.append(row)
        return rows

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl` and flushes it to the disk: the checkpoints count on it.

        Raises:
            UserError: the folder cannot be written to, or is full.
        """
        path = self / "metrics.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}); make room and --resume {self.path}") from error

    def cut_history(self, epochs: int) -> list[dict[str, Any]]:
        """Drops what came after `epochs` epochs, and returns the rest.

        Raises:
            UserError: one of those epochs has no sound line. A summary without it would be a wrong one.
        """
        rows = self.history()[:epochs] if epochs else []
        for epoch in range(1, epochs + 1):
            if len(rows) < epoch or not _is_row(rows[epoch - 1], epoch):
                raise UserError(
                    f"{self / 'metrics.jsonl'} is damaged: it has no line for epoch {epoch} of {epochs} that are done; "
                    "restore it, or begin a new run"
                )
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


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    contents = _parsed(_read_bytes(path))
    if not isinstance(contents, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object; {remedy}")
    return contents


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend that, or begin a new run") from error


def _parsed(text: bytes) -> Any:
    """What a JSON text says; None where it is none."""
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a number of thousands of digits, or far too deep
        return None


def _is_row(row: Mapping[str, Any], epoch: int) -> bool:
    """Whether a line of the history is that of this epoch, and whole."""
    tested = [*(row.get(name, "missing") for name in TESTED), *(row.get(name) for name in HELD_OUT)]
    numbers = [*(row.get(name) for name in ROW), *(value for value in tested if value is not None)]
    return all(map(_is_number, numbers)) and row["epoch"] == epoch


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= HIGHEST_NUMBER
