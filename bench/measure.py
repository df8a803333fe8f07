"""What the benchmarks share: their options, the clock, the table, the JSON files, and what to type elsewhere.

options = arguments(__doc__).parse_args()
device = resolve_device(options.device)
rates = interleave({"ours": train_some, "theirs": train_some_otherwise}, repeats=5, device=device)
print_table(header(environment(device)), ["way", "images/sec"], [[way, str(rate)] for way, rate in rates.items()])
write_rows(options.json, environment(device), [rate.as_dict() | {"way": way} for way, rate in rates.items()])
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fast_cifar.command_line import Parser
from fast_cifar.system.device import describe_device, synchronize
from fast_cifar.system.errors import UserError
from fast_cifar.system.files import atomic_write

PLACES = ("--json", "--picture")  # where results go is nobody else's concern


@dataclass(frozen=True)
class Rate:
    """Images/sec of one case, a number for each repeat."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.samples)

    def __str__(self) -> str:
        return f"{self.median:,.0f} [{min(self.samples):,.0f} .. {max(self.samples):,.0f}]"

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file: median, minimum and maximum in images/sec, and the number of repeats."""
        return {
            "images_per_second": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "repeats": len(self.samples),
        }


def interleave(
    cases: Mapping[str, Callable[[], int]], *, repeats: int, device: torch.device, warm_ups: int = 1
) -> dict[str, Rate]:
    """Times the cases in turn, A B C A B C, so that whatever else the machine does disturbs all of them alike.

    Args:
        cases: name to a callable that does the work and returns how many images it processed.
        repeats: timed calls of each case, at least 1.
        device: synchronised before and after each timed call.
        warm_ups: calls of each case before the first timed one; compilation happens here.
    """
    for case in cases.values():
        for _ in range(warm_ups):
            case()
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            synchronize(device)
            start = time.perf_counter()
            images = case()
            synchronize(device)
            samples[name].append(images / (time.perf_counter() - start))
    return {name: Rate(tuple(values)) for name, values in samples.items()}


def arguments(manual: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; `manual` is the script's docstring."""
    parser = Parser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there, too")
    parser.add_argument("--quick", action="store_true", help="a smoke run: little data, few repeats, rough numbers")
    return parser


def environment(device: torch.device) -> dict[str, Any]:
    """Where and when the numbers were measured."""
    return {
        "device": describe_device(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def header(environment: Mapping[str, Any]) -> str:
    """The environment in one line."""
    return (
        f"{environment['device']} · torch {environment['torch']} · python {environment['python']} · "
        f"{environment['threads']} threads · {environment['when']}"
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a title, the column names and the rows; the first column flush left, the others flush right."""
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    print(title)
    for line in (columns, ["-" * width for width in widths], *rows):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())


def write_rows(path: Path | None, environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `{"environment": ..., "rows": [...]}` to `path`; nothing where that is None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        contents = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is no JSON; mend it or delete it") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object; mend it or delete it")
    return contents


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(contents, indent=2, ensure_ascii=False) + "\n")


def write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def python_command(program: str, arguments: Sequence[str]) -> str:
    """The command in one line, with the variables that change its speed: `OMP_NUM_THREADS=1 python -m bench.training`.

    Args:
        program: what follows `python`, such as "-m bench.training".
        arguments: a path of this machine among them, which would say nothing to others, becomes FOLDER or ARCHIVE.
    """
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("OMP_")]
    return " ".join([*variables, "python", program, shlex.join(portable(arguments))]).rstrip()


def portable(arguments: Sequence[str]) -> list[str]:
    """`arguments` without `PLACES` and without paths; a list with commas keeps what is no path."""
    words = []
    skip = False
    for word in arguments:
        if skip or word in PLACES:
            skip = not skip
        elif not word.startswith(tuple(f"{place}=" for place in PLACES)):
            words.append(",".join(map(_without_path, word.split(","))))
    return words


def _without_path(word: str) -> str:
    flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if os.sep not in value:
        return word
    return flag + equals + ("ARCHIVE" if os.path.isfile(value) else "FOLDER")
