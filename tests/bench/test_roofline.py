"""The roofline benchmark: what it counts, what it computes from it, and smoke runs of the command."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.measure import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, Work
from bench.roofline import (
    STEP,
    SUM,
    Layer,
    Limits,
    main,
    make_gaps,
    make_rows,
    measured_limits,
    memory_traffic,
)
from fast_cifar.system.device import Precision
from fast_cifar.system.errors import run_script
from tests.helpers.scripts import refused, run_module

CPU, FP32 = torch.device("cpu"), Precision("cpu", torch.float32)
CHANNELS = 512  # what has as many numbers, or fewer, is a value for each channel
TWICE = {"native_batch_norm", "native_batch_norm_backward"}  # the sums need all of the inputs before the results do
SHAPE_ONLY = {"max_pool2d_with_indices_backward": 1}  # the position of an argument of which only the shape counts


class Traffic(TorchDispatchMode):
    """Counts the operators that run, and the bytes of the tensors that they read and write."""

    def __init__(self):
        super().__init__()
        self.operators, self.bytes = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = [arg for position, arg in enumerate(args) if SHAPE_ONLY.get(name) != position]
        inputs, outputs = (
            sum(t.nbytes for t in tree_leaves(part) if isinstance(t, Tensor) and t.numel() > CHANNELS)
            for part in (read, result)
        )
        if inputs + outputs and name != "detach":
            self.operators.append(name)
            self.bytes += inputs * (2 if name in TWICE else 1) + outputs
        return result


def test_bytes_between_convolutions_are_what_torchs_operators_read_and_write():
    pooled = ["max_pool2d_with_indices", "native_batch_norm", "relu_"]
    for gap in make_gaps(CPU, FP32, 3):
        counted = {}
        for name, work in gap.passes.items():
            with Traffic() as traffic:
                work.run()
            counted[name] = traffic
            assert work.bytes == traffic.bytes, f"{gap.name}, {name}"
        expected = pooled if "pool" in gap.name else pooled[1:]
        assert counted[FORWARD].operators == expected + ["add"] * ("addition" in gap.name)
        backward = ["add"] * (".x" in gap.name) + ["threshold_backward", "native_batch_norm_backward"]
        assert counted[INPUT_GRADIENT].operators == backward + ["max_pool2d_with_indices_backward"] * (
            "pool" in gap.name
        )


def test_what_lies_between_convolutions_keeps_their_precision():
    for gap in make_gaps(CPU, Precision("cpu", torch.bfloat16), 2):
        assert gap.passes[FORWARD].run().dtype == torch.bfloat16
        assert gap.passes[INPUT_GRADIENT].run()[0].dtype == torch.bfloat16


def test_bandwidth_falls_with_the_working_set():
    limits = Limits(1.0, [(1024, 50.0), (1500, 20.0), (4096, 30.0), (8192, 10.0)])
    assert [limits.bandwidth(size) for size in (1024, 1500, 2047)] == [50.0, 50.0, 50.0]
    assert [limits.bandwidth(size) for size in (2048, 8191, 8192)] == [30.0, 30.0, 10.0]


def rate(seconds: float) -> dict:
    return {"images_per_second": 1 / seconds, "min": 0.5 / seconds, "max": 2 / seconds, "repeats": 30}


def test_the_larger_of_both_times_is_allowed_pass_by_pass():
    passes = {FORWARD: Work(lambda: None, 800, [(64, 1)]), WEIGHT_GRADIENT: Work(lambda: None, 100, [(64, 2)])}
    gap = {FORWARD: Work(lambda: None, 0, [(32, 1)])}
    layers = [Layer(4, "a: convolution", passes), Layer(4, "a: BN", gap)]
    rates = {(0, FORWARD): rate(16.0), (0, WEIGHT_GRADIENT): rate(10.0), (1, FORWARD): rate(8.0), (STEP, 4): rate(0.25)}
    rates[STEP, 4] = {"images_per_second": 0.1, "repeats": 30}  # 40 seconds for 4 images
    convolution, between, whole, step = make_rows(layers, rates, Limits(100.0, [(64, 16.0), (32, 32.0)]))

    forward, weight = convolution["passes"][FORWARD], convolution["passes"][WEIGHT_GRADIENT]
    assert (forward["seconds_allowed"], forward["seconds"], forward["share_of_limit"]) == (8.0, 16.0, 0.5)
    assert (forward["min"], forward["max"]) == (8.0, 32.0)
    assert (weight["seconds_of_flops"], weight["seconds_of_bytes"], weight["seconds_allowed"]) == (1.0, 8.0, 8.0)
    assert (convolution["seconds_allowed"], convolution["seconds"]) == (16.0, 26.0)
    assert convolution["share_of_limit"] == pytest.approx(16 / 26)
    assert (between["flops"], between["bytes"], between["seconds_allowed"]) == (0, 32, 1.0)
    assert (whole["layer"], whole["flops"], whole["bytes"]) == (SUM, 900, 224)
    assert (whole["seconds_allowed"], whole["seconds"]) == (17.0, 34.0)
    assert (step["layer"], step["seconds"], step["share_of_limit"]) == (STEP, 40.0, 17 / 40)
    assert {row["batch"] for row in (convolution, between, whole, step)} == {4}


def test_each_batch_size_has_its_own_sum_and_step():
    layers = [Layer(size, "a", {FORWARD: Work(lambda: None, size, [(size, 1)])}) for size in (2, 8)]
    rates = {(position, FORWARD): rate(1.0) for position in range(2)} | {(STEP, size): rate(1.0) for size in (2, 8)}
    rows = make_rows(layers, rates, Limits(1.0, [(8, 1.0)]))
    assert [(row["batch"], row["layer"]) for row in rows] == [
        (size, name) for size in (2, 8) for name in ("a", SUM, STEP)
    ]
    assert [row["flops"] for row in rows] == [2, 2, 2, 8, 8, 8]


numbers = st.integers(1, 10**9)
passes = st.builds(
    Work, st.just(None), numbers, st.lists(st.tuples(numbers, st.integers(1, 4)), min_size=1, max_size=4)
)


@given(st.lists(st.tuples(passes, st.floats(1e-6, 1e3)), min_size=1, max_size=8))
def test_no_pass_exceeds_limits_that_were_measured_in_the_same_run(measured):
    layers = [Layer(1, "a", {FORWARD: work}) for work, _ in measured]
    rates = {(position, FORWARD): rate(seconds) for position, (_, seconds) in enumerate(measured)}
    limits = measured_limits({(position, FORWARD): work for position, (work, _) in enumerate(measured)}, rates)
    rows = make_rows(layers, rates | {(STEP, 1): rate(1.0)}, limits)
    assert max(row["share_of_limit"] for row in rows[: len(layers)]) <= 1 + 1e-9


def test_copies_have_every_power_of_two_between_the_working_sets():
    work = memory_traffic(CPU, [5000, 3000, 9000])
    assert list(work) == [(name, size) for size in (2048, 4096, 8192) for name in ("copy", "negation")]
    for (name, size), one in work.items():
        one.run()
        assert one.working_set == size
        assert one.bytes == (size if name == "copy" else 2 * size)


QUICK = ("--quick", "--device", "cpu")


def test_a_quick_run_writes_each_layer_its_passes_and_the_whole_step(tmp_path):
    path = tmp_path / "roofline.json"
    finished = run_module("bench.roofline", *QUICK, "--batch-size", 2, 3, "--no-amp", "--json", path)
    assert finished.returncode == 0, finished.stderr
    written = json.loads(path.read_text())
    rows = written["rows"]
    assert [row["batch"] for row in rows] == [2] * 18 + [3] * 18
    assert written["environment"]["precision"] == "fp32"
    low, high = written["environment"]["bandwidth"]
    assert 0 < low <= high
    for row in rows:
        assert row["layer"] in finished.stdout
        assert row["seconds"] > 0
        assert row["layer"] == STEP or 0 < row["share_of_limit"] <= 1 + 1e-9
    convolution = rows[2]["passes"]
    assert list(convolution) == [FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT]
    assert all(one["min"] <= one["seconds"] <= one["max"] for one in convolution.values())
    peak = max(one["flops"] / one["seconds"] for row in rows for one in row.get("passes", {}).values())
    assert written["environment"]["matmul_tflops"] * 1e12 >= peak * 0.999


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--batch-size", "512", "0"), "--batch-size 0"), (("--repeats", "0"), "--repeats 0"), (("--rep", "8"), "--rep")],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(run_here, options, named):
    assert named in refused(run_here(partial(run_script, main), *QUICK, *options))
