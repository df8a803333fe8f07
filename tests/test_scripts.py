"""The two scripts as a user runs them: what they print, how they refuse, and with which exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_lrfind
import run_train
from tests.helpers.images import write_class_folder
from tests.helpers.runs import read_json

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run_here(monkeypatch, tmp_path, capsys):
    """Runs a script's `main` in this process and an empty folder: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(result):
    """The one line with which a script refused."""
    code, _, errors = result
    assert code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


SYNTHETIC = ["--data", "synthetic"]
TRAIN_REFUSALS = {
    "an unknown option": (["--colour"], "--colour"),
    "a line break": (["a\nb\u2028c"], "a b c"),
    "a value out of range": (["--epochs", "0"], "--epochs"),
    "an unknown data name": (["--data", "cifar11"], "cifar11"),
    "a batch above the data": ([*SYNTHETIC, "--limit-train", "100", "--batch-size", "101"], "--batch-size"),
    "an unknown device": ([*SYNTHETIC, "--device", "abacus"], "abacus"),
    "fp16 on a CPU": ([*SYNTHETIC, "--device", "cpu", "--amp", "--amp-dtype", "fp16"], "fp16"),
    "a run folder that does not exist": (["--resume", "nowhere"], "nowhere"),
    "a checkpoint that does not exist": (["--eval-only", "nowhere.pt"], "nowhere.pt"),
    "fewer images than classes": ([*SYNTHETIC, "--limit-train", "3"], "--limit-train"),
    "too small a held-out split": ([*SYNTHETIC, "--val-split", "3"], "--val-split"),
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
    assert "--compile" in refused(run_here(run_train.main, "--data", "synthetic", "--compile"))


def test_images_of_another_size_are_named_and_resize_offered(run_here, tmp_path):
    write_class_folder(tmp_path / "pets", per_class=2, size=(64, 48))
    line = refused(run_here(run_train.main, "--data", "pets", "--batch-size", "2"))
    assert "64x48" in line
    assert "--resize" in line


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
    code, output, _ = run_here(
        run_lrfind.main, "--data", class_folder, "--device", "cpu", "--batch-size", 8, "--iters", 40
    )
    assert code == 0
    words = output.splitlines()[-1].split()
    assert words[:2] == ["python", "run_train.py"]
    assert run_here(run_train.main, *words[2:], "--epochs", 2)[0] == 0


def test_ctrl_c_ends_with_130_and_says_how_to_resume(tmp_path):
    command = [sys.executable, ROOT / "run_train.py", "--data", "synthetic", "--limit-train", "80", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--limit-test", "20", "--batch-size", "8", "--name", "a", "--lr-max", "0.001"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        # A background job of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (tmp_path / "runs/a/last.pt").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--resume runs/a" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert (tmp_path / "runs/a/last.pt").exists()
