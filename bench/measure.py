"""What the benchmarks share: their options, the clock, the table, the JSON files, and the command to repeat them."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fast_cifar.command_line import Parser
from fast_cifar.system.device import describe_device, synchronize
from fast_cifar.system.errors import UserError
from fast_cifar.system.files import write_json

OUTPUTS = ("--json", "--plot")  # where results go, which is not part of the command to repeat


def interleave(
    cases: Mapping[str, Callable[[], int]], *, repeats: int, device: torch.device, warm_ups: int = 1
) -> dict[str, dict[str, Any]]:
    """Times the cases in turn, A B C A B C, so that whatever else the machine does disturbs all of them alike.

    Args:
        cases: name to a callable that does the work and returns how many images it processed.
        repeats: timed calls of each case, at least 1.
        device: synchronised before and after each timed call.
        warm_ups: calls of each case before the first timed one; compilation happens here.

    Returns:
        Name to `images_per_second`, the median, `min` and `max`, and the number of `repeats`.
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
    return {
        name: {"images_per_second": median(rates), "min": min(rates), "max": max(rates), "repeats": repeats}
        for name, rates in samples.items()
    }


def arguments(manual: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; `manual` is the script's docstring."""
    parser = Parser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there, too")
    parser.add_argument("--quick", action="store_true", help="a smoke run: little data, few repeats, rough numbers")
    return parser


def parsed(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The options of this process; with --quick, `quick` are the defaults."""
    if parser.parse_args().quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Refuses options below 1; None is fine."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")


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


def save_rows(path: Path | None, environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    save(path, {"environment": environment, "rows": rows})


def save(path: Path | None, contents: Mapping[str, Any]) -> None:
    """Writes a JSON file; nothing where `path` is None."""
    if path is not None:
        write_json(path, contents)


def python_command(program: str, arguments: Sequence[str]) -> str:
    """The command in one line, with the variables that change its speed: `OMP_NUM_THREADS=1 python -m bench.training`.

    Args:
        program: what follows `python`, such as "-m bench.training".
        arguments: its options; a path of this machine, which would tell others nothing, becomes FOLDER or ARCHIVE.
    """
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("OMP_")]
    return " ".join([*variables, "python", program, shlex.join(portable(arguments))]).rstrip()


def portable(arguments: Sequence[str]) -> list[str]:
    """`arguments` without `OUTPUTS`, and with a word in the place of each path, in lists with commas too."""
    words = []
    skip = False
    for word in arguments:
        if skip or word in OUTPUTS:
            skip = not skip
        elif not word.startswith(tuple(f"{output}=" for output in OUTPUTS)):
            words.append(",".join(map(_without_path, word.split(","))))
    return words


def _without_path(word: str) -> str:
    flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if os.sep not in value:
        return word
    return flag + equals + ("ARCHIVE" if os.path.isfile(value) else "FOLDER")
