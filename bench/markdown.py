"""The benchmarks' tables, on the screen and between two lines of a Markdown document.

The lines are `<!-- bench.PROGRAM: NAME -->` and `<!-- bench.PROGRAM: end -->`. A table is a list of columns, each a
title and a function from a row of measurements to its text. A value that a row lacks is an empty cell; a column that is
empty in every row is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.measure import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, print_table
from fast_cifar.runs.stats import summarize
from fast_cifar.system.errors import UserError, counted, percent

MARKER = re.compile(r"^<!-- bench\.(\w+): ([\w.-]+) -->[ \t]*\r?$", re.MULTILINE)

Row = Mapping[str, Any]


def with_blocks(document: Path, make: Callable[[str, str], str]) -> str:
    """The document's text with `make(program, name)` between each pair of markers; the rest is untouched.

    Raises:
        UserError: a marker has no partner.
    """
    text = document.read_bytes().decode()
    result, done = "", 0
    markers = list(MARKER.finditer(text))
    for begin, end in zip_longest(markers[::2], markers[1::2]):
        program, name = begin.groups()
        if name == "end" or end is None or end.groups() != (program, "end"):
            raise UserError(
                f"{document}: {begin.group().strip()} and <!-- bench.{program}: end --> must stand in pairs"
            )
        block = make(program, name)
        result += text[done : begin.end() + 1] + (f"\n{block}\n\n" if block else "")
        done = end.start()
    return result + text[done:]


@dataclass(frozen=True)
class Column:
    title: str
    text: Callable[[Row], str]
    words: bool = False  # flush left; numbers are flush right


def value(key: str, text: Callable[[Any], str] = str) -> Callable[[Row], str]:
    """The text of a row's value under `key`; empty where it has none."""
    return lambda row: "" if row.get(key) is None else text(row[key])


