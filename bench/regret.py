"""How much accuracy a learning rate gives away: a curve through noisy accuracies, and a bootstrap around it.

The curve is a parabola in log2 of the learning rate near the top, and straight lines between the grid's means
elsewhere. Near the top means: within `OCTAVES` of the best mean and within `DROP` below it, as one point beyond a
cliff, where training collapses, would bend the whole parabola; if fewer than `FEWEST` points are, the best `FEWEST`.

In simulations with three runs a rate and 1,000 images held out, the regret on a smooth top is right to one point (root
mean square; 0.1 at the top itself), and nine of ten intervals hold the truth; 5,000 images halve the error, and then
eight or nine of ten do. Where a cliff lies between two points of the grid, nobody knows which side of it a rate between
them is on: there neither the number nor the interval means much. On a wide plateau with steep sides a parabola adds up
to a point.

`RULES` are those that read a learning rate off a range test; `judged` says what each of them gives away in one setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.markdown import Column, machine, markdown, percent, value
from fast_cifar.lr_curve import Suggestion, smooth, suggest

OCTAVES, DROP, FEWEST = 2.0, 0.05, 4
RESAMPLES, CONFIDENCE = 2_000, 0.95

Row = Mapping[str, Any]
OURS = "suggestion"
RULES = (OURS, "steepest", "valley", "minimum/10", "minimum")


@dataclass(frozen=True)
class Curve:
    """Accuracy against x = log2 of the learning rate.

    Attributes:
        x, means: the grid, rising, and the mean accuracy at each of its points.
        low, high: the ends of the parabola's range.
        parabola: its coefficients, highest power first; empty where the grid has too few points for one.
    """

    x: np.ndarray
    means: np.ndarray
    low: float
    high: float
    parabola: np.ndarray

    def __call__(self, x: float | np.ndarray) -> np.ndarray:
        """The fitted accuracy; beyond the grid, that of its end."""
        x = np.clip(x, self.x[0], self.x[-1])
        straight = np.interp(x, self.x, self.means)
        if not len(self.parabola):
            return straight
        return np.where((x >= self.low) & (x <= self.high), np.polyval(self.parabola, x), straight)

    def best(self) -> tuple[float, float]:
        """(x, accuracy) of the highest point: the vertex, an end of the parabola, or a mean."""
        candidates = [self.low, self.high, *self.x]
        if len(self.parabola) and self.parabola[0] < 0:
            candidates.append(float(np.clip(-self.parabola[1] / (2 * self.parabola[0]), self.low, self.high)))
        heights = self(np.array(candidates))
        top = int(heights.argmax())
        return candidates[top], float(heights[top])


def fit(x: np.ndarray, means: np.ndarray) -> Curve:
    """The curve through the mean accuracies at a rising grid of log2 learning rates."""
    top = means.argmax()
    near = (np.abs(x - x[top]) <= OCTAVES + 1e-9) & (means >= means[top] - DROP)
    if near.sum() < FEWEST:
        near = np.zeros(len(x), dtype=bool)
        near[np.argsort(-means, kind="stable")[:FEWEST]] = True
    enough = near.sum() >= FEWEST
    parabola = np.polyfit(x[near], means[near], 2) if enough else np.empty(0)
    return Curve(x, means, float(x[near].min()), float(x[near].max()), parabola)


@dataclass(frozen=True)
class Regret:
    """What a learning rate gives away, as a fraction of the images.

    Attributes:
        value: the curve's highest point minus the curve at that rate.
        interval: 95 %, for the noise of the runs and not for that of the range test; None where no point of the grid
            has two runs.
        is_bound: the rate lies outside the grid, so that the regret is at least that.
    """

    value: float
    interval: tuple[float, float] | None
    is_bound: bool


def regrets(runs: Mapping[float, Sequence[float]], rates: Sequence[float], seed: int = 0) -> list[Regret]:
    """The regret of each of `rates`.

    Args:
        runs: learning rate to the accuracies of its runs.
        rates: learning rates to judge.
        seed: of the bootstrap, which resamples the runs at each point of the grid and fits the curve anew.
    """
    x = np.log2(np.array(sorted(runs)))
    accuracies = [np.asarray(runs[rate], dtype=np.float64) for rate in sorted(runs)]
    asked = np.log2(np.asarray(rates, dtype=np.float64))
    means = np.array([values.mean() for values in accuracies])
    estimates = _below_the_top(fit(x, means), asked)
    intervals = [None] * len(asked)
    if max(map(len, accuracies)) > 1:
        generator = np.random.default_rng(seed)
        resampled = np.stack([_resampled_means(values, generator) for values in accuracies], axis=1)
        intervals = _intervals(estimates, np.array([_below_the_top(fit(x, row), asked) for row in resampled]))
    outside = (asked < x[0] - 1e-9) | (asked > x[-1] + 1e-9)
    return [Regret(float(value), *rest) for value, *rest in zip(estimates, intervals, outside.tolist(), strict=True)]


def _below_the_top(curve: Curve, x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, curve.best()[1] - curve(x))


def _resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means of `RESAMPLES` samples with replacement, spread as the mean of n runs is: resampling alone makes them too
    close by sqrt((n - 1) / n), which is much for three runs."""
    n = len(values)
    means = values[generator.integers(0, n, (RESAMPLES, n))].mean(axis=1)
    return values.mean() + (n / max(1, n - 1)) ** 0.5 * (means - values.mean())


def _intervals(estimates: np.ndarray, resampled: np.ndarray) -> list[tuple[float, float]]:
    """From the quantiles of `resampled` [RESAMPLES, rates]; the lower end also from their mirror image.

    A regret is never negative, so noise can only add to a small one, and its resampled values forget 0.
    """
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    low = np.maximum(0.0, np.minimum(low, 2 * estimates - high))
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


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
