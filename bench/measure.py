"""What the benchmarks share: options, clocks, the peak of arithmetic, tables, JSON files, and the command to repeat."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from fast_cifar.command_line import Parser
from fast_cifar.custom_resnet import CustomResNet, layer_rows
from fast_cifar.options import SIZE
from fast_cifar.system.device import describe_device, supports_channels_last, synchronize
from fast_cifar.system.errors import UserError
from fast_cifar.system.files import write_json

Key = TypeVar("Key", bound=Hashable)
OUTPUTS = ("--json", "--plot")  # where results go, which is not part of the command to repeat
HEAD_START = 30_000_000  # clock cycles of a GPU, more than 10 ms
FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = "forward", "gradient of the input", "gradient of the weight"


def wall_clock(case: Callable[[], int], device: torch.device) -> float:
    """Images per second of one call that processes as many as it returns."""
    synchronize(device)
    start = time.perf_counter()
    images = case()
    synchronize(device)
    return images / (time.perf_counter() - start)


def device_clock(case: Callable[[], int], device: torch.device) -> float:
    """As `wall_clock`, but on CUDA without the time in which the host submits the work: the GPU sleeps meanwhile."""
    if device.type != "cuda":
        return wall_clock(case, device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)
    start.record()
    images = case()
    end.record()
    synchronize(device)
    return 1000 * images / start.elapsed_time(end)


def interleave(
    cases: Mapping[Key, Callable[[], int]],
    *,
    repeats: int,
    device: torch.device,
    warm_ups: int = 1,
    clock: Callable[[Callable[[], int], torch.device], float] = wall_clock,
) -> dict[Key, dict[str, Any]]:
    """Times the cases in turn, A B C A B C, so that whatever else the machine does disturbs all of them alike.

    Args:
        cases: name to a callable that does the work and returns how many images it processed.
        repeats: timed calls of each case, at least 1.
        device: synchronised before and after each timed call.
        warm_ups: rounds before the first timed one; compilation happens here.
        clock: from a case and the device to the images per second of one call.

    Returns:
        Name to `images_per_second`, the median, `min` and `max`, and the number of `repeats`.
    """
    samples: dict[Key, list[float]] = {name: [] for name in cases}
    for _ in range(warm_ups):
        for case in cases.values():
            case()
    for _ in range(repeats):
        for name, case in cases.items():
            samples[name].append(clock(case, device))
    return {
        name: {"images_per_second": median(rates), "min": min(rates), "max": max(rates), "repeats": repeats}
        for name, rates in samples.items()
    }


@dataclass(frozen=True)
class Work:
    """Work to be timed, and the least that it takes.

    Attributes:
        run: does it once.
        flops: operations of its convolutions and matrix products, two a multiply-add.
        traffic: for each tensor, its bytes, and how many times it has to be read or written.
    """

    run: Callable[[], Any]
    flops: int = 0
    traffic: Sequence[tuple[int, int]] = ()

    @property
    def bytes(self) -> int:
        return sum(size * times for size, times in self.traffic)

    @property
    def working_set(self) -> int:
        """The bytes of its tensors, each counted once."""
        return sum(size for size, _ in self.traffic)

    def calls(self, n: int) -> Callable[[], int]:
        """A case for `interleave` that does the work `n` times and returns `n`."""

        def case() -> int:
            for _ in range(n):
                self.run()
            return n

        return case


def products(device: torch.device, dtype: torch.dtype, *, quick: bool) -> dict[str, Work]:
    """Products of large square matrices of random numbers: with zeros they would be faster."""
    work = {}
    for side in (512,) if quick else (2048, 4096) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        work[f"product of {side} x {side} matrices"] = Work(partial(torch.matmul, a, b), 2 * side**3)
    return work


def convolutions(device: torch.device, dtype: torch.dtype, batch_size: int) -> dict[str, dict[str, Work]]:
    """The network's convolutions on random numbers: layer by layer, and in each the passes that training needs.

    The first layer has no gradient of its input.
    """
    model = CustomResNet()
    layers: dict[str, dict[str, Work]] = {}
    for row in layer_rows(model, (3, SIZE, SIZE)):
        if row.kind != "Conv2d":
            continue
        layer = model.get_submodule(row.name)
        weight = random_batch(layer.weight.shape, device, dtype)
        inputs = random_batch((batch_size, layer.in_channels, *row.output_shape[1:]), device, dtype)
        gradient = random_batch((batch_size, *row.output_shape), device, dtype)
        geometry = (layer.stride, layer.padding, layer.dilation)
        backward = partial(
            torch.ops.aten.convolution_backward, gradient, inputs, weight, None, *geometry, False, (0, 0), layer.groups
        )
        passes = {
            FORWARD: partial(torch.conv2d, inputs, weight, None, *geometry),
            INPUT_GRADIENT: partial(backward, (True, False, False)),
            WEIGHT_GRADIENT: partial(backward, (False, True, False)),
        }
        if not layers:
            del passes[INPUT_GRADIENT]
        flops = 2 * row.multiply_adds * batch_size
        traffic = [(tensor.nbytes, 1) for tensor in (inputs, weight, gradient)]  # or what has the shape of one of them
        layers[row.name.removesuffix(".0")] = {name: Work(run, flops, traffic) for name, run in passes.items()}
    return layers


def peak_flops(work: Mapping[Key, Work], rates: Mapping[Key, Mapping[str, Any]]) -> float:
    """FLOP/s of the fastest of `work`, by the median of its rates, which `interleave` measured of `Work.calls`."""
    return max(one.flops * rates[name]["images_per_second"] for name, one in work.items())


def random_batch(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Random numbers in the memory format that the network trains in on this device."""
    last = supports_channels_last(device)
    numbers = torch.randn(*shape, device=device, dtype=dtype)
    return numbers.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def arguments(manual: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; `manual` is the script's docstring."""
    parser = Parser(manual)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there, too")
    parser.add_argument("--quick", action="store_true", help="a smoke run: little data, few repeats, rough numbers")
    return parser


def parsed(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The options of this process; with --quick, `quick` are the defaults."""
    if parser.parse_args().quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Refuses numbers, and lists with numbers, below 1; None is fine."""
    for name in names:
        given = getattr(options, name)
        value = min(given) if isinstance(given, list) else given
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")


def environment(device: torch.device) -> dict[str, Any]:
    """Where and when the numbers were measured."""
    return {
        "device": describe_device(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a title, the column names and the rows; the first column flush left, the others flush right."""
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    print(title)
    for line in (columns, ["-" * width for width in widths], *rows):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())


def save_rows(path: Path | None, environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    save(path, {"environment": environment, "rows": rows})


def save(path: Path | None, contents: Mapping[str, Any]) -> None:
    """Writes a JSON file; nothing where `path` is None."""
    if path is not None:
        write_json(path, contents)


def python_command(program: str, arguments: Sequence[str]) -> str:
    """The command in one line, with the variables that change its speed: `OMP_NUM_THREADS=1 python -m bench.training`.

    Args:
        program: what follows `python`, such as "-m bench.training".
        arguments: its options; a path of this machine, which would tell others nothing, becomes FOLDER or ARCHIVE.
    """
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("OMP_")]
    return " ".join([*variables, "python", program, shlex.join(portable(arguments))]).rstrip()


def portable(arguments: Sequence[str]) -> list[str]:
    """`arguments` without `OUTPUTS`, and with a word in the place of each path, in lists with commas too."""
    words = []
    skip = False
    for word in arguments:
        if skip or word in OUTPUTS:
            skip = not skip
        elif not word.startswith(tuple(f"{output}=" for output in OUTPUTS)):
            words.append(",".join(map(_without_path, word.split(","))))
    return words


def _without_path(word: str) -> str:
    flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if os.sep not in value:
        return word
    return flag + equals + ("ARCHIVE" if os.path.isfile(value) else "FOLDER")
