"""What the benchmarks share: clocks, the work whose fastest is the peak of arithmetic, and the command to repeat."""

import time
from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import (
    FORWARD,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    Work,
    convolutions,
    device_clock,
    interleave,
    peak_flops,
    portable,
    products,
    python_command,
    wall_clock,
)
from tests.helpers.devices import needs_cuda

CPU = torch.device("cpu")


def test_cases_take_turns_and_the_middle_of_their_rates_counts():
    calls = []
    images = {"a": iter((100, 1, 5, 3)), "b": iter((200, 20, 40, 60))}
    cases = {name: lambda name=name: calls.append(name) or next(images[name]) for name in images}
    rates = interleave(cases, repeats=3, device=CPU, clock=lambda case, device: case())
    assert calls == ["a", "b"] * 4
    assert rates["a"] == {"images_per_second": 3, "min": 1, "max": 5, "repeats": 3}
    assert rates["b"] == {"images_per_second": 40, "min": 20, "max": 60, "repeats": 3}


@pytest.mark.parametrize("clock", [wall_clock, device_clock])
def test_a_rate_is_what_was_done_in_a_second(clock):
    assert 0 < clock(lambda: time.sleep(0.02) or 5, CPU) <= 5 / 0.02


@needs_cuda
def test_the_clock_of_a_gpu_does_not_count_the_hosts_time():
    device, numbers = torch.device("cuda"), torch.ones(8, device="cuda")

    def case():
        time.sleep(0.005)
        numbers.neg_()
        return 1

    case()
    assert device_clock(case, device) > 1 / 0.005


def test_work_is_called_as_often_as_asked_and_counts_the_calls():
    calls = []
    assert Work(lambda: calls.append(1)).calls(3)() == 3
    assert len(calls) == 3


def test_the_peak_is_the_fastest_of_all_arithmetic():
    work = {"a": Work(lambda: None, flops=10), "b": Work(lambda: None, flops=3), "none": Work(lambda: None)}
    rates = {"a": {"images_per_second": 2.0}, "b": {"images_per_second": 7.0}, "none": {"images_per_second": 1000.0}}
    assert peak_flops(work, rates) == 21.0


def test_operations_are_those_that_torch_counts():
    work = products(CPU, torch.float32, quick=True)
    for layer, passes in convolutions(CPU, torch.float32, 2).items():
        work |= {f"{layer}, {name}": one for name, one in passes.items()}
    assert len(work) == 1 + 8 * 3 - 1
    for name, one in work.items():
        with FlopCounterMode(display=False) as counter:
            one.run()
        assert one.flops == counter.get_total_flops(), name


def test_the_passes_of_a_convolution_are_those_of_autograd():
    layers = convolutions(CPU, torch.float32, 2)
    assert list(layers) == [
        "prep",
        *("layer1.x", "layer1.r.0", "layer1.r.1"),
        "layer2",
        *("layer3.x", "layer3.r.0", "layer3.r.1"),
    ]
    assert INPUT_GRADIENT not in layers["prep"]
    for passes in layers.values():
        inputs, weight = passes[FORWARD].run.args[:2]
        gradient = passes[WEIGHT_GRADIENT].run.args[0]
        leaves = [inputs.clone().requires_grad_(), weight.clone().requires_grad_()]
        output = torch.conv2d(*leaves, padding=1)
        expected = torch.autograd.grad(output, leaves, gradient)
        torch.testing.assert_close(passes[FORWARD].run(), output.detach())
        torch.testing.assert_close(passes[WEIGHT_GRADIENT].run()[1], expected[1])
        if INPUT_GRADIENT in passes:
            torch.testing.assert_close(passes[INPUT_GRADIENT].run()[0], expected[0])
        numbers = sum(prod(tensor.shape) for tensor in (inputs, weight, output))
        assert {one.bytes for one in passes.values()} == {4 * numbers}


def test_convolutions_compute_in_the_precision_and_memory_format_of_training():
    for passes in convolutions(CPU, torch.bfloat16, 2).values():
        for name, one in passes.items():
            result = one.run()
            tensors = [result] if name == FORWARD else [tensor for tensor in result if tensor is not None]
            assert [tensor.dtype for tensor in tensors] == [torch.bfloat16], name
        assert passes[FORWARD].run().is_contiguous(memory_format=torch.channels_last)


def test_paths_of_this_machine_become_words_for_them(tmp_path):
    archive = tmp_path / "images.tar.gz"
    archive.touch()
    assert portable(["--data", f"synthetic,{tmp_path}"]) == ["--data", "synthetic,FOLDER"]
    assert portable([f"--data={archive}", "--epochs", "3"]) == ["--data=ARCHIVE", "--epochs", "3"]


def test_where_results_go_is_left_out():
    words = ["--json", "/a/b.json", "--runs", "3", "--plot=c.png", "--json=d", "--quick"]
    assert portable(words) == ["--runs", "3", "--quick"]


def test_a_command_begins_with_the_variables_that_change_its_speed(monkeypatch):
    monkeypatch.setattr("os.environ", {"OMP_NUM_THREADS": "1", "HOME": "x"})
    assert python_command("run_train.py", ["--name", "a b"]) == "OMP_NUM_THREADS=1 python run_train.py --name 'a b'"
    assert python_command("run_train.py", []) == "OMP_NUM_THREADS=1 python run_train.py"
