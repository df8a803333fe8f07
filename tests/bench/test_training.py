"""The training benchmark: its variants, its ratios, and a smoke run from the command line."""

import copy
import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor import config as inductor

from bench.training import (
    BASELINE,
    SWITCHES,
    Case,
    OnePassBatchNorm2d,
    Variant,
    case_apart,
    flops_per_image,
    make_rows,
    step_and_loader,
    variants,
    with_tricks,
)
from fast_cifar import loader as loader_module
from fast_cifar.custom_resnet import parameter_count
from fast_cifar.data.load import Split
from fast_cifar.options import TrainOptions
from fast_cifar.system.device import Precision
from tests.helpers.devices import needs_cuda
from tests.helpers.images import random_images
from tests.helpers.scripts import run_module

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


@needs_cuda
def test_on_cuda_the_variants_end_with_one_graph():
    compared, _ = variants(torch.device("cuda"), tricks=False)
    if not compared[-1].precision.scales_gradients:
        assert compared[-2].graph
        assert compared[-2].name.endswith("one graph")


@pytest.fixture
def native_bf16_and_compiler(monkeypatch):
    monkeypatch.setattr("fast_cifar.system.device.has_native_bf16", lambda device: True)
    monkeypatch.setattr("bench.training.has_compiler", lambda: True)


def test_each_variant_adds_one_optimisation_and_each_trick_is_added_alone(native_bf16_and_compiler):
    compared, notes = variants(torch.device("cpu"))
    plain = [
        ("fp32", False, False, False),
        ("fp32", True, False, False),
        ("bf16", True, False, False),
        ("bf16", True, False, True),
        ("bf16", True, True, False),
        ("bf16", True, True, True),
    ]
    shown = [(v.precision.name, v.channels_last, v.compile, v.loader, v.channels, v.one_pass) for v in compared]
    assert shown[:6] == [(*one, 3, False) for one in plain]
    assert shown[6:8] == [("bf16", True, True, False, 8, False), ("bf16", True, True, False, 3, True)]
    assert compared[8:] == [replace(compared[4], name=f"{compared[4].name}, memory returned", keep_memory=False)]
    assert notes == ["left out on cpu: cuDNN tries every algorithm, coordinate descent, combo kernels"]
    assert variants(torch.device("cpu"), tricks=False) == ([*compared[:6], compared[8]], [])


def test_on_cuda_all_tricks_are_added_to_the_step_that_is_one_graph(native_bf16_and_compiler):
    compared, notes = variants(torch.device("cuda"))
    graphed = [variant for variant in compared if variant.graph]
    assert [variant.name.partition("one graph")[2] for variant in graphed] == [
        "",
        ", loader",
        ", 8 channels",
        ", one-pass BatchNorm",
        *(f", {switch}" for switch in SWITCHES),
    ]
    assert [variant.switch for variant in graphed[-len(SWITCHES) :]] == list(SWITCHES)
    assert notes == []


