"""The report: what stands on the page is what stands in the files, and the page needs nothing but itself."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fast_cifar import report
from fast_cifar.aggregate import aggregate
from fast_cifar.options import RangeTestOptions, TrainOptions
from fast_cifar.page import VOID

PICTURES = ("samples.png", "augmented.png", "misclassified.png", "confusion.png")
SUGGESTION = {"lr_min": 1e-4, "lr_max": 1e-2, "steepest": 1e-3, "valley": 5e-3, "minimum": 3e-2}
ATTACK = "<script>alert('x')</script>&amp;\""


class Element:
    def __init__(self, name: str, attributes: dict[str, str | None]) -> None:
        self.name, self.attributes = name, attributes
        self.children: list[Element | str] = []

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str, class_: str | None = None) -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                fits = child.name == name and (class_ is None or class_ in child.attributes.get("class", "").split())
                found += ([child] if fits else []) + child.all(name, class_)
        return found

    def one(self, name: str, class_: str | None = None) -> Element:
        (found,) = self.all(name, class_)
        return found


class Tree(HTMLParser):
    """Parses a page, and refuses one whose tags are not balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(page)
        self.close()
        assert self.open == [self.root], f"not closed: {[element.name for element in self.open[1:]]}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop().name == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(page: str) -> Element:
    return Tree(page).root


