"""The regret of learning rates on known curves."""

from __future__ import annotations

import numpy as np
import pytest

from bench import regret
from bench.regret import fitted, regrets

GRID = np.arange(-3.0, 4.0)


def runs_on(curve, x=GRID, spread=(0.0,)):
    return {2.0**at: [curve(at) + step for step in spread] for at in x}


def parabola(top):
    return lambda x: 0.8 - 0.01 * (x - top) ** 2


def cliff(top):
    """A flat top whose right side ends in a collapse, two octaves and a half further."""
    return lambda x: 0.6 - 0.005 * (x - top) ** 2 - 0.4 * (x - top > 2.5)


def values(runs, *x):
    return [one["value"] for one in regrets(runs, [2.0**at for at in x])]


def test_the_regret_on_a_parabola_is_exact():
    found = values(runs_on(parabola(0.3)), 0.3, 0.0, -1.0, 1.5)
    assert found == pytest.approx([0.0, 0.01 * 0.09, 0.01 * 1.69, 0.01 * 1.44], abs=1e-5)


@pytest.mark.parametrize("top", [-1.0, 0.0, 0.4])
def test_a_collapse_does_not_bend_the_top(top):
    assert values(runs_on(cliff(top)), top, top - 1) == pytest.approx([0.0, 0.005], abs=1e-5)


def test_beyond_a_cliff_the_grid_is_joined_by_straight_lines():
    curve = cliff(0.0)
    assert values(runs_on(curve), 2.5) == pytest.approx([0.6 - (curve(2.0) + curve(3.0)) / 2])


def test_a_rate_outside_the_grid_has_the_regret_of_its_end_as_a_lower_bound():
    inside, below, above = regrets(runs_on(parabola(0.0)), [2.0**-3, 2.0**-5, 2.0**4])
    assert [one["is_bound"] for one in (inside, below, above)] == [False, True, True]
    assert below["value"] == inside["value"]
    assert above["value"] == pytest.approx(values(runs_on(parabola(0.0)), 3.0)[0])


def test_the_points_of_the_fit_are_never_fewer_than_four():
    spike = np.array([0.1, 0.2, 0.3, 0.9, 0.5, 0.3, 0.2])  # none is within 5 pp of the best
    parabola = np.polyfit(GRID[2:6], spike[2:6], 2)
    at = np.array([-1.5, -1.0, 0.4, 2.0, 2.5])
    expected = [0.25, *np.polyval(parabola, at[1:4]), 0.25]
    assert fitted(GRID, spike, at) == pytest.approx(expected)


def test_three_points_are_joined_by_straight_lines():
    assert values(runs_on(lambda x: 0.5 + x / 10, x=[0, 1, 2]), 0.5, 2.0) == pytest.approx([0.15, 0.0])


def test_one_run_at_each_rate_has_no_interval_and_equal_runs_have_an_empty_one():
    assert regrets(runs_on(parabola(0.0)), [2.0])[0]["interval"] is None
    (same,) = regrets(runs_on(parabola(0.0), spread=(0.0, 0.0)), [2.0])
    assert same["interval"] == pytest.approx((same["value"], same["value"]))


def test_the_interval_is_repeatable_and_depends_on_the_spread():
    narrow, wide = (runs_on(parabola(0.0), spread=(-s, 0.0, s)) for s in (0.002, 0.02))
    assert regrets(narrow, [2.0]) == regrets(narrow, [2.0])
    (a,), (b,) = (regrets(runs, [2.0]) for runs in (narrow, wide))
    assert np.diff(b["interval"]) > 4 * np.diff(a["interval"])


def test_resampled_means_spread_as_the_mean_of_the_runs_does():
    values = np.random.default_rng(0).normal(0.8, 0.01, 3)
    means = regret._resampled_means(values, np.random.default_rng(1))
    assert means.mean() == pytest.approx(values.mean(), abs=3e-4)
    assert means.std() == pytest.approx(values.std(ddof=1) / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("curve", "at"), [(parabola(0.0), 0.0), (parabola(0.0), -1.5), (cliff(0.0), -1.0)])
def test_noisy_runs_give_the_regret_on_average_and_an_interval_that_holds_it(monkeypatch, curve, at):
    """Three runs a rate that answer 1,000 images, with 0.4 pp between seeds. 95 % of the intervals should hold the
    truth; of 40 such, fewer than 32 would be a chance of 1 in 10,000 if it were so."""
    monkeypatch.setattr(regret, "RESAMPLES", 200)
    generator = np.random.default_rng(3)
    truth = curve(0.0) - curve(at)
    errors, held = [], 0
    for _ in range(40):
        noise = {x: generator.normal(0, 0.004, 3) for x in GRID}
        runs = {2.0**x: generator.binomial(1000, np.clip(curve(x) + noise[x], 0, 1)) / 1000 for x in GRID}
        (found,) = regrets(runs, [2.0**at])
        errors.append(found["value"] - truth)
        held += found["interval"][0] <= truth <= found["interval"][1]
    assert np.mean(errors) == pytest.approx(0.0, abs=0.004)
    assert held >= 32
