"""The end-to-end benchmark: where the time of a run goes, when it reaches a target, and a smoke run."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bench import end_to_end
from bench.end_to_end import choose_recipe, make_row, to_target
from fast_cifar.data import load
from fast_cifar.options import DEMO, TrainOptions
from fast_cifar.system.errors import run_script
from tests.helpers.devices import needs_cuda

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def epochs(*accuracies):
    rows = enumerate(accuracies, start=1)
    return [{"epoch": k, "seconds": 10.0, "evaluation_seconds": 1.0, "test_accuracy": value} for k, value in rows]


def summary(**changes):
    values = {
        "dataset": "pets",
        "epochs": 2,
        "seed": 3,
        "precision": "bf16",
        "test_accuracy": 0.9,
        "train_accuracy": 0.95,
        "images_per_second": 100.0,
        "seconds": 20.0,
        "evaluation_seconds": 2.0,
        "save_seconds": 0.5,
        "compile_seconds": 5.0,
    }
    return values | changes


def given(**options):
    return TrainOptions(**options, given=frozenset(options))


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["bench.end_to_end", "--device", "cpu", *options])
    return run_script(end_to_end.main)


def test_the_first_epoch_that_reaches_the_target_ends_the_count():
    assert to_target(epochs(0.5, 0.9, 0.8, 0.95), 0.9) == {"epochs_to_target": 2, "seconds_to_target": 22.0}


def test_a_target_that_was_never_reached_has_no_seconds():
    assert to_target(epochs(0.5, 0.89), 0.9) == {"epochs_to_target": None, "seconds_to_target": None}


def test_an_epoch_without_a_test_reaches_no_target_but_its_time_counts():
    assert to_target(epochs(None, 0.9), 0.9)["seconds_to_target"] == 22.0


def test_what_the_run_does_not_count_itself_is_the_other_seconds():
    row = make_row(summary(), epochs(0.8, 0.9), total_seconds=30.0, target=0.9)
    assert row["other_seconds"] == pytest.approx(30.0 - 20.0 - 2.0 - 0.5 - 5.0)
    assert row["total_seconds"] == 30.0
    assert row["seconds_to_target"] == 22.0


def test_cuda_trains_the_recipe_and_a_cpu_the_demo():
    recipe, demo = (choose_recipe(given(), device, quick=False) for device in (CUDA, CPU))
    assert (recipe.data, recipe.epochs, recipe.batch_size, recipe.amp) == ("cifar10", 24, 512, True)
    assert {name: getattr(demo, name) for name in DEMO} == DEMO
    assert demo.compile is False


@pytest.mark.parametrize(
    ("compiler", "options", "compiled"), [(True, {}, True), (False, {}, False), (True, {"compile": False}, False)]
)
def test_cuda_compiles_where_there_is_a_compiler_unless_told_not_to(monkeypatch, compiler, options, compiled):
    monkeypatch.setattr("bench.trials.has_compiler", lambda: compiler)
    assert choose_recipe(given(**options), CUDA, quick=False).compile is compiled


def test_a_cpu_trains_the_recipe_on_data_that_it_is_given():
    recipe = choose_recipe(given(data="cifar10"), CPU, quick=False)
    assert (recipe.epochs, recipe.batch_size, recipe.limit_train) == (24, 512, None)


def test_the_command_line_overrides_the_demo():
    demo = choose_recipe(given(epochs=3, batch_size=64, amp=False), CPU, quick=False)
    assert (demo.epochs, demo.batch_size, demo.amp, demo.data) == (3, 64, False, "synthetic")


def test_a_quick_run_writes_a_row_a_seed_and_prints_it(monkeypatch, tmp_path, capsys, small_network):
    monkeypatch.setattr(load, "SYNTHETIC_TRAIN", 200)
    monkeypatch.setattr(load, "SYNTHETIC_TEST", 100)
    path = tmp_path / "results" / "end_to_end.json"
    assert run(monkeypatch, "--quick", "--runs", "2", "--target", "0.01", "--json", str(path)) == 0
    printed = capsys.readouterr().out
    written = json.loads(path.read_text())
    assert [row["seed"] for row in written["rows"]] == [0, 1]
    for row in written["rows"]:
        assert (row["dataset"], row["images"], row["epochs"], row["batch_size"]) == ("synthetic", 128, 2, 32)
        assert 0 <= row["test_accuracy"] <= 1
        assert 0 < row["seconds_to_target"] <= row["total_seconds"]
        assert row["other_seconds"] > 0
        assert f"{row['total_seconds']:.1f}" in printed
    assert "n = 2" in printed
    assert written["environment"]["device"] in printed


def test_no_run_folder_is_left_and_none_is_named(monkeypatch, tmp_path, capsys, small_network, class_folder):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = ("--data", str(class_folder), "--data-dir", str(tmp_path / "cache"), "--epochs", "2", "--batch-size", "8")
    assert run(monkeypatch, *options) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    printed = capsys.readouterr().out
    assert "epoch 2/2" in printed
    assert str(tmp_path) not in printed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--target", "90"), "--target 90"),
        (("--target", "0"), "--target 0"),
        (("--runs", "0"), "--runs 0"),
        (("--data", "no-such-data"), "no-such-data"),
        (("--batch-size", "0"), "--batch-size 0"),
        (("--run", "1"), "--run 1"),
        (("--resume", "runs/a"), "--resume does not apply"),
        (("--eval-every", "2"), "--eval-every does not apply"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(monkeypatch, capsys, options, named):
    assert run(monkeypatch, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error


def test_a_cpu_says_that_it_trains_the_demo(monkeypatch, capsys):
    monkeypatch.setattr(end_to_end, "training_images", lambda recipe: 1600)
    row = make_row(summary(), epochs(0.9), 30.0, 0.9) | {"batch_size": 32, "compiled": False}
    monkeypatch.setattr(end_to_end, "measure", lambda recipe, target: row)
    assert run(monkeypatch) == 0
    assert "this is the demo" in capsys.readouterr().out
    assert run(monkeypatch, "--data", "cifar10") == 0
    assert "this is the demo" not in capsys.readouterr().out


@needs_cuda
def test_a_quick_run_on_cuda_knows_its_peak_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["bench.end_to_end", "--quick", "--no-compile", "--json", str(tmp_path / "a.json")]
    )
    assert run_script(end_to_end.main) == 0
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["peak_memory_bytes"] > 0
