"""Several range tests together: means, spread and warnings of made-up curves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fast_cifar.lr_curve import RangeTest, Suggestion, band, combined, mean_curve, mean_suggestion, spread, warnings

rates = st.floats(1e-8, 10.0)


def found(lr_max):
    return Suggestion(lr_min=lr_max / 20, lr_max=lr_max, steepest=lr_max / 10, valley=lr_max / 5, minimum=2 * lr_max)


def sweep_of(lr_max, losses, divergence=0.1):
    return RangeTest(np.geomspace(1e-4, 1, len(losses)).tolist(), losses, losses, found(lr_max), divergence)


def test_rates_are_combined_by_their_geometric_mean():
    together = mean_suggestion([found(1e-3), found(1e-2), found(1e-1)])
    assert together.lr_max == pytest.approx(1e-2)
    assert together.steepest == pytest.approx(1e-3)


def test_one_suggestion_is_its_own_mean():
    assert mean_suggestion([found(0.1)]) == found(0.1)


@given(st.lists(rates, min_size=1, max_size=9))
def test_the_mean_lies_among_the_seeds_whatever_their_order(lr_maxes):
    together = mean_suggestion([found(lr_max) for lr_max in lr_maxes])
    assert min(lr_maxes) * (1 - 1e-9) <= together.lr_max <= max(lr_maxes) * (1 + 1e-9)
    assert together.lr_min < together.lr_max
    assert mean_suggestion([found(lr_max) for lr_max in lr_maxes[::-1]]).lr_max == pytest.approx(together.lr_max)


def test_the_interval_is_students_t_on_a_logarithmic_scale():
    result = spread([1e-3, 1e-2, 1e-1])
    assert result.factor == pytest.approx(10)
    assert np.log10(result.interval) == pytest.approx([-2 - 4.30265 / 3**0.5, -2 + 4.30265 / 3**0.5], rel=1e-4)
    assert (result.lowest, result.highest) == (1e-3, 1e-1)


def test_two_seeds_have_no_interval():
    assert spread([1e-3, 1e-2]).interval is None


def test_seeds_that_agree_have_no_spread():
    result = spread([0.25] * 4)
    assert result.factor == pytest.approx(1)
    assert result.interval == pytest.approx((0.25, 0.25))


def test_the_mean_curve_reaches_as_far_as_half_of_the_seeds():
    assert len(mean_curve([[1.0] * n for n in (5, 10, 20, 40)])) == 20
    assert len(mean_curve([[1.0] * n for n in (5, 10, 20)])) == 10
    assert len(mean_curve([[1.0] * 5, [1.0] * 10])) == 10


def test_a_seed_that_diverged_goes_on_at_its_last_loss():
    assert mean_curve([[3.0, 9.0], [1.0, 1.0, 1.0]]) == [2.0, 5.0, 5.0]


def test_the_band_holds_every_seed_and_their_mean():
    curves = [[3.0, 2.0, 4.0], [2.0, 2.5, 1.0], [1.0, 1.5, 2.0, 9.0]]
    low, high = band(curves)
    assert (low, high) == ([1.0, 1.5, 1.0], [3.0, 2.5, 4.0])
    assert all(a <= m <= b for a, m, b in zip(low, mean_curve(curves), high, strict=True))


FALLING = np.linspace(3.0, 1.0, 20).tolist()
RISING_FIRST = [*np.linspace(3.0, 4.0, 10), *np.linspace(4.0, 2.0, 20)]


def sweeps_of(*lr_maxes, diverged=True, losses=FALLING):
    return [sweep_of(lr_max, losses, 0.1 if diverged else None) for lr_max in lr_maxes]


def test_seeds_within_a_factor_of_two_agree():
    assert warnings(sweeps_of(1e-3, 1.9e-3), 1.0) == []


def test_seeds_beyond_a_factor_of_two_disagree():
    (line,) = warnings(sweeps_of(1e-3, 2.1e-3), 1.0)
    assert "a factor of 2.1, 0.001 to 0.0021" in line


def test_a_sweep_that_never_diverged_is_told_to_go_on():
    assert "--lr-end 10" in warnings(sweeps_of(1e-3, diverged=False), 1.0)[0]
    assert "1 of 3 seeds" in warnings(sweeps_of(1e-3, diverged=False) + sweeps_of(1e-3, 1e-3), 1.0)[0]


def test_no_rate_is_suggested_that_the_options_refuse():
    assert "--lr-end" not in warnings(sweeps_of(1e-3, diverged=False), 1e6)[0]


def test_a_recovery_is_no_descent():
    (line,) = warnings(sweeps_of(1e-3) + sweeps_of(1e-3, losses=RISING_FIRST), 1.0)
    assert line.startswith("the loss rose before it fell with 1 of 2 seeds")


def test_who_must_start_lower_is_not_told_to_go_further():
    (line,) = warnings(sweeps_of(1e-3, diverged=False, losses=RISING_FIRST), 1.0)
    assert "--lr-start" in line


def test_a_seed_that_is_left_out_is_named():
    assert warnings(sweeps_of(1e-3), 1.0, {7: "it diverged"}) == ["seed 7 is left out: it diverged"]


def test_the_combination_says_how_many_diverged():
    curve = [3.0, 2.0, 1.0]
    some = combined({0: sweep_of(0.1, curve, 0.2), 1: sweep_of(0.1, curve, None)}, {}, "linear", 1.0)
    assert some.divergence == pytest.approx(0.2)
    assert "1 of 2 seeds" in some.warnings[0]
    assert some.sweep == "linear"
    few = combined({k: sweep_of(0.1, curve, 0.2 if k == 0 else None) for k in range(3)}, {}, "linear", 1.0)
    assert few.divergence is None
    assert not few.diverged


def test_rates_and_losses_of_the_combination_are_as_many():
    result = combined({4: sweep_of(0.1, [3.0] * 5), 5: sweep_of(0.1, [2.0] * 9)}, {6: "why"}, "exponential", 1.0)
    assert len(result.lrs) == len(result.losses) == len(result.smoothed) == 9
    assert result.seeds == [4, 5]
