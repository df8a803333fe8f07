"""The ablation: what it parses, trains and keeps, and the paired arithmetic of its table."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from bench import ablation
from bench.ablation import named_change
from bench.trials import accuracy_text, command_text, difference_text, judged
from fast_cifar.system.errors import run_script
from tests.conftest import write_class_folder


def runs(*accuracies, diverged=False):
    values = {"train_accuracy": 0.95, "seconds": 1.0, "diverged": diverged}
    return [{"seed": seed, "val_accuracy": accuracy} | values for seed, accuracy in enumerate(accuracies)]


class Ablation:
    """The ablation of a small folder, its trainings replaced; `calls` are their options."""

    def __init__(self, root, monkeypatch):
        self.root, self.monkeypatch, self.calls, self.broken_after = root, monkeypatch, [], None
        self.json, self.data = root / "ablation.json", write_class_folder(root / "pets")
        self.base = f"--data {shlex.quote(str(self.data))} --data-dir {root / 'cache'} --val-split 8 --batch-size 4"
        monkeypatch.setattr(ablation, "train_once", self.train_once)

    def train_once(self, setup, parts, options):
        if len(self.calls) == self.broken_after:
            raise KeyboardInterrupt
        self.calls.append(options)
        assert setup.options.cutout == options.cutout
        accuracy = 0.8 + 0.01 * options.seed + (0.02 if options.cutout == 0 else 0.0)
        return {"val_accuracy": accuracy, "train_accuracy": 0.9, "seconds": 1.0, "diverged": False}

    def run(self, *options, base=None):
        return self.run_plain("--base", base or self.base, "--json", str(self.json), *options)

    def run_plain(self, *options):
        self.monkeypatch.setattr(sys, "argv", ["bench.ablation", "--device", "cpu", *options])
        return run_script(ablation.main)

    def rows(self):
        return json.loads(self.json.read_text())["rows"]


@pytest.fixture
def place(tmp_path, monkeypatch, small_network):
    return Ablation(tmp_path, monkeypatch)


def test_the_paired_difference_and_its_interval_are_those_done_by_hand():
    base = {"change": "base", "runs": runs(0.80, 0.82, 0.90)}
    change = {"change": "a", "runs": runs(0.81, 0.84, 0.93)}
    _, row = judged([base, change])
    assert row["difference"] == pytest.approx(0.02)
    assert row["difference_half"] == pytest.approx(4.3027 * 0.01 / 3**0.5, abs=1e-5)
    assert difference_text(row) == "+2.00 [-0.48 .. +4.48]"
    assert row["mean"] == pytest.approx(0.86)
    assert row["half"] == pytest.approx(4.3027 * 0.06245 / 3**0.5, abs=1e-4)
    assert accuracy_text(row) == "86.00 % ± 15.51"


def test_only_the_seeds_that_both_have_are_paired():
    _, row = judged([{"runs": runs(0.8)}, {"runs": runs(0.9, 0.5)}])
    assert (row["difference"], row["difference_half"], row["n"]) == (pytest.approx(0.1), None, 2)
    assert difference_text(row) == "+10.00"


def test_the_base_differs_from_nothing_and_a_change_without_runs_is_no_row():
    (row,) = judged([{"runs": runs(0.8, 0.9)}, {"runs": []}])
    assert difference_text(row) == ""


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("no cutout: --cutout 0", "no cutout", ["--cutout", "0"]),
        ("--cutout 0", "--cutout 0", ["--cutout", "0"]),
        ("--mirror http://x", "--mirror http://x", ["--mirror", "http://x"]),
        ("a b:--no-flip --tta", "a b", ["--no-flip", "--tta"]),
    ],
)
def test_a_change_has_a_name_and_options(text, name, words):
    assert named_change(text) == (name, words)


def test_each_change_trains_the_seeds_of_the_base_with_its_own_options(place, capsys):
    base = f"{place.base} --seed 5 --lr-max 0.01"
    assert place.run("--change", "none: --cutout 0", "--change", "slow: --lr-max 0.001", "--runs", "2", base=base) == 0
    made = [(one.seed, one.cutout, one.lr_max, one.lr_min, one.val_split) for one in place.calls]
    base, none, slow = (8, 0.01, 1e-4, 8), (0, 0.01, 1e-4, 8), (8, 0.001, 1e-5, 8)
    assert made == [(seed, *(pytest.approx(n) for n in one)) for one in (base, none, slow) for seed in (5, 6)]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("none "))
    assert "87.50 %" in line
    assert "+2.00 [+2.00 .. +2.00]" in line


def test_the_table_gives_the_whole_command_of_the_base_and_the_words_that_a_change_adds():
    base = {"words": ["--amp"], "command": "python run_train.py --amp --runs 2"}
    assert command_text(base, base) == "`python run_train.py --amp --runs 2`"
    assert command_text({"words": ["--amp", "--cutout", "0"], "command": "x"}, base) == "`… --cutout 0 …`"
    assert command_text({"words": ["--no-amp"], "command": "x"}, base) == "`x`"


def test_the_command_of_a_change_says_how_to_redo_it_anywhere(place):
    assert place.run("--change", "no flip: --no-flip", "--runs", "2") == 0
    assert str(place.root) not in place.json.read_text()
    words = "python run_train.py --data FOLDER --data-dir FOLDER --val-split 8 --batch-size 4"
    assert [row["command"] for row in place.rows()] == [f"{words} --runs 2", f"{words} --no-flip --runs 2"]


def test_an_interrupted_ablation_goes_on_where_it_stopped(place):
    place.broken_after = 3
    assert place.run("--change", "none: --cutout 0", "--runs", "2") == 130
    place.broken_after = None
    assert place.run("--change", "none: --cutout 0", "--runs", "2") == 0
    assert [(one.seed, one.cutout) for one in place.calls] == [(0, 8), (1, 8), (0, 0), (1, 0)]


def test_another_change_and_more_seeds_are_added(place):
    place.run("--runs", "1")
    place.run("--change", "none: --cutout 0", "--runs", "2")
    assert [[run["seed"] for run in row["runs"]] for row in place.rows()] == [[0, 1], [0, 1]]
    assert len(place.calls) == 4


def test_the_table_is_printed_again_without_training(place, capsys):
    place.run("--change", "none: --cutout 0", "--runs", "2")
    before, printed = place.json.read_text(), capsys.readouterr().out
    assert place.run_plain("--json", str(place.json)) == 0
    assert len(place.calls) == 4
    assert place.json.read_text() == before
    assert capsys.readouterr().out == printed[printed.index("cpu ") :]


@pytest.mark.parametrize(("again", "named"), [(" --epochs 3", "base"), ("", "none")])
def test_other_options_under_the_same_name_are_refused(place, capsys, again, named):
    place.run("--change", "none: --cutout 0", "--runs", "1")
    assert place.run("--change", "none: --cutout 2", "--runs", "1", base=place.base + again) == 2
    assert f"--json holds '{named}' with" in capsys.readouterr().err
    assert len(place.calls) == 2


@pytest.mark.parametrize(
    ("options", "base", "named"),
    [
        ((), "--batch-size 4", "--val-split"),
        ((), "--val-split 8 --runs 3", "base: --runs"),
        ((), "--val-split 8 --data nowhere", "nowhere"),
        ((), "--val-split 8 --frobnicate", "--frobnicate"),
        ((), "--val-split 8 'open", "--base"),
        (("--change", "a: --seed 3"), None, "a: --seed"),
        (("--change", "a: --val-split 9"), None, "a: --val-split"),
        (("--change", "a: --find-lr"), None, "a: --find-lr"),
        (("--change", "a: --epochs x"), None, "--epochs"),
        (("--change", "a:"), None, "'a:'"),
        (("--change", "a: --tta", "--change", "a: --amp"), None, "'a'"),
        (("--runs", "0"), None, "--runs 0"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(place, capsys, options, base, named):
    assert place.run(*options, base=base) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error
    assert not place.json.exists()


def test_without_a_base_there_is_nothing_to_do(place, capsys):
    assert place.run_plain() == 2
    assert "--base" in capsys.readouterr().err


def test_a_file_of_another_benchmark_is_refused(place, capsys):
    place.json.write_text('{"rows": [{"way": "beads"}]}')
    assert place.run() == 2
    assert "was not written by bench.ablation" in capsys.readouterr().err


def test_a_quick_ablation_trains(monkeypatch, capsys, small_network):
    monkeypatch.setattr("fast_cifar.data.load.SYNTHETIC_TRAIN", 400)
    monkeypatch.setattr("fast_cifar.data.load.SYNTHETIC_TEST", 50)
    monkeypatch.setattr(sys, "argv", ["bench.ablation", "--quick", "--device", "cpu", "--runs", "2"])
    assert run_script(ablation.main) == 0
    assert "no cutout" in capsys.readouterr().out.splitlines()[-1]
