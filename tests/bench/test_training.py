"""The training benchmark: its variants, its ratios, and a smoke run from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from bench.training import (
    BASELINE,
    Case,
    Variant,
    baseline_case,
    flops_per_image,
    make_rows,
    step_and_loader,
    variants,
)
from fast_cifar import loader as loader_module
from fast_cifar.data.load import Split
from fast_cifar.options import TrainOptions
from fast_cifar.system.device import Precision
from tests.helpers.devices import needs_cuda

ROOT = Path(__file__).parents[2]
FP32 = Precision("cpu", torch.float32)


def test_a_loader_is_compared_with_the_same_step_on_a_fixed_batch():
    compared = [Variant("fp32, NCHW", FP32), Variant("a", FP32), Variant("a, loader", FP32, loader=True)]
    medians = {"fp32, NCHW": 50.0, "a": 100.0, "a, loader": 98.0, BASELINE: 25.0}
    rates = {name: {"images_per_second": median} for name, median in medians.items()}
    cases = {name: Case(lambda: 0, 1.0) for name in rates}
    rows = {row["variant"]: row for row in make_rows(compared, rates, cases, 0.002)}
    assert rows["a, loader"]["of_fixed_batch"] == pytest.approx(0.98)
    assert rows["a"]["times_first"] == pytest.approx(2.0)
    assert rows["a"]["times_baseline"] == pytest.approx(4.0)
    assert rows["a"]["mfu"] == pytest.approx(0.2)
    assert "of_fixed_batch" not in rows["a"]
    assert "peak_memory_bytes" not in rows["a"]


def test_the_step_is_that_of_the_recipe(small_network, monkeypatch):
    padded = Mock(wraps=loader_module.pad)
    monkeypatch.setattr(loader_module, "pad", padded)
    images = torch.randint(256, (10, 32, 32, 3), dtype=torch.uint8)
    recipe = TrainOptions()
    step, loader = step_and_loader(Variant("a", FP32), Split(images, torch.arange(10)), 10, torch.device("cpu"))
    batch, labels = next(iter(loader))
    expected = F.cross_entropy(step.model(batch), labels, label_smoothing=recipe.label_smoothing)
    torch.testing.assert_close(step(batch, labels)[0], expected.detach())
    assert step.optimizer.param_groups[0]["weight_decay"] == recipe.weight_decay > 0
    assert (loader.padding, loader.cutout) == (recipe.padding, recipe.cutout)
    assert padded.call_args.args[1:] == (recipe.padding, recipe.pad_mode)


def test_the_arithmetic_is_three_times_that_of_the_forward_pass():
    # 379 million multiply-adds; the first convolution needs no gradient of its input.
    assert flops_per_image() == pytest.approx(3 * 2 * 379e6, rel=0.02)


def test_the_baseline_trains_on_whole_batches():
    images = torch.randint(256, (10, 32, 32, 3), dtype=torch.uint8)
    case = baseline_case(Split(images, torch.arange(10)), 4, torch.device("cpu"))
    assert case.run() == 8
    assert case.warm_up_seconds > 0


@needs_cuda
def test_on_cuda_the_variants_end_with_one_graph():
    compared, _ = variants(torch.device("cuda"))
    if not compared[-1].precision.scales_gradients:
        assert compared[-2].graph
        assert compared[-2].name.endswith("one graph")


def test_each_variant_adds_one_optimisation(monkeypatch):
    monkeypatch.setattr("fast_cifar.system.device.has_native_bf16", lambda device: True)
    monkeypatch.setattr("bench.training.has_compiler", lambda: True)
    compared, note = variants(torch.device("cpu"))
    assert [(r.precision.name, r.channels_last, r.compile, r.loader) for r in compared] == [
        ("fp32", False, False, False),
        ("fp32", True, False, False),
        ("bf16", True, False, False),
        ("bf16", True, False, True),
        ("bf16", True, True, False),
        ("bf16", True, True, True),
    ]
    assert note is None


def test_without_bf16_and_compiler_there_are_fewer_variants_and_a_note(monkeypatch):
    monkeypatch.setattr("fast_cifar.system.device.has_native_bf16", lambda device: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    compared, note = variants(torch.device("cpu"))
    assert [variant.name for variant in compared] == [
        "fp32, NCHW",
        "fp32, channels_last",
        "fp32, channels_last, loader",
    ]
    assert "no C++ compiler" in note


def test_a_quick_run_writes_every_variant(tmp_path):
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
    assert all(row["images_per_second"] > 0 and row["variant"] in finished.stdout for row in written["rows"])
    written_rows = {row["variant"]: row for row in written["rows"]}
    assert any(row.get("of_fixed_batch", 0) > 0 for row in written_rows.values())
    assert written_rows[BASELINE]["times_baseline"] == 1
    assert written["environment"]["matmul_tflops"] > 0
