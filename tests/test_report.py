"""The report says what the files of a run folder say: of one run, several seeds, a range test, and several runs."""

from __future__ import annotations

import base64
import json
import re

import pytest

from fast_cifar.options import TrainOptions
from fast_cifar.runs.stats import summarize
from tests.helpers.pages import (
    IMAGES,
    cells,
    facts,
    lrfind,
    page,
    region,
    summary_of,
    write,
    write_range_test,
    write_run,
    write_seeds,
)
from tests.helpers.plots import history, lines


def headings(root):
    return [heading.text for heading in root.all("h2")]


def untested(epochs, seed=0):
    """The rows of a run with --no-test."""
    rows = history(epochs, ("train", "val"), seed)
    return [row | {"test_loss": None, "test_accuracy": None} for row in rows]


def test_the_headline_is_the_last_epochs_test_accuracy_and_not_the_best(tmp_path):
    rows = history(3)
    rows[1]["test_accuracy"], rows[2]["test_accuracy"] = 0.9876, 0.91234
    root = page(write_run(tmp_path / "a", rows))
    assert root.one("p", "headline").text == "91.23 % test accuracy after the last of 3 epochs"
    assert facts(root)["best test accuracy"] == "98.76 %"


def test_one_epoch_is_not_plural(tmp_path):
    assert "test accuracy after 1 epoch" in page(write_run(tmp_path / "a", history(1))).one("p", "headline").text
    begun = page(write_run(tmp_path / "b", [], finished=False, epochs=1))
    assert begun.one("p", "alarm").text == "Not finished: 0 of 1 epoch is done."


def test_how_the_predictions_were_made_stands_beside_the_accuracy(tmp_path):
    plain, other = write_run(tmp_path / "a", history(2)), write_run(tmp_path / "b", history(2), tta=True, ema=0.99)
    root = page(plain, other)
    how = "(test-time augmentation, EMA 0.99)"
    assert [how in one.text for one in root.all("p", "headline")] == [False, True]
    assert [row[3] for row in cells(region(root, "results of every run"))[1:]] == ["test", f"test {how}"]


def test_no_rate_has_seventeen_digits(tmp_path):
    run = write_run(tmp_path / "a", history(2), lr_max=0.012663801734674022, lr_min=1.3433993325988988e-05)
    for root in (page(run), page(run, write_run(tmp_path / "b", history(2)))):
        assert not re.search(r"\d\.\d{10}", root.text)
        assert "0.0126638" in root.text


def test_the_head_says_what_was_trained_and_measured(run_folder):
    assert (
        facts(page(run_folder)).items()
        >= {
            "data": "CIFAR-10",
            "epochs": "6",
            "seed": "0",
            "device": "abacus",
            "precision": "bf16",
            "torch": "2.15.0",
            "parameters": "6,573,120",
            "warm-up and compilation": "31.5 s",
            "peak memory": "3.00 GiB",
            "training time": "1,234.5 s",
            "images/sec": "12,346",
        }.items()
    )


def test_the_numbers_of_every_epoch_are_in_a_table(tmp_path):
    rows = history(3)
    rows[1]["test_accuracy"] = None
    root = page(write_run(tmp_path / "a", rows))
    head, *body = cells(root.one("details"))
    shown = [dict(zip(head, values, strict=True)) for values in body]
    assert [one["epoch"] for one in shown] == ["1", "2", "3"]
    assert shown[0]["test accuracy"] == f"{100 * rows[0]['test_accuracy']:.2f} %"
    assert shown[1]["test accuracy"] == "–"
    assert shown[2]["training loss"] == f"{rows[2]['train_loss']:.4f}"
    assert shown[2]["images/sec"] == f"{rows[2]['images_per_second']:,.0f}"
    assert "validation loss" not in head


def test_the_plots_show_the_history_and_the_schedule(tmp_path, figures):
    pytest.importorskip("matplotlib")
    rows = history(5, ("train", "val", "test"))
    page(write_run(tmp_path / "a", rows, finished=False, epochs=24, lr_max=0.004, lr_min=0.001))
    loss, accuracy = figures[0].axes
    for split in ("train", "val", "test"):
        assert lines(loss)[split] == ([1, 2, 3, 4, 5], [row[f"{split}_loss"] for row in rows])
        assert lines(accuracy)[split][1] == [100 * row[f"{split}_accuracy"] for row in rows]
    assert loss.get_xlim()[1] > 24  # the axis has room for the epochs to come
    line = figures[1].axes[0].lines[0]
    rates = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert [rates[epoch] for epoch in (0.01, 5, 24)] == pytest.approx([0.001, 0.004, 0.001])
    assert max(rates.values()) == rates[5]


