"""The figure of a range test: curve, points and interval are those given, and any losses can be drawn."""

from __future__ import annotations

import math

import pytest

from fast_cifar.plots import range_test
from tests.helpers.plots import SUGGESTION, assert_good, lines, sweep, texts

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(("linear", "scale"), [(False, "log"), (True, "linear")])
def test_the_range_test_holds_both_losses_over_the_axis_of_its_sweep(png, figures, linear, scale):
    lrs, losses = sweep()
    smoothed = [loss + 0.01 for loss in losses]
    range_test.range_test(png, lrs, losses, smoothed, SUGGESTION, linear=linear)
    axes = figures[0].axes[0]
    assert axes.get_xscale() == scale
    assert lines(axes)["loss"] == (lrs, losses)
    assert lines(axes)["smoothed"] == (lrs, smoothed)
    assert_good(png)


def test_the_points_of_the_range_test_stand_on_the_smoothed_curve(png, figures):
    lrs, losses = sweep()
    lr = lrs[60]
    suggestion = SUGGESTION | {"steepest": lr}
    range_test.range_test(png, lrs, losses[::-1], losses, suggestion)
    x, y = lines(figures[0].axes[0])["steepest"]
    assert x == [lr]
    assert y == pytest.approx([losses[60]])


def test_the_range_test_tells_its_values_and_shades_the_recommended_interval(png, figures):
    lrs, losses = sweep()
    range_test.range_test(png, lrs, losses, losses, SUGGESTION)
    axes = figures[0].axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"steepest 0.001", "valley 0.005", "minimum 0.03"} <= set(legend)
    assert texts(axes) == ["LRMIN 0.0001", "LRMAX 0.01"]
    box = axes.patches[0].get_window_extent().transformed(axes.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((1e-4, 1e-2))


def test_the_title_says_what_was_swept_and_stands_above_the_texts_of_the_interval(png, figures):
    lrs, losses = sweep()
    range_test.range_test(png, lrs, losses, losses, SUGGESTION, title="Range test: $x_1$, " + "many words " * 15)
    axes = figures[0].axes[0]
    assert axes.get_title().startswith("Range test: $x_1$, many words")
    box = axes.title.get_window_extent()
    assert max(text.get_window_extent().y1 for text in axes.texts) < box.y0 < box.y1 <= figures[0].bbox.y1
    assert 0 <= box.x0 < box.x1 <= figures[0].bbox.x1


def test_the_texts_of_the_interval_never_meet(png, figures):
    lrs, losses = sweep()
    narrow = SUGGESTION | {"lr_min": 1e-3, "lr_max": 1.001e-3}
    range_test.range_test(png, lrs, losses, losses, narrow)
    left, right = (text.get_window_extent() for text in figures[0].axes[0].texts)
    assert left.x1 <= right.x0


@pytest.mark.parametrize("tail", [[1e6, 1e30, math.inf], [math.nan] * 3, [1e3] * 3, []])
@pytest.mark.parametrize("spike", [[], [9.0, 40.0, 12.0]])
def test_neither_divergence_nor_an_early_spike_hides_the_descent(png, figures, tail, spike):
    lrs, losses = sweep(diverges=False)
    losses[2 : 2 + len(spike)] = spike
    losses[len(losses) - len(tail) :] = tail
    range_test.range_test(png, lrs, losses, losses, SUGGESTION)
    low, high = figures[0].axes[0].get_ylim()
    assert 0.8 < low < 1.3
    assert 2.3 < high < 3.2
    assert_good(png)


@pytest.mark.parametrize("losses", [[math.nan] * 5, [2.3] * 5, [2.3, 3.0, 9.0, 1e9, math.inf], [0.0] * 5])
def test_a_range_test_that_never_descends_is_drawn(png, losses):
    rate = {"lr_min": 1e-6, "lr_max": 1e-5, "steepest": 1e-6, "valley": 1e-6, "minimum": 1e-6}
    range_test.range_test(png, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2], losses, losses, rate)
    assert_good(png)


def several(count=3):
    """Keywords for as many seeds, of which the last diverged sooner."""
    lrs, losses = sweep()
    curves = [[loss + 0.02 * k for loss in losses] for k in range(count)]
    seeds = [(lrs[: len(lrs) - 5 * (k == count - 1)], curve) for k, curve in enumerate(curves)]
    seeds[-1] = (seeds[-1][0], seeds[-1][1][: len(seeds[-1][0])])
    return {"seeds": seeds, "band": (curves[0], curves[-1]), "lr_max_range": (8e-3, 1.3e-2), "divergence": 0.1}


def test_several_seeds_are_a_band_with_their_lines_in_it(png, figures):
    lrs, losses = sweep()
    range_test.range_test(png, lrs, losses, losses, SUGGESTION, **several())
    axes = figures[0].axes[0]
    seed_lines = [line for line in axes.lines if line.get_label() == "_one seed"]
    assert [list(line.get_ydata()) for line in seed_lines] == [curve for _, curve in several()["seeds"]]
    (band,) = (patch for patch in axes.collections if patch.get_label() == "lowest to highest seed")
    assert band.get_paths()[0].get_extents().x1 == pytest.approx(lrs[-1])
    assert "smoothed loss (mean of 3 seeds)" in [line.get_label() for line in axes.lines]
    assert_good(png)


def test_a_seed_that_starts_higher_is_seen_whole(png, figures):
    lrs, losses = sweep()
    higher = [loss + 2 for loss in losses]
    range_test.range_test(
        png, lrs, losses, losses, SUGGESTION, seeds=[(lrs, losses), (lrs, higher)], band=(losses, higher)
    )
    assert figures[0].axes[0].get_ylim()[1] > 4.3


def test_many_seeds_are_a_band_alone(png, figures):
    lrs, losses = sweep()
    range_test.range_test(png, lrs, losses, losses, SUGGESTION, **several(11))
    assert "_one seed" not in [line.get_label() for line in figures[0].axes[0].lines]


def test_the_spread_of_lr_max_and_the_divergence_are_marked(png, figures):
    lrs, losses = sweep()
    range_test.range_test(png, lrs, losses, losses, SUGGESTION, **several())
    axes = figures[0].axes[0]
    legend = {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"LRMAX of the seeds 0.008 to 0.013", "divergence 0.1"} <= legend
    box = axes.patches[-1].get_window_extent().transformed(axes.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((8e-3, 1.3e-2))


def test_notes_stand_below_the_axes_in_lines_that_fit(png, figures):
    lrs, losses = sweep()
    notes = ["a note of many words " * 20, "another, of $one^line$"]
    range_test.range_test(png, lrs, losses, losses, SUGGESTION, notes=notes, **several())
    figure = figures[0]
    foot = next(text for text in figure.texts if "another, of $one^line$" in text.get_text())
    box, axes_box = foot.get_window_extent(), figure.axes[0].get_tightbbox()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= axes_box.y0