def filled(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[list[Column], list[list[str]]]:
    """The columns that are not empty in every row, and the texts of each row in them."""
    texts = [[column.text(row) for row in rows] for column in columns]
    kept = [i for i, column in enumerate(texts) if any(column)]
    return [columns[i] for i in kept], [[texts[i][k] for i in kept] for k in range(len(rows))]


def print_rows(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """The table on the screen, below a title."""
    columns, cells = filled(columns, rows)
    print_table(title, [column.title for column in columns], cells)


def markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The table in a document."""
    columns, cells = filled(columns, rows)
    lines = [
        [column.title for column in columns],
        ["---" if column.words else "---:" for column in columns],
        *([text.replace("|", "\\|") for text in line] for line in cells),
    ]
    return "\n".join(f"| {' | '.join(line)} |".replace("  |", " |") for line in lines)


count = "{:,.0f}".format
share_percent = partial(percent, digits=1)


def times(ratio: float) -> str:
    return count(ratio) if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"


def seconds(number: float) -> str:
    return count(number) if number >= 1000 else f"{number:.1f}"


def milliseconds(number: float) -> str:
    return count(1000 * number) if number >= 0.1 else f"{1000 * number:.3g}"


def memory(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"


def rate(row: Row) -> str:
    """Median and range of a repeated measurement."""
    return f"{count(row['images_per_second'])} [{count(row['min'])} .. {count(row['max'])}]"


def accuracy(row: Row) -> str:
    """Mean test accuracy of the last epoch and, of several seeds, half of its 95 % interval."""
    text = percent(row["mean"])
    return text if row["interval"] is None else f"{text} ± {50 * (row['interval'][1] - row['interval'][0]):.2f}"


def spread(key: str, text: Callable[[float], str]) -> Callable[[Row], str]:
    """Mean and, of several seeds, range of what each seed measured."""

    def cell(row: Row) -> str:
        values = [one[key] for one in row["seeds"]]
        return text(fmean(values)) + (f" [{text(min(values))} .. {text(max(values))}]" if len(values) > 1 else "")

    return cell


def to_target(row: Row) -> str:
    """Mean and range of the seconds to the target accuracy, if every seed reached it."""
    aim = f"({100 * row['target']:g} %)"
    reached = [one for one in row["seeds"] if one["seconds_to_target"] is not None]
    if len(reached) == len(row["seeds"]):
        return f"{spread('seconds_to_target', seconds)(row)} {aim}"
    return f"{len(reached)} of {len(row['seeds'])} runs {aim}" if reached else f"never {aim}"


def of_pass(name: str) -> Callable[[Row], str]:
    """Milliseconds of a layer's pass, and in brackets its share of the limit."""

    def cell(row: Row) -> str:
        one = row.get("passes", {}).get(name)
        return f"{milliseconds(one['seconds'])} ({percent(one['share_of_limit'], digits=0)})" if one else ""

    return cell


def recipe(options: Row) -> str:
    """What tells recipes apart; defaults change, and a command does not say them."""
    padding = {"reflect": "mirrored", "zeros": "black"}[options["pad_mode"]]
    words = [
        f"width {options['width']}, LRMAX {options['lr_max']:.3g}, weight decay {options['weight_decay']:g}, "
        f"label smoothing {options['label_smoothing']:g}, {padding} padding",
        *(["alternating flips"] if options["alternate_flips"] else []),
        *([f"EMA {options['ema']:g}"] if options["ema"] else []),
        *(["test-time augmentation"] if options["tta"] else []),
    ]
    return ", ".join(words)


COLUMNS = {
    "training": [
        Column("variant", value("variant"), words=True),
        Column("images/sec, median [range]", rate),
        Column("x first", value("times_first", times)),
        Column("x baseline", value("times_baseline", times)),
        Column("of a fixed batch", value("of_fixed_batch", share_percent)),
        Column("of the fastest product", value("mfu", share_percent)),
        Column("peak memory", value("peak_memory_bytes", memory)),
        Column("warm-up, s", value("warm_up_seconds", seconds)),
    ],
    "roofline": [
        Column("layer", value("layer"), words=True),
        Column("batch", value("batch")),
        Column("GFLOP", value("flops", lambda number: f"{number / 1e9:,.1f}" if number else "")),
        Column("MB", value("bytes", lambda number: f"{number / 1e6:,.1f}")),
        Column("bound by", lambda row: "FLOPs" if row["seconds_of_flops"] > row["seconds_of_bytes"] else "bytes"),
        Column("allowed, ms", value("seconds_allowed", milliseconds)),
        Column("taken, ms", value("seconds", milliseconds)),
        Column("share of limit", value("share_of_limit", share_percent)),
        *(Column(name, of_pass(name)) for name in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT)),
    ],
    "trace": [
        Column("kind", value("kind"), words=True),
        Column("ms a step", value("ms", "{:,.3f}".format)),
        Column("share", value("share", share_percent)),
    ],
    "augmentation": [
        Column("variant", value("variant"), words=True),
        Column("images/sec, median [range]", rate),
        Column("x torchvision", value("times_torchvision", times)),
        Column("x kornia", value("times_kornia", times)),
        Column("of a copy", value("fraction_of_copy", share_percent)),
    ],
    "end_to_end": [
        Column("data", lambda row: f"{row['dataset']}, {count(row['images'])} images", words=True),
        Column("epochs", value("epochs")),
        Column("batch", value("batch_size")),
        Column("precision", lambda row: row["precision"] + (", compiled" if row["compiled"] else ""), words=True),
        Column("n", value("n")),
        Column("test accuracy", accuracy),
        Column("to the target, s", to_target),
        Column("total, s", spread("total_seconds", seconds)),
        Column("training", value("seconds", seconds)),
        Column("evaluation", value("evaluation_seconds", seconds)),
        Column("saving", value("save_seconds", seconds)),
        Column("compiling", value("compile_seconds", seconds)),
        Column("other", value("other_seconds", seconds)),
        Column("images/sec", spread("images_per_second", count)),
        Column("peak memory", value("peak_memory_bytes", memory)),
    ],
    "accuracy": [
        Column("data", value("data"), words=True),
        Column("epochs", value("epochs")),
        Column("batch", value("batch_size")),
        Column("parameters", value("parameters", count)),
        Column("test accuracy, last epoch", accuracy),
        Column("training accuracy (running, augmented images)", value("train_accuracy", percent)),
        Column("n", value("n")),
        Column("training, min", value("seconds", lambda number: f"{number / 60:.1f}")),
        Column("PFLOP", value("training_flops", lambda number: f"{number / 1e15:.3g}")),
        Column("images/sec", value("images_per_second", count)),
        Column("device", value("device"), words=True),
        Column("precision", value("precision"), words=True),
        Column("date", value("when", "{:.10}".format), words=True),
        Column("recipe", recipe, words=True),
    ],
}

# Conditions that a benchmark may have written into its environment.
CONDITIONS: dict[str, Callable[[Any], str]] = {
    "dtype": str,
    "precision": str,
    "mode": str,
    "batch": "batch {:,}".format,
    "images": partial(counted, noun="image"),
    "steps": lambda n: f"{counted(n, 'step')} a repeat",
    "images_per_second": "{:,.0f} images/sec without the profiler".format,
    "matmul_tflops": "fastest product measured {:.3g} TFLOP/s".format,
    "bandwidth": "fastest traffic measured {0[0]:,.1f} to {0[1]:,.1f} GB/s".format,
}


def bench_block(bench: str, devices: Sequence[Mapping[str, Row]]) -> str:
    """A caption and a table for each device that has measured `bench`, in the order of `devices`."""
    blocks = []
    for section in (device[bench] for device in devices if bench in device):
        rows = [all_seeds(section["rows"])] if bench == "end_to_end" else section["rows"]
        where = caption(section["environment"], section["rows"], f"`{section['command']}`")
        blocks.append(f"{where}\n\n{markdown(COLUMNS[bench], rows)}")
    return "\n\n".join(blocks)


def all_seeds(rows: Sequence[Row]) -> Row:
    """One row for the seeds of one recipe: means, the highest memory, and the `seeds` themselves."""
    return summarize(rows) | {"seeds": rows}


def caption(environment: Row, rows: Sequence[Row] = (), command: str | None = None) -> str:
    """The device, the day, the command and the conditions of a measurement in one line."""
    parts = [environment["device"], f"torch {environment['torch']}"]
    if "thread" not in environment["device"]:
        parts.append(counted(environment["threads"], "thread"))
    parts += [environment["when"][:10], *([command] if command else [])]
    parts += [text(environment[key]) for key, text in CONDITIONS.items() if environment.get(key) is not None]
    if repeats := max((row.get("repeats", 0) for row in rows), default=0):
        parts.append(counted(repeats, "interleaved repeat"))
    return " · ".join(parts)


def accuracy_block(files: Sequence[Row]) -> str:
    """A table of the files' runs, a row a file, and the commands that made them.

    Args:
        files: each with `command`, `options`, `summaries`, and perhaps `title`, `note` and `when`.
    """
    if not files:
        return ""
    rows, commands = [], []
    for file in files:
        row = file["options"] | summarize(file["summaries"]) | {"when": file.get("when")}
        row["data"] = file.get("title") or row["dataset"]
        rows.append(row)
        made_by = ", then ".join(f"`{line}`" for line in file["command"].splitlines())
        note = f". {file['note']}" if file.get("note") else ""
        commands.append(f"- {row['data']}, {row['epochs']} epochs: {made_by}{note}")
    return markdown(COLUMNS["accuracy"], rows) + "\n\n" + "\n".join(commands)
