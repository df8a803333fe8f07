"""Reading made-up curves whose suggestions are known, of one seed and of several."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fast_cifar import RangeTestOptions, lr_curve
from fast_cifar.command_line import parse
from fast_cifar.lr_curve import Curve, Suggestion, combine, divergence, failure, has_diverged, smooth, spread, suggest

LRS = np.geomspace(1e-6, 1.0, 118)


def curve(noise=0.0, seed=0, falls_at=1e-4, diverges_at=3e-2):
    """A loss that goes from 2.3 to 1.5 around `falls_at` and explodes beyond `diverges_at`."""
    decades = np.log10(LRS)
    loss = 2.3 - 0.8 / (1 + np.exp(-4 * (decades - np.log10(falls_at))))
    loss += np.exp(np.clip(6 * (decades - np.log10(diverges_at)), -50, 3))
    return loss + noise * np.random.default_rng(seed).standard_normal(len(LRS))


def read(losses):
    return suggest(LRS, smooth(losses))


def test_the_points_of_a_clean_curve_are_where_they_should_be():
    found = read(curve())
    assert found.lr_min == pytest.approx(3e-5, rel=0.6)  # the fall begins
    assert found.steepest == pytest.approx(1e-4, rel=0.3)
    assert found.valley == pytest.approx(1e-4, rel=0.3)  # half of the fall is done
    assert 3e-4 < found.minimum < 3e-2
    assert 0 < found.lr_min < found.steepest < found.lr_max < 3e-2


@pytest.mark.parametrize("where", [0, 1, 5, 20, 30])
@pytest.mark.parametrize("height", [10.0, 1e4])
def test_an_early_spike_does_not_move_the_suggestion(where, height):
    spiked = curve(noise=0.02)
    spiked[where : where + 2] += height
    clean, found = read(curve(noise=0.02)), read(spiked)
    assert np.log10(found.lr_max) == pytest.approx(np.log10(clean.lr_max), abs=0.1)
    assert np.log10(found.minimum) == pytest.approx(np.log10(clean.minimum), abs=0.3)


def test_a_later_divergence_means_a_higher_lr_max():
    assert read(curve(diverges_at=3e-1)).lr_max > 1.5 * read(curve(diverges_at=3e-2)).lr_max


def test_a_loss_that_only_falls_has_its_minimum_at_the_last_rate():
    found = read(np.linspace(4.0, 1.0, 118))
    assert found.minimum == pytest.approx(1.0, rel=0.3)
    assert found.lr_min < found.lr_max <= 1.0


def test_smoothing_keeps_a_straight_line_straight():
    line = np.linspace(3.0, 1.0, 60)
    assert smooth(line)[10:-10] == pytest.approx(line[10:-10], abs=1e-6)


def test_a_lasting_rise_is_a_divergence_and_neither_a_spike_nor_noise_is():
    def stops(losses):
        return [n for n in range(1, len(losses) + 1) if has_diverged(losses[:n])]

    assert 40 < stops([*np.linspace(2.3, 1.5, 40), *np.linspace(1.5, 6.0, 20)])[0] < 60
    assert not stops([*np.linspace(4.0, 0.1, 40), *(0.1 + 0.05 * np.random.default_rng(0).random(60))])
    for end in range(20):
        assert not stops([*[2.3] * end, 100.0, *[2.3] * (19 - end)])


def real(decades):
    """As on CIFAR-10 at batch 512: a steep fall, a long slow one, a flat basin at 5e-3, a divergence."""
    loss = 2.1 + 2.6 / (1 + np.exp(4 * (decades + 4.9))) - 0.25 * np.clip(decades + 4.5, 0, None)
    return loss + 0.3 * np.exp(np.clip(4 * (decades + 1.9), -50, 2.5))


def late(decades):
    return 2.3 - 1.2 / (1 + np.exp(-5 * (decades + 3))) + np.exp(np.clip(6 * (decades + 1), -50, 3))


def sweep_of(shape, noise, rng, steps=118):
    """(lrs, losses), with a spike in every fiftieth step, up to the divergence."""
    lrs = np.geomspace(1e-6, 1, steps)
    losses = shape(np.log10(lrs)) + noise * rng.standard_normal(steps)
    losses[rng.random(steps) < 0.02] *= rng.uniform(1.5, 6)
    stop = next((n for n in range(steps) if has_diverged(losses[:n])), steps)
    return lrs[:stop], losses[:stop]


def errors(shape, noise, steps=118, sweeps=40):
    """Root mean square error of each rate in decades, against the curve without noise."""
    rng = np.random.default_rng(0)
    exact = np.linspace(-6, 0, 6001)
    truth = suggest(10**exact, shape(exact))
    found = [
        suggest(lrs, smooth(losses)) for lrs, losses in (sweep_of(shape, noise, rng, steps) for _ in range(sweeps))
    ]
    return {
        name: np.mean([np.log10(getattr(one, name) / getattr(truth, name)) ** 2 for one in found]) ** 0.5
        for name in ("lr_max", "minimum", "steepest", "valley")
    }


@pytest.mark.parametrize("shape", [real, late])
def test_noise_and_spikes_move_the_rates_by_little_and_less_in_a_longer_sweep(shape):
    error = errors(shape, noise=0.1)
    most = {"lr_max": 0.18, "minimum": 0.22, "steepest": 0.13, "valley": 0.13}
    assert {name: value for name, value in error.items() if value >= most[name]} == {}
    short, long = errors(shape, 0.15, 118, sweeps=30), errors(shape, 0.15, 500, sweeps=15)
    assert long["lr_max"] < 0.85 * short["lr_max"]
    assert long["steepest"] < 0.85 * short["steepest"]


@pytest.mark.parametrize("basin", [0.05, 0.5])
def test_lr_max_is_the_middle_of_the_basin(monkeypatch, basin):
    monkeypatch.setattr(lr_curve, "BASIN", basin)
    decades = np.log10(LRS)
    lopsided = np.where(decades < -2, -2 - decades, 3 * (decades + 2))
    assert np.log10(suggest(LRS, lopsided).lr_max) == pytest.approx(-2 - basin * 4 / 3, abs=0.06)


@pytest.mark.parametrize(
    ("losses", "where"), [([3.0, 2.0, 1.0, 1.2, 1.49, 1.51, 1.4, 1.6, 4.0], 8.0), ([3.0, 2.0, 1.0], 3.0)]
)
def test_the_divergence_is_where_a_quarter_of_the_fall_is_lost_for_good_or_at_the_end(losses, where):
    assert divergence([float(rate) for rate in range(1, len(losses) + 1)], np.array(losses)) == where


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_the_divergence_by_less_than_a_factor_of_two(seed):
    rng = np.random.default_rng(seed)
    lrs, losses = sweep_of(real, 0.1, rng)
    clean_lrs, clean = sweep_of(real, 0.0, np.random.default_rng(0))
    noisy = divergence(lrs, smooth(losses))
    assert abs(np.log2(noisy / divergence(clean_lrs, smooth(clean)))) < 1


def test_a_curve_that_cannot_be_read_has_a_reason():
    assert "after 3 steps" in failure(LRS, [2.3, 2.2, 9.0], True)
    assert "never fell between 1e-06 and 1;" in failure(LRS, [2.3] * 118, False)
    assert "never fell between 1e-06 and 0.1" in failure(LRS, np.linspace(2.3, 9.0, 99), True)
    assert failure(LRS, curve(noise=0.1), True) is None
    assert failure(LRS, [2.3, 2.2, 2.1], False) is None


def test_a_linear_and_an_exponential_sweep_of_the_same_loss_agree_roughly():
    linear = np.linspace(1e-6, 0.1, 400)
    exponential = np.geomspace(1e-6, 0.1, 400)
    found = [suggest(lrs, smooth(late(np.log10(lrs)))) for lrs in (linear, exponential)]
    assert found[0].lr_max == pytest.approx(found[1].lr_max, rel=0.5)
    assert found[0].minimum == pytest.approx(found[1].minimum, rel=0.5)


@given(st.lists(st.floats(0, 1e30), min_size=2, max_size=60), st.booleans())
@example([2.3, 2.2], False)
@example([2.3] * 5, False)
@example([2.3, 9.0, 9.0], False)
@example([2.0, 3.0, 1.0, 4.0], False)
def test_whatever_the_losses_the_rates_are_among_those_tested(losses, is_linear):
    lrs = (np.linspace if is_linear else np.geomspace)(1e-6, 1.0, len(losses))
    smoothed = smooth(losses)
    found = suggest(lrs, smoothed)
    assert 0 < found.lr_min < found.lr_max <= 1 + 1e-9
    assert divergence(lrs, smoothed) in lrs
    assert {found.steepest, found.valley, found.minimum} <= set(lrs)


FALLING = np.linspace(3.0, 1.0, 20).tolist()
RISING_FIRST = [*np.linspace(3.0, 4.0, 10), *np.linspace(4.0, 2.0, 20)]


def points(lr_max):
    return Suggestion(lr_min=lr_max / 20, lr_max=lr_max, steepest=lr_max / 10, valley=lr_max / 5, minimum=2 * lr_max)


def curve_of(lr_max, losses=FALLING, diverges_at=0.1):
    return Curve(np.geomspace(1e-4, 1, len(losses)).tolist(), losses, losses, points(lr_max), diverges_at)


def combined(*curves, lr_start=1e-4, lr_end=1.0):
    return combine(curves, [lr_start, lr_end], sweep="linear")


def mean_losses(*curves):
    return combined(*(curve_of(1e-3, losses) for losses in curves)).losses


@given(st.lists(st.floats(1e-8, 10.0), min_size=1, max_size=9))
def test_each_rate_is_the_geometric_mean_of_the_seeds_whatever_their_order(lr_maxes):
    together = combined(*map(curve_of, lr_maxes)).suggestion
    assert together.lr_max == pytest.approx(np.exp(np.log(lr_maxes).mean()))
    assert vars(together) == pytest.approx(vars(points(together.lr_max)))
    assert vars(combined(*map(curve_of, lr_maxes[::-1])).suggestion) == pytest.approx(vars(together))


def test_the_interval_is_students_t_on_a_logarithmic_scale():
    result = spread([1e-3, 1e-2, 1e-1])
    assert np.log10(result.interval) == pytest.approx([-2 - 4.30265 / 3**0.5, -2 + 4.30265 / 3**0.5], rel=1e-4)
    assert (result.lowest, result.highest) == (1e-3, 1e-1)


def test_two_seeds_have_no_interval_and_seeds_that_agree_one_of_no_width():
    assert combined(curve_of(1e-3), curve_of(1e-2)).lr_max_spread.interval is None
    result = spread([0.25] * 4)
    assert result.interval == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize(("lengths", "reach"), [((5, 10, 20, 40), 20), ((5, 10, 20), 10), ((5, 10), 10)])
def test_the_mean_curve_reaches_as_far_as_half_of_the_seeds(lengths, reach):
    result = combined(*(curve_of(1e-3, [1.0] * n) for n in lengths))
    assert len(result.lrs) == len(result.losses) == len(result.smoothed) == reach


def test_a_seed_that_diverged_continues_at_its_last_loss():
    assert mean_losses([3.0, 9.0], [1.0, 1.0, 1.0]) == [2.0, 5.0, 5.0]


def test_the_plot_shows_the_band_from_the_lowest_to_the_highest_seed(monkeypatch):
    drawn = {}
    monkeypatch.setattr(lr_curve.range_test_plot, "range_test", lambda *_, **keywords: drawn.update(keywords))
    curves = [3.0, 2.0, 4.0], [2.0, 2.5, 1.0], [1.0, 1.5, 2.0, 9.0]
    combined(*(curve_of(1e-3, losses) for losses in curves)).plot("plot.png")
    assert drawn["band"] == ([1.0, 1.5, 1.0], [3.0, 2.5, 4.0])
    assert [smoothed for _, smoothed in drawn["seeds"]] == list(curves)
    assert drawn["linear"]


def test_the_divergence_is_the_mean_where_half_of_the_seeds_diverged():
    some = combined(curve_of(0.1, diverges_at=0.2), curve_of(0.1, diverges_at=None))
    assert some.divergence == pytest.approx(0.2)
    assert "1 of 2 seeds" in some.warnings[0]
    assert combined(*(curve_of(0.1, diverges_at=at) for at in (0.2, None, None))).divergence is None


def test_seeds_that_differ_by_more_than_a_factor_of_two_have_a_warning():
    assert combined(curve_of(1e-3), curve_of(1.9e-3)).warnings == []
    (line,) = combined(curve_of(1e-3), curve_of(2.1e-3)).warnings
    assert "a factor of 2.1, 0.001 to 0.0021" in line


def test_a_loss_that_rises_again_without_diverging_needs_no_longer_sweep():
    bounded = [*FALLING, FALLING[-1] + 0.8 * (FALLING[0] - FALLING[-1])]
    assert combined(curve_of(1e-3, bounded, diverges_at=None)).warnings == []


def test_a_sweep_that_ends_at_its_lowest_loss_should_be_longer():
    endless = curve_of(1e-3, diverges_at=None)
    assert "--lr-end 10" in combined(endless).warnings[0]
    assert "1 of 3 seeds" in combined(endless, curve_of(1e-3), curve_of(1e-3)).warnings[0]


def test_a_fall_after_a_rise_may_be_a_recovery():
    (line,) = combined(curve_of(1e-3), curve_of(1e-3, RISING_FIRST)).warnings
    assert line.startswith("the loss rose before it fell with 1 of 2 seeds")
    assert len(combined(curve_of(1e-3, RISING_FIRST, diverges_at=None)).warnings) == 1


@pytest.mark.parametrize(
    "rates", [LRS, np.geomspace(1e-12, 1e6, 118), np.geomspace(1e-3, 1e-2, 20), np.linspace(1e-6, 1, 118)]
)
def test_the_options_that_are_advised_make_another_sweep(rates):
    rates = rates.tolist()
    endless, recovering = (curve_of(1e-3, losses, diverges_at=None) for losses in (FALLING, RISING_FIRST))
    lines = combine([endless, recovering, curve_of(0.1)], rates, sweep="exponential").warnings
    lines += [failure(rates, losses, diverged) for losses, diverged in (([2.3], True), ([2.3] * 20, False))]
    assert len(lines) == 5
    swept = {"lr_start": rates[0], "lr_end": rates[-1], "iters": len(rates)}
    for line in lines:
        words = [word for word in line.partition("run_lrfind.py")[2].split() if word[0] == "-" or word[0].isdigit()]
        options = parse(RangeTestOptions, "", [word.rstrip(",") for word in words])
        options.replace(lr_start=min(options.lr_start, rates[0])).check()
        assert any(getattr(options, name) != swept[name] for name in swept if name in options.given)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [real, late])
def test_noise_on_the_plateau_is_not_a_rise(shape, seed):
    smoothed = smooth(sweep_of(shape, 0.1, np.random.default_rng(seed))[1]).tolist()
    assert combined(curve_of(1e-3, smoothed)).warnings == []


def test_the_warnings_given_come_first():
    result = combine([curve_of(1e-3, diverges_at=None)], LRS, sweep="linear", seeds=[4], warnings=["seed 7 ..."])
    assert result.warnings[0] == "seed 7 ..."
    assert len(result.warnings) == 2
    assert result.seeds == [4]
