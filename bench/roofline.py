"""How far is each layer from what this device can do? The roofline of the network's training step, layer by layer.

    python -m bench.roofline                             # a GPU: a minute; a CPU: batches of 512 and 64, five minutes
    python -m bench.roofline --batch-size 128 --no-amp   # another batch size; float32
    python -m bench.roofline --quick                     # a smoke run

Each pass of each layer runs alone, on random numbers, in the precision of `--amp` and the memory format of training:
forward, gradient of the input, gradient of the weight. After each convolution stands a row with what eager kernels do
before the next one; its whole backward pass, BatchNorm's parameters included, is in the column of the input's gradient.

    share of limit = time allowed / time taken
    time allowed   = the larger of FLOPs / peak of arithmetic and bytes / bandwidth, pass by pass

FLOPs are those of the convolutions, two a multiply-add; the arithmetic between them takes less time than its bytes and
is not counted. Bytes are the fewest that eager kernels have to move:

- convolution, each pass: input, weights and output, or what has their shape, once;
- max-pooling: input, output and the int64 index of each maximum, once; backward the same;
- BatchNorm: the input twice (statistics, then values) and the output once; backward input and gradient of the output
  twice, gradient of the input once. Its numbers per channel are not counted;
- ReLU, in place: the output read and written once; backward the output and both gradients once;
- addition: both terms and the sum once; backward nothing. Where a residual block begins, its two gradients are added.

The peak of arithmetic is the fastest of large matrix products and of these convolutions. The bandwidth is that of the
fastest work with a working set as large as the row's (rounded down to a power of two) or larger, since caches are
faster than memory: copies, negations in place, and these layers. All of it is measured in turn, in the same run, so
that no pass can exceed 100 %.

The gradient of the first layer's input, which training does not need, is left out. The sum of the rows also lacks the
head, the loss, the casts of the weights and the optimiser. A whole eager step has them; it stands below the sum, with
the sum's limit. Times are medians of the repeats. On CUDA they are the GPU's own, without the host's launches. On a CPU
nothing else may run: oneDNN's threads spin while they wait for one that the system has put aside, and the gradients of
weights then take up to twenty times as long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.markdown import COLUMNS, Row, caption, print_rows
from bench.measure import (
    FORWARD,
    INPUT_GRADIENT,
    Work,
    arguments,
    check_counts,
    convolutions,
    device_clock,
    environment,
    interleave,
    parsed,
    peak_flops,
    products,
    random_batch,
    save_rows,
)
from bench.training import Variant, make_case, random_images
from fast_cifar.custom_resnet import CustomResNet, layer_rows
from fast_cifar.options import SIZE
from fast_cifar.system.device import Precision, resolve_device, resolve_precision, seeded_run
from fast_cifar.system.errors import run_script

CALLS = 10  # of a pass in a repeat, except on a CPU
HOT_BYTES, HOT_CALLS = 2**28, 100  # a copy is repeated until it has moved so much, but not more often than this
SUM, STEP = "sum of the rows", "a whole step"
ADDED_UP = ("flops", "bytes", "seconds_of_flops", "seconds_of_bytes", "seconds_allowed", "seconds")


@dataclass(frozen=True)
class Layer:
    """A row of the table: its passes, by the name of their column."""

    batch_size: int
    name: str
    passes: dict[str, Work]


@dataclass(frozen=True)
class Limits:
    """What the device can do.

    Attributes:
        flops: operations per second.
        bandwidths: pairs of a working set in bytes and the bytes per second that were moved in it.
    """

    flops: float
    bandwidths: Sequence[tuple[int, float]]

    def bandwidth(self, working_set: int) -> float:
        """Bytes per second: the most with a working set as large, rounded down to a power of two, or larger."""
        return max(speed for size, speed in self.bandwidths if size >= power_of_two(working_set))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--batch-size", type=int, nargs="+", metavar="N", help="default: 512, on a CPU 512 64; with --quick 32"
    )
    parser.add_argument("--no-amp", action="store_true", help="compute in float32")
    parser.add_argument("--repeats", type=int, default=30, metavar="N", help="default: 30; with --quick 2")
    options = parsed(parser, batch_size=[32], repeats=2)
    check_counts(options, "batch_size", "repeats")
    device = resolve_device(options.device)
    precision = resolve_precision(device, not options.no_amp, "auto")
    batch_sizes = options.batch_size or ([512, 64] if device.type == "cpu" else [512])

    with seeded_run(0, device, deterministic=False):
        layers = [layer for batch_size in batch_sizes for layer in make_layers(device, precision, batch_size)]
        work = {(row, name): one for row, layer in enumerate(layers) for name, one in layer.passes.items()}
        work |= products(device, precision.dtype, quick=options.quick)
        cases = {name: one.calls(1 if device.type == "cpu" else CALLS) for name, one in work.items()}
        traffic = memory_traffic(device, [one.working_set for one in work.values() if one.traffic])
        cases |= {name: one.calls(min(HOT_CALLS, 1 + HOT_BYTES // one.bytes)) for name, one in traffic.items()}
        cases |= {(STEP, batch_size): whole_step(device, precision, batch_size) for batch_size in batch_sizes}
        rates = interleave(cases, repeats=options.repeats, device=device, warm_ups=2, clock=device_clock)

    limits = measured_limits(work | traffic, rates)
    slowest, fastest = (limits.bandwidth(end([one.working_set for one in traffic.values()])) for end in (max, min))
    where = environment(device) | {"precision": precision.name, "matmul_tflops": limits.flops / 1e12}
    where |= {"bandwidth": [slowest / 1e9, fastest / 1e9]}
    rows = make_rows(layers, rates, limits)
    print_rows(caption(where, rows), COLUMNS["roofline"], rows)
    if precision.note:
        print(precision.note)
    save_rows(options.json, where, rows)


def make_layers(device: torch.device, precision: Precision, batch_size: int) -> list[Layer]:
    """Each convolution, followed by what lies between it and the next one."""
    layers = []
    gaps = make_gaps(device, precision, batch_size)
    for (name, passes), gap in zip(convolutions(device, precision.dtype, batch_size).items(), gaps, strict=True):
        layers += [Layer(batch_size, f"{name}: convolution", passes), gap]
    return layers


def make_gaps(device: torch.device, precision: Precision, batch_size: int) -> list[Layer]:
    """What follows each convolution: max-pooling, BatchNorm, ReLU, and the addition at the end of a residual block."""
    model = CustomResNet().to(device)
    gaps = []
    for row in layer_rows(model, (3, SIZE, SIZE)):
        if row.kind == "Conv2d":
            inputs = random_batch((batch_size, *row.output_shape), device, precision.dtype)
            name = row.name.removesuffix(".0")
            gaps.append(make_gap(name, model.get_submodule(name)[1:], inputs, precision))
    return gaps


def make_gap(name: str, modules: nn.Sequential, inputs: Tensor, precision: Precision) -> Layer:
    """The row of the modules that follow the convolution of the layer `name`, whose output is `inputs`."""
    pools, forks, adds = isinstance(modules[0], nn.MaxPool2d), name.endswith(".x"), name.endswith(".r.1")
    differentiated = [inputs.requires_grad_(), *modules.parameters()]
    if adds:
        other_term = torch.randn_like(inputs).requires_grad_()
        differentiated.append(other_term)

    def forward() -> Tensor:
        with precision.autocast():
            return modules(inputs) + other_term if adds else modules(inputs)

    output = forward()
    uses = 2 if forks else 1  # in the block's convolutions and in its addition
    gradients = [torch.randn_like(output) for _ in range(uses)]
    backward = partial(torch.autograd.grad, [output] * uses, differentiated, gradients, retain_graph=True)
    title = " + ".join(["pool"] * pools + ["BN", "ReLU"] + ["addition"] * adds)
    there, back = gap_traffic(inputs.nbytes, output.nbytes, 8 * output.numel(), pools=pools, forks=forks, adds=adds)
    passes = {FORWARD: Work(forward, traffic=there), INPUT_GRADIENT: Work(backward, traffic=back)}
    return Layer(len(inputs), f"{name}: {title}", passes)


def gap_traffic(
    inputs: int, output: int, indices: int, *, pools: bool, forks: bool, adds: bool
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What must be moved forward and backward: for each tensor its bytes, and how often it is read or written.

    Args:
        inputs, output, indices: bytes of the convolution's output, of the result, and of the indices of the maxima.
        pools, adds: whether the operators begin with max-pooling and end with an addition.
        forks: whether the result is used twice, so that two gradients of it are added.
    """
    forward = [(inputs, 1), (indices, 1), (output, 3)] if pools else [(inputs, 2)]
    forward += [(output, 4), (output, 1), (output, 1)] if adds else [(output, 3)]
    backward = [(output, 1), (output, 1), (output, 2)] if forks else [(output, 1)]
    backward += [(output, 1), (output, 3), (output, 2)]  # ReLU's output, the gradient between it and BN, BN's input
    backward += [(output, 2), (indices, 1), (inputs, 1)] if pools else [(inputs, 1)]
    return forward, backward


