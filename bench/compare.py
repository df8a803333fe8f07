"""Do two recipes differ in their test accuracy, or could it be chance?

    python -m bench.compare runs/A runs/B                        # run folders of `run_train.py --runs N`
    python -m bench.compare runs/A/summary.json bench/results/runs/B.json
    python -m bench.compare runs/A runs/B --tell 0.1             # how many runs would detect 0.1 pp

Welch's t-test on the last-epoch accuracies of the runs, which does not assume equal variances: on the test images, or,
of runs with --no-test, on the held-out ones. The interval is that of the difference of the means, A minus B, with
Welch-Satterthwaite degrees of freedom. The number of runs is that of each recipe that detects a difference of `--tell`
with a power of about 80 % at the 5 % level. Every option in which the two recipes differ is listed first.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, fmean, variance
from typing import Any

import numpy as np

from bench.measure import print_table, save
from fast_cifar.command_line import Parser
from fast_cifar.options import TrainOptions
from fast_cifar.report import text
from fast_cifar.runs.stats import summarize, t_quantile
from fast_cifar.system.errors import UserError, counted, run_script
from fast_cifar.system.files import read_json

LEVEL, POWER = 0.05, 0.8
# The options that make a recipe, as they are resolved: not what fills them in, nor how often a run is evaluated.
RECIPE = TrainOptions.names(recorded=True, resumable=False) - TrainOptions.names(group="what to do")
RECIPE -= {"runs", "seed", "eval_every", "find_lr", "lr_from"}
COMPARED = sorted(RECIPE | {"dataset", "precision"})


@dataclass(frozen=True)
class Runs:
    """The accuracies of a recipe's runs on "test" or "validation" images, the known conditions, and how many runs
    failed."""

    name: str
    split: str
    accuracies: list[float]
    conditions: dict[str, Any]
    failures: int


@dataclass(frozen=True)
class Welch:
    """Welch's t-test of A against B: the difference of the means, its 95 % interval, t, degrees of freedom, and the
    probability of a t at least as far from 0 if the two do not differ."""

    difference: float
    interval: tuple[float, float]
    t: float
    freedom: float
    p: float


def main() -> None:
    options = command_line()
    a, b = (load(path) for path in (options.a, options.b))
    for runs in (a, b):
        if len(runs.accuracies) < 2:
            raise UserError(f"{runs.name} has one run, which says nothing about chance; train more: --runs 5")
    if a.split != b.split:
        raise UserError(f"{a.name} has {a.split} accuracies and {b.name} {b.split} accuracies: they cannot be compared")
    for line in warnings(a, b):
        print(f"warning: {line}")
    result = welch(a.accuracies, b.accuracies)
    cells = []
    for name, runs in (("A", a), ("B", b)):
        found = summarize([{"test_accuracy": one} for one in runs.accuracies])
        mean = f"{100 * found['mean']:.2f} % ± {50 * (found['interval'][1] - found['interval'][0]):.2f}"
        low, high = (f"{100 * end(runs.accuracies):.2f} %" for end in (min, max))
        cells.append([name, runs.name, mean, str(found["n"]), low, high])
    print_table(f"{a.split} accuracy, last epoch", ["", "runs", "mean", "n", "lowest", "highest"], cells)
    print(f"t = {result.t:.2f} with {result.freedom:.1f} degrees of freedom")
    print(verdict(result, runs_to_tell(a.accuracies, b.accuracies, options.tell / 100), options.tell))
    save(options.json, {"a": asdict(a), "b": asdict(b), "welch": asdict(result)})


def command_line() -> argparse.Namespace:
    parser = Parser(__doc__)
    what = "a run folder of --runs, its summary.json, or a file of bench/results/runs"
    parser.add_argument("a", type=Path, metavar="A", help=what)
    parser.add_argument("b", type=Path, metavar="B", help="likewise")
    parser.add_argument("--tell", type=float, default=0.2, metavar="PP", help="difference to detect (default: 0.2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there, too")
    options = parser.parse_args()
    if not 0 < options.tell <= 100:
        raise UserError(f"--tell {options.tell} must lie in 0..100 percentage points")
    return options


def load(path: Path) -> Runs:
    """The runs that a path holds.

    Raises:
        UserError: it holds none.
    """
    file = path / "summary.json" if path.is_dir() else path
    contents = read_json(file)
    config = file.parent / "config.json"
    conditions: Mapping[str, Any] = contents
    accuracies = contents.get("runs", [contents.get("test_accuracy") or contents.get("val_accuracy")])
    if isinstance(contents.get("summaries"), list) and contents["summaries"]:
        conditions = contents.get("options", {}) | contents["summaries"][0]
        accuracies = [summary.get("test_accuracy") for summary in contents["summaries"]]
    elif file.name == "summary.json" and config.is_file():
        conditions = read_json(config) | contents
    if not (isinstance(accuracies, list) and accuracies and all(isinstance(one, float) for one in accuracies)):
        raise UserError(f"{path} holds no accuracies: give a run folder, its summary.json or bench/results/runs")
    split = "validation" if conditions.get("test_accuracy") is None else "test"
    known = {name: conditions[name] for name in COMPARED if name in conditions}
    return Runs(str(path), split, accuracies, known, len(contents.get("failures", [])))


def warnings(a: Runs, b: Runs) -> list[str]:
    """How the conditions differ, and which runs are missing."""
    lines = []
    for name in COMPARED:
        if name in a.conditions and name in b.conditions and a.conditions[name] != b.conditions[name]:
            lines.append(f"they differ in {name}: {text(a.conditions[name])} and {text(b.conditions[name])}")
    lines += [f"not counted: {counted(runs.failures, 'failed run')} of {runs.name}" for runs in (a, b) if runs.failures]
    return lines


def welch(a: Sequence[float], b: Sequence[float]) -> Welch:
    """Welch's t-test of two samples of 2 and more.

    Source: Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", Biometrika 34 (1947).
    """
    difference = fmean(a) - fmean(b)
    shares = [variance(values) / len(values) for values in (a, b)]
    error = math.sqrt(sum(shares))
    if error == 0:  # all runs of each are equal
        t, p = (math.copysign(math.inf, difference), 0.0) if difference else (0.0, 1.0)
        return Welch(difference, (difference, difference), t, float(len(a) + len(b) - 2), p)
    freedom = sum(shares) ** 2 / sum(s**2 / (len(v) - 1) for s, v in zip(shares, (a, b), strict=True))
    half = t_quantile(freedom) * error
    t = difference / error
    return Welch(difference, (difference - half, difference + half), t, freedom, t_probability(t, freedom))


def t_probability(t: float, freedom: float) -> float:
    """The two-sided p-value: how often Student's t with `freedom` >= 1 is at least as far from 0 as `t`.

    Integrates the density of `t_quantile`; the tail is integrated separately, so that a small p keeps its digits.
    """
    far = np.arctan(abs(t) / np.sqrt(freedom))
    tail, middle = (_area(freedom, *ends) for ends in ((far, np.pi / 2), (0.0, far)))
    return tail / (tail + middle)


def _area(freedom: float, start: float, end: float) -> float:
    """The integral of cos(angle) ** (freedom - 1)."""
    heights = np.cos(np.linspace(start, end, 200_001)) ** (freedom - 1)
    return float((heights.sum() - (heights[0] + heights[-1]) / 2) * (end - start) / 200_000)


def runs_to_tell(a: Sequence[float], b: Sequence[float], difference: float) -> int:
    """How many runs of each recipe detect `difference` with probability `POWER`, at the variances of these.

    Source: Guenther, "Sample size formulas for normal theory t tests", The American Statistician 35 (1981): the number
    for known variances, and a correction because a t-test estimates them.
    """
    normal = NormalDist()
    level, power = normal.inv_cdf(1 - LEVEL / 2), normal.inv_cdf(POWER)
    known = (level + power) ** 2 * (variance(a) + variance(b)) / difference**2
    return max(2, math.ceil(known + level**2 / 4))


def verdict(result: Welch, runs: int, tell: float) -> str:
    """The result in one sentence."""
    low, high = (100 * end for end in result.interval)
    p = "p < 0.001" if result.p < 0.001 else f"p = {result.p:.2g}"
    if result.p >= LEVEL:
        return (
            f"no significant difference: A minus B is {100 * result.difference:+.2f} pp "
            f"[{low:+.2f} .. {high:+.2f}], {p}; about {runs} runs of each would detect {tell:g} pp"
        )
    if result.difference > 0:
        return f"A is better by {100 * result.difference:.2f} pp [{low:.2f} .. {high:.2f}], {p}"
    return f"B is better by {-100 * result.difference:.2f} pp [{-high:.2f} .. {-low:.2f}], {p}"


if __name__ == "__main__":
    sys.exit(run_script(main))
