"""The one-cycle schedule against torch's own, and the rates of a range test."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR

from fast_cifar.schedules import SWEEPS, one_cycle, sweep_rates

EPOCHS, STEPS_PER_EPOCH, PEAK_EPOCH = 24, 97, 5
TOTAL, PEAK = EPOCHS * STEPS_PER_EPOCH, PEAK_EPOCH * STEPS_PER_EPOCH - 1
LR_MIN, LR_MAX = 1e-4, 1e-2


def rates_of(scheduler_of, steps):
    """The rate of each step under the scheduler that `scheduler_of` makes for an optimiser at LR_MAX."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=LR_MAX)
    scheduler = scheduler_of(optimizer)
    lrs = [float(optimizer.param_groups[0]["lr"])]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        lrs.append(float(optimizer.param_groups[0]["lr"]))
    return lrs


def our_rates(total=TOTAL, peak=PEAK, steps=TOTAL):
    return rates_of(lambda optimizer: LambdaLR(optimizer, one_cycle(total, peak, LR_MIN, LR_MAX)), steps)


@pytest.mark.parametrize(("epochs", "steps_per_epoch", "peak_epoch"), [(24, 97, 5), (24, 4, 5), (5, 50, 1), (7, 3, 6)])
def test_every_step_equals_torchs_one_cycle(epochs, steps_per_epoch, peak_epoch):
    total, peak = epochs * steps_per_epoch, peak_epoch * steps_per_epoch - 1

    def torchs(optimizer):
        return OneCycleLR(
            optimizer,
            max_lr=LR_MAX,
            total_steps=total,
            pct_start=peak_epoch / epochs,
            anneal_strategy="linear",
            div_factor=LR_MAX / LR_MIN,
            final_div_factor=1.0,
            cycle_momentum=False,
        )

    assert our_rates(total, peak, total) == pytest.approx(rates_of(torchs, total), rel=1e-12)


def test_only_the_last_step_of_the_peak_epoch_runs_at_lr_max():
    lrs = our_rates()
    assert [step for step, lr in enumerate(lrs) if lr == LR_MAX] == [PEAK]
    assert max(lrs) == LR_MAX


def test_the_first_step_the_last_and_all_past_it_run_at_lr_min_and_none_below():
    lrs = our_rates(steps=TOTAL + 200)
    assert [lrs[0], *lrs[TOTAL - 1 :]] == pytest.approx([LR_MIN] * 202, rel=1e-12)
    assert min(lrs) >= LR_MIN * (1 - 1e-12)


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


def test_an_exponential_sweep_multiplies_by_the_same_factor_each_step():
    lrs = sweep_rates("exponential", 118, 1e-6, 1.0)
    assert (len(lrs), lrs[0], lrs[-1]) == (118, 1e-6, 1.0)
    assert [b / a for a, b in zip(lrs, lrs[1:], strict=False)] == pytest.approx([1e6 ** (1 / 117)] * 117)


def test_a_linear_sweep_is_torchs_linear_schedule():
    theirs = rates_of(lambda optimizer: LinearLR(optimizer, 1e-4 / LR_MAX, 1.0, total_iters=117), 118)
    assert sweep_rates("linear", 118, 1e-4, LR_MAX) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("kind", SWEEPS)
@pytest.mark.parametrize("arguments", [(1, 0.1, 1.0), (10, 0.0, 1.0), (10, 1.0, 0.5), (10, math.nan, 1.0)])
def test_a_sweep_out_of_range_is_refused(kind, arguments):
    with pytest.raises(ValueError, match=r"iters|lr_start"):
        sweep_rates(kind, *arguments)


def test_an_unknown_kind_of_sweep_is_refused():
    with pytest.raises(ValueError, match="exponential, linear, not 'cosine'"):
        sweep_rates("cosine", 10, 0.1, 1.0)
