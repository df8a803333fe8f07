"""The one-cycle schedule against torch's own, and what it and the rates of a range test refuse."""

import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from fast_cifar.schedules import SWEEPS, one_cycle, sweep_rates

rates = st.tuples(st.floats(1e-9, 1e-1), st.floats(1.001, 1e4)).map(lambda pair: (pair[0], pair[0] * pair[1]))
cycles = st.integers(3, 400).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total - 2)))
numbers = st.floats(-1, 1e6) | st.sampled_from([0.0, 0.1, 1.0, math.nan, math.inf])


def rates_of(make_scheduler, steps, lr):
    """The rate of each step under the scheduler that `make_scheduler` makes for an optimiser at `lr`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make_scheduler(optimizer)
    lrs = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


@given(cycles, rates)
@example((24 * 97, 5 * 97 - 1), (1e-4, 1e-2))  # the recipe: the last step of epoch 5
def test_every_step_of_a_cycle_equals_torchs_one_cycle_and_past_its_end_lr_min_stays(cycle, pair):
    (total, peak), (low, high) = cycle, pair

    def torchs(optimizer):
        return OneCycleLR(
            optimizer,
            max_lr=high,
            total_steps=total,
            pct_start=(peak + 1) / total,
            anneal_strategy="linear",
            div_factor=high / low,
            final_div_factor=1.0,
            cycle_momentum=False,
        )

    multiplier = one_cycle(total, peak, low, high)
    ours = rates_of(lambda optimizer: LambdaLR(optimizer, multiplier), total, high)
    assert ours == pytest.approx(rates_of(torchs, total, high), rel=1e-9)
    assert multiplier(total + 4) == low / high


@given(st.integers(-3, 20), st.integers(-3, 20), numbers, numbers)
@example(3, 1, 0.1, 0.1)
@example(3, 1, 0.1, 1.0)
@example(10, 9, 0.1, 1.0)
@example(10, 3, 0.1, math.inf)
def test_a_cycle_is_refused_out_of_its_ranges_and_only_there(total, peak, low, high):
    if 0 < peak < total - 1 and 0 < low < high < math.inf:
        assert one_cycle(total, peak, low, high)(peak) == 1
    else:
        with pytest.raises(ValueError, match=r"peak_step|lr_min"):
            one_cycle(total, peak, low, high)


@given(st.sampled_from(sorted(SWEEPS)), st.integers(-3, 20), numbers, numbers)
def test_a_sweep_is_refused_out_of_its_ranges_and_only_there(kind, iters, low, high):
    assume(not 0 < low < 1e-300)  # numpy warns that it cannot spread so many orders of magnitude
    if iters >= 2 and 0 < low < high < math.inf:
        assert sweep_rates(kind, iters, low, high)[-1] == high
    else:
        with pytest.raises(ValueError, match=r"iters|lr_start"):
            sweep_rates(kind, iters, low, high)
