"""Learning-rate multipliers for `torch.optim.lr_scheduler.LambdaLR`: one cycle, and the sweeps of a range test."""

from __future__ import annotations

import math
from collections.abc import Callable


def one_cycle(total_steps: int, peak_step: int, lr_min: float, lr_max: float) -> Callable[[int], float]:
    """Learning-rate multiplier of one linear cycle, for `torch.optim.lr_scheduler.LambdaLR`.

    The rate climbs from `lr_min` at step 0 to `lr_max` at `peak_step`, and returns to `lr_min` at the last step,
    `total_steps - 1`. There is no annihilation phase: it never falls below `lr_min`, and stays there past the end.

    Args:
        total_steps: optimiser steps in the run, at least 3.
        peak_step: 0-based step that runs at `lr_max`; 0 < peak_step < total_steps - 1. "Maximum at epoch 5" is
            `5 * steps_per_epoch - 1`, as in torch's `OneCycleLR(pct_start=5/24, anneal_strategy="linear")`.
        lr_min, lr_max: the two rates, 0 < lr_min < lr_max. The optimiser's own rate must be `lr_max`.

    Returns:
        f(step) = lr(step) / lr_max, in [lr_min / lr_max, 1].

    Raises:
        ValueError: an argument is out of its range.

    Source: Smith, "Super-Convergence" (arXiv:1708.07120), without the final annihilation.
    """
    _check_rates(lr_min, lr_max, "lr_min", "lr_max")
    if not 0 < peak_step < total_steps - 1:
        raise ValueError(f"peak_step must lie in 1..{total_steps - 2} for {total_steps} steps, not {peak_step}")
    last_step = total_steps - 1
    floor = lr_min / lr_max

    def multiplier(step: int) -> float:
        if step >= last_step:
            return floor
        height = step / peak_step if step <= peak_step else (last_step - step) / (last_step - peak_step)
        return floor + (1.0 - floor) * height

    return multiplier


def exponential_sweep(iters: int, lr_start: float, lr_end: float) -> Callable[[int], float]:
    """Learning-rate multiplier of a range test: from `lr_start` to `lr_end`, each step by the same factor.

    Args:
        iters: steps of the sweep, at least 2.
        lr_start, lr_end: first and last rate, 0 < lr_start < lr_end. The optimiser's own rate must be `lr_end`.

    Returns:
        f(step) = lr(step) / lr_end, in [lr_start / lr_end, 1]; a step past the end stays at 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3, with the
        exponential spacing that later finders use.
    """
    _check_sweep(iters, lr_start, lr_end)

    def multiplier(step: int) -> float:
        return (lr_start / lr_end) ** (1.0 - min(step, iters - 1) / (iters - 1))

    return multiplier


def linear_sweep(iters: int, lr_start: float, lr_end: float) -> Callable[[int], float]:
    """Learning-rate multiplier of a range test: from `lr_start` to `lr_end`, each step by the same amount.

    Args, returns and raises: as `exponential_sweep`.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3.
    """
    _check_sweep(iters, lr_start, lr_end)

    def multiplier(step: int) -> float:
        done = min(step, iters - 1) / (iters - 1)
        return (1.0 - done) * (lr_start / lr_end) + done

    return multiplier


# What `--sweep` may be.
SWEEPS = {"exponential": exponential_sweep, "linear": linear_sweep}


def _check_sweep(iters: int, lr_start: float, lr_end: float) -> None:
    _check_rates(lr_start, lr_end, "lr_start", "lr_end")
    if iters < 2:
        raise ValueError(f"iters must be at least 2, not {iters}")


def _check_rates(low: float, high: float, low_name: str, high_name: str) -> None:
    if not (0 < low < high and math.isfinite(high)):
        raise ValueError(f"need 0 < {low_name} < {high_name}, both finite; got {low_name}={low}, {high_name}={high}")
