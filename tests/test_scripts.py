"""The two scripts as a user runs them: what they print, how they refuse, and with which exit code."""

import pytest

import run_lrfind
import run_train
from tests.helpers.runs import read_json
from tests.helpers.scripts import refused

SYNTHETIC = ["--data", "synthetic"]
TRAIN_REFUSALS = {
    "an unknown option": (["--colour"], "--colour"),
    "an argument with a line break": (["a\nb\u2028c"], "a b c"),
    "a value out of range": (["--epochs", "0"], "--epochs"),
    "an unknown data name": (["--data", "cifar11"], "cifar11"),
    "a batch above the data": ([*SYNTHETIC, "--limit-train", "100", "--batch-size", "101"], "--batch-size"),
    "an unknown device": ([*SYNTHETIC, "--device", "abacus"], "abacus"),
    "fp16 on a CPU": ([*SYNTHETIC, "--device", "cpu", "--amp-dtype", "fp16"], "fp16 needs a CUDA device"),
    "a run folder that does not exist": (["--resume", "nowhere"], "nowhere"),
    "a path with a line break": (["--resume", "no\nwhere"], "no where is not a run folder"),
    "a checkpoint that does not exist": (["--eval-only", "nowhere.pt"], "nowhere.pt"),
    "fewer images than classes": ([*SYNTHETIC, "--limit-train", "3"], "--limit-train"),
    "too small a held-out split": ([*SYNTHETIC, "--val-split", "3"], "--val-split"),
    "nothing to evaluate": (["--no-test"], "--no-test leaves nothing to evaluate; hold images out with --val-split"),
    "too few steps": ([*SYNTHETIC, "--limit-train", "64", "--batch-size", "64", "--epochs", "2"], "steps"),
}


@pytest.mark.parametrize("case", TRAIN_REFUSALS)
def test_training_refuses(run_here, tmp_path, case):
    arguments, named = TRAIN_REFUSALS[case]
    assert named in refused(run_here(run_train.main, *arguments))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--epochs", "3"], "--epochs"),
        (["--iters", "9"], "--iters"),
        (["--loss-on", "val"], "--val-split"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_the_range_test_refuses(run_here, tmp_path, arguments, named):
    assert named in refused(run_here(run_lrfind.main, *arguments))
    assert not (tmp_path / "runs").exists()


def test_compiling_without_a_compiler_is_refused(run_here, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    line = refused(run_here(run_train.main, "--data", "synthetic", "--compile"))
    assert "--compile needs a C++ compiler" in line
    assert "no-such-compiler" in line


@pytest.mark.parametrize(("data", "parameters"), [("cifar10", "6,573,120"), ("cifar100", "6,619,200")])
def test_the_summary_is_printed_and_nothing_is_trained(run_here, tmp_path, data, parameters):
    code, output, _ = run_here(run_train.main, "--summary", "--data", data)
    assert code == 0
    assert parameters in output
    assert not (tmp_path / "runs").exists()


def test_a_run_prints_a_line_an_epoch_and_its_checkpoint_can_be_tested(run_here, small_network, class_folder, tmp_path):
    common = ["--data", class_folder, "--device", "cpu"]
    code, output, errors = run_here(
        run_train.main, *common, "--epochs", 2, "--batch-size", 8, "--lr-max", 0.01, "--name", "a"
    )
    assert (code, errors) == (0, "")
    assert output.count("images/sec |") == 2
    accuracy = read_json(tmp_path / "runs/a/summary.json")["test_accuracy"]
    code, output, _ = run_here(run_train.main, "--eval-only", "runs/a/last.pt", *common)
    assert code == 0
    assert output.startswith(f"test accuracy {100 * accuracy:.2f} %: ")
    assert " of 24 images in fp32, loss " in output


def test_the_line_that_the_range_test_prints_trains(run_here, small_network, class_folder):
    code, output, errors = run_here(
        run_lrfind.main, "--data", class_folder, "--device", "cpu", "--batch-size", 8, "--iters", 40
    )
    assert (code, errors) == (0, "")  # and no progress bar
    words = output.splitlines()[-1].split()
    assert words[:2] == ["python", "run_train.py"]
    assert run_here(run_train.main, *words[2:], "--epochs", 2)[0] == 0
