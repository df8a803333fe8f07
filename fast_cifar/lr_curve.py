"""Reads the curve of a range test: from noisy losses at rising learning rates to LRMIN, LRMAX and warnings.

The curves of several seeds give one mean curve, one suggestion, and how far the seeds agree.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from fast_cifar.options import HIGHEST_RATE, LOWEST_RATE, MOST_STEPS
from fast_cifar.plots import range_test as range_test_plot
from fast_cifar.plots import style
from fast_cifar.runs.stats import t_quantile
from fast_cifar.system.errors import UserError, counted

FEWEST_POINTS = 10  # a shorter curve cannot be read
WINDOW = 5  # steps of the running median, which removes spikes of one or two steps
LEAST_SMOOTHING = 2.0  # steps: the standard deviation of the Gaussian, at least
SMOOTHING_PART = 30  # it is the number of steps over this where that is more: a long sweep is less noisy

# Shares of the whole fall of the loss, from its maximum before the minimum to the minimum.
BASIN = 0.05  # above the minimum: the loss counts as lowest
ONSET = 0.1  # below the maximum: the fall has begun
DIVERGED = 0.25  # above the minimum for good: the loss has diverged
EARLY_RISE = 0.25  # gained before the maximum: more than noise

LEAST_FALL = 0.02  # share of the lowest loss; a smaller fall is noise
DISAGREEMENT = 2.0  # highest LRMAX over the lowest: above it the seeds disagree


@dataclass(frozen=True)
class Suggestion:
    """Learning rates read off a range test.

    Attributes:
        lr_min, lr_max: the two ends of the one-cycle schedule to use, lr_min < lr_max.
        steepest: where the smoothed loss falls fastest against the logarithm of the rate.
        valley: the middle of the descent, where half of the fall is done.
        minimum: where the smoothed loss is lowest; beyond it training begins to suffer.
    """

    lr_min: float
    lr_max: float
    steepest: float
    valley: float
    minimum: float


@dataclass(frozen=True)
class Curve:
    """One sweep: an entry per optimiser step in each list, up to where the loss diverged.

    Attributes:
        divergence: the rate from which on the loss diverged; None where it did not.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: Suggestion
    divergence: float | None = None


@dataclass(frozen=True)
class Spread:
    """How far the LRMAX of several seeds lie apart, on a logarithmic scale.

    Attributes:
        lowest, highest: of the seeds' LRMAX.
        interval: 95 % confidence interval of their geometric mean (Student's t); None below three seeds, where it
            would span decades.
    """

    lowest: float
    highest: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class RangeTest(Curve):
    """The result of a range test with one seed or several: the mean curve, and the geometric mean of each rate.

    A seed that diverged early enters the mean with its last loss from there on. The curve ends where half of the seeds
    have diverged.

    Attributes:
        warnings: why the suggestion may be wrong, a sentence each.
        sweep: "exponential" or "linear".
        repeats, seeds: the curve of each seed that could be read, and the seeds.
        lr_max_spread: None for a single seed.
    """

    warnings: list[str] = field(default_factory=list)
    sweep: str = "exponential"
    repeats: list[Curve] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    lr_max_spread: Spread | None = None

    def __repr__(self) -> str:
        rates = f"LRMIN {self.suggestion.lr_min:.3g}, LRMAX {self.suggestion.lr_max:.3g}"
        return f"RangeTest({rates}, steps={len(self.lrs)}, seeds={len(self.repeats)}, warnings={len(self.warnings)})"

    def plot(self, path: str | Path, title: str = "Range test") -> None:
        """Draws the curve, its points and the recommended interval into a PNG at `path`.

        Raises:
            UserError: matplotlib is not installed.
        """
        if not style.matplotlib_available():
            raise UserError("a plot of the range test needs matplotlib: pip install matplotlib")
        several = len(self.repeats) > 1
        smoothed = _side_by_side([curve.smoothed for curve in self.repeats]) if several else None
        range_test_plot.range_test(
            path,
            self.lrs,
            self.losses,
            self.smoothed,
            asdict(self.suggestion),
            linear=self.sweep == "linear",
            seeds=[(curve.lrs, curve.smoothed) for curve in self.repeats] if several else (),
            band=(smoothed.min(axis=0).tolist(), smoothed.max(axis=0).tolist()) if several else None,
            lr_max_range=(self.lr_max_spread.lowest, self.lr_max_spread.highest) if several else None,
            divergence=self.divergence,
            notes=self.warnings,
            title=title,
        )


