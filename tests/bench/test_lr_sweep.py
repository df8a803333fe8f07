"""The learning-rate sweep: what it trains, what it keeps, and how it goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import math
import sys
from functools import partial

import numpy as np
import pytest

from bench import lr_sweep
from fast_cifar.lr_curve import smooth, suggest
from fast_cifar.lr_finder import RangeTest
from fast_cifar.system.errors import UserError, run_script
from tests.helpers.images import write_class_folder
from tests.helpers.scripts import refused

LRS = np.geomspace(1e-5, 1.0, 60).tolist()


def losses(bottom):
    """A smooth range test whose loss is lowest near the rate `bottom`."""
    x = np.log10(LRS) - math.log10(bottom)
    return (1.0 + 1.3 / (1 + np.exp(4 * (x + 1.5))) + np.exp(np.minimum(5 * (x - 0.5), 3))).tolist()


class Sweep:
    """The sweep on a class folder, its range tests and trainings replaced; `calls` are those made."""

    def __init__(self, root, monkeypatch):
        self.root, self.monkeypatch, self.calls = root, monkeypatch, []
        self.json, self.broken_after, self.diverging_from, self.bottoms = root / "sweep.json", None, math.inf, {}
        self.data = write_class_folder(root / "pets")
        monkeypatch.setattr(lr_sweep, "sweep", self.range_test)
        monkeypatch.setattr(lr_sweep, "train_once", self.train_once)

    def range_test(self, setup, seed, test):
        self.calls.append(("range test", seed, test.iters, setup.options.compile))
        bottom = self.bottoms.get(seed, 0.01)
        if bottom is None:
            raise UserError("range test: the loss never fell")
        curve = losses(bottom)
        smoothed = smooth(curve)
        return RangeTest(LRS, curve, smoothed.tolist(), suggest(LRS, smoothed))

    def train_once(self, training, options):
        if len(self.trainings()) == self.broken_after:
            raise KeyboardInterrupt
        self.calls.append(("training", options.seed, options.lr_max, options.lr_min))
        accuracy = 0.8 - 0.01 * math.log2(options.lr_max / 0.004) ** 2 + 0.002 * options.seed
        diverged = options.lr_max > self.diverging_from
        return {
            "val_accuracy": 0.5 if diverged else accuracy,
            "train_accuracy": 0.9,
            "seconds": 1.0,
            "diverged": diverged,
        }

    def trainings(self):
        return [call for call in self.calls if call[0] == "training"]

    def run(self, *options):
        where = ("--data", str(self.data), "--data-dir", str(self.root / "cache"), "--device", "cpu", "--no-amp")
        small = ("--batch-size", "4", "--epochs", "2", "--val-split", "8", "--weight-decay", "0")
        return self.run_plain(*where, *small, "--json", str(self.json), *options)

    def run_plain(self, *options):
        self.monkeypatch.setattr(sys, "argv", ["bench.lr_sweep", *options])
        return run_script(lr_sweep.main)

    def rows(self):
        return json.loads(self.json.read_text())["rows"]


@pytest.fixture
def place(tmp_path, monkeypatch, small_network):
    return Sweep(tmp_path, monkeypatch)


def test_every_seed_trains_at_every_factor_of_the_geometric_mean_of_the_suggestions(place):
    place.bottoms = {0: 0.01, 1: 0.04}
    assert place.run("--repeats", "2", "--runs", "2", "--factors", "0.25,0.5,1,2,4") == 0
    (row,) = place.rows()
    ours = [suggest(LRS, smooth(losses(bottom))).lr_max for bottom in (0.01, 0.04)]
    assert row["suggestions"] == pytest.approx(ours)
    assert row["rates"]["suggestion"] == row["center"] == pytest.approx((ours[0] * ours[1]) ** 0.5)
    expected = [(seed, factor * row["center"]) for seed in (0, 1) for factor in (0.25, 0.5, 1, 2, 4)]
    assert [(seed, rate) for _, seed, rate, _ in place.trainings()] == [(s, pytest.approx(r)) for s, r in expected]
    assert all(lr_min is None for *_, lr_min in place.trainings())  # as the recipe has it


def test_the_regret_of_each_rule_is_that_of_its_rate(place, capsys):
    assert place.run("--repeats", "1") == 0
    (row,) = place.rows()
    found = suggest(LRS, smooth(losses(0.01)))
    assert row["rates"] == pytest.approx(
        {
            "suggestion": found.lr_max,
            "steepest": found.steepest,
            "valley": found.valley,
            "minimum/10": found.minimum / 10,
            "minimum": found.minimum,
        }
    )
    assert row["best_lr"] == pytest.approx(0.004, rel=0.01)
    expected = 0.01 * math.log2(found.lr_max / 0.004) ** 2
    assert row["regret"]["suggestion"]["value"] == pytest.approx(expected, abs=1e-6)
    assert f"{100 * expected:.2f} [" in capsys.readouterr().out
    low, high = row["regret"]["suggestion"]["interval"]
    assert low <= expected <= high


def test_an_interrupted_sweep_goes_on_where_it_stopped(place):
    place.broken_after = 3
    assert place.run("--repeats", "2", "--runs", "2", "--factors", "0.5,1,2,4") == 130
    assert len(place.rows()[0]["runs"]) == 3
    place.broken_after = None
    assert place.run("--repeats", "2", "--runs", "2", "--factors", "0.5,1,2,4") == 0
    assert len(place.trainings()) == len(set(place.trainings())) == 8
    assert len(place.calls) == 8 + 2
    assert place.run("--repeats", "2", "--runs", "2", "--factors", "0.5,1,2,4") == 0
    assert len(place.calls) == 8 + 2


def test_more_range_tests_do_not_move_the_grid(place):
    place.bottoms = {1: 0.08}
    place.run("--repeats", "1", "--runs", "1", "--factors", "0.5,1,2,4")
    center = place.rows()[0]["center"]
    place.run("--repeats", "2", "--runs", "2", "--factors", "0.5,1,2,4")
    (row,) = place.rows()
    assert row["center"] == center < row["rates"]["suggestion"]
    assert len({run["lr_max"] for run in row["runs"]}) == 4


@pytest.mark.parametrize(("name", "other"), [("device", "abacus"), ("torch", "1.0")])
def test_a_sweep_of_another_machine_is_not_continued(place, capsys, name, other):
    place.run("--repeats", "1", "--runs", "1")
    contents = json.loads(place.json.read_text())
    contents["environment"][name] = other
    place.json.write_text(json.dumps(contents))
    before = len(place.calls)
    assert place.run("--repeats", "1", "--runs", "2") == 2
    assert f"{name} {other}" in capsys.readouterr().err
    assert len(place.calls) == before
    assert json.loads(place.json.read_text()) == contents


def test_settings_are_the_combinations_of_the_lists(place):
    lists = ("--batch-size", "4,8", "--weight-decay", "0,0.1", "--epochs", "24,2")
    assert place.run(*lists, "--runs", "1", "--repeats", "1", "--factors", "1") == 0
    words = itertools.product(("pets b4", "pets b8"), ("", " wd0.1"), ("", " e2"))
    assert [row["setting"] for row in place.rows()] == list(map("".join, words))
    assert (place.rows()[3]["options"]["weight_decay"], place.rows()[3]["options"]["epochs"]) == (0.1, 2)


def test_no_path_of_this_machine_is_in_the_file(place):
    assert place.run("--runs", "1", "--repeats", "1") == 0
    assert str(place.root) not in place.json.read_text()
    command = json.loads(place.json.read_text())["command"]
    assert "python -m bench.lr_sweep --data FOLDER --data-dir FOLDER --device cpu" in command


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--cutout", "0"), "--cutout 8, not 0"),
        (("--amp",), "--amp False, not True"),
        (("--val-split", "6"), "--val-split 8, not 6"),
    ],
)
def test_another_recipe_is_not_added_to_a_file(place, capsys, options, named):
    place.run("--runs", "1", "--repeats", "1")
    before = place.json.read_text()
    assert place.run("--runs", "1", "--repeats", "1", *options) == 2
    assert named in capsys.readouterr().err
    assert place.json.read_text() == before


def test_a_training_that_diverged_counts_and_is_noted(place, capsys):
    place.diverging_from = 0.004
    place.run("--runs", "1", "--repeats", "1", "--factors", "0.125,0.25,0.5,8")
    assert "4, 1 diverged" in capsys.readouterr().out
    assert max(place.rows()[0]["runs"], key=lambda run: run["lr_max"])["val_accuracy"] == 0.5


def test_a_range_test_that_failed_is_left_out_of_the_mean(place):
    place.bottoms = {0: None, 1: 0.02}
    place.run("--runs", "1", "--repeats", "2")
    (row,) = place.rows()
    assert row["curves"][0] == {"seed": 0, "failed": "range test: the loss never fell"}
    assert row["center"] == pytest.approx(suggest(LRS, smooth(losses(0.02))).lr_max)


def test_a_setting_without_a_suggestion_is_not_trained_and_says_so(place, capsys):
    place.bottoms = {0: None}
    assert place.run("--runs", "1", "--repeats", "1") == 0
    assert place.trainings() == []
    assert "pets b4 e2: no suggestion; range test: the loss never fell" in capsys.readouterr().out


def test_other_rules_are_evaluated_without_training(place, monkeypatch, capsys):
    place.run("--runs", "1", "--repeats", "1")
    calls = len(place.calls)
    before = place.rows()[0]
    monkeypatch.setattr("bench.regret.suggest", lambda lrs, smoothed: suggest(lrs, smoothed).__class__(*[0.004] * 5))
    assert place.run_plain("--json", str(place.json), "--no-training") == 0
    assert len(place.calls) == calls
    (row,) = place.rows()
    assert row["regret"]["suggestion"]["value"] == pytest.approx(0.0, abs=1e-6) != before["regret"]["suggestion"]
    assert (row["runs"], row["center"]) == (before["runs"], before["center"])


def test_the_range_test_is_not_compiled(place):
    place.run("--runs", "1", "--repeats", "1", "--iters", "33")
    assert place.calls[0] == ("range test", 0, 33, False)


def test_the_settings_are_plotted_and_spelled_out(place):
    pytest.importorskip("matplotlib")
    plot = place.root / "new" / "sweep.png"
    place.run("--runs", "2", "--repeats", "1", "--batch-size", "4,8", "--plot", str(plot))
    assert plot.read_bytes().startswith(b"\x89PNG")
    first, second = (lr_sweep.spelled_out(row["options"]) for row in place.rows())
    assert first == "pets, all images, batch 4, 2 epochs\nwidth 64, weight decay 0, label smoothing 0.1"
    assert second == first.replace("batch 4", "batch 8")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--runs", "0"), "--runs 0"),
        (("--batch-size", "4,x"), "--batch-size: '4,x'"),
        (("--factors", "1,-2"), "--factors"),
        (("--data", "no-such-data"), "no-such-data"),
        (("--val-split", "0"), "--val-split 0"),
        (("--iters", "3"), "--iters 3"),
        (("--lr-max", "0.1"), "--lr-max"),
        (("--seed", "3"), "--seed does not apply"),
        (("--eopchs", "3"), "--eopchs"),
        (("--batch-size", "4,4"), "'pets b4 e2'"),
        (("--no-training",), "--no-training"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(place, capsys, options, named):
    assert named in refused((place.run(*options), *capsys.readouterr()))


def test_a_file_of_another_benchmark_is_refused(place, capsys):
    place.json.write_text('{"rows": [{"way": "beads"}]}')
    assert place.run() == 2
    assert "was not written by bench.lr_sweep" in capsys.readouterr().err


def test_a_quick_sweep_trains_and_prints_a_regret(monkeypatch, tmp_path, run_here, small_network):
    monkeypatch.setattr("fast_cifar.data.load.SYNTHETIC_TRAIN", 400)
    monkeypatch.setattr("fast_cifar.data.load.SYNTHETIC_TEST", 50)
    path = tmp_path / "sweep.json"
    code, printed, _ = run_here(partial(run_script, lr_sweep.main), "--quick", "--device", "cpu", "--json", path)
    assert code == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["setting"], len(row["runs"])) == ("synthetic b16 wd0.5 e2", 4)
    assert "regret" in row
    assert "synthetic b16 wd0.5" in printed.splitlines()[-1]
