"""The training benchmark: its ladder, its ratios, and a smoke run from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.measure import Rate
from bench.training import COMMON, Case, Rung, common_case, flops_per_image, make_rows, matmul_case, rungs
from fast_cifar.system.device import Precision
from tests.conftest import needs_cuda

ROOT = Path(__file__).parents[2]
FP32 = Precision("cpu", torch.float32)


def test_a_loader_is_compared_with_the_same_rung_on_a_fixed_batch():
    ladder = [Rung("fp32, NCHW", FP32), Rung("a", FP32), Rung("a, loader", FP32, loader=True)]
    rates = {"fp32, NCHW": Rate((50.0,)), "a": Rate((100.0, 90.0, 110.0)), "a, loader": Rate((98.0,))}
    rates[COMMON] = Rate((25.0,))
    cases = {name: Case(lambda: 0, 1.0) for name in rates}
    rows = {row["way"]: row for row in make_rows(ladder, rates, cases, 0.002)}
    assert rows["a, loader"]["of_fixed_batch"] == pytest.approx(0.98)
    assert rows["a"]["times_first"] == pytest.approx(2.0)
    assert rows["a"]["times_common"] == pytest.approx(4.0)
    assert rows["a"]["mfu"] == pytest.approx(0.2)
    assert "of_fixed_batch" not in rows["a"]
    assert "peak_memory_bytes" not in rows["a"]


def test_the_arithmetic_is_three_times_that_of_the_forward_pass():
    # 379 million multiply-adds; the first convolution needs no gradient of its input.
    assert flops_per_image() == pytest.approx(3 * 2 * 379e6, rel=0.02)


def test_the_usual_way_trains_whole_batches_of_shuffled_pictures():
    images = torch.randint(256, (10, 32, 32, 3), dtype=torch.uint8)
    case = common_case(images, torch.arange(10), 4, torch.device("cpu"))
    assert case.run() == 8
    assert case.warm_up_seconds > 0


def test_a_matrix_product_counts_two_operations_a_multiply_add():
    assert matmul_case(torch.device("cpu"), torch.float32, 8)() == 5 * 2 * 8**3


@needs_cuda
def test_on_cuda_the_ladder_ends_with_one_graph():
    ladder, _ = rungs(torch.device("cuda"))
    if not ladder[-1].precision.scales_gradients:
        assert ladder[-2].graph
        assert ladder[-2].name.endswith("one graph")


def test_the_ladder_adds_one_trick_a_rung(monkeypatch):
    monkeypatch.setattr("fast_cifar.system.device.has_native_bf16", lambda device: True)
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
    monkeypatch.setattr("fast_cifar.system.device.has_native_bf16", lambda device: False)
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
    ways = {row["way"]: row for row in written["rows"]}
    assert any(row.get("of_fixed_batch", 0) > 0 for row in ways.values())
    assert ways[COMMON]["times_common"] == 1
    assert written["environment"]["matmul_tflops"] > 0
