"""Reading a range test: from noisy losses against rising learning rates to the two ends of a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_POINTS = 10  # with fewer, a curve says nothing
WINDOW = 5  # steps of the running median: a spike of two is not seen
SPREAD = 2.0  # steps, standard deviation of the Gaussian
BASIN = 0.05  # share of the whole fall within which the loss counts as lowest
LEAST_FALL = 0.02  # share of the lowest loss
ONSET = 0.1  # share of the whole fall at which the loss counts as falling


@dataclass(frozen=True)
class Suggestion:
    """Learning rates read off a range test.

    Attributes:
        lr_min, lr_max: the two ends of the one cycle to use, lr_min < lr_max.
        steepest: where the smoothed loss falls fastest against the logarithm of the rate.
        valley: the middle of the longest descent of the smoothed loss.
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
    weights = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / SPREAD) ** 2)
    return (weights @ medians) / weights.sum(axis=1)


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


def suggest(lrs: Sequence[float], smoothed: np.ndarray) -> Suggestion:
    """Reads the suggestion off a smoothed curve.

    LRMAX is the middle, on a logarithmic scale, of the basin around the minimum: within it the loss is as low as it
    gets, and the middle depends less on noise than the minimum itself. LRMIN is where the loss begins to fall, and at
    most a tenth of LRMAX.

    Args:
        lrs: at least 2 rising learning rates.
        smoothed: the loss at each of them.
    """
    log_lrs = np.log(np.asarray(lrs))
    lowest = int(smoothed.argmin())
    top = int(smoothed[: lowest + 1].argmax())
    fall = smoothed[top] - smoothed[lowest]
    outside = np.flatnonzero(smoothed > smoothed[lowest] + BASIN * fall)
    left = outside[outside < lowest].max(initial=-1) + 1
    right = outside[outside > lowest].min(initial=len(smoothed)) - 1
    lr_max = float(np.exp((log_lrs[left] + log_lrs[right]) / 2))
    onset = top + int(np.argmax(smoothed[top:] < smoothed[top] - ONSET * fall))
    slopes = np.gradient(smoothed, log_lrs)
    return Suggestion(
        lr_min=min(float(lrs[onset]), lr_max / 10),
        lr_max=lr_max,
        steepest=float(lrs[int(slopes[: lowest + 1].argmin())]),
        valley=float(lrs[_middle_of_longest_descent(smoothed)]),
        minimum=float(lrs[lowest]),
    )


def _middle_of_longest_descent(values: np.ndarray) -> int:
    """The index in the middle of the longest strictly falling subsequence."""
    length = np.ones(len(values), dtype=int)
    start = np.arange(len(values))
    for i in range(1, len(values)):
        above = np.flatnonzero(values[:i] > values[i])
        if len(above):
            previous = above[length[above].argmax()]
            length[i], start[i] = length[previous] + 1, start[previous]
    end = int(length.argmax())
    return (int(start[end]) + end) // 2
