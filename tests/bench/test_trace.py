"""The trace benchmark: which time counts for which operator and kind, and smoke runs of the command."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bench.trace import AUGMENTATION, STEP, by_kind, kind_of, main
from fast_cifar.system.errors import run_script
from tests.helpers.scripts import refused, run_module


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolution"),
        ("sm90_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_256x128>", "convolution"),
        ("turing_fp16_s1688cudnn_fp16_256x128_ldg8_relu_f2f_exp_interior_nhwc_tn_v1", "convolution"),
        ("triton_tem_fused_convolution_3", "convolution"),
        ("triton_poi_fused_convolution_backward_12", "copies and casts"),
        ("graph_1_cpp_fused_convolution_backward_native_batch_norm_backward_5", "normalisation and activation"),
        ("graph_1_cpp_fused__native_batch_norm_legit_functional__to_copy_relu_2", "normalisation and activation"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int>", "normalisation and activation"),
        ("aten::threshold_backward", "normalisation and activation"),
        ("aten::max_pool2d_with_indices_backward", "pooling"),
        ("void at::native::(anonymous namespace)::max_pool_forward_nhwc<c10::BFloat16>", "pooling"),
        ("aten::_fused_adam_", "optimiser"),
        ("Optimizer.step#AdamW.step", "optimiser"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>", "copies and casts"),
        ("Memcpy DtoD (Device -> Device)", "copies and casts"),
        ("aten::mm", "other"),
    ],
)
def test_a_name_tells_the_kind_of_work(name, kind):
    assert kind_of(name) == kind


def test_own_times_on_a_cpu_add_up_to_the_steps_and_the_loading_is_told_apart():
    weight, source, target = torch.randn(8, 3, 3, 3), torch.randn(4, 3, 16, 16), torch.empty(4, 3, 16, 16)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(2):
            with record_function(AUGMENTATION):
                target.copy_(source)
            with record_function(STEP):
                target.copy_(source)
                target.copy_(source)
                torch.conv2d(target, weight)
    events = profiler.events()
    kinds = {row["kind"]: row for row in by_kind(events, torch.device("cpu"), steps=2)}
    assert kinds.keys() == {AUGMENTATION, "copies and casts", "convolution", "other"}
    whole = sum(event.time_range.elapsed_us() for event in events if event.name in (AUGMENTATION, STEP))
    assert sum(row["ms"] for row in kinds.values()) == pytest.approx(whole / 1000 / 2)
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1)
    loading = sum(event.time_range.elapsed_us() for event in events if event.name == AUGMENTATION)
    assert kinds[AUGMENTATION]["ms"] == pytest.approx(loading / 1000 / 2)


def gpu_event(name: str, start: float, end: float, *, annotation: bool = False) -> FunctionEvent:
    """As the profiler makes them of kernels and, for the parts of the program, of the time between their kernels."""
    return FunctionEvent(
        id=0,
        name=name,
        thread=0,
        start_us=start,
        end_us=end,
        device_type=DeviceType.CUDA,
        use_device="cuda",
        is_user_annotation=annotation,
    )


def test_on_a_gpu_only_kernels_count_and_those_within_the_loading_are_augmentation():
    events = [
        gpu_event(AUGMENTATION, 0, 30, annotation=True),
        gpu_event("copy_kernel", 0, 10),
        gpu_event("copy_kernel", 20, 30),
        gpu_event(STEP, 40, 400, annotation=True),
        gpu_event("copy_kernel", 40, 45),
        gpu_event("fprop", 100, 300),
        gpu_event("Optimizer.step#Adam.step", 300, 400, annotation=True),
        gpu_event("multi_tensor_apply_kernel", 300, 400),
    ]
    assert by_kind(events, torch.device("cuda"), steps=2) == [
        {"kind": "convolution", "ms": 0.1, "share": 200 / 325},
        {"kind": "optimiser", "ms": 0.05, "share": 100 / 325},
        {"kind": AUGMENTATION, "ms": 0.01, "share": 20 / 325},
        {"kind": "copies and casts", "ms": 0.0025, "share": 5 / 325},
    ]


QUICK = ("--quick", "--device", "cpu")


@pytest.fixture
def run_bench(run_here):
    """A smoke run in this process: (exit code, output, errors)."""
    return partial(run_here, partial(run_script, main), *QUICK)


def test_a_quick_run_writes_every_kind_and_a_timeline(tmp_path):
    path, chrome = tmp_path / "results" / "trace.json", tmp_path / "lines" / "chrome.json"
    small = ("--batch-size", 4, "--no-amp", "--rows", 2)
    finished = run_module("bench.trace", *QUICK, *small, "--json", path, "--chrome", chrome)
    assert finished.returncode == 0, finished.stderr
    written = json.loads(path.read_text())
    assert written["environment"]["precision"] == "fp32"
    assert written["environment"]["batch"] == 4
    assert written["environment"]["images_per_second"] > 0
    assert sum(row["share"] for row in written["rows"]) == pytest.approx(1)
    kinds = {row["kind"] for row in written["rows"]}
    assert kinds >= {"convolution", "normalisation and activation", "pooling", "optimiser", "augmentation"}
    assert all(kind in finished.stdout for kind in kinds)
    assert STEP in {event["name"] for event in json.loads(chrome.read_text())["traceEvents"]}


def test_the_kernels_of_a_compiled_step_are_operators(run_bench, small_network):
    _, printed, _ = run_bench("--compile", "--batch-size", 8, "--rows", 1000)
    assert "cpp_fused" in printed


@pytest.mark.parametrize("options", [("--batch-size", "0"), ("--rows", "0"), ("--bat", "8")])
def test_a_wrong_option_is_one_line_and_exit_code_2(run_bench, options):
    assert options[0] in refused(run_bench(*options))


def test_compiling_without_a_compiler_is_refused(run_bench, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in refused(run_bench("--compile"))


def test_a_device_that_the_profiler_cannot_see_is_refused(run_bench, monkeypatch):
    monkeypatch.setattr("bench.trace.resolve_device", lambda name: torch.device("mps"))
    assert "use --device cpu" in refused(run_bench())
