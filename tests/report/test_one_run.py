"""The report of one run, of several seeds, and of a range test: what its files say stands on the page."""

from __future__ import annotations

import base64
import json

import pytest

from fast_cifar.options import TrainOptions
from tests.helpers.pages import (
    PICTURES,
    cells,
    drawn,
    facts,
    figure,
    history,
    page,
    region,
    scale,
    sweep,
    write,
    write_range_test,
    write_run,
    write_seeds,
)


def test_the_headline_is_the_last_epochs_test_accuracy_and_not_the_best(tmp_path):
    rows = history(3)
    rows[1]["test_accuracy"], rows[2]["test_accuracy"] = 0.9876, 0.91234
    root = page(write_run(tmp_path / "a", rows))
    assert root.one("p", "headline").text == "91.23 % test accuracy after the last of 3 epochs"
    assert facts(root)["best test accuracy of any epoch"] == "98.76 %"


def test_the_head_says_what_was_trained(run_folder):
    known = facts(page(run_folder))
    expected = {"data": "CIFAR-10", "epochs": "6", "seed": "0", "device": "abacus", "precision": "bf16"}
    assert known | expected | {"torch": "2.15.0", "parameters": "6,573,120"} == known


def test_the_environment_is_that_of_the_summary(run_folder):
    known = dict(cells(region(page(run_folder), "environment")))
    assert known["warm-up and compilation"] == "31.5 s"
    assert known["peak memory"] == "3.00 GiB"
    assert known["training"] == "1,234.5 s"
    assert known["images/sec in training"] == "12,346"


def test_the_range_test_says_its_suggestion_in_words(tmp_path):
    root = page(write_range_test(tmp_path / "lr"))
    assert root.one("h1").text == "Range test lr"
    assert "--lr-min 0.0001 --lr-max 0.01" in [code.text for code in root.all("code")]
    names = [text.text for text in figure(root, "Range test").all("text")]
    assert {"LRMIN 0.0001", "LRMAX 0.01"} <= set(names)


def test_the_rates_of_a_range_test_before_training_are_shown_with_the_run(run_folder):
    write(run_folder / "lrfind.json", sweep())
    root = page(run_folder)
    assert "Range test" in [heading.text for heading in root.all("h2")]
    assert figure(root, "Range test")


def test_the_numbers_of_every_epoch_are_in_a_table(tmp_path):
    rows = history(3)
    root = page(write_run(tmp_path / "a", rows))
    head, *body = cells(root.all("details")[0])
    assert head[0] == "epoch"
    for row, shown in zip(rows, body, strict=True):
        known = dict(zip(head, shown, strict=True))
        assert known["epoch"] == str(row["epoch"])
        assert known["test accuracy"] == f"{100 * row['test_accuracy']:.2f} %"
        assert known["training loss"] == f"{row['train_loss']:.4f}"
        assert known["images/sec"] == f"{row['images_per_second']:,.0f}"
        assert "validation loss" not in known


def test_the_pictures_are_in_the_page_byte_for_byte(run_folder):
    images = page(run_folder).all("img")
    files = [base64.b64decode(image["src"].split(",")[1]) for image in images]
    assert files == [(run_folder / name).read_bytes() for name in PICTURES]
    assert all(len(image["alt"]) > 20 for image in images)
    assert {(image["width"], image["height"]) for image in images} == {("1300", "300")}


def test_a_run_without_pictures_has_no_part_for_them(tmp_path):
    headings = [heading.text for heading in page(write_run(tmp_path / "a", history(2))).all("h2")]
    assert headings == ["Curves", "Configuration", "Environment"]


def test_options_that_differ_from_their_defaults_stand_out(tmp_path):
    folder = write_run(tmp_path / "a", history(12), cutout=0, flip=False, lr_max=0.01)
    box = region(page(folder), "configuration")
    changed = {row.all("th")[0].text for row in box.all("tr", "changed")}
    assert changed == {"epochs", "cutout", "flip", "lr_max"}  # LRMIN and the peak follow from these
    shown = {name: value for name, value, _ in cells(box)[1:]}
    assert shown.keys() == TrainOptions().as_dict().keys()
    assert shown["lr_max"] == "0.01"
    assert shown["flip"] == "no"
    assert shown["mirror"] == "–"


