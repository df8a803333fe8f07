"""Tables between two lines of a Markdown document: `<!-- bench.PROGRAM: NAME -->` and `<!-- bench.PROGRAM: end -->`.

A table is a list of columns, each a title and a function from a row, which is what a benchmark measured, to its text. A
value that a row lacks is an empty cell; a column that is empty in every row is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fast_cifar.runs.stats import summarize
from fast_cifar.system.errors import UserError

MARKER = re.compile(r"^<!-- bench\.(\w+): ([\w.-]+) -->[ \t]*\r?$", re.MULTILINE)

Row = Mapping[str, Any]


def marked(document: Path) -> list[tuple[str, str]]:
    """(program, name) of each table in the document, in order."""
    markers = MARKER.findall(document.read_bytes().decode())
    return [(program, name) for program, name in markers if name != "end"]


def with_blocks(document: Path, blocks: Mapping[tuple[str, str], str]) -> str:
    """The document's text with each of `blocks`, by (program, name), in its place; nothing else is touched.

    Raises:
        UserError: the document lacks a pair of markers.
    """
    text = document.read_bytes().decode()
    for (program, name), block in blocks.items():
        start, end = between_markers(text, name, document, program)
        text = text[:start] + (f"\n{block}\n\n" if block else "") + text[end:]
    return text


def between_markers(text: str, name: str, document: Path, program: str = "report") -> tuple[int, int]:
    """Where the block `name` starts and ends in `text`: after the line of its marker, before that of the end."""
    markers = list(MARKER.finditer(text))
    starts = [i for i, marker in enumerate(markers) if marker.groups() == (program, name)]
    begin, end = (f"<!-- bench.{program}: {word} -->" for word in (name, "end"))
    if len(starts) != 1:
        raise UserError(f"{document} must have one line {begin}, and a line {end} after it; it has {len(starts)}")
    start, *others = markers[starts[0] :]
    if not others or others[0].groups() != (program, "end"):
        raise UserError(f"{document} has no line {end} that belongs to its line {begin}; add it")
    return start.end() + 1, others[0].start()


@dataclass(frozen=True)
class Column:
    title: str
    text: Callable[[Row], str]
    words: bool = False  # flush left, as numbers are not


def value(key: str, text: Callable[[Any], str] = str) -> Callable[[Row], str]:
    """The text of a row's value under `key`; nothing where it has none."""
    return lambda row: "" if row.get(key) is None else text(row[key])


