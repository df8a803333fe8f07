"""Reading a range test: from noisy losses against rising learning rates to the two ends of a cycle.

Several range tests of one recipe give one curve, one answer, and how far the seeds agree.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from fast_cifar.options import HIGHEST_RATE
from fast_cifar.runs.stats import t_quantile

FEWEST_POINTS = 10  # with fewer, a curve says nothing
WINDOW = 5  # steps of the running median: a spike of two is not seen
SPREAD = 2.0  # steps, standard deviation of the Gaussian, at least
SHARE = 30  # it is the sweep's steps over this where that is more: a longer sweep is a less noisy one
BASIN = 0.05  # share of the whole fall within which the loss counts as lowest
LEAST_FALL = 0.02  # share of the lowest loss
ONSET = 0.1  # share of the whole fall at which the loss counts as falling
RUIN = 0.25  # share of the whole fall that is lost again where the loss counts as diverging
EARLY_RISE = 0.25  # share of the whole fall by which a loss may rise before it
DISAGREEMENT = 2.0  # highest LRMAX over the lowest above which the seeds disagree


@dataclass(frozen=True)
class Suggestion:
    """Learning rates read off a range test.

    Attributes:
        lr_min, lr_max: the two ends of the one cycle to use, lr_min < lr_max.
        steepest: where the smoothed loss falls fastest against the logarithm of the rate.
        valley: the middle of the descent, where half of the fall is done.
        minimum: where the smoothed loss is lowest; beyond it training begins to suffer.
    """

    lr_min: float
    lr_max: float
    steepest: float
    valley: float
    minimum: float


def smooth(losses: Sequence[float]) -> np.ndarray:
    """A running median, deaf to single spikes, then a Gaussian; float64, as long as `losses`."""
    values = np.asarray(losses, dtype=np.float64)
    steps = np.arange(len(values))
    last_begin = max(0, len(values) - WINDOW)  # the windows at the ends are whole ones too
    medians = np.array([np.median(values[i : i + WINDOW]) for i in np.clip(steps - WINDOW // 2, 0, last_begin)])
    spread = max(SPREAD, len(values) / SHARE)
    # One row of weights at a time: all of them would be 80 GB for 100,000 steps.
    return np.array([np.average(medians, weights=np.exp(-0.5 * ((steps - i) / spread) ** 2)) for i in steps])


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the median of the last losses is above the lowest running median by that much again, and by half of what
    had been gained since the start: a single spike is not enough, early or late."""
    if len(losses) < 2 * WINDOW:
        return False
    medians = np.median(np.lib.stride_tricks.sliding_window_view(np.asarray(losses), WINDOW), axis=1)
    best = medians.min()
    return bool(medians[-1] - best > max(best, (medians[0] - best) / 2))


def has_fallen(smoothed: np.ndarray) -> bool:
    """Whether the loss fell, before its minimum, by a share that is more than noise. Where it did not, a suggestion is
    meaningless."""
    lowest = int(smoothed.argmin())
    return lowest >= 2 and smoothed[: lowest + 1].max() > (1 + LEAST_FALL) * smoothed[lowest]


def rises_first(smoothed: np.ndarray) -> bool:
    """Whether the loss rose before it fell: the first steps ruined the network, and the fall is its recovery."""
    lowest = int(smoothed.argmin())
    top = int(smoothed[: lowest + 1].argmax())
    return bool(smoothed[top] - smoothed[: top + 1].min() > EARLY_RISE * (smoothed[top] - smoothed[lowest]))


def failure(lrs: Sequence[float], losses: Sequence[float]) -> str | None:
    """Why a curve says nothing, and what to do about it; None where it can be read. One that is shorter than
    `FEWEST_POINTS` was cut there by divergence."""
    if len(losses) < FEWEST_POINTS:
        return f"the loss diverged after {len(losses)} steps; start lower: run_lrfind.py --lr-start"
    if not has_fallen(smooth(losses)):
        return (
            f"the loss never fell between {lrs[0]:.3g} and {lrs[-1]:.3g}; "
            "sweep further or more slowly: run_lrfind.py --lr-start --lr-end --iters"
        )
    return None


def divergence(lrs: Sequence[float], smoothed: np.ndarray) -> float:
    """The rate from which on a quarter of the fall is lost again for good; the last one where the sweep ended before
    that, as it does when a loss is infinite all at once."""
    lowest = int(smoothed.argmin())
    fall = smoothed[: lowest + 1].max() - smoothed[lowest]
    last_sound = np.flatnonzero(smoothed <= smoothed[lowest] + RUIN * fall)[-1]
    return float(lrs[min(last_sound + 1, len(smoothed) - 1)])


def suggest(lrs: Sequence[float], smoothed: np.ndarray, *, basin: float = BASIN) -> Suggestion:
    """Reads the suggestion off a smoothed curve, against the logarithm of the rate however the rates are spaced.

    LRMAX is the middle, on a logarithmic scale, of the basin around the minimum: within it the loss is as low as it
    gets, and the middle depends less on noise than the minimum itself. LRMIN is where the loss begins to fall, and at
    most a tenth of LRMAX.

    Args:
        lrs: at least 2 rising learning rates.
        smoothed: the loss at each of them.
        basin: share of the whole fall within which the loss counts as lowest, in [0, 1).
    """
    log_lrs = np.log(np.asarray(lrs))
    lowest = int(smoothed.argmin())
    top = int(smoothed[: lowest + 1].argmax())
    fall = smoothed[top] - smoothed[lowest]
    outside = np.flatnonzero(smoothed > smoothed[lowest] + basin * fall)
    left = outside[outside < lowest].max(initial=-1) + 1
    right = outside[outside > lowest].min(initial=len(smoothed)) - 1
    lr_max = float(np.exp((log_lrs[left] + log_lrs[right]) / 2))
    onset = top + int(np.argmax(smoothed[top:] < smoothed[top] - ONSET * fall))
    slopes = np.gradient(smoothed, log_lrs)
    return Suggestion(
        lr_min=min(float(lrs[onset]), lr_max / 10),
        lr_max=lr_max,
        steepest=float(lrs[int(slopes[: lowest + 1].argmin())]),
        valley=float(lrs[top + int(np.argmax(smoothed[top:] <= smoothed[top] - fall / 2))]),
        minimum=float(lrs[lowest]),
    )


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
