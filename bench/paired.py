"""What a change of the recipe does to the accuracy, seed by seed, and the table of an ablation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from bench.tables import Column, machine, markdown, percent, value
from fast_cifar.aggregate import t_quantile

Row = Mapping[str, Any]


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and half of its 95 % interval (Student's t); None for one value."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), t_quantile(len(values) - 1) * stdev(values) / len(values) ** 0.5


def judged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows that have runs, with `n`, `mean` and `half` of their validation accuracy, the mean `train_accuracy`,
    and for a change also `difference` and `difference_half`: its accuracy minus the base's, over the seeds of both.

    Args:
        rows: the base, then the changes, each with its `runs`.
    """
    base = by_seed(rows[0])
    result = []
    for row in rows:
        if not row["runs"]:
            continue
        mine = by_seed(row)
        mean, half = mean_and_half(list(mine.values()))
        new = {"n": len(mine), "mean": mean, "half": half}
        new |= {"train_accuracy": fmean(run["train_accuracy"] for run in row["runs"])}
        differences = [accuracy - base[seed] for seed, accuracy in mine.items() if seed in base]
        if row is not rows[0] and differences:
            new["difference"], new["difference_half"] = mean_and_half(differences)
        result.append(dict(row) | new)
    return result


def by_seed(row: Row) -> dict[int, float]:
    return {run["seed"]: run["val_accuracy"] for run in row["runs"]}


def accuracy_text(row: Row) -> str:
    text = percent(row["mean"], digits=2)
    return text if row["half"] is None else f"{text} ± {100 * row['half']:.2f}"


def difference_text(row: Row) -> str:
    """Percentage points, better is positive, and the ends of the interval."""
    if "difference" not in row:
        return ""
    middle, half = row["difference"], row["difference_half"]
    text = f"{100 * middle:+.2f}"
    return text if half is None else f"{text} [{100 * (middle - half):+.2f} .. {100 * (middle + half):+.2f}]"


def count_text(row: Row) -> str:
    diverged = sum(run["diverged"] for run in row["runs"])
    return f"{row['n']}, {diverged} diverged" if diverged else str(row["n"])


RESULTS = [
    Column("change", value("change"), words=True),
    Column("validation accuracy", accuracy_text),
    Column("to the base, points [95 %]", difference_text),
    Column("n", count_text),
    Column("training accuracy", value("train_accuracy", lambda fraction: percent(fraction, digits=2))),
]


def ablation_block(contents: Row) -> str:
    """The Markdown of one file of results. A change's command is the base's with more words before `--runs`."""
    rows = contents["rows"]
    columns = [*RESULTS, Column("command", lambda row: command_text(row, rows[0]), words=True)]
    return " · ".join(machine(contents["environment"])) + "\n\n" + markdown(columns, judged(rows))


def command_text(row: Row, base: Row) -> str:
    common = len(base["words"])
    more = row["words"][common:]
    if more and row["words"][:common] == base["words"]:
        return f"`… {shlex.join(more)} …`"
    return f"`{row['command']}`"
