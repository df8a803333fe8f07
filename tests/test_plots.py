"""The curves and heat maps: what stands in the axes is what was given, and every awkward input gives a picture."""

from __future__ import annotations

import importlib.util
import math
import runpy
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fast_cifar import plots

matplotlib = pytest.importorskip("matplotlib")

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SUGGESTION = SimpleNamespace(lr_min=1e-4, lr_max=1e-2, steepest=1e-3, valley=5e-3, minimum=3e-2)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figure of every picture that the test writes."""
    seen = []
    original = plots._picture

    @contextmanager
    def recording(*args):
        with original(*args) as figure:
            seen.append(figure)
            yield figure

    monkeypatch.setattr(plots, "_picture", recording)
    return seen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "picture.png"


def assert_good(path: Path) -> None:
    """A whole PNG of a sane size that is not blank, alone in its folder."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    height, width, _ = picture.shape
    assert 1200 <= width <= 2000
    assert 400 <= height <= 2000
    assert picture.std() > 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def one_cycle(total: int, peak: int, low: float = 1e-3, high: float = 1e-2) -> list[float]:
    return np.interp(range(total), [0, peak, total - 1], [low, high, low]).tolist()


def history(epochs: int, splits: tuple[str, ...] = ("train", "test")) -> list[dict]:
    rows = []
    for epoch in range(1, epochs + 1):
        row: dict = {"epoch": epoch, "lr": 0.01}
        for shift, split in enumerate(splits):
            row[f"{split}_loss"] = 2 / (epoch + 1) + 0.1 * shift
            row[f"{split}_accuracy"] = 1 - 1 / (epoch + 1) - 0.05 * shift
        rows.append(row)
    return rows


