"""Learning rates step by step: the one-cycle schedule of a training run, and the sweep of a range test."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# What `--sweep` may be: each step by the same factor, or by the same amount.
SWEEPS = {"exponential": np.geomspace, "linear": np.linspace}


def one_cycle(total_steps: int, peak_step: int, lr_min: float, lr_max: float) -> Callable[[int], float]:
    """Learning-rate multiplier of one linear cycle, for `torch.optim.lr_scheduler.LambdaLR`.

    The rate climbs from `lr_min` at step 0 to `lr_max` at `peak_step`, and returns to `lr_min` at the last step,
    `total_steps - 1`. There is no annihilation phase: it never falls below `lr_min`, and stays there past the end.

    Args:
        total_steps: optimiser steps in the run, at least 3.
        peak_step: 0-based step that runs at `lr_max`; 0 < peak_step < total_steps - 1. "Maximum at epoch 5" is
            `5 * steps_per_epoch - 1`, as in torch's `OneCycleLR(pct_start=5/24, anneal_strategy="linear")`.
        lr_min, lr_max: the two rates, 0 < lr_min < lr_max. The optimiser's own rate must be `lr_max`;
            `one_cycle_scheduler` makes the `LambdaLR` with that right.

    Returns:
        f(step) = lr(step) / lr_max, in [lr_min / lr_max, 1].

    Raises:
        ValueError: an argument is out of its range.

    Source: Smith, "Super-Convergence" (arXiv:1708.07120), without the final annihilation.
    """
    _check_rates(lr_min, lr_max, "lr_min", "lr_max")
    if not 0 < peak_step < total_steps - 1:
        raise ValueError(f"peak_step must lie in 1..{total_steps - 2} for {total_steps} steps, not {peak_step}")
    steps = (0, peak_step, total_steps - 1)
    heights = (lr_min / lr_max, 1.0, lr_min / lr_max)
    return lambda step: float(np.interp(step, steps, heights))


def sweep_rates(kind: str, iters: int, lr_start: float, lr_end: float) -> list[float]:
    """The learning rates of a range test, one a step, from `lr_start` to `lr_end`.

    Args:
        kind: "exponential" or "linear".
        iters: steps of the sweep, at least 2.
        lr_start, lr_end: first and last rate, 0 < lr_start < lr_end.

    Raises:
        ValueError: an argument is out of its range.
    """
    if kind not in SWEEPS:
        raise ValueError(f"sweep must be one of {', '.join(SWEEPS)}, not {kind!r}")
    _check_rates(lr_start, lr_end, "lr_start", "lr_end")
    if iters < 2:
        raise ValueError(f"iters must be at least 2, not {iters}")
    return SWEEPS[kind](lr_start, lr_end, iters).tolist()


def _check_rates(low: float, high: float, low_name: str, high_name: str) -> None:
    if not (0 < low < high and math.isfinite(high)):
        raise ValueError(f"need 0 < {low_name} < {high_name}, both finite; got {low_name}={low}, {high_name}={high}")