def test_the_curves_of_all_seeds_are_in_one_figure(tmp_path, figures):
    pytest.importorskip("matplotlib")
    histories = [history(4, seed=seed) for seed in range(3)]
    root = page(write_seeds(tmp_path / "a", histories))
    drawn = [line.get_ydata().tolist() for line in figures[0].axes[0].lines]
    for rows in histories:
        assert [row["test_loss"] for row in rows] in drawn
    assert len(root.all("details")) == 3


def test_without_matplotlib_the_numbers_and_images_stay_and_a_line_says_what_to_install(run_folder, monkeypatch):
    monkeypatch.setattr("fast_cifar.plots.style.matplotlib_available", lambda: False)
    root = page(run_folder)
    assert "pip install matplotlib" in root.text
    assert len(root.all("img")) == len(IMAGES)
    assert len(cells(root.one("details"))) == 1 + 6


def test_the_images_are_in_the_page_byte_for_byte(run_folder):
    images = page(run_folder).all("img")[-len(IMAGES) :]
    files = [base64.b64decode(image["src"].split(",")[1]) for image in images]
    assert files == [(run_folder / name).read_bytes() for name in IMAGES]
    assert {(image["width"], image["height"]) for image in images} == {("1300", "300")}


def changed_options(root):
    return {code.text for code in region(root, "configuration").all("code", "changed")}


def test_only_options_that_differ_from_their_defaults_are_highlighted(tmp_path):
    root = page(write_run(tmp_path / "a", history(12), cutout=0, flip=False, lr_max=0.01, out="elsewhere"))
    assert changed_options(root) == {"epochs", "cutout", "flip", "lr_max"}  # LRMIN and the peak follow from these
    shown = {name: value for name, value, _ in cells(region(root, "configuration"))[1:]}
    assert shown.keys() == TrainOptions().as_dict().keys()
    assert (shown["lr_max"], shown["flip"], shown["mirror"]) == ("0.01", "no", "–")
    assert not changed_options(page(write_run(tmp_path / "recipe", history(24))))
    assert not changed_options(page(write_range_test(tmp_path / "lr")))


def test_several_seeds_have_a_mean_an_interval_and_every_result(tmp_path):
    histories = [history(4, seed=seed) for seed in range(3)]
    for rows, accuracy in zip(histories, (0.9, 0.92, 0.94), strict=True):
        rows[-1]["test_accuracy"] = accuracy
    root = page(write_seeds(tmp_path / "a", histories))
    headline = root.one("p", "headline").text
    assert headline.startswith("92.00 % ± 4.97 mean test accuracy")  # Student's t: 4.303 x 2 / sqrt(3)
    assert "n = 3" in headline
    rows = cells(region(root, "every seed's result"))[1:]
    assert [row[:4] for row in rows] == [
        ["run-1", "0", "90.00 %", "test"],
        ["run-2", "1", "92.00 %", "test"],
        ["run-3", "2", "94.00 %", "test"],
    ]
    assert facts(root)["seed"] == "0 to 2"


def test_seeds_are_in_the_order_of_their_numbers_and_a_link_to_the_run_itself_is_not_one(tmp_path):
    folder = write_seeds(tmp_path / "a", [history(1, seed=seed) for seed in range(11)])
    (folder / "run-12").symlink_to(folder)
    names = [row[0] for row in cells(region(page(folder), "every seed's result"))[1:]]
    assert names == [f"run-{k}" for k in range(1, 12)]


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


def test_without_test_images_the_validation_accuracy_is_the_result(tmp_path, figures):
    rows = untested(3)
    one = write_run(tmp_path / "one", rows, test=False, val_split=50, images=True)
    several = write_seeds(tmp_path / "several", [untested(3, seed) for seed in range(3)], test=False, val_split=50)
    root = page(one)
    accuracy = f"{100 * rows[-1]['val_accuracy']:.2f} %"
    assert root.one("p", "headline").text == f"{accuracy} validation accuracy after the last of 3 epochs"
    assert any(caption.text.startswith("Misclassified validation images") for caption in root.all("figcaption"))
    assert "mean validation accuracy" in page(several).one("p", "headline").text
    tested = write_run(tmp_path / "tested", history(3))
    results = cells(region(page(one, several, tested), "results of every run"))[1:]
    assert [row[3] for row in results] == ["validation", "validation", "test"]
    assert results[0][2] == accuracy


