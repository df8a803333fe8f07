"""The curves and heat maps: what stands in the axes is what was given, and every awkward input gives a picture."""

from __future__ import annotations

import math

import pytest
import torch

from fast_cifar.plots import training
from tests.helpers.drawings import CLASSES, assert_good, history, lines, matrix, one_cycle, texts

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


def test_the_schedule_marks_the_peak_and_both_ends(png, figures):
    training.schedule(png, one_cycle(240, 49), 10)
    assert texts(figures[0].axes[0]) == ["LRMIN 0.001", "LRMAX 0.01, max at epoch 5", "LRMIN 0.001"]


@pytest.mark.parametrize(("peak", "epoch"), [(9, 1), (10, 2), (49, 5), (50, 6)])
def test_the_epoch_of_the_peak_counts_from_one(png, figures, peak, epoch):
    training.schedule(png, one_cycle(240, peak), 10)
    assert texts(figures[0].axes[0])[1].endswith(f"max at epoch {epoch}")


@pytest.mark.parametrize("lrs", [[0.1], one_cycle(3, 1), one_cycle(500, 498, low=1e-9)])
def test_unusual_schedules_are_drawn(png, lrs):
    training.schedule(png, lrs, 2)
    assert_good(png)


def test_curves_hold_the_history_with_accuracy_in_percent(png, figures):
    rows = history(24)
    training.curves(png, rows, "title")
    loss, accuracy = figures[0].axes
    for split in ("train", "test"):
        assert lines(loss)[split] == (list(range(1, 25)), [row[f"{split}_loss"] for row in rows])
        assert lines(accuracy)[split][1] == [100 * row[f"{split}_accuracy"] for row in rows]
    assert_good(png)


def test_curves_tell_the_last_values_and_the_gap(png, figures):
    rows = history(2)
    rows[-1] |= {"train_accuracy": 0.95, "test_accuracy": 0.9125, "train_loss": 0.5, "test_loss": 0.75}
    training.curves(png, rows, "title")
    loss, accuracy = ([text.get_text() for text in axes.get_legend().get_texts()] for axes in figures[0].axes)
    assert loss == ["train 0.5000", "test 0.7500", "train − test -0.2500"]
    assert accuracy == ["train 95.00 %", "test 91.25 %", "train − test 3.75 %"]


def test_the_gap_between_train_and_test_is_shaded(png, figures):
    training.curves(png, history(24), "title")
    for axes in figures[0].axes:
        corners = axes.collections[0].get_paths()[0].vertices
        assert corners[:, 0].min() == 1
        assert corners[:, 0].max() == 24


def test_a_held_out_split_has_its_own_line(png, figures):
    training.curves(png, history(5, ("train", "test", "val")), "title")
    assert all(set(lines(axes)) == {"train", "val", "test"} for axes in figures[0].axes)


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_epochs_that_were_not_evaluated_are_left_out(png, figures, unknown):
    rows = history(8)
    for row in rows[::2]:
        row |= {"test_loss": unknown, "test_accuracy": unknown}
    training.curves(png, rows, "title")
    assert all(lines(axes)["test"][0] == [2, 4, 6, 8] for axes in figures[0].axes)
    assert_good(png)


def test_a_single_epoch_is_inside_the_picture(png, figures):
    training.curves(png, history(1), "title")
    for axes in figures[0].axes:
        low, high = axes.get_ylim()
        for epochs, values in lines(axes).values():
            assert axes.get_xlim()[0] < epochs[0] < axes.get_xlim()[1]
            assert low < values[0] < high
    assert_good(png)


def test_a_history_of_nothing_but_nulls_gives_a_picture(png):
    training.curves(png, [{"epoch": 1, "train_loss": None, "train_accuracy": None}], "title")
    assert_good(png)


def test_a_title_is_not_read_as_mathematics(png, figures):
    training.curves(png, history(2), "runs/$\\frac{/1$\n猫")
    assert figures[0].get_suptitle() == "runs/$\\frac{/1$?猫"
    assert_good(png)


def test_the_heat_map_is_percent_of_the_row_and_its_cells_are_counts(png, figures):
    counts = torch.tensor([[30, 10], [5, 15]])
    training.confusion(png, counts, ["cat", "dog"])
    heat, bars, *_ = figures[0].axes
    assert heat.images[0].get_array().tolist() == [[75, 25], [25, 75]]
    assert texts(heat) == ["30", "10", "5", "15"]
    assert [bar.get_width() for bar in bars.patches] == [75, 75]
    assert_good(png)


def test_the_confusion_matrix_has_the_accuracy_in_its_title(png, figures):
    training.confusion(png, torch.tensor([[30, 10], [5, 15]]), ["cat", "dog"])
    assert figures[0].get_suptitle() == "Confusion matrix: 45/60 correct (75.00 %)"


def test_the_confusion_matrix_names_rows_and_columns(png, figures):
    training.confusion(png, matrix(10), CLASSES)
    heat = figures[0].axes[0]
    assert [label.get_text() for label in heat.get_yticklabels()] == CLASSES
    assert [label.get_text() for label in heat.get_xticklabels()] == CLASSES
    assert heat.get_ylabel() == "true class"
    assert heat.get_xlabel() == "predicted class"
    assert heat.get_ylim() == (9.5, -0.5)  # the first class on top


def test_bars_and_rows_of_the_confusion_matrix_are_level(png, figures):
    training.confusion(png, matrix(10), CLASSES)
    heat, bars, *_ = figures[0].axes
    assert bars.get_ylim() == heat.get_ylim()
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


def test_an_empty_confusion_matrix_gives_a_picture(png):
    training.confusion(png, torch.zeros(2, 2, dtype=torch.int64), ["a", "b"])
    assert_good(png)


@pytest.mark.filterwarnings("error")
def test_any_class_name_can_stand_at_the_heat_map(png, figures):
    names = ["Forêt de Fontainebleau, très longue", "猫 🐱", "a\nb", "undecodable \udce9", "$x^$", ""]
    training.confusion(png, matrix(6), names)
    shown = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert shown == ["Forêt de Fontaine…", "猫 🐱", "a?b", "undecodable ?", "$x^$", ""]
    assert_good(png)
