"""The run folder: configuration, history, summary, checkpoints and images of one run."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fast_cifar.system.errors import UserError
from fast_cifar.system.files import (
    atomic_write,
    is_number,
    locked,
    parse_json,
    read_json,
    require_writable,
    write_json,
)

# The numbers in a valid row of the history and in a valid summary; in a row those of the evaluations may be null.
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


class RunFolder:
    """The files of a run in `path`; every file but `metrics.jsonl` is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.pt"
        self.previous = path / "previous.pt"
        self.best = path / "best.pt"

    @classmethod
    def create(cls, out: str, name: str | None, data: str) -> RunFolder:
        """Creates the folder `new_path`, or the next one if another process has just created that.

        Raises:
            UserError: `name` is given and taken, or no folder can be created.
        """
        while True:
            path = new_path(out, name, data)
            try:
                path.mkdir(parents=True)
                return cls(path)
            except OSError as error:
                if name is None and os.path.isdir(path):
                    continue
                raise UserError(
                    f"cannot create the run folder {path}: {error.strerror}; choose another --name or --out"
                ) from error

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            UserError: `path` is not a run folder.
        """
        if not os.path.isfile(path / "config.json"):
            raise UserError(f"{path} is not a run folder: it has no config.json")
        return cls(path)

    def locked(self) -> AbstractContextManager[None]:
        """In the block, no other process can train in this folder.

        Raises:
            UserError: another one does.
        """
        return locked(self.path, f"another process is training in {self.path}; wait for it, or begin a new run")

    def tidy(self) -> None:
        """Removes the unfinished files of a killed process, here and in the folders of single runs."""
        for temporary in self.path.rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def config(self) -> dict[str, Any]:
        """The options that the run was started with.

        Raises:
            UserError: `config.json` is damaged.
        """
        return read_json(self / "config.json", "restore it, or start a new run")

    def write_config(self, options: Mapping[str, Any]) -> None:
        write_json(self / "config.json", options)

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None before it is finished.

        Raises:
            UserError: `summary.json` is damaged.
        """
        path, remedy = self / "summary.json", "delete it, and --resume will write it again"
        if not path.is_file():
            return None
        summary = read_json(path, remedy)
        untested = summary.get("test_accuracy") is None and "val_accuracy" in summary  # --no-test
        needed = [name for name in SUMMARY if "test" not in name] + ["val_accuracy"] if untested else SUMMARY
        for name in [*needed, *({"ema"} & summary.keys())]:
            if not _is_measured(summary.get(name)):
                raise UserError(f"{path} is damaged: its {name} is not a number; {remedy}")
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self / "summary.json", summary)

    def write_range_test(self, contents: Mapping[str, Any]) -> None:
        write_json(self / "lrfind.json", contents)

    def range_test(self) -> dict[str, Any] | None:
        """The contents of `lrfind.json`, three valid lists of one length; None if there was no range test.

        Raises:
            UserError: `lrfind.json` is damaged.
        """
        path, remedy = self / "lrfind.json", "delete it, and measure again with run_lrfind.py"
        if not path.is_file():
            return None
        test = read_json(path, remedy)
        lists = [test.get(name) for name in ("lrs", "losses", "smoothed")]
        whole = all(isinstance(values, list) and values and all(map(_is_measured, values)) for values in lists)
        if not whole or len({len(values) for values in lists}) != 1 or not all(lr > 0 for lr in lists[0]):
            raise UserError(f"{path} is damaged: lrs, losses and smoothed are not lists of as many numbers; {remedy}")
        return test

    def suggested_rates(self) -> tuple[float, float]:
        """(LRMIN, LRMAX) of the range test in this folder.

        Raises:
            UserError: there is none, or its rates are damaged.
        """
        test = self.range_test()
        if test is None:
            raise UserError(f"{self.path} holds no range test; run_lrfind.py makes one")
        suggestion = test.get("suggestion")
        rates = [suggestion.get(name) for name in ("lr_min", "lr_max")] if isinstance(suggestion, dict) else []
        if len(rates) != 2 or not all(map(_is_measured, rates)) or not 0 < rates[0] < rates[1]:
            raise UserError(f"{self / 'lrfind.json'} is damaged: its suggestion is not two rates; measure again")
        return rates[0], rates[1]

    def history(self) -> list[dict[str, Any]]:
        """One dictionary for each finished epoch, in order. A line cut short by a kill ends the history.

        Raises:
            UserError: `metrics.jsonl` cannot be read.
        """
        path = self / "metrics.jsonl"
        if not path.is_file():
            return []
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); fix that, or start a new run") from error
        return list(itertools.takewhile(lambda row: row is not None, map(parse_json, lines)))

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl` and flushes it to the disk; a checkpoint of the epoch is written after it.

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
        """Removes the rows after the first `epochs` epochs, and returns those that stay.

        Raises:
            UserError: one of those epochs has no valid row, so that a summary would be wrong.
        """
        rows = self.history()[:epochs] if epochs else []
        for epoch in range(1, epochs + 1):
            if len(rows) < epoch or not _is_row(rows[epoch - 1], epoch):
                raise UserError(
                    f"{self / 'metrics.jsonl'} is damaged: it has no line for epoch {epoch} of {epochs} that are done; "
                    "restore it, or start a new run"
                )
        with atomic_write(self / "metrics.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        return rows


def new_path(out: str, name: str | None, data: str) -> Path:
    """Where a new run goes: `out`/`name`, or if no name is given, a free one made of the data's name and the time."""
    if name is not None:
        return Path(out) / name
    title = Path(data).resolve().name.split(".")[0] or "run"
    first = Path(out) / f"{title}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (first.with_name(f"{first.name}-{k}") for k in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not os.path.lexists(path))


def check_new(path: Path) -> None:
    """Checks, before any work is done, that a run folder can be created at `path`.

    Raises:
        UserError: it exists already, or its parent cannot be created or written to.
    """
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; choose another --name, or continue that run: --resume {path}")
    require_writable(path.parent, "choose another folder with --out")


def predicted_by(run: Mapping[str, Any]) -> str:
    """ " (test-time augmentation, EMA 0.99)" or less, of a summary or a configuration; earlier ones do not say it."""
    ways = ["test-time augmentation"] if run.get("tta") else []
    ways += [f"EMA {run['ema']:g}"] if is_number(run.get("ema")) and run["ema"] else []
    return f" ({', '.join(ways)})" if ways else ""


def _is_row(row: Mapping[str, Any], epoch: int) -> bool:
    """Whether a row of the history is that of this epoch, and complete."""
    tested = [*(row.get(name, "missing") for name in TESTED), *(row.get(name) for name in HELD_OUT)]
    numbers = [*(row.get(name) for name in ROW), *(value for value in tested if value is not None)]
    return all(map(_is_measured, numbers)) and row["epoch"] == epoch


def _is_measured(value: Any) -> bool:
    return is_number(value) and value >= 0