def memory_traffic(device: torch.device, working_sets: Sequence[int]) -> dict[tuple[str, int], Work]:
    """A copy and a negation in place for each power of two in the range of the working sets."""
    smallest, largest = (power_of_two(end(working_sets)) for end in (min, max))
    memory = torch.ones(largest // 4, device=device)
    work: dict[tuple[str, int], Work] = {}
    size = smallest
    while size <= largest:
        source, target = memory[: size // 4].chunk(2)
        work["copy", size] = Work(partial(target.copy_, source), traffic=[(size // 2, 1), (size // 2, 1)])
        work["negation", size] = Work(memory[: size // 4].neg_, traffic=[(size, 2)])
        size *= 2
    return work


def power_of_two(number: int) -> int:
    """The largest one that is not above `number`."""
    return 1 << number.bit_length() - 1


def whole_step(device: torch.device, precision: Precision, batch_size: int) -> Callable[[], int]:
    """A step of the recipe on a fixed batch, neither compiled nor recorded; it returns the number of images."""
    return make_case(Variant(STEP, precision), random_images(batch_size), batch_size, device).run


def measured_limits(work: Mapping[Any, Work], rates: Mapping[Any, Row]) -> Limits:
    speeds = [(one.working_set, one.bytes * rates[name]["images_per_second"]) for name, one in work.items()]
    return Limits(peak_flops(work, rates), [(size, speed) for size, speed in speeds if size])


def make_rows(layers: Sequence[Layer], rates: Mapping[Any, Row], limits: Limits) -> list[Row]:
    """A row for each layer and, for each batch size, their sum and a whole step.

    Args:
        rates: per second, of the passes by (position of the layer, pass), and images of whole steps by (STEP, batch
            size).
    """
    rows = []
    for batch_size in dict.fromkeys(layer.batch_size for layer in layers):
        own = []
        for position, layer in enumerate(layers):
            if layer.batch_size == batch_size:
                passes = {name: timed(one, rates[position, name], limits) for name, one in layer.passes.items()}
                own.append({"layer": layer.name} | total(passes.values()) | {"passes": passes})
        step = rates[STEP, batch_size]
        own.append({"layer": SUM} | total(own))
        own.append(own[-1] | {"layer": STEP, "seconds": batch_size / step["images_per_second"]})
        rows += [{"batch": batch_size} | with_share(row) | {"repeats": step["repeats"]} for row in own]
    return rows


def timed(work: Work, rate: Row, limits: Limits) -> Row:
    """What a pass needs, the seconds that this allows, and the median, the least and the most of those it took."""
    flops, moving = work.flops / limits.flops, work.bytes / limits.bandwidth(work.working_set)
    needs = {"flops": work.flops, "bytes": work.bytes, "seconds_of_flops": flops, "seconds_of_bytes": moving}
    took = {"seconds": 1 / rate["images_per_second"], "min": 1 / rate["max"], "max": 1 / rate["min"]}
    return with_share(needs | {"seconds_allowed": max(flops, moving)} | took)


def total(parts: Iterable[Row]) -> Row:
    parts = list(parts)
    return {key: sum(part[key] for part in parts) for key in ADDED_UP}


def with_share(row: Row) -> Row:
    return {**row, "share_of_limit": row["seconds_allowed"] / row["seconds"]}


if __name__ == "__main__":
    sys.exit(run_script(main))
