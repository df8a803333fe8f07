"""The rules that read a learning rate off a range test, and what each of them gives away in one setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.regret import fit, regrets
from bench.tables import Column, machine, markdown, percent, value
from fast_cifar.lr_curve import Suggestion, smooth, suggest

Row = Mapping[str, Any]
OURS = "suggestion"
RULES = (OURS, "steepest", "valley", "minimum/10", "minimum")


def rates_of(found: Suggestion) -> dict[str, float]:
    """The learning rate that each rule takes from one curve."""
    return {
        OURS: found.lr_max,
        "steepest": found.steepest,
        "valley": found.valley,
        "minimum/10": found.minimum / 10,
        "minimum": found.minimum,
    }


def read_curves(curves: Sequence[Row]) -> dict[str, Any]:
    """What today's rules say about range tests that are done.

    Args:
        curves: each with `lrs` and `losses`, a seed's; one that came to nothing has `failed` instead.

    Returns:
        `rates`, rule to learning rate, the geometric mean over the seeds, and `suggestions`, ours seed by seed. Both
        are empty where no range test succeeded.
    """
    each = [rates_of(suggest(one["lrs"], smooth(one["losses"]))) for one in curves if "failed" not in one]
    rates = {rule: math.exp(float(np.mean(np.log([one[rule] for one in each])))) for rule in RULES} if each else {}
    return {"rates": rates, "suggestions": [one[OURS] for one in each]}


def judged(row: Row) -> dict[str, Any]:
    """`row` with what its `curves` and its `runs` say.

    Added are `rates` and `suggestions` (see `read_curves`), and where runs are done `best_lr` and `best_accuracy` of
    the fitted curve, and for each rule `regret`: {"value", "interval", "is_bound"}.
    """
    row = dict(row) | read_curves(row["curves"])
    runs = accuracies(row["runs"])
    if not runs or not row["rates"]:
        return row
    found = regrets(runs, list(row["rates"].values()))
    x, best = fitted(runs).best()
    return row | {
        "best_lr": 2.0**x,
        "best_accuracy": best,
        "regret": {
            rule: {"value": one.value, "interval": one.interval, "is_bound": one.is_bound}
            for rule, one in zip(row["rates"], found, strict=True)
        },
    }


def accuracies(runs: Sequence[Row]) -> dict[float, list[float]]:
    """Learning rate, rising, to the validation accuracies of its runs."""
    grid: dict[float, list[float]] = {}
    for run in sorted(runs, key=lambda run: run["lr_max"]):
        grid.setdefault(run["lr_max"], []).append(run["val_accuracy"])
    return grid


def fitted(runs: Mapping[float, Sequence[float]]) -> Any:
    """The curve through the means of `accuracies`."""
    return fit(np.log2(list(runs)), np.array([np.mean(values) for values in runs.values()]))


def regret_text(rule: str, with_interval: bool = False) -> Any:
    """Percentage points; ">=" where it is only known to be that much."""

    def text(row: Row) -> str:
        regret = row.get("regret", {}).get(rule)
        if regret is None:
            return ""
        words = f"{'>= ' if regret['is_bound'] else ''}{100 * regret['value']:.2f}"
        if with_interval and regret["interval"] is not None:
            low, high = (100 * end for end in regret["interval"])
            words += f" [{low:.2f} .. {high:.2f}]"
        return words

    return text


def suggestion_text(row: Row) -> str:
    """The suggestion and, of several seeds, the range of theirs."""
    if not row.get("rates"):
        return "none"
    text, each = f"{row['rates'][OURS]:.3g}", row["suggestions"]
    return text if len(each) == 1 else f"{text} [{min(each):.3g} .. {max(each):.3g}]"


def runs_text(row: Row) -> str:
    """How many trainings, and how many of them diverged."""
    diverged = sum(run["diverged"] for run in row["runs"])
    return f"{len(row['runs'])}, {diverged} diverged" if diverged else str(len(row["runs"]))


COLUMNS = [
    Column("setting", value("setting"), words=True),
    Column("tuned on", lambda row: "yes" if row.get("tuned_on") else "", words=True),
    Column("suggestion [seeds]", suggestion_text),
    Column("best LR", value("best_lr", "{:.3g}".format)),
    Column("accuracy there", value("best_accuracy", lambda fraction: percent(fraction, digits=2))),
    Column("regret of the suggestion, points [95 %]", regret_text(OURS, with_interval=True)),
    *(Column(rule, regret_text(rule)) for rule in RULES if rule != OURS),
    Column("trainings", runs_text),
]


def sweep_block(contents: Row) -> str:
    """The Markdown of one file of results; a sweep that was interrupted is judged by what it has."""
    rows = [row if "rates" in row else judged(row) for row in contents["rows"]]
    command = [f"`{contents['command']}`"] if "command" in contents else []
    return " · ".join([*machine(contents["environment"]), *command]) + "\n\n" + markdown(COLUMNS, rows)
