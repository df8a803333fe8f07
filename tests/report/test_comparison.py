"""The report of several runs: results, options that differ, and curves over each other."""

from __future__ import annotations

from fast_cifar.runs.stats import summarize
from tests.helpers.pages import (
    assert_same,
    cells,
    drawn,
    figure,
    history,
    page,
    region,
    summary_of,
    write_range_test,
    write_run,
    write_seeds,
)


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
    whole = summarize([summary_of(rows) for rows in histories])
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
