"""The charts of the report: by their ticks, every curve leads back to the numbers in the files."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.pages import (
    SUGGESTION,
    assert_same,
    cells,
    drawn,
    figure,
    history,
    page,
    parse,
    scale,
    sweep,
    write_range_test,
    write_run,
    write_seeds,
)


def test_every_chart_can_be_read_aloud(any_page):
    charts = parse(any_page).all("svg", "chart")
    assert charts
    for chart in charts:
        assert chart["role"] == "img"
        title, description = chart.children[:2]
        assert (title.name, description.name) == ("title", "desc")
        assert len(description.text) > len(title.text) > 0


@pytest.mark.parametrize(("title", "metric", "factor"), [("Loss", "loss", 1), ("Accuracy", "accuracy", 100)])
def test_the_curves_lead_back_to_the_history_by_the_ticks(tmp_path, title, metric, factor):
    rows = history(7, ("train", "val", "test"))
    chart = figure(page(write_run(tmp_path / "a", rows)), title).one("svg", "chart")
    for split, colour in (("train", "blue"), ("val", "green"), ("test", "vermillion")):
        expected = [(row["epoch"], factor * row[f"{split}_{metric}"]) for row in rows]
        assert_same(drawn(chart, colour), expected, 0.002 * factor)


def test_the_speed_leads_back_to_the_history_by_the_ticks(run_folder):
    rows = history(6)
    chart = figure(page(run_folder), "Speed").one("svg", "chart")
    assert_same(drawn(chart, "blue"), [(row["epoch"], row["images_per_second"]) for row in rows], 200)


def test_the_cycle_climbs_from_its_first_step_to_the_peak_and_comes_back(tmp_path):
    rows = history(24)
    for row in rows:
        row |= {"images_per_second": 100.0, "seconds": 40.0}  # 4,000 images: 8 steps of 500
    folder = write_run(tmp_path / "a", rows, batch_size=500, lr_max=0.004, lr_min=0.001)
    chart = figure(page(folder), "One cycle").one("svg", "chart")
    assert_same(drawn(chart, "blue"), [(1 / 8, 0.001), (5, 0.004), (24, 0.001)], 0.02)
    x, y = scale(chart, "x"), scale(chart, "y")
    dots = [(x(float(dot["cx"])), y(float(dot["cy"]))) for dot in chart.all("circle", "vermillion")]
    assert_same(dots, [(row["epoch"], row["lr"]) for row in rows], 0.02)


def test_the_range_test_leads_back_to_its_file_by_the_ticks(tmp_path):
    test = sweep()
    chart = figure(page(write_range_test(tmp_path / "lr")), "Range test").one("svg", "chart")
    for line, name in (("blue", "smoothed"), ("faint", "losses")):
        assert_same(drawn(chart, line, log=True)[:50], list(zip(test["lrs"], test[name], strict=True))[:50], 0.01)
    x = scale(chart, "x", log=True)
    band = chart.one("rect", "band")
    ends = [x(float(band["x"])), x(float(band["x"]) + float(band["width"]))]
    np.testing.assert_allclose(ends, [SUGGESTION["lr_min"], SUGGESTION["lr_max"]], rtol=2e-3)
    dots = {dot.text.split(":")[0]: x(float(dot["cx"])) for dot in chart.all("circle")}
    assert dots == pytest.approx({name: SUGGESTION[name] for name in ("steepest", "valley", "minimum")}, rel=2e-3)


def test_repeats_and_warnings_of_a_range_test_are_shown(tmp_path):
    repeats = [sweep(seed) for seed in (1, 2, 3)]
    root = page(write_range_test(tmp_path / "lr", repeats=repeats, warnings=["the repeats disagree"]))
    chart = figure(root, "Range test").one("svg", "chart")
    lines = chart.all("polyline", "faint")
    assert len(lines) == 4  # the repeats, then the single losses
    for index, repeat in enumerate(repeats):
        expected = list(zip(repeat["lrs"], repeat["smoothed"], strict=True))[:50]
        assert_same(drawn(chart, "faint", log=True, index=index)[:50], expected, 0.01)
    assert [alarm.text for alarm in root.all("p", "alarm")] == ["the repeats disagree"]


def test_every_point_of_a_curve_tells_its_value(tmp_path):
    rows = history(3)
    chart = figure(page(write_run(tmp_path / "a", rows)), "Accuracy").one("svg", "chart")
    tips = [dot.one("title").text for dot in chart.all("circle", "vermillion")]
    assert tips == [f"epoch {row['epoch']}: test {100 * row['test_accuracy']:.2f} %" for row in rows]


def test_epochs_that_were_not_tested_are_left_out(tmp_path):
    rows = history(6)
    for row in rows[::2]:
        row |= {"test_loss": None, "test_accuracy": None}
    root = page(write_run(tmp_path / "a", rows))
    points = drawn(figure(root, "Loss").one("svg", "chart"), "vermillion")
    assert_same(points, [(row["epoch"], row["test_loss"]) for row in rows[1::2]], 0.01)
    assert [row[5] for row in cells(root.all("details")[0])[1::2]] == ["–"] * 3


def test_the_curves_of_all_seeds_are_in_one_chart(tmp_path):
    histories = [history(4, seed=seed) for seed in range(3)]
    root = page(write_seeds(tmp_path / "a", histories))
    chart = figure(root, "Loss").one("svg", "chart")
    for index, rows in enumerate(histories):
        expected = [(row["epoch"], row["test_loss"]) for row in rows]
        assert_same(drawn(chart, "vermillion", index=index), expected, 0.01)
    assert "run-2, epoch 3: " in chart.text
    assert len(root.all("details")) == 3


def test_a_single_epoch_is_drawn(tmp_path):
    root = page(write_run(tmp_path / "a", history(1)))
    assert len(figure(root, "Loss").all("circle", "blue")) == 1