def test_the_recipe_itself_has_nothing_that_stands_out(tmp_path):
    assert not region(page(write_run(tmp_path / "a", history(24))), "configuration").all("tr", "changed")


def test_several_seeds_have_a_mean_an_interval_and_every_result(tmp_path):
    histories = [history(4, seed=seed) for seed in range(3)]
    for rows, accuracy in zip(histories, (0.9, 0.92, 0.94), strict=True):
        rows[-1]["test_accuracy"] = accuracy
    root = page(write_seeds(tmp_path / "a", histories))
    headline = root.one("p", "headline").text
    assert headline.startswith("92.00 % ± 4.97 ")  # Student's t: 4.303 x 2 / sqrt(3)
    assert "n = 3" in headline
    rows = cells(region(root, "every seed's result"))[1:]
    assert [row[:3] for row in rows] == [
        ["run-1", "0", "90.00 %"],
        ["run-2", "1", "92.00 %"],
        ["run-3", "2", "94.00 %"],
    ]
    assert facts(root)["seed"] == "0 to 2"


def test_seeds_come_in_the_order_of_their_numbers(tmp_path):
    root = page(write_seeds(tmp_path / "a", [history(1, seed=seed) for seed in range(11)]))
    names = [row[0] for row in cells(region(root, "every seed's result"))[1:]]
    assert names == [f"run-{k}" for k in range(1, 12)]


def test_a_link_from_a_run_of_several_seeds_to_itself_is_no_seed(tmp_path):
    folder = write_seeds(tmp_path / "a", [history(1, seed=seed) for seed in range(2)])
    (folder / "run-3").symlink_to(folder)
    names = [row[0] for row in cells(region(page(folder), "every seed's result"))[1:]]
    assert names == ["run-1", "run-2"]


def test_seeds_of_which_one_is_not_finished_have_no_mean_yet(tmp_path):
    folder = write_seeds(tmp_path / "a", [history(4, seed=seed) for seed in range(3)], finished=False)
    (folder / "run-3/summary.json").unlink()
    root = page(folder)
    assert root.one("p", "alarm").text == "Not finished: 2 of 3 seeds are done."
    assert not root.all("p", "headline")
    assert len(cells(region(root, "every seed's result"))) == 1 + 3


def test_seeds_that_failed_are_named(tmp_path):
    folder = write_seeds(tmp_path / "a", [history(2, seed=seed) for seed in range(2)])
    summary = json.loads((folder / "summary.json").read_text()) | {"failures": ["seed 2: the loss diverged"]}
    write(folder / "summary.json", summary)
    assert page(folder).one("p", "alarm").text == "Failed: seed 2: the loss diverged"


def test_an_unfinished_run_shows_what_there_is(tmp_path):
    rows = history(3)
    root = page(write_run(tmp_path / "a", rows, finished=False, epochs=24))
    assert root.one("p", "alarm").text == "Not finished: 3 of 24 epochs are done."
    accuracy = f"{100 * rows[-1]['test_accuracy']:.2f} %"
    assert root.one("p", "headline").text == f"{accuracy} test accuracy so far"
    assert len(drawn(figure(root, "Loss").one("svg", "chart"), "blue")) == 3
    chart = figure(root, "Loss").one("svg", "chart")
    right = max(float(line["x2"]) for line in chart.all("line", "axis"))
    assert scale(chart, "x")(right) == pytest.approx(24, abs=0.01)  # the axis has room for what is to come


def test_a_run_that_has_just_begun_shows_its_configuration(tmp_path):
    folder = write_run(tmp_path / "a", [], finished=False, epochs=24)
    (folder / "metrics.jsonl").unlink()
    root = page(folder)
    assert root.one("p", "alarm").text == "Not finished: 0 of 24 epochs are done."
    assert [heading.text for heading in root.all("h2")] == ["Configuration"]


def test_a_last_line_cut_short_by_a_kill_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a", history(3), finished=False, epochs=24)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lr"')
    assert "3 of 24" in page(folder).one("p", "alarm").text
