"""The training benchmark: its ladder, its ratios, and a smoke run from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.measure import Rate
from bench.training import Rung, make_rows, rungs
from fast_cifar.runtime import Precision

ROOT = Path(__file__).parent.parent
FP32 = Precision("cpu", torch.float32)


def test_a_loader_is_compared_with_the_same_rung_on_a_fixed_batch():
    ladder = [Rung("fp32, NCHW", FP32), Rung("a", FP32), Rung("a, loader", FP32, loader=True)]
    rates = {"fp32, NCHW": Rate((50.0,)), "a": Rate((100.0, 90.0, 110.0)), "a, loader": Rate((98.0,))}
    rows = {row["way"]: row for row in make_rows(ladder, rates, dict.fromkeys(rates, 1.0))}
    assert rows["a, loader"]["of_fixed_batch"] == pytest.approx(0.98)
    assert rows["a"]["times_first"] == pytest.approx(2.0)
    assert "of_fixed_batch" not in rows["a"]


def test_the_ladder_adds_one_trick_a_rung(monkeypatch):
    monkeypatch.setattr("fast_cifar.runtime.has_native_bf16", lambda device: True)
    monkeypatch.setattr("bench.training.has_compiler", lambda: True)
    ladder, note = rungs(torch.device("cpu"))
    assert [(r.precision.name, r.channels_last, r.compile, r.loader) for r in ladder] == [
        ("fp32", False, False, False),
        ("fp32", True, False, False),
        ("bf16", True, False, False),
        ("bf16", True, False, True),
        ("bf16", True, True, False),
        ("bf16", True, True, True),
    ]
    assert note is None


def test_without_bf16_and_compiler_the_ladder_is_shorter_and_says_so(monkeypatch):
    monkeypatch.setattr("fast_cifar.runtime.has_native_bf16", lambda device: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    ladder, note = rungs(torch.device("cpu"))
    assert [rung.name for rung in ladder] == ["fp32, NCHW", "fp32, channels_last", "fp32, channels_last, loader"]
    assert "no C++ compiler" in note


def test_a_quick_run_writes_every_rung(tmp_path):
    command = [
        sys.executable,
        "-m",
        "bench.training",
        "--quick",
        "--batch-size",
        "4",
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    path = tmp_path / "training.json"
    finished = subprocess.run(
        [*command, "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CXX": "no-such-compiler"},
    )
    assert finished.returncode == 0, finished.stderr
    written = json.loads(path.read_text())
    assert written["environment"]["batch"] == 4
    assert all(row["images_per_second"] > 0 and row["way"] in finished.stdout for row in written["rows"])
    assert written["rows"][-1]["of_fixed_batch"] > 0
