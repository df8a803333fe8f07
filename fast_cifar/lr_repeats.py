"""Several range tests of one recipe: one curve, one answer, and how far the seeds agree."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from fast_cifar.aggregate import t_quantile
from fast_cifar.lr_curve import Suggestion, divergence, rises_first, smooth, suggest
from fast_cifar.option_fields import HIGHEST_RATE

DISAGREEMENT = 2.0  # highest LRMAX over the lowest above which the seeds disagree


@dataclass(frozen=True)
class RangeTest:
    """A finished sweep: one entry per optimiser step in each list, cut where the loss diverged.

    Attributes:
        divergence: the rate from which on the loss diverged; None where it never did.
        warnings: what a reader must know, a sentence each.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: Suggestion
    divergence: float | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        return self.divergence is not None


@dataclass(frozen=True)
class Spread:
    """How far the seeds' LRMAX lie apart; learning rates are compared on a logarithmic scale.

    Attributes:
        lowest, highest: of the seeds' own.
        factor: one standard deviation (n - 1), at least 1: most seeds lie within LRMAX / factor and LRMAX * factor.
        interval: the two ends of the 95 % confidence interval of their geometric mean (Student's t); None below three
            seeds, where it would span decades.
    """

    lowest: float
    highest: float
    factor: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class RepeatedRangeTest(RangeTest):
    """What several seeds say together: the mean curve, and of each rate the geometric mean.

    A seed that diverged before half of them goes into the mean with its last loss from there on, and where half of
    them have diverged the curve ends.

    Attributes:
        sweep: "exponential" or "linear".
        repeats, seeds: the single sweeps that could be read, and their seeds.
        lr_max_spread: how far their LRMAX lie apart; None for a single one.
    """

    sweep: str = "exponential"
    repeats: list[RangeTest] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    lr_max_spread: Spread | None = None


def read(rates: Sequence[float], losses: list[float], ruined: bool) -> RangeTest:
    """Reads a curve of at least 2 steps; `ruined` says that divergence ended the sweep."""
    lrs = list(rates[: len(losses)])
    smoothed = smooth(losses)
    broke_at = divergence(lrs, smoothed) if ruined else None
    return RangeTest(lrs, losses, smoothed.tolist(), suggest(lrs, smoothed), broke_at)


def combined(
    repeats: Mapping[int, RangeTest], failures: Mapping[int, str], sweep: str, lr_end: float
) -> RepeatedRangeTest:
    """What the sweeps of several seeds say together.

    Args:
        repeats: seed -> its sweep, at least one, all at the same rates as far as they go.
        failures: seed -> why it is left out.
        sweep, lr_end: "exponential" or "linear", and the last rate that any of them could have reached.
    """
    tests = list(repeats.values())
    lr_maxes = [one.suggestion.lr_max for one in tests]
    losses = mean_curve([one.losses for one in tests])
    broke_at = [one.divergence for one in tests if one.diverged]
    return RepeatedRangeTest(
        lrs=max((one.lrs for one in tests), key=len)[: len(losses)],
        losses=losses,
        smoothed=mean_curve([one.smoothed for one in tests]),
        suggestion=mean_suggestion([one.suggestion for one in tests]),
        divergence=geometric_mean(broke_at) if 2 * len(broke_at) >= len(tests) else None,
        warnings=warnings(tests, lr_end, failures),
        sweep=sweep,
        repeats=tests,
        seeds=list(repeats),
        lr_max_spread=spread(lr_maxes) if len(tests) > 1 else None,
    )


def spread(lr_maxes: Sequence[float]) -> Spread:
    """The spread of at least two rates."""
    logs = np.log(lr_maxes)
    deviation = statistics.stdev(logs.tolist())
    interval = None
    if len(logs) > 2:
        half = t_quantile(len(logs) - 1) * deviation / len(logs) ** 0.5
        interval = (float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half)))
    return Spread(min(lr_maxes), max(lr_maxes), float(np.exp(deviation)), interval)


def mean_suggestion(suggestions: Sequence[Suggestion]) -> Suggestion:
    """The geometric mean of each rate."""
    if len(suggestions) == 1:
        return suggestions[0]
    names = [rate.name for rate in fields(Suggestion)]
    return Suggestion(**{name: geometric_mean([getattr(one, name) for one in suggestions]) for name in names})


def geometric_mean(rates: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(rates))))


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """The mean of at least one curve, step by step, as far as half of them or more reach."""
    return _side_by_side(curves).mean(axis=0).tolist()


def band(curves: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """The lowest and the highest of the curves at each step, as far as `mean_curve` reaches."""
    table = _side_by_side(curves)
    return table.min(axis=0).tolist(), table.max(axis=0).tolist()


def _side_by_side(curves: Sequence[Sequence[float]]) -> np.ndarray:
    """[curves, steps]. A curve that ended sooner goes on at its last value: without the seeds that diverged the mean
    would seem to fall."""
    length = sorted(map(len, curves))[len(curves) // 2]
    return np.array([[*curve, *[curve[-1]] * (length - len(curve))][:length] for curve in curves])


def warnings(tests: Sequence[RangeTest], lr_end: float, failures: Mapping[int, str] | None = None) -> list[str]:
    """What a reader of the answer must know, a sentence each.

    Args:
        tests: of each seed, at least one.
        lr_end: the last rate of the sweep.
        failures: seed -> why its curve says nothing and is left out.
    """
    found = [f"seed {seed} is left out: {why}" for seed, why in (failures or {}).items()]
    ruined = [one for one in tests if rises_first(np.asarray(one.smoothed))]
    if ruined:
        found.append(
            f"the loss rose before it fell{_share(ruined, tests)}, so its fall may be no more than a recovery; "
            "start lower or rise more slowly: --lr-start --lr-end --iters"
        )
    if whole := [one for one in tests if not one.diverged and one not in ruined]:
        further = f"sweep further: --lr-end {10 * lr_end:g}" if 10 * lr_end <= HIGHEST_RATE else "sweep more slowly"
        found.append(
            f"the loss did not diverge up to {lr_end:.3g}{_share(whole, tests)}, so LRMAX may be too low; {further}"
        )
    lr_maxes = [one.suggestion.lr_max for one in tests]
    factor = max(lr_maxes) / min(lr_maxes)
    if factor > DISAGREEMENT:
        found.append(
            f"the seeds' LRMAX disagree by a factor of {factor:.1f}, {min(lr_maxes):.3g} to {max(lr_maxes):.3g}; "
            "more --iters, a larger --batch-size or more --repeats make it surer"
        )
    return found


def _share(some: Sequence[RangeTest], tests: Sequence[RangeTest]) -> str:
    return f" with {len(some)} of {len(tests)} seeds" if len(tests) > 1 else ""
