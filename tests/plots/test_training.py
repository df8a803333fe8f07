"""The curves and heat maps hold what was given, and any input can be drawn."""

from __future__ import annotations

import math

import pytest
import torch

from fast_cifar.plots import training
from tests.helpers.plots import CLASSES, assert_good, history, lines, matrix, one_cycle, texts

pytest.importorskip("matplotlib")


def test_the_schedule_is_every_rate_against_the_share_of_the_run_after_its_step(png, figures):
    lrs = one_cycle(240, 49)
    training.schedule(png, lrs, 10)
    line = figures[0].axes[0].lines[0]
    assert list(line.get_ydata()) == lrs
    assert line.get_xdata()[0] == pytest.approx(0.1)
    assert line.get_xdata()[49] == 5
    assert line.get_xdata()[-1] == 24
    assert_good(png)


@pytest.mark.parametrize(("peak", "epoch"), [(9, 1), (10, 2), (49, 5), (50, 6)])
def test_the_schedule_marks_both_ends_and_the_peak_whose_epoch_counts_from_one(png, figures, peak, epoch):
    training.schedule(png, one_cycle(240, peak), 10)
    assert texts(figures[0].axes[0]) == ["LRMIN 0.001", f"LRMAX 0.01, max at epoch {epoch}", "LRMIN 0.001"]


@pytest.mark.parametrize("lrs", [[0.1], one_cycle(3, 1), one_cycle(500, 498, low=1e-9)])
def test_unusual_schedules_are_drawn(png, lrs):
    training.schedule(png, lrs, 2)
    assert_good(png)


def test_curves_hold_the_history_with_accuracy_in_percent_and_the_gap_shaded(png, figures):
    rows = history(24)
    training.curves(png, [rows], len(rows), "title")
    loss, accuracy = figures[0].axes
    for split in ("train", "test"):
        assert lines(loss)[split] == (list(range(1, 25)), [row[f"{split}_loss"] for row in rows])
        assert lines(accuracy)[split][1] == [100 * row[f"{split}_accuracy"] for row in rows]
    gap = accuracy.collections[0].get_paths()[0].vertices
    assert (gap[:, 0].min(), gap[:, 0].max()) == (1, 24)
    assert not loss.collections  # smoothed labels make the losses incomparable
    assert_good(png)


def test_curves_tell_the_last_values_and_the_gap(png, figures):
    rows = history(2)
    rows[-1] |= {"train_accuracy": 0.95, "test_accuracy": 0.9125, "train_loss": 0.5, "test_loss": 0.75}
    training.curves(png, [rows], len(rows), "title")
    loss, accuracy = ([text.get_text() for text in axes.get_legend().get_texts()] for axes in figures[0].axes)
    assert loss == ["train 0.5000", "test 0.7500"]
    assert accuracy == ["train 95.00 %", "test 91.25 %", "train − test 3.75 pp"]


@pytest.mark.parametrize(("smoothing", "title"), [(0.0, "Loss"), (0.1, "Loss (train: with label smoothing 0.1)")])
def test_the_losses_say_that_only_one_of_them_is_that_of_smoothed_labels(png, figures, smoothing, title):
    training.curves(png, [history(2)], 2, label_smoothing=smoothing)
    assert [axes.get_title() for axes in figures[0].axes] == [title, "Accuracy"]


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_epochs_that_were_not_evaluated_are_left_out(png, figures, unknown):
    rows = history(8)
    for row in rows[::2]:
        row |= {"test_loss": unknown, "test_accuracy": unknown}
    training.curves(png, [rows], len(rows), "title")
    assert all(lines(axes)["test"][0] == [2, 4, 6, 8] for axes in figures[0].axes)
    assert_good(png)


def test_a_single_epoch_is_inside_the_figure(png, figures):
    training.curves(png, [history(1)], 1, "title")
    for axes in figures[0].axes:
        low, high = axes.get_ylim()
        for epochs, values in lines(axes).values():
            assert axes.get_xlim()[0] < epochs[0] < axes.get_xlim()[1]
            assert low < values[0] < high
    assert_good(png)


def test_a_history_of_nothing_but_nulls_is_drawn(png):
    training.curves(png, [[{"epoch": 1, "train_loss": None, "train_accuracy": None}]], 1, "title")
    assert_good(png)


def test_a_title_is_not_read_as_mathematics(png, figures):
    training.curves(png, [history(2)], 2, "runs/$\\frac{/1$\n猫")
    assert figures[0].get_suptitle() == "runs/$\\frac{/1$?猫"
    assert_good(png)


