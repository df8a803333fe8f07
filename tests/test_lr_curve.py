"""Reading a range test off made-up curves whose answers are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fast_cifar.lr_curve import divergence, failure, has_diverged, has_fallen, rises_first, smooth, suggest

LRS = np.geomspace(1e-6, 1.0, 118)


def curve(noise=0.0, seed=0, falls_at=1e-4, diverges_at=3e-2):
    """A loss that goes from 2.3 to 1.5 around `falls_at` and explodes beyond `diverges_at`."""
    decades = np.log10(LRS)
    loss = 2.3 - 0.8 / (1 + np.exp(-4 * (decades - np.log10(falls_at))))
    loss += np.exp(np.clip(6 * (decades - np.log10(diverges_at)), -50, 3))
    return loss + noise * np.random.default_rng(seed).standard_normal(len(LRS))


def read(losses):
    return suggest(LRS, smooth(losses))


def test_the_steepest_point_is_where_the_loss_falls_fastest():
    assert read(curve()).steepest == pytest.approx(1e-4, rel=0.3)


def test_the_minimum_lies_between_the_fall_and_the_explosion():
    assert 3e-4 < read(curve()).minimum < 3e-2


def test_the_valley_is_where_half_of_the_fall_is_done():
    assert read(curve()).valley == pytest.approx(1e-4, rel=0.3)


def test_the_rates_are_in_order():
    found = read(curve())
    assert 0 < found.lr_min < found.steepest < found.lr_max < 3e-2


def test_lr_min_is_where_the_fall_begins():
    assert read(curve()).lr_min == pytest.approx(3e-5, rel=0.6)


def test_the_valley_is_within_the_descent():
    assert LRS[0] < read(curve()).valley < read(curve()).minimum


@pytest.mark.parametrize("where", [0, 1, 5, 20, 30])
@pytest.mark.parametrize("height", [10.0, 1e4])
def test_an_early_spike_does_not_move_the_suggestion(where, height):
    spiked = curve(noise=0.02)
    spiked[where : where + 2] += height
    clean, found = read(curve(noise=0.02)), read(spiked)
    assert np.log10(found.lr_max) == pytest.approx(np.log10(clean.lr_max), abs=0.1)
    assert np.log10(found.minimum) == pytest.approx(np.log10(clean.minimum), abs=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_lr_max_by_less_than_a_factor_of_two(seed):
    assert abs(np.log2(read(curve(0.05, seed)).lr_max / read(curve()).lr_max)) < 1


def test_a_later_explosion_means_a_higher_lr_max():
    assert read(curve(diverges_at=3e-1)).lr_max > 1.5 * read(curve(diverges_at=3e-2)).lr_max


def test_a_loss_that_never_falls_suggests_nothing():
    assert not has_fallen(smooth(np.linspace(2.3, 9.0, 118)))
    assert not has_fallen(smooth(np.full(118, 2.3)))


def test_a_fall_is_seen_through_noise():
    assert has_fallen(smooth(curve(noise=0.1)))


@pytest.mark.parametrize("losses", [[2.3, 2.2], [2.3] * 5, [2.3, 9.0, 9.0], [2.0, 3.0, 1.0, 4.0]])
def test_the_shortest_curves_can_be_read(losses):
    lrs = np.geomspace(1e-3, 1e-1, len(losses))
    found = suggest(lrs, smooth(losses))
    assert 0 < found.lr_min < found.lr_max <= 0.1 * (1 + 1e-9)


def test_a_loss_that_only_falls_is_read_to_its_end():
    found = read(np.linspace(4.0, 1.0, 118))
    assert found.minimum == pytest.approx(1.0, rel=0.3)
    assert found.lr_min < found.lr_max <= 1.0


def test_smoothing_keeps_a_straight_line_straight():
    line = np.linspace(3.0, 1.0, 60)
    assert smooth(line)[10:-10] == pytest.approx(line[10:-10], abs=1e-6)


def test_a_spike_is_no_divergence():
    losses = [2.3] * 20
    for end in range(20):
        spiked = [*losses[:end], 100.0, *losses[end + 1 :]]
        assert not any(has_diverged(spiked[:n]) for n in range(1, 21))


def test_a_lasting_rise_is_a_divergence():
    losses = [*np.linspace(2.3, 1.5, 40), *np.linspace(1.5, 6.0, 20)]
    stops = [n for n in range(1, 61) if has_diverged(losses[:n])]
    assert 40 < stops[0] < 60


def test_noise_around_a_low_loss_is_no_divergence():
    rng = np.random.default_rng(0)
    losses = [*np.linspace(4.0, 0.1, 40), *(0.1 + 0.05 * rng.random(60))]
    assert not any(has_diverged(losses[:n]) for n in range(1, 101))


def real(decades):
    """As CIFAR-10 has it at batch 512: a steep fall, a long slow one, a flat basin at 5e-3, an explosion."""
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
    names = ("lr_max", "minimum", "steepest", "valley")
    return {
        name: np.mean([np.log10(getattr(one, name) / getattr(truth, name)) ** 2 for one in found]) ** 0.5
        for name in names
    }


@pytest.mark.parametrize("shape", [real, late])
def test_noise_and_spikes_move_the_rates_by_little(shape):
    error = errors(shape, noise=0.1)
    assert error["lr_max"] < 0.18
    assert error["minimum"] < 0.22
    assert error["steepest"] < 0.13
    assert error["valley"] < 0.13


@pytest.mark.parametrize("shape", [real, late])
def test_a_longer_sweep_is_surer(shape):
    short, long = errors(shape, 0.15, 118, sweeps=30), errors(shape, 0.15, 500, sweeps=15)
    assert long["lr_max"] < 0.85 * short["lr_max"]
    assert long["steepest"] < 0.85 * short["steepest"]


def test_a_wider_basin_moves_lr_max_to_its_middle():
    decades = np.log10(LRS)
    lopsided = np.where(decades < -2, -2 - decades, 3 * (decades + 2))
    narrow, wide = (suggest(LRS, lopsided, basin=share).lr_max for share in (0.05, 0.5))
    assert np.log10(narrow) == pytest.approx(-2 - 0.05 * 4 / 3, abs=0.06)
    assert np.log10(wide) == pytest.approx(-2 - 0.5 * 4 / 3, abs=0.06)


def test_the_divergence_is_where_a_quarter_of_the_fall_is_lost_again():
    losses = np.array([3.0, 2.0, 1.0, 1.2, 1.49, 1.51, 1.4, 1.6, 4.0])
    assert divergence(list(range(1, 10)), losses) == 8.0


def test_a_divergence_without_warning_is_at_the_last_rate():
    assert divergence([1.0, 2.0, 3.0], np.array([3.0, 2.0, 1.0])) == 3.0


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_the_divergence_by_less_than_a_factor_of_two(seed):
    rng = np.random.default_rng(seed)
    lrs, losses = sweep_of(real, 0.1, rng)
    clean_lrs, clean = sweep_of(real, 0.0, np.random.default_rng(0))
    noisy = divergence(lrs, smooth(losses))
    assert abs(np.log2(noisy / divergence(clean_lrs, smooth(clean)))) < 1


def test_why_a_curve_says_nothing():
    assert "after 3 steps" in failure(LRS[:3], [2.3, 2.2, 9.0])
    assert "never fell between 1e-06 and 1" in failure(LRS, [2.3] * 118)
    assert failure(LRS, curve()) is None


def test_a_linear_and_an_exponential_sweep_of_the_same_loss_agree_roughly():
    linear = np.linspace(1e-6, 0.1, 400)
    exponential = np.geomspace(1e-6, 0.1, 400)
    found = [suggest(lrs, smooth(late(np.log10(lrs)))) for lrs in (linear, exponential)]
    assert found[0].lr_max == pytest.approx(found[1].lr_max, rel=0.5)
    assert found[0].minimum == pytest.approx(found[1].minimum, rel=0.5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [real, late])
def test_noise_on_the_plateau_is_no_rise(shape, seed):
    assert not rises_first(smooth(sweep_of(shape, 0.1, np.random.default_rng(seed))[1]))


def test_a_fall_after_a_rise_is_told_apart():
    assert rises_first(smooth([3.0] * 5 + [5.0] * 30 + np.linspace(5.0, 2.2, 80).tolist()))


finite = st.floats(0, 1e30)


@given(st.lists(finite, min_size=2, max_size=60), st.booleans())
def test_whatever_the_losses_the_rates_are_among_those_tested(losses, is_linear):
    lrs = (np.linspace if is_linear else np.geomspace)(1e-6, 1.0, len(losses))
    smoothed = smooth(losses)
    found = suggest(lrs, smoothed)
    assert 0 < found.lr_min < found.lr_max <= 1 + 1e-9
    assert divergence(lrs, smoothed) in lrs
    assert {found.steepest, found.valley, found.minimum} <= set(lrs)
