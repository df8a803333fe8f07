"""Do two recipes differ in their test accuracy, or is it chance?

    python -m bench.compare runs/A runs/B                        # run folders of `run_train.py --runs N`
    python -m bench.compare runs/A/summary.json bench/results/runs/B.json
    python -m bench.compare runs/A runs/B --tell 0.1             # how many runs would tell a tenth of a point

Welch's t-test on the last-epoch accuracies of the runs: it does not suppose that both spread alike. The interval is
that of the difference of the means, A minus B, with Welch-Satterthwaite degrees of freedom. The number of runs is of
each recipe, to see a difference of `--tell` in four experiments of five if there is one, at the 5 % level.
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

from bench.measure import print_table, read, write_json
from bench.trials import mean_and_half
from fast_cifar.command_line import Parser
from fast_cifar.runs.stats import t_probability, t_quantile
from fast_cifar.system.errors import UserError, run_script

LEVEL, POWER = 0.05, 0.8
CONDITIONS = ("dataset", "epochs", "precision", "batch_size", "limit_train", "limit_test", "val_split", "tta")


@dataclass(frozen=True)
class Runs:
    """The accuracies of a recipe's runs, and what is known of their conditions."""

    name: str
    accuracies: list[float]
    conditions: dict[str, Any]


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
            raise UserError(f"{runs.name} has one run, and chance cannot be told from one; train more: --runs 5")
    for line in warnings(a, b):
        print(f"warning: {line}")
    result = welch(a.accuracies, b.accuracies)
    cells = []
    for name, runs in (("A", a), ("B", b)):
        mean, half = mean_and_half(runs.accuracies)
        low, high = (f"{100 * end(runs.accuracies):.2f} %" for end in (min, max))
        cells.append([name, runs.name, f"{100 * mean:.2f} % ± {100 * half:.2f}", str(len(runs.accuracies)), low, high])
    print_table("test accuracy, last epoch", ["", "runs", "mean", "n", "lowest", "highest"], cells)
    print(f"t = {result.t:.2f} with {result.freedom:.1f} degrees of freedom")
    print(verdict(result, runs_to_tell(a.accuracies, b.accuracies, options.tell / 100), options.tell))
    if options.json:
        write_json(options.json, {"a": asdict(a), "b": asdict(b), "welch": asdict(result)})


def command_line() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    what = "a run folder of --runs, its summary.json, or a file of bench/results/runs"
    parser.add_argument("a", type=Path, metavar="A", help=what)
    parser.add_argument("b", type=Path, metavar="B", help="likewise")
    parser.add_argument("--tell", type=float, default=0.2, metavar="POINTS", help="worth knowing (default: 0.2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there, too")
    options = parser.parse_args()
    if not 0 < options.tell <= 100:
        raise UserError(f"--tell {options.tell} must lie in 0..100: percentage points")
    return options


def load(path: Path) -> Runs:
    """The runs that a path holds.

    Raises:
        UserError: it holds none.
    """
    file = path / "summary.json" if path.is_dir() else path
    contents = read(file)
    conditions: Mapping[str, Any] = contents
    config = file.parent / "config.json"
    if file.name == "summary.json" and config.is_file():
        conditions = read(config) | contents
    if isinstance(contents.get("summaries"), list) and contents["summaries"]:
        conditions = contents["summaries"][0]
        accuracies = [summary.get("test_accuracy") for summary in contents["summaries"]]
    else:
        accuracies = contents.get("runs", [contents.get("test_accuracy")])
    if not (isinstance(accuracies, list) and accuracies and all(isinstance(one, float) for one in accuracies)):
        raise UserError(f"{path} holds no test accuracies: give a run folder, its summary.json or bench/results/runs")
    failures = {"failures": len(contents["failures"])} if contents.get("failures") else {}
    known = {name: conditions[name] for name in CONDITIONS if name in conditions}
    return Runs(str(path), accuracies, known | failures)


def warnings(a: Runs, b: Runs) -> list[str]:
    """What makes the comparison one of more than the recipes."""
    lines = []
    for name in CONDITIONS:
        mine, theirs = (runs.conditions.get(name) for runs in (a, b))
        if name in a.conditions and name in b.conditions and mine != theirs:
            lines.append(f"they differ in {name}: {mine} and {theirs}")
    for runs in (a, b):
        if "failures" in runs.conditions:
            lines.append(f"{runs.conditions['failures']} runs of {runs.name} failed and are not counted")
    return lines


def welch(a: Sequence[float], b: Sequence[float]) -> Welch:
    """Welch's t-test of two samples of 2 and more.

    Source: Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", Biometrika 34 (1947).
    """
    difference = fmean(a) - fmean(b)
    shares = [variance(values) / len(values) for values in (a, b)]
    error = math.sqrt(sum(shares))
    if error == 0:  # both repeat themselves to the last image
        t, p = (math.copysign(math.inf, difference), 0.0) if difference else (0.0, 1.0)
        return Welch(difference, (difference, difference), t, float(len(a) + len(b) - 2), p)
    freedom = sum(shares) ** 2 / sum(s**2 / (len(v) - 1) for s, v in zip(shares, (a, b), strict=True))
    half = t_quantile(freedom) * error
    t = difference / error
    return Welch(difference, (difference - half, difference + half), t, freedom, t_probability(t, freedom))


def runs_to_tell(a: Sequence[float], b: Sequence[float], difference: float) -> int:
    """How many runs of each recipe would show `difference` with probability `POWER`, if they spread as these do."""
    normal = NormalDist()
    z = normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)
    return max(2, math.ceil(z**2 * (variance(a) + variance(b)) / difference**2))


def verdict(result: Welch, runs: int, tell: float) -> str:
    """One sentence."""
    low, high = (100 * end for end in result.interval)
    p = "p < 0.001" if result.p < 0.001 else f"p = {result.p:.2g}"
    if result.p >= LEVEL:
        return (
            f"no difference can be told: A minus B is {100 * result.difference:+.2f} points "
            f"[{low:+.2f} .. {high:+.2f}], {p}; about {runs} runs of each would tell {tell:g} points"
        )
    if result.difference > 0:
        return f"A is better by {100 * result.difference:.2f} points [{low:.2f} .. {high:.2f}], {p}"
    return f"B is better by {-100 * result.difference:.2f} points [{-high:.2f} .. {-low:.2f}], {p}"


if __name__ == "__main__":
    sys.exit(run_script(main))