def test_without_bf16_and_compiler_there_are_fewer_variants_and_notes(monkeypatch):
    monkeypatch.setattr("fast_cifar.system.device.has_native_bf16", lambda device: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    compared, notes = variants(torch.device("cpu"))
    assert [variant.name for variant in compared] == [
        "fp32, NCHW",
        "fp32, channels_last",
        "fp32, channels_last, loader",
    ]
    assert "computes in fp32" in notes[0]
    assert "no C++ compiler" in notes[1]


def test_mps_compares_what_it_supports():
    compared, notes = variants(torch.device("mps"))
    assert [variant.name for variant in compared] == ["fp32, NCHW", "fp32, NCHW, loader"]
    assert notes[1:] == ["left out on mps: channels_last", "left out on mps: compiled variants"]


def gradients_of(step, batch, labels):
    F.cross_entropy(step.model(batch), labels).backward()
    return [parameter.grad for parameter in step.model.parameters()]


def test_padded_input_channels_change_neither_the_parameters_nor_what_they_compute(monkeypatch):
    convolve, channels_seen = F.conv2d, []

    def conv2d(images, *others):
        channels_seen.append(images.shape[1])
        return convolve(images, *others)

    monkeypatch.setattr(F, "conv2d", conv2d)
    data = Split(random_images(4), torch.arange(4))
    (plain, loader), (padded, _) = (
        step_and_loader(Variant("a", FP32, channels=channels), data, 4, torch.device("cpu")) for channels in (3, 8)
    )
    assert parameter_count(padded.model) == parameter_count(plain.model) == 6_573_120
    batch, labels = next(iter(loader))
    ours = padded.model(batch)
    assert channels_seen[0] == 8
    torch.testing.assert_close(ours, plain.model(batch), rtol=1e-4, atol=1e-4)
    padded.model.load_state_dict(plain.model.state_dict())  # BatchNorm's statistics
    for mine, theirs in zip(gradients_of(padded, batch, labels), gradients_of(plain, batch, labels), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_batchnorm_is_batchnorm(dtype, training):
    plain = nn.BatchNorm2d(3).train(training)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    one_pass = copy.deepcopy(plain)
    with_tricks(one_pass, Variant("a", FP32, one_pass=True))
    assert type(one_pass) is OnePassBatchNorm2d
    images = (3 + 2 * torch.randn(5, 3, 4, 4)).to(dtype).contiguous(memory_format=torch.channels_last)
    weights, outputs, gradients = torch.randn(5, 3, 4, 4), [], []
    for module in (one_pass, plain):
        inputs = images.clone().requires_grad_()
        outputs.append(module(inputs))
        (outputs[-1] * weights).sum().backward()
        gradients.append([inputs.grad, module.weight.grad, module.bias.grad])
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(outputs[0], outputs[1], **tolerance)
    torch.testing.assert_close(gradients[0], gradients[1], **tolerance)
    torch.testing.assert_close(one_pass.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)


def test_a_variant_with_a_switch_runs_in_a_process_of_its_own_or_not_at_all():
    cpu, before = torch.device("cpu"), inductor.combo_kernels
    case = case_apart(Variant("a", FP32, switch="combo kernels"), 4, 2, cpu)
    assert [case.run(), case.run()] == [4, 4]
    assert case.warm_up_seconds > 0
    assert inductor.combo_kernels is before
    assert case_apart(Variant("a", FP32, switch="no such switch"), 4, 2, cpu) is None


@pytest.mark.parametrize(
    ("switch", "name"), [("coordinate descent", "coordinate_descent_tuning"), ("combo kernels", "combo_kernels")]
)
def test_a_switch_sets_what_its_name_says(switch, name):
    with inductor.patch({name: False}):
        SWITCHES[switch]()
        assert getattr(inductor, name) is True


@needs_cuda
def test_on_cuda_cudnn_has_its_switch(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 10)
    SWITCHES["cuDNN tries every algorithm"]()
    assert torch.backends.cudnn.benchmark_limit == 0


def test_a_quick_run_writes_every_variant(tmp_path):
    path = tmp_path / "training.json"
    options = ("--quick", "--device", "cpu", "--batch-size", 4, "--steps", 1, "--json", path)
    finished = run_module("bench.training", *options, CXX="no-such-compiler")
    assert finished.returncode == 0, finished.stderr
    written = json.loads(path.read_text())
    assert written["environment"]["batch"] == 4
    assert all(row["images_per_second"] > 0 and row["variant"] in finished.stdout for row in written["rows"])
    written_rows = {row["variant"]: row for row in written["rows"]}
    assert any(row.get("of_fixed_batch", 0) > 0 for row in written_rows.values())
    assert written_rows[BASELINE]["times_baseline"] == 1
    assert written_rows[BASELINE]["warm_up_seconds"] > 0
    assert written["environment"]["matmul_tflops"] > 0