@pytest.mark.parametrize("epochs", [0, 3])
def test_an_unfinished_run_shows_what_exists_so_far(tmp_path, epochs):
    rows = history(epochs)
    folder = write_run(tmp_path / "a", rows, finished=False, epochs=24)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lr"')  # cut short by a kill
    root = page(folder)
    assert root.one("p", "alarm").text == f"Not finished: {epochs} of 24 epochs are done."
    headlines = [f"{100 * row['test_accuracy']:.2f} % test accuracy so far" for row in rows[-1:]]
    assert [headline.text for headline in root.all("p", "headline")] == headlines
    assert headings(root) == (["Curves", "Configuration"] if rows else ["Configuration"])
    assert "training time" not in facts(root)


def test_a_range_test_shows_its_suggestion_plot_warnings_and_numbers(tmp_path):
    folder = write_range_test(tmp_path / "lr", warnings=["the seeds disagree", "sweep further"], repeats=2)
    root = page(folder)
    assert root.one("h1").text == "Range test lr"
    assert "--lr-min 0.0001 --lr-max 0.01" in [code.text for code in root.all("code")]
    assert "steepest 0.001, valley 0.005, minimum 0.03" in root.text
    assert [alarm.text for alarm in root.all("p", "alarm")] == ["the seeds disagree", "sweep further"]
    assert facts(root)["seed"] == "0 to 1"
    assert base64.b64decode(root.one("img")["src"].split(",")[1]) == (folder / "lrfind.png").read_bytes()
    assert len(cells(root.one("details"))) == 1 + len(lrfind()["lrs"])


def test_a_comparison_lists_exactly_the_options_that_differ(tmp_path):
    folders = [
        write_run(tmp_path / "a", history(3)),
        write_run(tmp_path / "b", history(3), cutout=0, out="elsewhere"),
        write_run(tmp_path / "c", history(3), flip=False, seed=7),
    ]
    head, *rows = cells(region(page(*folders), "differences"))
    assert head == ["option", "a", "b", "c"]
    assert {row[0]: row[1:] for row in rows} == {
        "cutout": ["8", "0", "8"],
        "flip": ["yes", "yes", "no"],
        "seed": ["0", "0", "7"],
    }


def test_runs_with_the_same_options_have_no_table_of_differences(tmp_path):
    root = page(write_run(tmp_path / "a", history(3)), write_run(tmp_path / "b", history(3, seed=1)))
    assert "All options are the same." in [paragraph.text for paragraph in root.all("p")]


def test_a_comparison_is_a_table_of_results_with_links(tmp_path):
    rows = history(3)
    histories = [history(4, seed=seed) for seed in range(2)]
    root = page(write_run(tmp_path / "a", rows), write_seeds(tmp_path / "b", histories))
    table = region(root, "results of every run")
    head, first, second = cells(table)
    assert dict(zip(head, first, strict=True)) == {
        "run": "a",
        "seed": "0",
        "accuracy": f"{100 * rows[-1]['test_accuracy']:.2f} %",
        "of": "test",
        "n": "1",
        "best test accuracy": f"{100 * max(row['test_accuracy'] for row in rows):.2f} %",
        "training accuracy": f"{100 * rows[-1]['train_accuracy']:.2f} %",
        "epochs": "3",
        "images/sec": "12,346",
        "training time": "1,234.5 s",
        "data": "CIFAR-10",
        "device": "abacus",
    }
    whole = summarize([summary_of(rows) for rows in histories])
    half = 100 * (whole["interval"][1] - whole["mean"])
    assert second[:5] == ["b", "0 to 1", f"{100 * whole['mean']:.2f} % ± {half:.2f}", "test", "2"]
    titles = {f"#{section['id']}": section.one("h2").text for section in root.all("section")}
    links = {anchor.text: anchor["href"] for anchor in table.all("a")}
    assert {titles[link]: link for link in links.values()} == links


def test_a_range_test_beside_one_run_is_not_a_comparison(tmp_path):
    assert headings(page(write_run(tmp_path / "a", history(2)), write_range_test(tmp_path / "lr"))) == ["a", "lr"]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [write_run(tmp_path / where / "a", history(2)) for where in ("x", "y")]
    assert headings(page(*folders))[1:] == [str(folder) for folder in folders]
