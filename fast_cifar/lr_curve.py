"""Reading a range test: from noisy losses against rising learning rates to the two ends of a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_POINTS = 10  # with fewer, a curve says nothing
WINDOW = 5  # steps of the running median: a spike of two is not seen
SPREAD = 2.0  # steps, standard deviation of the Gaussian, at least
SHARE = 30  # it is the sweep's steps over this where that is more: a longer sweep is a less noisy one
BASIN = 0.05  # share of the whole fall within which the loss counts as lowest
LEAST_FALL = 0.02  # share of the lowest loss
ONSET = 0.1  # share of the whole fall at which the loss counts as falling
RUIN = 0.25  # share of the whole fall that is lost again where the loss counts as diverging
EARLY_RISE = 0.25  # share of the whole fall by which a loss may rise before it


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