def test_long_titles_are_lines_inside_the_figure(png, figures):
    trained = "a folder with a name of many words " * 5
    training.curves(png, [history(2)], 2, trained, "test accuracy 91.25 %")
    training.confusion(png, matrix(3), CLASSES[:3], trained, "test accuracy 90.00 %")
    training.schedule(png, [0.1, 0.2, 0.1], 2, trained)
    titles = [figure._suptitle or figure.axes[0].title for figure in figures]
    assert [title.get_text().splitlines()[-1] for title in titles[:2]] == [
        "test accuracy 91.25 %",
        "test accuracy 90.00 %: 270/300 correct",
    ]
    for title, figure in zip(titles, figures, strict=True):
        assert 0 <= title.get_window_extent().x0 < title.get_window_extent().x1 <= figure.bbox.x1


def test_several_seeds_are_thin_lines_with_one_legend_entry_a_split(png, figures):
    histories = [[row | {"test_loss": row["test_loss"] + seed} for row in history(3)] for seed in range(3)]
    training.curves(png, histories, 3)
    axes = figures[0].axes[0]
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert all([row["test_loss"] for row in rows] in drawn for rows in histories)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "test"]
    assert not axes.collections  # the gap of one run would hide those of the others
    assert_good(png)


def test_a_comparison_holds_the_accuracy_of_every_run_and_seed_in_percent(png, figures):
    seeds = [history(3, ("val",)), history(4, ("val",))]
    training.comparison(png, [("a", "test_accuracy", [history(5)]), ("b", "val_accuracy", seeds)])
    drawn = [list(line.get_ydata()) for line in figures[0].axes[0].lines if len(line.get_ydata())]
    expected = [(history(5), "test_accuracy"), *((rows, "val_accuracy") for rows in seeds)]
    assert drawn == [[100 * row[key] for row in rows] for rows, key in expected]
    assert_good(png)


def test_twenty_runs_can_be_told_apart_and_have_their_names(png, figures):
    names = ["_hidden", "$x^$", "a long name " * 9, *map(str, range(17))]
    training.comparison(png, [(name, "test_accuracy", [history(2)]) for name in names])
    looks = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines}
    assert len(looks) == 20
    shown = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert shown[:2] == names[:2]
    assert shown[3:] == names[3:]
    box = figures[0].legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figures[0].bbox.x1
    assert_good(png)


def test_the_heat_map_is_percent_of_the_row_and_its_cells_are_counts(png, figures):
    counts = torch.tensor([[30, 10], [5, 15]])
    training.confusion(png, counts, ["cat", "dog"])
    heat, bars, *_ = figures[0].axes
    assert heat.images[0].get_array().tolist() == [[75, 25], [25, 75]]
    assert texts(heat) == ["30", "10", "5", "15"]
    assert [bar.get_width() for bar in bars.patches] == [75, 75]
    assert figures[0].get_suptitle() == "Confusion matrix: 45/60 correct"
    assert_good(png)


def test_the_confusion_matrix_names_rows_and_columns(png, figures):
    training.confusion(png, matrix(10), CLASSES)
    heat, bars, *_ = figures[0].axes
    assert [label.get_text() for label in heat.get_yticklabels()] == CLASSES
    assert [label.get_text() for label in heat.get_xticklabels()] == CLASSES
    assert heat.get_ylabel() == "true class"
    assert heat.get_xlabel() == "predicted class"
    assert heat.get_ylim() == bars.get_ylim() == (9.5, -0.5)  # the first class on top, its bar level with it
    assert bars.get_position().y0 == pytest.approx(heat.get_position().y0)
    assert bars.get_position().y1 == pytest.approx(heat.get_position().y1)


def test_a_hundred_classes_have_no_numbers_in_their_cells(png, figures):
    training.confusion(png, matrix(100), [f"class {index}" for index in range(100)])
    assert texts(figures[0].axes[0]) == []
    assert_good(png)


def test_a_class_without_images_has_no_accuracy(png, figures):
    counts = matrix(3)
    counts[1] = 0
    training.confusion(png, counts, ["a", "b", "c"])
    assert texts(figures[0].axes[1]) == ["90.0", "no images", "90.0"]
    assert_good(png)


@pytest.mark.filterwarnings("error:Glyph")
def test_any_class_name_can_stand_at_the_heat_map(png, figures):
    names = ["Forêt de Fontainebleau, très longue", "猫 🐱", "a\nb", "undecodable \udce9", "$x^$", ""]
    training.confusion(png, matrix(6), names)
    shown = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert shown == ["Forêt de Fontaine…", "猫 🐱", "a?b", "undecodable ?", "$x^$", ""]
    assert_good(png)
