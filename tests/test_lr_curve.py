"""Reading a range test off made-up curves whose answers are known."""

import numpy as np
import pytest

from fast_cifar.lr_curve import has_diverged, has_fallen, smooth, suggest

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
    found = suggest(np.geomspace(1e-3, 1e-1, len(losses)), smooth(losses))
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