def matrix(classes: int, images: int = 100, correct: int = 90) -> torch.Tensor:
    wrong = torch.full((classes, classes), (images - correct) // (classes - 1))
    return wrong.fill_diagonal_(correct)


def sweep(steps: int = 118, diverges: bool = True) -> tuple[list[float], list[float]]:
    """Rates and a loss that falls from 2.3 to some 1.3, and explodes above 0.1 if it diverges."""
    lrs = np.geomspace(1e-6, 1, steps)
    losses = 2.3 - 1 / (1 + (1e-3 / lrs) ** 1.5) + diverges * (10 * lrs) ** 4
    return lrs.tolist(), losses.tolist()


def lines(axes) -> dict[str, tuple[list, list]]:
    """Label, up to its first space -> x, y"""
    return {line.get_label().split()[0]: (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_matplotlib_is_found():
    assert plots.matplotlib_available()


def test_without_matplotlib_it_is_reported_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not plots.matplotlib_available()


def test_the_schedule_is_every_rate_against_the_share_of_the_run_after_its_step(path, figures):
    lrs = one_cycle(240, 49)
    plots.schedule(path, lrs, 10)
    line = figures[0].axes[0].lines[0]
    assert list(line.get_ydata()) == lrs
    assert line.get_xdata()[0] == pytest.approx(0.1)
    assert line.get_xdata()[49] == 5
    assert line.get_xdata()[-1] == 24
    assert_good(path)


def test_the_schedule_marks_the_peak_and_both_ends(path, figures):
    plots.schedule(path, one_cycle(240, 49), 10)
    assert texts(figures[0].axes[0]) == ["LRMIN 0.001", "LRMAX 0.01, max at epoch 5", "LRMIN 0.001"]


@pytest.mark.parametrize(("peak", "epoch"), [(9, 1), (10, 2), (49, 5), (50, 6)])
def test_the_epoch_of_the_peak_counts_from_one(path, figures, peak, epoch):
    plots.schedule(path, one_cycle(240, peak), 10)
    assert texts(figures[0].axes[0])[1].endswith(f"max at epoch {epoch}")


@pytest.mark.parametrize("lrs", [[0.1], one_cycle(3, 1), one_cycle(500, 498, low=1e-9)])
def test_unusual_schedules_are_drawn(path, lrs):
    plots.schedule(path, lrs, 2)
    assert_good(path)


def test_curves_hold_the_history_with_accuracy_in_percent(path, figures):
    rows = history(24)
    plots.curves(path, rows, "title")
    loss, accuracy = figures[0].axes
    for split in ("train", "test"):
        assert lines(loss)[split] == (list(range(1, 25)), [row[f"{split}_loss"] for row in rows])
        assert lines(accuracy)[split][1] == [100 * row[f"{split}_accuracy"] for row in rows]
    assert_good(path)


def test_curves_tell_the_last_values_and_the_gap(path, figures):
    rows = history(2)
    rows[-1] |= {"train_accuracy": 0.95, "test_accuracy": 0.9125, "train_loss": 0.5, "test_loss": 0.75}
    plots.curves(path, rows, "title")
    loss, accuracy = ([text.get_text() for text in axes.get_legend().get_texts()] for axes in figures[0].axes)
    assert loss == ["train 0.5000", "test 0.7500", "train − test -0.2500"]
    assert accuracy == ["train 95.00 %", "test 91.25 %", "train − test 3.75 %"]


def test_the_gap_between_train_and_test_is_shaded(path, figures):
    plots.curves(path, history(24), "title")
    for axes in figures[0].axes:
        corners = axes.collections[0].get_paths()[0].vertices
        assert corners[:, 0].min() == 1
        assert corners[:, 0].max() == 24


def test_a_held_out_split_has_its_own_line(path, figures):
    plots.curves(path, history(5, ("train", "test", "val")), "title")
    assert all(set(lines(axes)) == {"train", "val", "test"} for axes in figures[0].axes)


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_epochs_that_were_not_evaluated_are_left_out(path, figures, unknown):
    rows = history(8)
    for row in rows[::2]:
        row |= {"test_loss": unknown, "test_accuracy": unknown}
    plots.curves(path, rows, "title")
    assert all(lines(axes)["test"][0] == [2, 4, 6, 8] for axes in figures[0].axes)
    assert_good(path)


def test_a_single_epoch_is_inside_the_picture(path, figures):
    plots.curves(path, history(1), "title")
    for axes in figures[0].axes:
        low, high = axes.get_ylim()
        for epochs, values in lines(axes).values():
            assert axes.get_xlim()[0] < epochs[0] < axes.get_xlim()[1]
            assert low < values[0] < high
    assert_good(path)


def test_a_history_of_nothing_but_nulls_gives_a_picture(path):
    plots.curves(path, [{"epoch": 1, "train_loss": None, "train_accuracy": None}], "title")
    assert_good(path)


def test_a_title_is_not_read_as_mathematics(path, figures):
    plots.curves(path, history(2), "runs/$\\frac{/1$\n猫")
    assert figures[0].get_suptitle() == "runs/$\\frac{/1$?猫"
    assert_good(path)


def test_the_heat_map_is_percent_of_the_row_and_its_cells_are_counts(path, figures):
    counts = torch.tensor([[30, 10], [5, 15]])
    plots.confusion(path, counts, ["cat", "dog"])
    heat, bars, *_ = figures[0].axes
    assert heat.images[0].get_array().tolist() == [[75, 25], [25, 75]]
    assert texts(heat) == ["30", "10", "5", "15"]
    assert [bar.get_width() for bar in bars.patches] == [75, 75]
    assert_good(path)


def test_the_confusion_matrix_has_the_accuracy_in_its_title(path, figures):
    plots.confusion(path, torch.tensor([[30, 10], [5, 15]]), ["cat", "dog"])
    assert figures[0].get_suptitle() == "Confusion matrix: 45/60 correct (75.00 %)"


def test_the_confusion_matrix_names_rows_and_columns(path, figures):
    plots.confusion(path, matrix(10), CLASSES)
    heat = figures[0].axes[0]
    assert [label.get_text() for label in heat.get_yticklabels()] == CLASSES
    assert [label.get_text() for label in heat.get_xticklabels()] == CLASSES
    assert heat.get_ylabel() == "true class"
    assert heat.get_xlabel() == "predicted class"
    assert heat.get_ylim() == (9.5, -0.5)  # the first class on top


def test_bars_and_rows_of_the_confusion_matrix_are_level(path, figures):
    plots.confusion(path, matrix(10), CLASSES)
    heat, bars, *_ = figures[0].axes
    assert bars.get_ylim() == heat.get_ylim()
    assert bars.get_position().y0 == pytest.approx(heat.get_position().y0)
    assert bars.get_position().y1 == pytest.approx(heat.get_position().y1)


def test_a_hundred_classes_have_no_numbers_in_their_cells(path, figures):
    plots.confusion(path, matrix(100), [f"class {index}" for index in range(100)])
    assert texts(figures[0].axes[0]) == []
    assert_good(path)


def test_a_class_without_images_has_no_accuracy(path, figures):
    counts = matrix(3)
    counts[1] = 0
    plots.confusion(path, counts, ["a", "b", "c"])
    assert texts(figures[0].axes[1]) == ["90.0", "no images", "90.0"]
    assert_good(path)


def test_an_empty_confusion_matrix_gives_a_picture(path):
    plots.confusion(path, torch.zeros(2, 2, dtype=torch.int64), ["a", "b"])
    assert_good(path)


@pytest.mark.filterwarnings("error")
def test_any_class_name_can_stand_at_the_heat_map(path, figures):
    names = ["Forêt de Fontainebleau, très longue", "猫 🐱", "a\nb", "undecodable \udce9", "$x^$", ""]
    plots.confusion(path, matrix(6), names)
    shown = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert shown == ["Forêt de Fontaine…", "猫 🐱", "a?b", "undecodable ?", "$x^$", ""]
    assert_good(path)


def test_the_range_test_holds_both_losses_over_a_logarithmic_axis(path, figures):
    lrs, losses = sweep()
    smoothed = [loss + 0.01 for loss in losses]
    plots.range_test(path, lrs, losses, smoothed, SUGGESTION)
    axes = figures[0].axes[0]
    assert axes.get_xscale() == "log"
    assert lines(axes)["loss"] == (lrs, losses)
    assert lines(axes)["smoothed"] == (lrs, smoothed)
    assert_good(path)


def test_the_points_of_the_range_test_stand_on_the_smoothed_curve(path, figures):
    lrs, losses = sweep()
    lr = lrs[60]
    suggestion = SimpleNamespace(**{**vars(SUGGESTION), "steepest": lr})
    plots.range_test(path, lrs, losses[::-1], losses, suggestion)
    x, y = lines(figures[0].axes[0])["steepest"]
    assert x == [lr]
    assert y == pytest.approx([losses[60]])


def test_the_range_test_tells_its_values(path, figures):
    lrs, losses = sweep()
    plots.range_test(path, lrs, losses, losses, SUGGESTION)
    axes = figures[0].axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"steepest 0.001", "valley 0.005", "minimum 0.03"} <= set(legend)
    assert texts(axes) == ["LRMIN 0.0001", "LRMAX 0.01"]


def test_the_recommended_interval_is_shaded(path, figures):
    lrs, losses = sweep()
    plots.range_test(path, lrs, losses, losses, SUGGESTION)
    axes = figures[0].axes[0]
    (span,) = axes.patches
    box = span.get_window_extent().transformed(axes.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((1e-4, 1e-2))


def test_the_texts_of_the_interval_never_meet(path, figures):
    lrs, losses = sweep()
    narrow = SimpleNamespace(**{**vars(SUGGESTION), "lr_min": 1e-3, "lr_max": 1.001e-3})
    plots.range_test(path, lrs, losses, losses, narrow)
    left, right = (text.get_window_extent() for text in figures[0].axes[0].texts)
    assert left.x1 <= right.x0


@pytest.mark.parametrize("tail", [[1e6, 1e30, math.inf], [math.nan] * 3, [1e3] * 3, []])
@pytest.mark.parametrize("spike", [[], [9.0, 40.0, 12.0]])
def test_neither_divergence_nor_an_early_spike_hides_the_descent(path, figures, tail, spike):
    lrs, losses = sweep(diverges=False)
    losses[2 : 2 + len(spike)] = spike
    losses[len(losses) - len(tail) :] = tail
    plots.range_test(path, lrs, losses, losses, SUGGESTION)
    low, high = figures[0].axes[0].get_ylim()
    assert 0.8 < low < 1.3
    assert 2.3 < high < 3.2
    assert_good(path)


@pytest.mark.parametrize("losses", [[math.nan] * 5, [2.3] * 5, [2.3, 3.0, 9.0, 1e9, math.inf], [0.0] * 5])
def test_a_range_test_that_never_descends_gives_a_picture(path, losses):
    rate = SimpleNamespace(lr_min=1e-6, lr_max=1e-5, steepest=1e-6, valley=1e-6, minimum=1e-6)
    plots.range_test(path, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2], losses, losses, rate)
    assert_good(path)


def test_nothing_reaches_out_of_a_picture(path, figures):
    lrs, losses = sweep()
    edge = SimpleNamespace(lr_min=lrs[0], lr_max=lrs[-1], steepest=1e-3, valley=1e-3, minimum=lrs[-1])
    plots.range_test(path, lrs, losses, losses, edge)
    plots.schedule(path, one_cycle(240, 238), 10)
    plots.curves(path, history(24, ("train", "test", "val")), "title")
    plots.confusion(path, matrix(20), ["a rather long name"] * 20)
    for figure in figures:
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def several(count=3):
    """Keywords for as many seeds, of which the last diverged sooner."""
    lrs, losses = sweep()
    curves = [[loss + 0.02 * k for loss in losses] for k in range(count)]
    seeds = [(lrs[: len(lrs) - 5 * (k == count - 1)], curve) for k, curve in enumerate(curves)]
    seeds[-1] = (seeds[-1][0], seeds[-1][1][: len(seeds[-1][0])])
    spread = SimpleNamespace(lowest=8e-3, highest=1.3e-2)
    return {"seeds": seeds, "band": (curves[0], curves[-1]), "lr_max_spread": spread, "divergence": 0.1}


def test_several_seeds_are_a_band_with_their_lines_in_it(path, figures):
    lrs, losses = sweep()
    plots.range_test(path, lrs, losses, losses, SUGGESTION, **several())
    axes = figures[0].axes[0]
    seed_lines = [line for line in axes.lines if line.get_label() == "_one seed"]
    assert [list(line.get_ydata()) for line in seed_lines] == [curve for _, curve in several()["seeds"]]
    (band,) = (patch for patch in axes.collections if patch.get_label() == "lowest to highest seed")
    assert band.get_paths()[0].get_extents().x1 == pytest.approx(lrs[-1])
    assert "smoothed loss (mean of 3 seeds)" in [line.get_label() for line in axes.lines]
    assert_good(path)


def test_a_seed_that_starts_higher_is_seen_whole(path, figures):
    lrs, losses = sweep()
    higher = [loss + 2 for loss in losses]
    plots.range_test(path, lrs, losses, losses, SUGGESTION, seeds=[(lrs, losses), (lrs, higher)], band=(losses, higher))
    assert figures[0].axes[0].get_ylim()[1] > 4.3


def test_many_seeds_are_a_band_alone(path, figures):
    lrs, losses = sweep()
    plots.range_test(path, lrs, losses, losses, SUGGESTION, **several(11))
    assert "_one seed" not in [line.get_label() for line in figures[0].axes[0].lines]


def test_the_spread_of_lr_max_and_the_divergence_are_marked(path, figures):
    lrs, losses = sweep()
    plots.range_test(path, lrs, losses, losses, SUGGESTION, **several())
    axes = figures[0].axes[0]
    legend = {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"LRMAX of the seeds 0.008 to 0.013", "divergence 0.1"} <= legend
    box = axes.patches[-1].get_window_extent().transformed(axes.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((8e-3, 1.3e-2))


def test_a_linear_sweep_has_a_linear_axis(path, figures):
    lrs = np.linspace(1e-6, 0.1, 118).tolist()
    _, losses = sweep()
    plots.range_test(path, lrs, losses, losses, SUGGESTION, linear=True)
    assert figures[0].axes[0].get_xscale() == "linear"
    assert_good(path)


def test_notes_stand_below_the_axes_in_lines_that_fit(path, figures):
    lrs, losses = sweep()
    notes = ["a note of many words " * 20, "another, of $one^line$"]
    plots.range_test(path, lrs, losses, losses, SUGGESTION, notes=notes, **several())
    figure = figures[0]
    foot = next(text for text in figure.texts if "another, of $one^line$" in text.get_text())
    box, axes_box = foot.get_window_extent(), figure.axes[0].get_tightbbox()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= axes_box.y0


def test_a_picture_that_fails_leaves_no_file(path):
    with pytest.raises(ValueError, match="shape|dimension"):
        plots.range_test(path, [1e-3, 1e-2], [1.0], [1.0], SUGGESTION)
    assert not list(path.parent.iterdir())


def test_settings_of_the_caller_are_neither_used_nor_changed(path):
    lrs = one_cycle(240, 49)
    plots.schedule(path, lrs, 10)
    plain = path.read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        plots.schedule(path, lrs, 10)
        assert dict(matplotlib.rcParams) == before
    assert path.read_bytes() == plain


def test_drawing_never_imports_pyplot(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    lrs, losses = sweep()
    plots.schedule(path, one_cycle(240, 49), 10)
    plots.curves(path, history(3), "title")
    plots.confusion(path, matrix(3), CLASSES[:3])
    plots.range_test(path, lrs, losses, losses, SUGGESTION)
    assert_good(path)


def test_the_module_can_be_imported_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert runpy.run_path(plots.__file__)["schedule"]
