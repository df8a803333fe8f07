"""What a run folder holds, read for people: whatever is missing is None, whatever is damaged is an error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fast_cifar.runs.run_folder import RunFolder
from fast_cifar.system.errors import UserError


@dataclass(frozen=True)
class Record:
    """One run, several seeds of one, or a range test.

    Attributes:
        name: of the folder.
        summary: None before the run is finished.
        history: rows of metrics.jsonl.
        range_test: contents of lrfind.json, if rates were looked for.
        seeds: of a run of several seeds, each of those that have begun; otherwise none.
    """

    name: str
    folder: RunFolder
    config: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    history: Sequence[Mapping[str, Any]]
    range_test: Mapping[str, Any] | None
    seeds: tuple[Record, ...]

    @property
    def several(self) -> bool:
        return _is_of_several(self.config)

    @property
    def only_range_test(self) -> bool:
        """Whether this is a folder of `run_lrfind.py`."""
        return "epochs" not in self.config

    @property
    def singles(self) -> tuple[Record, ...]:
        """The runs of single seeds: this one, unless it has several."""
        return self.seeds if self.several else (self,)

    @property
    def epochs(self) -> int:
        """Epochs that the run is to have, or has had."""
        planned = number(self.config.get("epochs")) or 1
        return max(int(planned), *(len(single.history) for single in self.singles), 1)

    @property
    def data(self) -> str | None:
        """The data set's own name; before the run is finished, the option's last part."""
        named = [single.summary.get("dataset") for single in (self, *self.seeds) if single.summary]
        option = self.config.get("data")
        return next(iter(named), None) or (Path(option).name or option if isinstance(option, str) else None)

    def measured(self, name: str) -> float | None:
        """A number of the summary; before there is one, that of the last epoch that has it."""
        if self.summary is not None:
            return number(self.summary.get(name))
        known = [value for row in self.history if (value := number(row.get(name))) is not None]
        return known[-1] if known else None

    @property
    def accuracies(self) -> list[float]:
        """The test accuracies of the seeds that are finished."""
        listed = self.summary.get("runs") if self.summary else None
        if not isinstance(listed, list):
            listed = [seed.summary.get("test_accuracy") for seed in self.seeds if seed.summary]
        return [value for value in map(number, listed) if value is not None]

    @property
    def half_interval(self) -> float | None:
        """Half of the 95 % confidence interval of the mean over seeds."""
        ends = self.summary.get("interval") if self.summary else None
        if not isinstance(ends, list) or len(ends) != 2:
            return None
        low, high = map(number, ends)
        return None if low is None or high is None else (high - low) / 2


def read(path: str | Path) -> Record:
    """Reads a run folder, that of a range test, or that of several seeds with what lies in it.

    Raises:
        UserError: `path` is no run folder, or one of its files is damaged.
    """
    folder = RunFolder.open(Path(path))
    config = folder.config()
    if not {"data", "batch_size", "seed"} <= config.keys():
        raise UserError(f"{path} is not a run folder: its config.json does not hold the options of a run")
    return Record(
        name=folder.path.resolve().name,
        folder=folder,
        config=config,
        summary=folder.summary(),
        history=_history(folder),
        range_test=folder.range_test(),
        seeds=tuple(map(read, _seed_folders(folder.path))) if _is_of_several(config) else (),
    )


def number(value: Any) -> float | None:
    """The value if it is a finite number, otherwise None."""
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100
    return value if sound and math.isfinite(value) else None


def _is_of_several(config: Mapping[str, Any]) -> bool:
    return number(config.get("runs")) is not None


def _seed_folders(path: Path) -> list[Path]:
    """run-1, run-2, ... in the order of their numbers.

    A folder without a configuration has not begun; one of several seeds is none: it may be a link to `path`.
    """
    found = [
        (int(match[1]), child) for child in path.iterdir() if (match := re.fullmatch(r"run-(\d{1,5})", child.name))
    ]
    begun = [RunFolder(child) for _, child in sorted(found) if (child / "config.json").is_file()]
    return [seed.path for seed in begun if not _is_of_several(seed.config())]


def _history(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows; only the last line of a run that is not finished may be cut short.

    Raises:
        UserError: a line is no row, or not that of its epoch.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = len(path.read_bytes().splitlines()) if path.is_file() else 0
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    rows = folder.history()
    sound = [row for epoch, row in enumerate(rows, start=1) if row.get("epoch") == epoch]
    finished = (folder / "summary.json").is_file()
    if len(sound) < len(rows) or len(rows) < lines - (not finished):
        raise UserError(f"{path} is damaged: not every line is that of its epoch; restore it, or leave the run out")
    return rows