def filled(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[list[Column], list[list[str]]]:
    """The columns that are not empty in every row, and the texts of each row in them."""
    texts = [[column.text(row) for row in rows] for column in columns]
    kept = [i for i, column in enumerate(texts) if any(column)]
    return [columns[i] for i in kept], [[texts[i][k] for i in kept] for k in range(len(rows))]


def markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table without the columns that are empty in every row."""
    columns, cells = filled(columns, rows)
    lines = [
        [column.title for column in columns],
        ["---" if column.words else "---:" for column in columns],
        *([text.replace("|", "\\|") for text in line] for line in cells),
    ]
    return "\n".join(f"| {' | '.join(line)} |".replace("  |", " |") for line in lines)


def count(number: float) -> str:
    return f"{number:,.0f}"


def percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"


def times(ratio: float) -> str:
    return count(ratio) if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"


def seconds(number: float) -> str:
    return count(number) if number >= 1000 else f"{number:.1f}"


def memory(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"


def day(when: str) -> str:
    """2026-11-21 of 2026-11-21T04:12:25+00:00."""
    return when[:10]


def rate(row: Row) -> str:
    """Median and range of a repeated measurement."""
    return f"{count(row['images_per_second'])} [{count(row['min'])} .. {count(row['max'])}]"


def accuracy(row: Row) -> str:
    """Mean test accuracy of the last epoch and, of several seeds, half of its 95 % interval."""
    text = percent(row["mean"], digits=2)
    return text if row["interval"] is None else f"{text} ± {50 * (row['interval'][1] - row['interval'][0]):.2f}"


def spread(key: str, text: Callable[[float], str]) -> Callable[[Row], str]:
    """Mean and, of several seeds, range of what each seed measured."""

    def cell(row: Row) -> str:
        values = [one[key] for one in row["seeds"]]
        return text(fmean(values)) + (f" [{text(min(values))} .. {text(max(values))}]" if len(values) > 1 else "")

    return cell


def to_target(row: Row) -> str:
    """Mean and range of the seconds to the target accuracy, which not every seed need have reached."""
    aim = f"({100 * row['target']:g} %)"
    reached = [one for one in row["seeds"] if one["seconds_to_target"] is not None]
    if len(reached) == len(row["seeds"]):
        return f"{spread('seconds_to_target', seconds)(row)} {aim}"
    return f"{len(reached)} of {len(row['seeds'])} runs {aim}" if reached else f"never {aim}"


COLUMNS = {
    "training": [
        Column("way", value("way"), words=True),
        Column("images/sec, median [range]", rate),
        Column("x first", value("times_first", times)),
        Column("x the usual way", value("times_common", times)),
        Column("of a fixed batch", value("of_fixed_batch", percent)),
        Column("of the matmul peak", value("mfu", percent)),
        Column("peak memory", value("peak_memory_bytes", memory)),
        Column("warm-up, s", value("warm_up_seconds", seconds)),
    ],
    "augmentation": [
        Column("way", value("way"), words=True),
        Column("images/sec, median [range]", rate),
        Column("x torchvision", value("times_torchvision", times)),
        Column("x kornia", value("times_kornia", times)),
        Column("of a copy", value("fraction_of_copy", percent)),
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
        Column("training", value("training_seconds", seconds)),
        Column("evaluation", value("evaluation_seconds", seconds)),
        Column("saving", value("saving_seconds", seconds)),
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
        Column("training accuracy", value("train_accuracy", lambda fraction: percent(fraction, digits=2))),
        Column("n", value("n")),
        Column("images/sec", value("images_per_second", count)),
        Column("device", value("device"), words=True),
        Column("precision", value("precision"), words=True),
        Column("date", value("when", day), words=True),
    ],
}

# What else there is to know of the conditions, where a benchmark writes it into its environment.
CONDITIONS = {
    "dtype": "{}",
    "batch": "batch {:,}",
    "images": "{:,} images",
    "steps": "{:,} steps a repeat",
    "matmul_tflops": "matmul peak {:.3g} TFLOP/s",
}


def bench_block(bench: str, devices: Sequence[Mapping[str, Row]]) -> str:
    """A caption and a table for each device that has measured `bench`, in the order of `devices`."""
    sections = [device[bench] for device in devices if bench in device]
    return "\n\n".join(f"{caption(section)}\n\n{bench_table(bench, section['rows'])}" for section in sections)


def bench_table(bench: str, rows: Sequence[Row]) -> str:
    return markdown(COLUMNS[bench], [all_seeds(rows)] if bench == "end_to_end" else rows)


def all_seeds(rows: Sequence[Row]) -> Row:
    """One row of the seeds of one recipe: means, the highest memory, and the `seeds` themselves."""
    highest = max((row["peak_memory_bytes"] for row in rows if "peak_memory_bytes" in row), default=None)
    return summarize(rows) | {"seeds": rows, "peak_memory_bytes": highest}


def machine(where: Row) -> list[str]:
    """The machine and the day of a measurement."""
    parts = [f"**{where['device']}**", f"torch {where['torch']}"]
    if "threads" not in where["device"]:
        parts.append(f"{where['threads']} threads")
    return [*parts, day(where["when"])]


def caption(section: Row) -> str:
    """The conditions of a measurement and the command that makes it, in one line."""
    where = section["environment"]
    parts = [*machine(where), f"`{section['command']}`"]
    parts += [text.format(where[key]) for key, text in CONDITIONS.items() if where.get(key) is not None]
    repeats = {row["repeats"] for row in section["rows"] if "repeats" in row}
    if repeats:
        parts.append(f"{max(repeats)} interleaved repeats")
    return " · ".join(parts)


def accuracy_block(files: Sequence[Row]) -> str:
    """A table of the files' runs, a row a file, and the commands that made them.

    Args:
        files: each with `command`, `summaries`, and perhaps `title`, `note` and `when`.
    """
    if not files:
        return ""
    rows = [summarize(file["summaries"]) | {"when": file.get("when"), "data": data_of(file)} for file in files]
    commands = []
    for file, row in zip(files, rows, strict=True):
        made_by = ", then ".join(f"`{line}`" for line in file["command"].splitlines())
        note = f". {file['note']}" if file.get("note") else ""
        commands.append(f"- {row['data']}, {row['epochs']} epochs: {made_by}{note}")
    return markdown(COLUMNS["accuracy"], rows) + "\n\n" + "\n".join(commands)


def data_of(file: Row) -> str:
    return file.get("title") or file["summaries"][0]["dataset"]