def smooth(losses: Sequence[float]) -> np.ndarray:
    """A running median, which removes single spikes, then a Gaussian; float64, as long as `losses`."""
    steps = np.arange(len(losses))
    medians = _running_medians(losses)
    medians = medians[np.clip(steps - WINDOW // 2, 0, len(medians) - 1)]  # the ends use the nearest whole window
    deviation = max(LEAST_SMOOTHING, len(losses) / SMOOTHING_PART)
    # One row of weights at a time: all of them would be 80 GB for 100,000 steps.
    return np.array([np.average(medians, weights=np.exp(-0.5 * ((steps - i) / deviation) ** 2)) for i in steps])


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last running median exceeds the lowest one by that much again, and by half of what had been gained
    since the start: a single spike is not enough."""
    if len(losses) < 2 * WINDOW:
        return False
    medians = _running_medians(losses)
    best = medians.min()
    return bool(medians[-1] - best > max(best, (medians[0] - best) / 2))


def _running_medians(losses: Sequence[float]) -> np.ndarray:
    """float64, one for each whole window, and at least one."""
    values = np.asarray(losses, dtype=np.float64)
    return np.median(np.lib.stride_tricks.sliding_window_view(values, min(WINDOW, len(values))), axis=1)


def _descent(smoothed: np.ndarray) -> tuple[int, int, float]:
    """(top, lowest, fall): the step of the maximum before the minimum, that of the minimum, and the loss between."""
    lowest = int(smoothed.argmin())
    top = int(smoothed[: lowest + 1].argmax())
    return top, lowest, smoothed[top] - smoothed[lowest]


def _basin(smoothed: np.ndarray) -> tuple[int, int]:
    """(left, right): the first and last step around the minimum at which the loss is about as low."""
    _, lowest, fall = _descent(smoothed)
    outside = np.flatnonzero(smoothed > smoothed[lowest] + BASIN * fall)
    return outside[outside < lowest].max(initial=-1) + 1, outside[outside > lowest].min(initial=len(smoothed)) - 1


def failure(rates: Sequence[float], losses: Sequence[float], diverged: bool) -> str | None:
    """Why the losses at the first of the planned rates mean nothing, and what to do about it; None where they can be
    read. `diverged` says that the loss ended the sweep."""
    if diverged and len(losses) < FEWEST_POINTS:
        return f"the loss diverged after {counted(len(losses), 'step')}; {_lower(rates)}"
    if len(losses) >= FEWEST_POINTS:
        smoothed = smooth(losses)
        top, lowest, _ = _descent(smoothed)
        if lowest < 2 or smoothed[top] <= (1 + LEAST_FALL) * smoothed[lowest]:
            never = f"the loss never fell between {rates[0]:.3g} and {rates[len(losses) - 1]:.3g}"
            return f"{never}; {_slower(rates) if diverged else _further(rates)}"
    return None


def read_curve(rates: Sequence[float], losses: list[float], diverged: bool) -> Curve:
    """Reads the losses at the first of the planned rates, at least 2; `diverged` as in `failure`."""
    lrs = list(rates[: len(losses)])
    smoothed = smooth(losses)
    diverged_at = divergence(lrs, smoothed) if diverged else None
    return Curve(lrs, losses, smoothed.tolist(), suggest(lrs, smoothed), diverged_at)


def suggest(lrs: Sequence[float], smoothed: np.ndarray) -> Suggestion:
    """The suggestion of a smoothed curve of at least 2 steps, on a logarithmic scale however the rates are spaced.

    LRMAX is the middle of the basin around the minimum: the loss is equally low in all of it, and its middle depends
    less on noise than the minimum. LRMIN is where the loss begins to fall, and at most a tenth of LRMAX.
    """
    log_lrs = np.log(np.asarray(lrs))
    top, lowest, fall = _descent(smoothed)
    left, right = _basin(smoothed)
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


def divergence(lrs: Sequence[float], smoothed: np.ndarray) -> float:
    """The rate from which on a quarter of the fall is lost again for good; the last rate where the sweep ended before
    that, at a loss that was suddenly infinite."""
    _, lowest, fall = _descent(smoothed)
    last_sound = np.flatnonzero(smoothed <= smoothed[lowest] + DIVERGED * fall)[-1]
    return float(lrs[min(last_sound + 1, len(smoothed) - 1)])


def combine(
    curves: Sequence[Curve],
    rates: Sequence[float],
    *,
    sweep: str,
    seeds: Sequence[int] = (),
    warnings: Sequence[str] = (),
) -> RangeTest:
    """The result of the curves of `seeds`, at least one, at the first of the planned `rates`.

    The curves' own warnings are added to those known already.
    """
    losses = _side_by_side([curve.losses for curve in curves]).mean(axis=0).tolist()
    suggestions = [curve.suggestion for curve in curves]
    means = {one.name: _geometric_mean([getattr(each, one.name) for each in suggestions]) for one in fields(Suggestion)}
    diverged_at = [curve.divergence for curve in curves if curve.divergence is not None]
    return RangeTest(
        lrs=max((curve.lrs for curve in curves), key=len)[: len(losses)],
        losses=losses,
        smoothed=_side_by_side([curve.smoothed for curve in curves]).mean(axis=0).tolist(),
        suggestion=Suggestion(**means),
        divergence=_geometric_mean(diverged_at) if 2 * len(diverged_at) >= len(curves) else None,
        warnings=[*warnings, *_warnings(curves, rates)],
        sweep=sweep,
        repeats=list(curves),
        seeds=list(seeds),
        lr_max_spread=spread([each.lr_max for each in suggestions]) if len(curves) > 1 else None,
    )


def spread(lr_maxes: Sequence[float]) -> Spread:
    """The spread of at least two rates."""
    logs = np.log(lr_maxes)
    interval = None
    if len(logs) > 2:
        half = t_quantile(len(logs) - 1) * statistics.stdev(logs.tolist()) / len(logs) ** 0.5
        interval = (float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half)))
    return Spread(min(lr_maxes), max(lr_maxes), interval)


def _geometric_mean(rates: Sequence[float]) -> float:
    """A single rate is returned as it is, bit for bit."""
    return rates[0] if len(rates) == 1 else float(np.exp(np.mean(np.log(rates))))


def _side_by_side(curves: Sequence[Sequence[float]]) -> np.ndarray:
    """[curves, steps], as far as half of the curves reach. A shorter one continues at its last value: without the seeds
    that diverged the mean would seem to fall."""
    length = sorted(map(len, curves))[len(curves) // 2]
    return np.array([[*curve, *[curve[-1]] * (length - len(curve))][:length] for curve in curves])


def _warnings(curves: Sequence[Curve], rates: Sequence[float]) -> list[str]:
    """Why the suggestion of these curves may be wrong, and the options of run_lrfind.py that help, a sentence each."""

    def share(some: Sequence[Curve]) -> str:
        return f" with {len(some)} of {len(curves)} seeds" if len(curves) > 1 else ""

    found = []
    recovering = [curve for curve in curves if _rises_first(np.asarray(curve.smoothed))]
    if recovering:
        found.append(
            f"the loss rose before it fell{share(recovering)}, so its fall may be no more than a recovery; "
            + _lower(rates)
        )
    # With BatchNorm a loss often rises again without diverging: then its minimum is known all the same.
    unfinished = [
        curve
        for curve in curves
        if curve.divergence is None
        and curve not in recovering
        and _basin(np.asarray(curve.smoothed))[1] == len(curve.lrs) - 1
    ]
    if unfinished:
        found.append(
            f"the loss is still at its lowest at {rates[-1]:.3g}{share(unfinished)}, so LRMAX may be too low; "
            + _further(rates)
        )
    lr_maxes = [curve.suggestion.lr_max for curve in curves]
    factor = max(lr_maxes) / min(lr_maxes)
    if factor > DISAGREEMENT:
        found.append(
            f"the seeds' LRMAX disagree by a factor of {factor:.1f}, {min(lr_maxes):.3g} to {max(lr_maxes):.3g}; "
            f"{_slower(rates)}, or with more seeds"
        )
    return found


def _lower(rates: Sequence[float]) -> str:
    """Advice for when the first of the planned rates were too high."""
    if len(rates) > 1 and rates[1] > 10 * rates[0]:  # a linear sweep, whose second rate depends on the last alone
        return f"rise less: run_lrfind.py --lr-end {rates[-1] / 10:g}"
    lower = rates[0] / 10
    return f"start lower: run_lrfind.py --lr-start {lower:g}" if lower >= LOWEST_RATE else _slower(rates)


def _further(rates: Sequence[float]) -> str:
    """Advice for when the last of the planned rates was too low."""
    higher = 10 * rates[-1]
    return f"sweep further: run_lrfind.py --lr-end {higher:g}" if higher <= HIGHEST_RATE else _slower(rates)


def _slower(rates: Sequence[float]) -> str:
    """Advice for when noise hides the curve of the planned rates."""
    return f"sweep more slowly: run_lrfind.py --iters {min(2 * len(rates), MOST_STEPS)}"


def _rises_first(smoothed: np.ndarray) -> bool:
    """Whether the loss rose before it fell: the first steps damaged the network, and the fall is its recovery."""
    top, _, fall = _descent(smoothed)
    return bool(smoothed[top] - smoothed[: top + 1].min() > EARLY_RISE * fall)
