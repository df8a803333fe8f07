"""The one cycle against torch's own, and its shape; the sweep of the range test."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR

from fast_cifar.schedules import SWEEPS, exponential_sweep, linear_sweep, one_cycle

EPOCHS, STEPS_PER_EPOCH, PEAK_EPOCH = 24, 97, 5
TOTAL, PEAK = EPOCHS * STEPS_PER_EPOCH, PEAK_EPOCH * STEPS_PER_EPOCH - 1
LR_MIN, LR_MAX = 1e-4, 1e-2

cycles = st.integers(3, 5000).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total - 2)))
rates = st.tuples(st.floats(1e-8, 1e-1), st.floats(1.001, 1e4)).map(lambda pair: (pair[0], pair[0] * pair[1]))


def rates_of(scheduler_of, steps, lr=LR_MAX):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = scheduler_of(optimizer)
    lrs = []
    for _ in range(steps):
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return lrs


def recipe_rates(steps=TOTAL):
    return rates_of(lambda optimizer: LambdaLR(optimizer, one_cycle(TOTAL, PEAK, LR_MIN, LR_MAX)), steps)


def torchs_rates(epochs, steps_per_epoch, peak_epoch):
    total = epochs * steps_per_epoch
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=LR_MAX)
    scheduler = OneCycleLR(
        optimizer,
        max_lr=LR_MAX,
        total_steps=total,
        pct_start=peak_epoch / epochs,
        anneal_strategy="linear",
        three_phase=False,
        div_factor=LR_MAX / LR_MIN,
        final_div_factor=1.0,
        cycle_momentum=False,
    )
    lrs = [optimizer.param_groups[0]["lr"]]
    for _ in range(total - 1):
        optimizer.step()
        scheduler.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


@pytest.mark.parametrize(("epochs", "steps_per_epoch", "peak_epoch"), [(24, 97, 5), (24, 4, 5), (5, 50, 1), (7, 3, 6)])
def test_every_step_equals_torchs_one_cycle(epochs, steps_per_epoch, peak_epoch):
    total, peak = epochs * steps_per_epoch, peak_epoch * steps_per_epoch - 1
    ours = rates_of(lambda optimizer: LambdaLR(optimizer, one_cycle(total, peak, LR_MIN, LR_MAX)), total)
    assert ours == pytest.approx(torchs_rates(epochs, steps_per_epoch, peak_epoch), rel=1e-12)


def test_the_cycle_starts_at_lr_min():
    assert recipe_rates()[0] == pytest.approx(LR_MIN, rel=1e-12)


def test_the_last_step_of_epoch_5_runs_at_lr_max_and_no_other_does():
    lrs = recipe_rates()
    assert lrs.index(max(lrs)) == PEAK
    assert max(lrs) == pytest.approx(LR_MAX, rel=1e-12)
    assert sum(lr == max(lrs) for lr in lrs) == 1


def test_the_last_step_runs_at_lr_min():
    assert recipe_rates()[-1] == pytest.approx(LR_MIN, rel=1e-12)


def test_there_is_no_annihilation():
    assert min(recipe_rates(TOTAL + 200)) >= LR_MIN * (1 - 1e-12)


def test_steps_past_the_end_stay_at_lr_min():
    assert recipe_rates(TOTAL + 200)[TOTAL:] == pytest.approx([LR_MIN] * 200, rel=1e-12)


@pytest.mark.parametrize("side", [slice(0, PEAK + 1), slice(PEAK, TOTAL)])
def test_both_sides_are_straight_lines(side):
    lrs = recipe_rates()[side]
    differences = [b - a for a, b in zip(lrs, lrs[1:], strict=False)]
    assert differences == pytest.approx([differences[0]] * len(differences), rel=1e-6)


@given(cycles, rates)
def test_the_multiplier_stays_between_its_ends_for_every_cycle(cycle, pair):
    (total, peak), (lr_min, lr_max) = cycle, pair
    f = one_cycle(total, peak, lr_min, lr_max)
    values = [f(step) for step in {0, 1, peak - 1, peak, peak + 1, total // 2, total - 1, total, 2 * total}]
    floor = lr_min / lr_max
    assert all(floor * (1 - 1e-9) <= value <= 1 + 1e-9 for value in values)
    assert f(peak) == pytest.approx(1.0)
    assert f(0) == f(total - 1) == pytest.approx(floor)


@given(cycles, rates)
def test_the_rate_rises_to_the_peak_and_falls_after_it(cycle, pair):
    (total, peak), (lr_min, lr_max) = cycle, pair
    f = one_cycle(total, peak, lr_min, lr_max)
    middle_up, middle_down = peak // 2, (peak + total - 1) // 2
    assert f(0) <= f(middle_up) <= f(peak)
    assert f(peak) >= f(middle_down) >= f(total - 1)


@pytest.mark.parametrize(
    "arguments",
    [
        (10, 0, 0.1, 1.0),
        (10, 9, 0.1, 1.0),
        (10, -1, 0.1, 1.0),
        (2, 1, 0.1, 1.0),
        (10, 3, 0.0, 1.0),
        (10, 3, -0.1, 1.0),
        (10, 3, 1.0, 1.0),
        (10, 3, 2.0, 1.0),
        (10, 3, math.nan, 1.0),
        (10, 3, 0.1, math.nan),
        (10, 3, 0.1, math.inf),
    ],
)
def test_a_cycle_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError, match=r"peak_step|lr_min"):
        one_cycle(*arguments)


def test_the_sweep_multiplies_by_the_same_factor_each_step():
    f = exponential_sweep(118, 1e-6, 1.0)
    lrs = [f(step) for step in range(118)]
    assert lrs[0] == pytest.approx(1e-6)
    assert lrs[-1] == pytest.approx(1.0)
    ratios = [b / a for a, b in zip(lrs, lrs[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * 117)


def test_the_linear_sweep_is_torchs_linear_schedule():
    rates = rates_of(lambda optimizer: LambdaLR(optimizer, linear_sweep(118, 1e-4, LR_MAX)), 130)
    theirs = rates_of(lambda optimizer: LinearLR(optimizer, 1e-4 / LR_MAX, 1.0, total_iters=117), 130)
    assert rates == pytest.approx(theirs)


def test_the_linear_sweep_adds_the_same_amount_each_step():
    f = linear_sweep(11, 0.1, 2.0)
    assert [2.0 * f(step) for step in range(11)] == pytest.approx(np.linspace(0.1, 2.0, 11).tolist())


@pytest.mark.parametrize("sweep", SWEEPS.values())
def test_a_sweep_stays_at_its_end(sweep):
    assert sweep(10, 0.1, 1.0)(9) == 1.0
    assert sweep(10, 0.1, 1.0)(50) == 1.0


@pytest.mark.parametrize("sweep", SWEEPS.values())
@pytest.mark.parametrize("arguments", [(1, 0.1, 1.0), (10, 0.0, 1.0), (10, 1.0, 0.5), (10, math.nan, 1.0)])
def test_a_sweep_out_of_range_is_refused(sweep, arguments):
    with pytest.raises(ValueError, match=r"iters|lr_start"):
        sweep(*arguments)
