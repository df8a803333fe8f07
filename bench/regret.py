"""Validation accuracy lost against the best LR: a curve through noisy accuracies, and a bootstrap around it.

The curve is a parabola in log2 of the learning rate near the top, and straight lines between the grid's means
elsewhere. Near the top means: within `OCTAVES` of the best mean and within `DROP` below it, as one point beyond a
cliff, where training collapses, would bend the whole parabola; if fewer than `FEWEST` points are, the best `FEWEST`.

In simulations with three runs a rate and 1,000 held-out images, the regret on a smooth top has an error of 1 pp (root
mean square; 0.1 at the top itself), and nine of ten intervals contain the truth; 5,000 images halve the error, and then
eight or nine of ten do. Between two points of the grid with a cliff between them, neither the number nor the interval
means much. On a wide plateau with steep sides a parabola adds up to 1 pp.

`RULES` read a learning rate off a range test; `with_regret` computes the regret of each of them in one setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.markdown import Column, caption, markdown, value
from fast_cifar.lr_curve import smooth, suggest
from fast_cifar.system.errors import percent

OCTAVES, DROP, FEWEST = 2.0, 0.05, 4
RESAMPLES, CONFIDENCE = 2_000, 0.95
FINE = 401  # points of the curve among which its highest is sought

Row = Mapping[str, Any]
OURS = "suggestion"
RULES = (OURS, "steepest", "valley", "minimum/10", "minimum")


def fitted(x: np.ndarray, means: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The accuracies at the log2 learning rates `at`; beyond the grid, that of its end.

    Args:
        x, means: the grid of log2 learning rates, rising, and the mean accuracy at each of its points.
    """
    top = means.argmax()
    near = (np.abs(x - x[top]) <= OCTAVES + 1e-9) & (means >= means[top] - DROP)
    if near.sum() < FEWEST:
        near = np.isin(np.arange(len(x)), np.argsort(-means, kind="stable")[:FEWEST])
    at = np.clip(at, x[0], x[-1])
    curve = np.interp(at, x, means)
    if near.sum() >= FEWEST:
        inside = (at >= x[near].min()) & (at <= x[near].max())
        curve[inside] = np.polyval(np.polyfit(x[near], means[near], 2), at[inside])
    return curve


def best(x: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """(log2 learning rate, accuracy) at the curve's highest point."""
    fine = np.concatenate([x, np.linspace(x[0], x[-1], FINE)])
    curve = fitted(x, means, fine)
    return float(fine[curve.argmax()]), float(curve.max())


def regrets(runs: Mapping[float, Sequence[float]], rates: Sequence[float], seed: int = 0) -> list[dict[str, Any]]:
    """The regret of each of `rates`, as a fraction of the images.

    Args:
        runs: learning rate to the accuracies of its runs.
        seed: of the bootstrap, which resamples the runs at each point of the grid and fits the curve anew.

    Returns:
        For each rate `value`, the curve's highest point minus the curve there; `interval`, 95 %, for the noise of the
        runs but not of the range test, or None where no point of the grid has two runs; and `is_bound`: the rate lies
        outside the grid, so that the regret is at least `value`.
    """
    x, means = grid_of(runs)
    asked = np.log2(np.asarray(rates, dtype=np.float64))
    estimates = _lost(x, means, asked)
    intervals = [None] * len(asked)
    if max(map(len, runs.values())) > 1:
        generator = np.random.default_rng(seed)
        resampled = np.stack([_resampled_means(np.array(runs[rate]), generator) for rate in sorted(runs)], axis=1)
        intervals = _intervals(estimates, np.array([_lost(x, row, asked) for row in resampled]))
    outside = (asked < x[0] - 1e-9) | (asked > x[-1] + 1e-9)
    return [
        {"value": value, "interval": interval, "is_bound": is_bound}
        for value, interval, is_bound in zip(estimates.tolist(), intervals, outside.tolist(), strict=True)
    ]


def grid_of(runs: Mapping[float, Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the learning rates, rising, and the mean accuracy at each."""
    return np.log2(sorted(runs)), np.array([np.mean(runs[rate]) for rate in sorted(runs)])


def _lost(x: np.ndarray, means: np.ndarray, at: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, best(x, means)[1] - fitted(x, means, at))


def _resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means of `RESAMPLES` samples with replacement, with the spread of the mean of n runs: resampling alone makes it
    too small by sqrt((n - 1) / n), which is much for three runs."""
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


def read_curves(curves: Sequence[Row]) -> dict[str, Any]:
    """What today's rules read off finished range tests.

    Args:
        curves: one for each seed, with `lrs` and `losses`, or with `failed`.

    Returns:
        `rates`, rule to learning rate, the geometric mean over the seeds, and `suggestions`, those of each seed. Both
        are empty where no range test succeeded.
    """
    found = [suggest(one["lrs"], smooth(one["losses"])) for one in curves if "failed" not in one]
    if not found:
        return {"rates": {}, "suggestions": []}
    each = [(one.lr_max, one.steepest, one.valley, one.minimum / 10, one.minimum) for one in found]
    means = np.exp(np.mean(np.log(each), axis=0)).tolist()
    return {"rates": dict(zip(RULES, means, strict=True)), "suggestions": [one.lr_max for one in found]}


def with_regret(row: Row) -> dict[str, Any]:
    """`row` with what its `curves` and its `runs` say.

    Added are `rates` and `suggestions` (see `read_curves`), and where runs are done `best_lr` and `best_accuracy` of
    the fitted curve, and `regret`, rule to its entry of `regrets`.
    """
    row = dict(row) | read_curves(row["curves"])
    runs = accuracies(row["runs"])
    if not runs or not row["rates"]:
        return row
    x, accuracy = best(*grid_of(runs))
    found = regrets(runs, list(row["rates"].values()))
    return row | {"best_lr": 2.0**x, "best_accuracy": accuracy, "regret": dict(zip(row["rates"], found, strict=True))}


def accuracies(runs: Sequence[Row]) -> dict[float, list[float]]:
    """Learning rate, rising, to the validation accuracies of its runs."""
    rates = sorted({run["lr_max"] for run in runs})
    return {rate: [run["val_accuracy"] for run in runs if run["lr_max"] == rate] for rate in rates}


def regret_text(rule: str, with_interval: bool = False) -> Callable[[Row], str]:
    """Percentage points; ">=" before a lower bound."""

    def text(row: Row) -> str:
        regret = row.get("regret", {}).get(rule)
        if regret is None:
            return ""
        number = f"{'>= ' if regret['is_bound'] else ''}{100 * regret['value']:.2f}"
        if not with_interval or regret["interval"] is None:
            return number
        low, high = regret["interval"]
        return f"{number} [{100 * low:.2f} .. {100 * high:.2f}]"

    return text


def suggestion_text(row: Row) -> str:
    """The suggestion and, with several seeds, their range."""
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
    Column("suggestion [seeds]", suggestion_text),
    Column("best LR", value("best_lr", "{:.3g}".format)),
    Column("accuracy there", value("best_accuracy", percent)),
    Column("regret of the suggestion, pp [95 %]", regret_text(OURS, with_interval=True)),
    *(Column(rule, regret_text(rule)) for rule in RULES if rule != OURS),
    Column("trainings", runs_text),
]


def sweep_block(contents: Row) -> str:
    """The Markdown of one file of results, of an interrupted sweep too."""
    rows = [row if "rates" in row else with_regret(row) for row in contents["rows"]]
    command = f"`{contents['command']}`" if "command" in contents else None
    return f"{caption(contents['environment'], command=command)}\n\n{markdown(COLUMNS, rows)}"
