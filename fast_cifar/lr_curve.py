"""Reading a range test: from noisy losses against rising learning rates to the two ends of a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_POINTS = 10  # with fewer, a curve says nothing
WINDOW = 5  # steps of the running median: a spike of two is not seen
SPREAD = 2.0  # steps, standard deviation of the Gaussian
BASIN = 0.05  # share of the whole fall within which the loss counts as lowest
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
    """A running median, deaf to single spikes, then a Gaussian; float64, as long as `losses`, of which there are 10 at
    least."""
    values = np.asarray(losses, dtype=np.float64)
    steps = np.arange(len(values))
    begins = np.clip(steps - WINDOW // 2, 0, len(values) - WINDOW)  # the windows at the ends are whole ones too
    medians = np.array([np.median(values[begin : begin + WINDOW]) for begin in begins])
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


def suggest(lrs: Sequence[float], smoothed: np.ndarray) -> Suggestion | None:
    """Reads the suggestion off a smoothed curve.

    LRMAX is the middle, on a logarithmic scale, of the basin around the minimum: within it the loss is as low as it
    gets, and the middle depends less on noise than the minimum itself. LRMIN is where the loss begins to fall, and at
    most a tenth of LRMAX.

    Args:
        lrs: rising learning rates.
        smoothed: the loss at each of them.

    Returns:
        None when the loss never fell.
    """
    log_lrs = np.log(np.asarray(lrs))
    lowest = int(smoothed.argmin())
    fall = smoothed[: lowest + 1].max() - smoothed[lowest]
    if lowest < 2 or fall <= 0.02 * smoothed[lowest]:
        return None
    top = int(smoothed[: lowest + 1].argmax())
    inside = smoothed <= smoothed[lowest] + BASIN * fall
    left = lowest - int(np.argmin(inside[lowest::-1]))
    right = lowest + (int(np.argmin(inside[lowest:])) or len(smoothed) - lowest)
    lr_max = float(np.exp((log_lrs[left + 1] + log_lrs[right - 1]) / 2))
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
