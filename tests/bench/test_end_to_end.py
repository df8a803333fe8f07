"""The end-to-end benchmark: where the time of a run goes, when it reaches a target, and a smoke run."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from bench import end_to_end
from bench.end_to_end import choose_recipe, make_row, to_target, training_images
from fast_cifar.data import load
from fast_cifar.options import DEMO, TrainOptions
from fast_cifar.system.errors import run_script
from tests.helpers.devices import needs_cuda
from tests.helpers.images import write_class_folder
from tests.helpers.pages import summary_of
from tests.helpers.plots import history
from tests.helpers.scripts import refused

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def epochs(*accuracies):
    rows = enumerate(accuracies, start=1)
    return [{"epoch": k, "seconds": 10.0, "evaluation_seconds": 1.0, "test_accuracy": value} for k, value in rows]


def given(**options):
    return TrainOptions(**options, given=frozenset(options))


@pytest.fixture
def run_bench(run_here):
    """Runs the benchmark: (exit code, output, errors)."""
    return partial(run_here, partial(run_script, end_to_end.main))


@pytest.mark.parametrize(
    ("accuracies", "epoch", "seconds"),
    [((0.5, 0.9, 0.8, 0.95), 2, 22.0), ((0.5, 0.89), None, None), ((None, 0.9), 2, 22.0)],
    ids=["later ones do not count", "it is never reached", "the time of an epoch without a test counts"],
)
def test_the_first_epoch_that_reaches_the_target_ends_the_count(accuracies, epoch, seconds):
    assert to_target(epochs(*accuracies), 0.9) == {"epochs_to_target": epoch, "seconds_to_target": seconds}


def test_what_the_run_does_not_count_itself_is_the_other_seconds():
    row = make_row(summary_of(history(2)), epochs(0.8, 0.9), total_seconds=1300.0, target=0.9)
    assert row["other_seconds"] == pytest.approx(1300.0 - 1234.5 - 7.25 - 0.5 - 31.5)
    assert row["total_seconds"] == 1300.0
    assert row["seconds_to_target"] == 22.0


def test_cuda_trains_the_recipe_and_a_cpu_the_demo_and_says_so(capsys):
    recipe = choose_recipe(given(), CUDA, quick=False)
    assert capsys.readouterr().out == ""
    demo = choose_recipe(given(), CPU, quick=False)
    assert capsys.readouterr().out.startswith("this is the demo")
    assert (recipe.data, recipe.epochs, recipe.batch_size, recipe.amp) == ("cifar10", 24, 512, True)
    assert {name: getattr(demo, name) for name in DEMO} == DEMO
    assert demo.compile is False


@pytest.mark.parametrize(
    ("compiler", "options", "compiled"), [(True, {}, True), (False, {}, False), (True, {"compile": False}, False)]
)
def test_cuda_compiles_where_there_is_a_compiler_unless_told_not_to(monkeypatch, compiler, options, compiled):
    monkeypatch.setattr("bench.trials.has_compiler", lambda: compiler)
    assert choose_recipe(given(**options), CUDA, quick=False).compile is compiled


def test_a_cpu_trains_the_recipe_on_data_that_it_is_given(capsys):
    recipe = choose_recipe(given(data="cifar10"), CPU, quick=False)
    assert (recipe.epochs, recipe.batch_size, recipe.limit_train) == (24, 512, None)
    assert capsys.readouterr().out == ""


def test_the_command_line_overrides_the_demo():
    demo = choose_recipe(given(epochs=3, batch_size=64, amp=False), CPU, quick=False)
    assert (demo.epochs, demo.batch_size, demo.amp, demo.data) == (3, 64, False, "synthetic")


def test_the_images_of_an_epoch_are_loaded_as_the_options_say_and_without_those_held_out(tmp_path):
    folder = write_class_folder(tmp_path / "large", size=(40, 40))  # 24 images
    places = {"data": str(folder), "data_dir": str(tmp_path / "cache"), "resize": True}
    assert training_images(given(**places, val_split=4)) == 20
    assert training_images(given(**places, val_split=4, limit_train=8)) == 8


def test_a_quick_run_writes_a_row_a_seed_and_prints_it(monkeypatch, run_bench, tmp_path, small_network):
    monkeypatch.setattr(load, "SYNTHETIC_TRAIN", 200)
    monkeypatch.setattr(load, "SYNTHETIC_TEST", 100)
    path = tmp_path / "results" / "end_to_end.json"
    options = ("--quick", "--device", "cpu", "--runs", 2, "--target", 0.01, "--json", path)
    code, printed, _ = run_bench(*options)
    assert code == 0
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


def test_no_run_folder_is_left_and_none_is_named(monkeypatch, run_bench, tmp_path, small_network, class_folder):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    places = ("--data", class_folder, "--data-dir", tmp_path / "cache", "--device", "cpu")
    code, printed, _ = run_bench(*places, "--epochs", 2, "--batch-size", 8)
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
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
def test_a_wrong_option_is_one_line_and_exit_code_2(run_bench, options, named):
    assert named in refused(run_bench("--device", "cpu", *options))


@needs_cuda
def test_a_quick_run_on_cuda_knows_its_peak_memory(run_bench, tmp_path):
    assert run_bench("--quick", "--no-compile", "--json", tmp_path / "a.json")[0] == 0
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["peak_memory_bytes"] > 0