def history(epochs: int, splits: tuple[str, ...] = ("train", "test"), seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for epoch in range(1, epochs + 1):
        row: dict = {"epoch": epoch, "lr": float(rng.uniform(1e-4, 3e-3))}
        for split in splits:
            row |= {f"{split}_loss": float(rng.uniform(0.1, 3)), f"{split}_accuracy": float(rng.uniform(0.3, 1))}
        row |= {"images_per_second": float(rng.uniform(1e5, 2e5)), "seconds": 2.5, "evaluation_seconds": 0.5}
        rows.append(row)
    return rows


def summary_of(rows: list[dict], seed: int = 0) -> dict:
    return {
        "test_accuracy": rows[-1]["test_accuracy"],
        "best_test_accuracy": max(row["test_accuracy"] for row in rows if row["test_accuracy"] is not None),
        "train_accuracy": rows[-1]["train_accuracy"],
        "epochs": len(rows),
        "seed": seed,
        "seconds": 1234.5,
        "images_per_second": 12345.6,
        "evaluation_seconds": 7.25,
        "save_seconds": 0.5,
        "compile_seconds": 31.5,
        "peak_memory_bytes": 3 * 2**30,
        "dataset": "CIFAR-10",
        "device": "abacus",
        "precision": "bf16",
        "torch": "2.15.0",
        "parameters": 6573120,
    }


def write(path: Path, contents: object) -> None:
    path.write_text(json.dumps(contents))


def write_run(path: Path, rows: list[dict], *, finished: bool = True, pictures: bool = False, **changes) -> Path:
    """A run folder without its checkpoints."""
    path.mkdir(parents=True)
    options = TrainOptions(**{"epochs": len(rows), "name": path.name, "device": "cpu"} | changes)
    write(path / "config.json", options.resolved().as_dict())
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        write(path / "summary.json", summary_of(rows, options.seed))
    for index, name in enumerate(PICTURES if pictures else ()):
        pixels = np.random.default_rng(index).integers(0, 256, (300, 1300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / name)
    return path


def write_seeds(path: Path, histories: list[list[dict]], *, finished: bool = True, **changes) -> Path:
    write_run(path, histories[0], finished=False, runs=len(histories), **changes)
    (path / "metrics.jsonl").unlink()
    for seed, rows in enumerate(histories):
        write_run(path / f"run-{seed + 1}", rows, seed=seed, pictures=seed == 0, **changes)
    if finished:
        summaries = [summary_of(rows, seed) for seed, rows in enumerate(histories)]
        write(path / "summary.json", aggregate(summaries) | {"failures": []})
    return path


def sweep(seed: int = 0) -> dict:
    lrs = np.geomspace(1e-6, 1, 60)
    losses = 2.3 - 1 / (1 + (1e-3 / lrs) ** 1.5) + (3 * lrs) ** 4 + np.random.default_rng(seed).normal(0, 0.02, 60)
    return {"lrs": lrs.tolist(), "losses": losses.tolist(), "smoothed": (losses + 0.01).tolist()} | {
        "suggestion": SUGGESTION
    }


def write_range_test(path: Path, **more) -> Path:
    path.mkdir()
    write(path / "config.json", RangeTestOptions(name=path.name).as_dict())
    write(path / "lrfind.json", sweep() | more)
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a", history(6), pictures=True)


@pytest.fixture(params=["run", "seeds", "unfinished", "range test", "comparison"])
def any_page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folders = {
        "run": write_run(tmp_path / "run", history(6, ("train", "val", "test")), pictures=True),
        "seeds": write_seeds(tmp_path / "seeds", [history(4, seed=seed) for seed in range(3)]),
        "unfinished": write_run(tmp_path / "unfinished", history(2), finished=False, epochs=9),
        "range test": write_range_test(tmp_path / "lr"),
    }
    chosen = list(folders.values()) if request.param == "comparison" else [folders[request.param]]
    return report.report(chosen)


def page(*folders: Path) -> Element:
    return parse(report.report(folders))


def cells(table: Element) -> list[list[str]]:
    return [
        [cell.text for cell in row.children if isinstance(cell, Element)]
        for row in table.all("tr")
        if row.all("td") or row.all("th")
    ]


def region(root: Element, label: str) -> Element:
    (box,) = [box for box in root.all("div", "scroll") if box["aria-label"] == label]
    return box


def facts(root: Element) -> dict[str, str]:
    return {name.text: value.text for name, value in zip(root.all("dt"), root.all("dd"), strict=True)}


def figure(root: Element, title: str) -> Element:
    (found,) = [figure for figure in root.all("figure") if figure.one("figcaption").text == title]
    return found


def scale(chart: Element, axis: str, log: bool = False):
    """From a coordinate of a chart to the value there, as a reader would tell it from the ticks."""
    ticks = [
        (float(tick[axis]) - (4.5 if axis == "y" else 0), float(tick.text.replace(",", "")))
        for tick in chart.all("text", f"{axis}-tick")
    ]
    assert len(ticks) >= 2
    places, values = zip(*ticks, strict=True)
    slope, offset = np.polyfit(places, np.log(values) if log else values, 1)
    return lambda place: math.exp(slope * place + offset) if log else slope * place + offset


def drawn(chart: Element, colour: str, log: bool = False, index: int = 0) -> list[tuple[float, float]]:
    """The values at the corners of a line."""
    x, y = scale(chart, "x", log), scale(chart, "y")
    pairs = [pair.split(",") for pair in chart.all("polyline", colour)[index]["points"].split()]
    return [(x(float(left)), y(float(top))) for left, top in pairs]


def assert_same(points: list[tuple[float, float]], expected: list[tuple[float, float]], tolerance: float) -> None:
    """Coordinates have two decimals, and so the values are known to some thousandth of the axis."""
    assert len(points) == len(expected)
    np.testing.assert_allclose(np.array(points), np.array(expected), rtol=2e-3, atol=tolerance)


def one_error_line(capsys: pytest.CaptureFixture) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_every_page_is_balanced_and_has_one_heading_of_the_first_order(any_page):
    root = parse(any_page)
    assert any_page.startswith("<!DOCTYPE html>\n")
    assert len(root.all("h1")) == 1
    assert root.one("head").one("title").text == root.one("h1").text
    assert root.one("html")["lang"] == "en"


def test_a_page_refers_to_nothing_outside_itself(any_page):
    root = parse(any_page)
    ids = {element["id"] for element in root.all("section")}
    for name in ("script", "link", "iframe", "object", "base", "form"):
        assert not root.all(name)
    for image in root.all("img"):
        assert image["src"].startswith("data:image/png;base64,")
    for anchor in root.all("a"):
        assert anchor["href"].removeprefix("#") in ids
    assert not re.search(r"url\(|@import|https?:", any_page)


def test_no_value_that_is_missing_is_named_in_python_or_json(any_page):
    assert not re.search(r"\b(None|null|nan|NaN|inf|undefined)\b", parse(any_page).one("body").text)


def test_every_chart_can_be_read_aloud(any_page):
    charts = parse(any_page).all("svg", "chart")
    assert charts
    for chart in charts:
        assert chart["role"] == "img"
        title, description = chart.children[:2]
        assert (title.name, description.name) == ("title", "desc")
        assert len(description.text) > len(title.text) > 0


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


def test_the_range_test_says_its_suggestion_in_words(tmp_path):
    root = page(write_range_test(tmp_path / "lr"))
    assert root.one("h1").text == "Range test lr"
    assert "--lr-min 0.0001 --lr-max 0.01" in [code.text for code in root.all("code")]
    names = [text.text for text in figure(root, "Range test").all("text")]
    assert {"LRMIN 0.0001", "LRMAX 0.01"} <= set(names)


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


def test_the_curves_of_all_seeds_are_in_one_chart(tmp_path):
    histories = [history(4, seed=seed) for seed in range(3)]
    root = page(write_seeds(tmp_path / "a", histories))
    chart = figure(root, "Loss").one("svg", "chart")
    for index, rows in enumerate(histories):
        expected = [(row["epoch"], row["test_loss"]) for row in rows]
        assert_same(drawn(chart, "vermillion", index=index), expected, 0.01)
    assert "run-2, epoch 3: " in chart.text
    assert len(root.all("details")) == 3


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


def test_a_single_epoch_is_drawn(tmp_path):
    root = page(write_run(tmp_path / "a", history(1)))
    assert len(figure(root, "Loss").all("circle", "blue")) == 1


def test_whatever_stands_in_a_file_is_text(tmp_path):
    folder = write_run(tmp_path / "<img src=x onerror=alert(1)>", history(2), data=ATTACK)
    summary = json.loads((folder / "summary.json").read_text())
    write(folder / "summary.json", summary | {"dataset": ATTACK, "device": ATTACK, "torch": ATTACK})
    config = json.loads((folder / "config.json").read_text()) | {ATTACK: [ATTACK]}
    write(folder / "config.json", config)
    write(folder / "lrfind.json", sweep() | {"warnings": [ATTACK]})
    other = write_run(tmp_path / "b", history(2))
    for root in (page(folder), page(folder, other)):
        assert not root.all("script")
        assert not root.all("img")
        assert facts(root)["device"] in (ATTACK, "abacus")
        assert root.all("p", "alarm")[0].text == ATTACK
        assert ATTACK in [code.text for code in root.all("code")]
        assert any("<img src=x onerror=alert(1)>" in heading.text for heading in root.all("h1") + root.all("h2"))


def test_a_folder_whose_name_is_no_text_can_be_shown(tmp_path):
    folder = write_run(tmp_path / "a", history(1))
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n"))
    try:
        folder.rename(strange)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert report.main([str(strange)]) == 0
    assert parse((strange / "report.html").read_text("utf-8")).one("h1").text == "Run ??"


def test_a_comparison_lists_exactly_the_options_that_differ(tmp_path):
    folders = [
        write_run(tmp_path / "a", history(3)),
        write_run(tmp_path / "b", history(3), cutout=0),
        write_run(tmp_path / "c", history(3), flip=False, seed=7),
    ]
    head, *rows = cells(region(page(*folders), "Options in which they differ"))
    assert head == ["option", "a", "b", "c"]
    assert {row[0]: row[1:] for row in rows} == {
        "cutout": ["8", "0", "8"],
        "flip": ["yes", "yes", "no"],
        "seed": ["0", "0", "7"],
    }


def test_runs_of_the_same_options_are_said_to_be_so(tmp_path):
    root = page(write_run(tmp_path / "a", history(3)), write_run(tmp_path / "b", history(3, seed=1)))
    assert "All options are the same." in [paragraph.text for paragraph in root.all("p")]


def test_a_comparison_is_a_table_of_results_with_links(tmp_path):
    rows = history(3)
    histories = [history(4, seed=seed) for seed in range(2)]
    root = page(write_run(tmp_path / "a", rows), write_seeds(tmp_path / "b", histories))
    first, second = cells(region(root, "results of every run"))[1:]
    assert first == [
        "a",
        f"{100 * rows[-1]['test_accuracy']:.2f} %",
        "1",
        "3",
        f"{100 * rows[-1]['train_accuracy']:.2f} %",
        "12,346",
        "1,234.5 s",
        "CIFAR-10",
        "abacus",
    ]
    whole = aggregate([summary_of(rows) for rows in histories])
    half = 100 * (whole["interval"][1] - whole["mean"])
    assert second[:3] == ["b", f"{100 * whole['mean']:.2f} % ± {half:.2f}", "2"]
    links = {anchor.text: anchor["href"] for anchor in region(root, "results of every run").all("a")}
    titles = {f"#{section['id']}": section.one("h2").text for section in root.all("section")}
    assert {titles[link]: link for link in links.values()} == links


def test_a_comparison_overlays_the_test_accuracies(tmp_path):
    histories = [history(3), history(5, seed=1)]
    root = page(*(write_run(tmp_path / name, rows) for name, rows in zip("ab", histories, strict=True)))
    chart = figure(root, "Test accuracy").one("svg", "chart")
    for colour, rows in zip(("blue", "vermillion"), histories, strict=True):
        assert_same(drawn(chart, colour), [(row["epoch"], 100 * row["test_accuracy"]) for row in rows], 0.3)


def test_twenty_runs_can_be_told_apart(tmp_path):
    folders = [write_run(tmp_path / f"r{index:02}", history(2, seed=index)) for index in range(20)]
    lines = figure(page(*folders), "Test accuracy").one("svg", "chart").all("polyline")
    looks = {(line["class"], line.attributes.get("stroke-dasharray")) for line in lines}
    assert len(looks) == 20


def test_a_range_test_beside_one_run_is_no_comparison(tmp_path):
    root = page(write_run(tmp_path / "a", history(2)), write_range_test(tmp_path / "lr"))
    assert [heading.text for heading in root.all("h2")] == ["a", "lr"]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [write_run(tmp_path / where / "a", history(2)) for where in ("x", "y")]
    assert [heading.text for heading in page(*folders).all("h2")][1:] == [str(folder) for folder in folders]


def test_a_run_that_was_really_trained_can_be_shown(run):
    folder, summary, _ = run
    root = page(folder)
    assert root.one("p", "headline").text.startswith(f"{100 * summary['test_accuracy']:.2f} %")
    assert len(root.all("img")) >= 3
    assert len(drawn(figure(root, "Loss").one("svg", "chart"), "blue")) == 3


def test_the_page_goes_into_the_run_folder(run_folder, capsys):
    before = {path.name for path in run_folder.iterdir()}
    assert report.main([str(run_folder)]) == 0
    assert capsys.readouterr().out.startswith(str(run_folder / "report.html"))
    assert {path.name for path in run_folder.iterdir()} - before == {"report.html"}
    assert (run_folder / "report.html").read_text("utf-8") == report.report([run_folder])


def test_a_comparison_goes_where_one_is(tmp_path, monkeypatch):
    folders = [str(write_run(tmp_path / name, history(2))) for name in "ab"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert report.main(folders) == 0
    assert [path.name for path in Path().iterdir()] == ["report.html"]


def test_the_page_goes_where_it_is_told(run_folder, tmp_path):
    assert report.main([str(run_folder), "--out", str(tmp_path / "other.html")]) == 0
    assert parse((tmp_path / "other.html").read_text("utf-8"))
    assert not (run_folder / "report.html").exists()


DAMAGE = {
    "config.json": [b"", b"{", b"[]", b'{"model": "bert"}', b"\xff"],
    "summary.json": [b"", b"[]", b'{"test_accuracy": "high"}'],
    "metrics.jsonl": [b"{\n", b'{"epoch": 2}\n', b'{"epoch": 1}\n{\n{"epoch": 2}\n', b'{"epoch": "<b>"}\n'],
    "lrfind.json": [
        b'{"lrs": [0], "losses": [1], "smoothed": [1]}',
        b"{}",
        b'{"lrs": [1], "losses": [1, 2], "smoothed": [1]}',
        b'{"lrs": 1, "losses": 1, "smoothed": 1}',
    ],
    "samples.png": [b"", b"not a picture"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, some in DAMAGE.items() for content in some])
def test_damage_is_one_line_that_names_the_file_and_nothing_is_written(run_folder, capsys, name, content):
    report.main([str(run_folder)])
    good = (run_folder / "report.html").read_bytes()
    capsys.readouterr()
    (run_folder / name).write_bytes(content)
    before = sorted(path.name for path in run_folder.iterdir())
    assert report.main([str(run_folder)]) == 2
    line = one_error_line(capsys)
    assert name in line
    assert str(run_folder) in line
    assert sorted(path.name for path in run_folder.iterdir()) == before
    assert (run_folder / "report.html").read_bytes() == good


def test_a_truncated_picture_is_named(run_folder, capsys):
    path = run_folder / "confusion.png"
    path.write_bytes(path.read_bytes()[:-1000])
    assert report.main([str(run_folder)]) == 2
    assert "confusion.png" in one_error_line(capsys)


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_what_is_no_run_folder_is_one_line(run_folder, tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert report.main([str(run_folder), str(tmp_path / name), "--out", str(tmp_path / "out.html")]) == 2
    assert f"{tmp_path / name} is not a run folder" in one_error_line(capsys)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [[], ["a", "--what"], ["a", "--ou", "x.html"]])
def test_a_wrong_command_line_is_one_line(arguments, capsys):
    assert report.main(arguments) == 2
    one_error_line(capsys)


def test_a_file_that_is_no_page_is_not_replaced(run_folder, capsys):
    before = (run_folder / "config.json").read_bytes()
    assert report.main([str(run_folder), "--out", str(run_folder / "config.json")]) == 2
    assert "must end in .html" in one_error_line(capsys)
    assert (run_folder / "config.json").read_bytes() == before


def test_a_folder_that_is_not_there_is_one_line(run_folder, tmp_path, capsys):
    assert report.main([str(run_folder), "--out", str(tmp_path / "no/report.html")]) == 2
    assert "no/report.html" in one_error_line(capsys)


def test_help_teaches_by_example(capsys):
    with pytest.raises(SystemExit) as end:
        report.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.count("python -m fast_cifar.report runs/") == 3
    assert "--out" in text


def test_it_starts_without_torch_and_matplotlib(run_folder):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None\n"
        "from fast_cifar import report; sys.exit(report.main(sys.argv[1:]))"
    )
    subprocess.run([sys.executable, "-c", code, str(run_folder)], check=True, cwd=Path(__file__).parents[1])
    assert (run_folder / "report.html").exists()


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# First the listener, to hear of every error; last the measurements, as an attribute that --dump-dom prints.
LISTENER = "<script>window.wrong = []; addEventListener('error', e => wrong.push(String(e.message)), true)</script>"
MEASUREMENTS = """<script>
addEventListener('load', () => {
  document.querySelectorAll('details').forEach(details => details.open = true)
  const texts = [...document.querySelectorAll('svg.chart')].flatMap(chart => {
    const frame = chart.getBoundingClientRect()
    return [...chart.querySelectorAll('text')].map(text => {
      const box = text.getBoundingClientRect()
      return {text: text.textContent, inside: box.left >= frame.left - 1 && box.right <= frame.right + 1
              && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1, height: box.height}
    })
  })
  parent.document.documentElement.setAttribute('data-measured', JSON.stringify({
    wide: document.documentElement.scrollWidth, window: innerWidth, wrong, texts,
    images: [...document.images].map(image => image.complete ? image.naturalWidth : 0),
  }))
})
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_a_page_as_wide_as_its_window_with_all_pictures_and_no_error(any_page, tmp_path, width):
    instrumented = any_page.replace("<head>", f"<head>{LISTENER}").replace("</body>", f"{MEASUREMENTS}</body>")
    # In a frame, because the window of a headless browser may be no narrower than 500 pixels.
    frame = f'<iframe srcdoc="{html.escape(instrumented)}" style="width: {width}px; height: 844px; border: 0"></iframe>'
    path = tmp_path / "frame.html"
    path.write_text(f"<!DOCTYPE html><html><body>{frame}</body></html>", "utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120)
    measured = json.loads(html.unescape(re.search(r'data-measured="([^"]*)"', shown.stdout)[1]))
    assert "CONSOLE" not in shown.stderr
    assert measured["wrong"] == []
    assert measured["window"] == width
    assert measured["wide"] <= width
    assert measured["images"] == [1300] * any_page.count("<img ")
    assert measured["texts"]
    assert [text for text in measured["texts"] if not text["inside"]] == []
    assert min(text["height"] for text in measured["texts"]) >= 12
