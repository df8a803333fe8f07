"""The tables of docs/recipe.md: which files they are made of, and that nothing else is touched."""

from __future__ import annotations

import json
import sys

import pytest

from bench import report
from fast_cifar.system.errors import run_script

ENVIRONMENT = {"device": "abacus", "torch": "2.15.0", "threads": 2, "when": "2026-11-21T04:12:25+00:00"}
RUN = {"seed": 0, "val_accuracy": 0.8, "train_accuracy": 0.9, "seconds": 1.0, "diverged": False}
ABLATION = {
    "environment": ENVIRONMENT,
    "rows": [
        {"change": "base", "words": [], "runs": [RUN], "command": "python run_train.py --runs 1"},
        {"change": "no flip", "words": [], "runs": [RUN | {"val_accuracy": 0.7}], "command": "python x | y"},
    ],
}
REGRET = {"suggestion": {"value": 0.0123, "interval": [0.001, 0.02], "is_bound": False}}
SWEEP = {
    "environment": ENVIRONMENT,
    "command": "python -m bench.lr_sweep --data FOLDER",
    "rows": [
        {
            "setting": "pets b4",
            "tuned_on": True,
            "curves": [],
            "runs": [RUN],
            "rates": {"suggestion": 0.01},
            "suggestions": [0.01],
            "best_lr": 0.02,
            "best_accuracy": 0.9,
            "regret": REGRET,
        }
    ],
}
DOCUMENT = """# Recipe

before
<!-- bench.ablation: options-1 -->
old
<!-- bench.ablation: end -->
between
<!-- bench.lr_sweep: small.data -->
<!-- bench.lr_sweep: end -->
after
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A README without results, a document beside it, and its results; `place(*options)` makes the tables."""
    names = ("accuracy", "training", "augmentation", "end_to_end")
    markers = (f"<!-- bench.report: {name} -->\n<!-- bench.report: end -->\n" for name in names)
    (tmp_path / "README.md").write_text("".join(markers))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "recipe.md").write_text(DOCUMENT)
    for name, contents in (("ablations/options-1", ABLATION), ("lr_sweeps/small.data", SWEEP)):
        path = tmp_path / "results" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(contents))

    def run():
        readme, results = str(tmp_path / "README.md"), str(tmp_path / "results")
        monkeypatch.setattr(sys, "argv", ["bench.report", "--readme-only", "--readme", readme, "--results", results])
        return run_script(report.main)

    run.root, run.document = tmp_path, tmp_path / "docs" / "recipe.md"
    return run


def test_each_marker_gets_the_table_of_its_file(place):
    assert place() == 0
    head, ablation, between, sweep, tail = place.document.read_text().split("<!-- ")
    assert (head, between.split("-->\n")[1], tail.split("-->\n")[1]) == ("# Recipe\n\nbefore\n", "between\n", "after\n")
    assert "old" not in ablation
    assert "| base | 80.00 % | | 1 | 90.00 % | `python run_train.py --runs 1` |" in ablation
    assert "| no flip | 70.00 % | -10.00 | 1 | 90.00 % | `python x \\| y` |" in ablation
    assert "**abacus** · torch 2.15.0 · 2 threads · 2026-11-21 · `python -m bench.lr_sweep --data FOLDER`" in sweep
    assert "| pets b4 | yes | 0.01 | 0.02 | 90.00 % | 1.23 [0.10 .. 2.00] | 1 |" in sweep


def test_the_tables_are_the_same_when_made_again(place):
    place()
    once = place.document.read_text()
    place()
    assert place.document.read_text() == once


def test_a_readme_without_the_document_is_enough(place):
    place.document.unlink()
    assert place() == 0
    assert not place.document.exists()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("options-1", "nowhere", "nowhere.json, which is not there; python -m bench.ablation"),
        ("<!-- bench.ablation: end -->\n", "", "has no line <!-- bench.ablation: end -->"),
        ("lr_sweep: end", "ablation: end", "has no line <!-- bench.lr_sweep: end -->"),
        ("lr_sweep: small.data", "ablation: options-1", "it has 2"),
    ],
)
def test_a_marker_without_its_file_or_its_end_is_an_error_and_changes_nothing(place, capsys, old, new, named):
    place.document.write_text(DOCUMENT.replace(old, new))
    assert place() == 2
    assert named in capsys.readouterr().err
    assert place.document.read_text() == DOCUMENT.replace(old, new)


def test_a_file_of_another_benchmark_is_refused(place, capsys):
    (place.root / "results" / "ablations" / "options-1.json").write_text(json.dumps(SWEEP))
    assert place() == 2
    assert "was not written by bench.ablation" in capsys.readouterr().err
