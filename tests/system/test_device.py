"""Devices, precision, random state and switches."""

import io
import os
import random
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.cuda._utils import _get_device_index

from fast_cifar.system import device as device_module
from fast_cifar.system.device import (
    Precision,
    check_compiler,
    checkpoint_interval,
    compiled,
    evaluation_batch_size,
    has_native_bf16,
    random_state,
    resolve_device,
    resolve_precision,
    seeded_run,
    set_random_state,
    supports_channels_last,
    supports_compile,
    works_asynchronously,
)
from fast_cifar.system.errors import UserError
from tests.helpers.devices import DEVICES, needs_cuda

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.mark.parametrize(
    ("present", "expected"), [(("cuda", "mps", "cpu"), CUDA), (("mps", "cpu"), MPS), (("cpu",), CPU)]
)
def test_auto_takes_the_fastest_kind_available(monkeypatch, present, expected):
    monkeypatch.setattr(device_module, "_is_present", lambda device: device.type in present)
    monkeypatch.setattr(torch.cuda, "set_device", _get_device_index)  # torch's own check, which refuses a bare "cuda"
    assert resolve_device("auto") == expected


@pytest.mark.parametrize(
    ("device", "channels_last", "compiles", "evaluation", "asynchronous", "interval"),
    [
        (CPU, True, True, 512, False, 0.0),
        (CUDA, True, True, 2500, True, 5.0),
        (MPS, False, False, 512, True, 0.0),
    ],
)
def test_what_each_kind_of_device_supports(device, channels_last, compiles, evaluation, asynchronous, interval):
    def double(x):
        return 2 * x

    assert supports_channels_last(device) == channels_last
    assert (compiled(double, device) is not double) == supports_compile(device) == compiles
    assert evaluation_batch_size(device, 512) == evaluation
    assert evaluation_batch_size(device, 4000) == 4000
    assert works_asynchronously(device) == asynchronous
    assert checkpoint_interval(device) == interval


@pytest.mark.parametrize("name", ["abacus", "", "cuda:x", "meta", "xpu", "cpu:3"])
def test_an_unknown_device_is_refused_by_name(name):
    with pytest.raises(UserError, match=repr(name)):
        resolve_device(name)


@pytest.mark.parametrize(("cards", "absent"), [(0, "cuda"), (2, "cuda:2")])
def test_an_absent_device_is_refused(monkeypatch, cards, absent):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(_get_device_index(device)))
    assert cards == 0 or resolve_device("cuda") == CUDA  # the current device, whichever it is
    for index in range(cards):
        assert resolve_device(f"cuda:{index}") == torch.device("cuda", index)
    assert current == [*range(cards)]  # graphs are captured there
    with pytest.raises(UserError, match=f"no device '{absent}'"):
        resolve_device(absent)


@pytest.mark.parametrize(
    ("device", "native", "asked", "expected", "note"),
    [
        (CPU, True, "auto", "bf16", None),
        (CPU, True, "bf16", "bf16", None),
        (CPU, False, "auto", "fp32", "needs bf16, which torch does not find on cpu, so this run computes in fp32"),
        (CPU, False, "bf16", "bf16", "emulation is slow"),
        (CUDA, True, "auto", "bf16", None),
        (CUDA, False, "auto", "fp16", None),
        (CUDA, True, "fp16", "fp16", None),
        (CUDA, False, "bf16", "bf16", "emulation is slow"),
        (MPS, False, "auto", "fp32", "is not used on mps, so this run computes in fp32"),
    ],
)
def test_auto_takes_bf16_only_where_it_is_native_and_what_is_slow_has_a_note(
    monkeypatch, device, native, asked, expected, note
):
    monkeypatch.setattr(device_module, "has_native_bf16", lambda device: native)
    monkeypatch.setattr(device_module, "describe_device", lambda device: "a device")
    precision = resolve_precision(device, True, asked)
    assert precision.name == expected
    assert precision.scales_gradients == (expected == "fp16")
    assert precision.note is None if note is None else note in precision.note
    assert resolve_precision(device, False, asked) == Precision(device.type, torch.float32)


def test_emulated_bf16_does_not_count(monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: asked.append(including_emulation)
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    has_native_bf16(CUDA)
    assert asked == [False]


def test_autocast_computes_in_the_chosen_precision():
    a = torch.ones(4, 4)
    with resolve_precision(CPU, True, "bf16").autocast():
        assert (a @ a).dtype == torch.bfloat16
    with resolve_precision(CPU, False, "auto").autocast():
        assert (a @ a).dtype == torch.float32


def test_the_seed_decides_what_is_drawn_inside_and_nothing_outside():
    torch.manual_seed(7)
    expected_after = torch.rand(2)
    torch.manual_seed(7)
    inside = []
    for seed in (0, 0, 1):
        with seeded_run(seed, CPU, deterministic=False):
            inside.append(torch.rand(3))
    assert torch.equal(inside[0], inside[1])
    assert not torch.equal(inside[0], inside[2])
    assert torch.equal(torch.rand(2), expected_after)


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_switches_are_set_inside_and_restored(deterministic):
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with seeded_run(0, CPU, deterministic=deterministic):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="before torch 2.9")
def test_a_run_goes_with_torchs_new_settings_of_tf32_which_refuse_to_be_mixed_with_the_old_ones():
    program = (
        "import torch; from fast_cifar.system.device import seeded_run\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "with seeded_run(0, torch.device('cpu'), deterministic=False): pass"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_determinism_configures_cublas(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with seeded_run(0, CPU, deterministic=True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def numbers(device="cpu"):
    """One random number of each generator."""
    return torch.rand(1).item(), torch.rand(1, device=device).item(), np.random.rand(), random.random()  # noqa: NPY002


@pytest.mark.parametrize("device", DEVICES)
def test_every_random_generator_is_restored(device):
    state = random_state()
    before = numbers(device)
    set_random_state(state)
    assert numbers(device) == before


@pytest.mark.parametrize("device", DEVICES)
def test_the_random_state_of_a_device_survives_a_checkpoint(device):
    file = io.BytesIO()
    torch.save(random_state(torch.device(device)), file)
    before = numbers(device)
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True), torch.device(device))
    after = numbers(device)
    assert after[:2] == before[:2]
    assert after[2:] != before[2:]  # numpy's and Python's are not a run's


@needs_cuda
def test_a_random_state_of_the_cpu_is_restored_on_cuda_too():
    state = random_state(CPU)
    before = torch.rand(1)
    set_random_state(state, CUDA)
    assert torch.equal(torch.rand(1), before)


def test_compiling_for_cuda_needs_pythons_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(device_module, "has_compiler", lambda: True)
    monkeypatch.setattr(device_module.sysconfig, "get_path", lambda name: str(tmp_path))
    check_compiler(CPU)
    with pytest.raises(UserError, match="Python.h; install Python's headers"):
        check_compiler(CUDA)
    (tmp_path / "Python.h").touch()
    check_compiler(CUDA)
