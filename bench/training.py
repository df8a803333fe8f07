"""What does each optimisation buy? Images/sec of the whole training step, one more of them in each variant.

    python -m bench.training                     # a quarter of an hour on two CPU cores
    python -m bench.training --no-tricks         # ten minutes on two CPU cores, two on a GPU
    python -m bench.training --quick             # a smoke run
    python -m bench.training --batch-size 128 --json out.json

Network, loss, optimiser and augmentation are those of `TrainOptions()`: fp32 in NCHW, then channels_last, then mixed
precision (what `--amp` takes on this device), then torch.compile, then, on CUDA, the whole step as one graph. These
train on one fixed batch again and again, the upper limit for any loader. A variant called `loader` is fed by
`DeviceLoader`, as in `run_train.py`; the column `of a fixed batch` compares it with the same step on the fixed batch.

Then come tricks that training does not use, because nothing has shown yet that they help, each added to the last of
those variants and to nothing else: input channels padded with zeros from 3 to 8, BatchNorm's statistics from one pass
over the activations, and switches of cuDNN and Inductor. A switch is set in a process of its own, for what it chooses
stays chosen as long as its process lives.

On a CPU, all of these keep the memory of freed tensors for the next ones, as training does; `memory returned` is the
last variant without that, in a process of its own.

The last row is a typical PyTorch baseline, in a process of its own: torchvision v2 transforms on PIL images in a
`DataLoader` with two workers, fp32, NCHW, torch.optim.Adam with its defaults, and `loss.item()` after each step.

`of the fastest product` is model FLOPs utilisation (MFU): the arithmetic of forward and backward pass, as torch's own
counter counts it, as a share of the fastest product measured in the same run: the best median of large matrix products
and of the network's own convolutions, in the mixed precision and at the batch size of the variants. On CUDA,
`peak memory` is what a variant allocates. The variants take turns; the table shows the median of the repeats and their
range. Warm-up and compilation are not in the rates and have a column of their own.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from bench.augmentation import CUTOUT_SHARE, MEAN, STD, TransformedImages, worker_loader
from bench.markdown import COLUMNS, caption, print_rows
from bench.measure import (
    arguments,
    check_counts,
    convolutions,
    environment,
    interleave,
    parsed,
    peak_flops,
    products,
    save_rows,
)
from fast_cifar.build import Setup
from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.data.load import Dataset, Split
from fast_cifar.loader import DeviceLoader
from fast_cifar.options import PADDING, SIZE, TrainOptions
from fast_cifar.system.device import (
    Precision,
    has_compiler,
    resolve_device,
    resolve_precision,
    seeded_run,
    supports_channels_last,
    supports_compile,
    synchronize,
)
from fast_cifar.system.errors import UserError, run_script
from fast_cifar.train_step import TrainStep, memory_format_of

IMAGES, LR = 50_000, 1e-4
BASELINE, RETURNED = "typical PyTorch baseline", "memory returned"
PRODUCTS = 5  # of each kind, in a repeat

# Switches of the whole process, for CUDA.
SWITCHES: dict[str, Callable[[], None]] = {
    "cuDNN tries every algorithm": lambda: setattr(torch.backends.cudnn, "benchmark_limit", 0),
    "coordinate descent": lambda: setattr(inductor, "coordinate_descent_tuning", True),
    "combo kernels": lambda: setattr(inductor, "combo_kernels", True),
}


@dataclass(frozen=True)
class Variant:
    """One way to run the recipe's training step.

    Attributes:
        channels: of the network's input; those above the images' three are zeros.
        one_pass: BatchNorm is `OnePassBatchNorm2d`.
        switch: one of `SWITCHES`, set in a process of its own.
        keep_memory: of the process, see `seeded_run`; without it, the variant has a process of its own.
    """

    name: str
    precision: Precision
    channels_last: bool = True
    compile: bool = False
    graph: bool = False
    loader: bool = False
    channels: int = 3
    one_pass: bool = False
    switch: str | None = None
    keep_memory: bool = True


@dataclass
class Case:
    """A variant ready to be timed.

    Attributes:
        run: trains one repeat and returns its number of images.
        close: ends its process, if it has one of its own.
    """

    run: Callable[[], int]
    warm_up_seconds: float
    peak_memory_bytes: int | None = None
    close: Callable[[], None] = lambda: None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch-size", type=int, default=512, metavar="N", help="default: 512; with --quick 32")
    parser.add_argument("--steps", type=int, metavar="N", help="steps in a repeat; default: 2 on a CPU, else 97")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="default: 7; with --quick 2")
    parser.add_argument("--no-tricks", action="store_true", help="leave out the tricks that training does not use")
    options = parsed(parser, batch_size=32, repeats=2)
    check_counts(options, "batch_size", "steps", "repeats")
    if options.batch_size > IMAGES:
        raise UserError(f"--batch-size {options.batch_size} must be at most {IMAGES}")
    device = resolve_device(options.device)
    batch_size, steps = options.batch_size, options.steps or (2 if device.type == "cpu" else IMAGES // 512)

    compared, notes = variants(device, tricks=not options.no_tricks)
    data, cases = random_images(batch_size * steps), {}
    with seeded_run(0, device, deterministic=False), ExitStack() as processes:
        for variant in [*compared, Variant(BASELINE, compared[0].precision, keep_memory=False)]:
            if variant.switch is None and variant.keep_memory:
                cases[variant.name] = measured(make_case, variant, data, batch_size, device)
            elif case := case_apart(variant, len(data), batch_size, device):
                cases[variant.name] = case
                processes.callback(case.close)
            elif variant.name == BASELINE:
                raise UserError(f"the {BASELINE} failed")
            else:
                notes.append(f"left out: {variant.name}, which failed")
        dtype = compared[-1].precision.dtype
        arithmetic = products(device, dtype, quick=options.quick)
        for layer, passes in convolutions(device, dtype, batch_size).items():
            arithmetic |= {f"{layer}, {name}": work for name, work in passes.items()}
        runs = {name: case.run for name, case in cases.items()}
        runs |= {name: work.calls(PRODUCTS) for name, work in arithmetic.items()}
        rates = interleave(runs, repeats=options.repeats, device=device)

    fastest = peak_flops(arithmetic, rates)
    rates = {name: rates[name] for name in cases}
    flops = flops_per_image()
    where = environment(device) | {"batch": batch_size, "steps": steps}
    where |= {"matmul_tflops": fastest / 1e12, "flops_per_image": flops}
    rows = make_rows(compared, rates, cases, flops / fastest)
    print_rows(caption(where, rows), COLUMNS["training"], rows)
    for note in notes:
        print(note)
    save_rows(options.json, where, rows)


def random_images(count: int) -> Split:
    return Split(torch.randint(256, (count, SIZE, SIZE, 3), dtype=torch.uint8), torch.randint(10, (count,)))


def variants(device: torch.device, *, tricks: bool = True) -> tuple[list[Variant], list[str]]:
    """What this machine can compare, and a line on each thing that it lacks."""
    fp32, amp = (resolve_precision(device, on, "auto") for on in (False, True))
    notes = [amp.note] if amp.note else []
    compared, layout = [Variant("fp32, NCHW", fp32, channels_last=False)], "NCHW"
    if supports_channels_last(device):
        layout = "channels_last"
        compared.append(Variant("fp32, channels_last", fp32))
    else:
        notes.append(f"left out on {device.type}: channels_last")
    name = f"{amp.name}, {layout}"
    if amp.dtype != torch.float32:
        compared.append(Variant(name, amp))
    compared.append(Variant(f"{name}, loader", amp, loader=True))
    if not supports_compile(device):
        return compared, [*notes, f"left out on {device.type}: compiled variants"]
    if not has_compiler():
        return compared, [*notes, "left out: compiled variants, for there is no C++ compiler on the PATH"]
    name += ", compiled"
    fastest = Variant(name, amp, compile=True)
    compared.append(fastest)
    if device.type == "cuda" and not amp.scales_gradients:
        name += ", one graph"
        fastest = replace(fastest, name=name, graph=True)
        compared.append(fastest)
    compared.append(replace(fastest, name=f"{name}, loader", loader=True))
    if tricks:
        compared.append(replace(fastest, name=f"{name}, 8 channels", channels=8))
        compared.append(replace(fastest, name=f"{name}, one-pass BatchNorm", one_pass=True))
        if device.type == "cuda":
            compared += [replace(fastest, name=f"{name}, {switch}", switch=switch) for switch in SWITCHES]
        else:
            notes.append(f"left out on {device.type}: {', '.join(SWITCHES)}")
    if device.type == "cpu":
        compared.append(replace(fastest, name=f"{name}, {RETURNED}", keep_memory=False))
    return compared, notes


def measured(make: Callable[..., Case], *positional: Any) -> Case:
    """Makes a case; on CUDA, also runs it once and records the peak memory."""
    device = positional[-1]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    case = make(*positional)
    if device.type == "cuda":
        case.run()
        case.peak_memory_bytes = torch.cuda.max_memory_allocated(device) - before
    return case


def step_and_loader(
    variant: Variant, data: Split, batch_size: int, device: torch.device
) -> tuple[TrainStep, DeviceLoader]:
    """The recipe's step as `variant` has it, not yet warmed up, and its loader."""
    options = TrainOptions(batch_size=batch_size, channels_last=variant.channels_last, compile=variant.compile)
    dataset = Dataset("random", train=data, test=None, classes=[str(k) for k in range(10)])
    training = Setup(options, device, variant.precision, dataset, val=None).training_state(LR, graph=variant.graph)
    with_tricks(training.model, variant)
    return training.step, training.loader


def with_tricks(model: nn.Module, variant: Variant) -> None:
    """Changes how layers compute, and leaves their parameters where optimiser and checkpoints find them."""
    if variant.channels > 3:
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.__class__, first.channels = WideInputConv2d, variant.channels
    for module in model.modules():
        if variant.one_pass and isinstance(module, nn.BatchNorm2d):
            module.__class__ = OnePassBatchNorm2d


class WideInputConv2d(nn.Conv2d):
    """Computes with `channels` input channels; those of images and weights that it adds are zeros."""

    channels: int

    def forward(self, images: Tensor) -> Tensor:
        added = (0, 0, 0, 0, 0, self.channels - self.in_channels)
        return self._conv_forward(F.pad(images, added), F.pad(self.weight, added), self.bias)


class OnePassBatchNorm2d(nn.BatchNorm2d):
    """Variance as the mean square minus the squared mean, in float32: compiled, one pass over the input gives both.
    Without compilation it is slower than BatchNorm2d."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        values = images.float()
        mean, mean_square = values.mean((0, 2, 3)), values.square().mean((0, 2, 3))
        variance = (mean_square - mean.square()).clamp_min(0)
        count = values.numel() // len(mean)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(images.dtype)


def make_case(variant: Variant, data: Split, batch_size: int, device: torch.device) -> Case:
    step, loader = step_and_loader(variant, data, batch_size, device)
    inputs, labels = next(iter(loader))
    fixed = (inputs.clone().contiguous(memory_format=memory_format_of(step.model)), labels.clone())
    warm_up_seconds = step.warm_up(*fixed)
    if step.note:
        print(f"{variant.name}: {step.note}", flush=True)

    def run() -> int:
        batches: Iterable[tuple[Tensor, Tensor]] = loader if variant.loader else [fixed] * len(loader)
        for batch in batches:
            step(*batch)
        return len(loader) * batch_size

    return Case(run, warm_up_seconds)


def case_apart(variant: Variant, count: int, batch_size: int, device: torch.device) -> Case | None:
    """The case of a variant in a process of its own; None if that ends before it is ready."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    spawn.Process(target=serve_case, args=(theirs, variant, count, batch_size, device)).start()
    theirs.close()
    try:
        warm_up_seconds, peak_memory_bytes = ours.recv()
    except EOFError:
        return None

    def run() -> int:
        ours.send("run")
        return ours.recv()

    return Case(run, warm_up_seconds, peak_memory_bytes, ours.close)


def serve_case(parent: Connection, variant: Variant, count: int, batch_size: int, device: torch.device) -> None:
    """Sets the variant's switch, makes its case, and runs it each time the parent asks."""
    if variant.switch is not None:
        SWITCHES[variant.switch]()
    make = baseline_case if variant.name == BASELINE else partial(make_case, variant)
    with seeded_run(0, device, deterministic=False, keep_memory=variant.keep_memory):
        case = measured(make, random_images(count), batch_size, device)
        parent.send((case.warm_up_seconds, case.peak_memory_bytes))
        with suppress(EOFError):  # the parent needs no more
            while parent.recv():
                images = case.run()
                synchronize(device)
                parent.send(images)


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.numpy())


def baseline_case(data: Split, batch_size: int, device: torch.device) -> Case:
    """The step as tutorials write it; only the network is ours."""
    transform = v2.Compose(
        [
            to_pil,
            v2.RandomCrop(SIZE, padding=PADDING),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(p=1, scale=(CUTOUT_SHARE, CUTOUT_SHARE), ratio=(1, 1)),
        ]
    )
    model = CustomResNet().to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    images = TransformedImages(data.images, data.labels, transform)
    loader = worker_loader(images, batch_size, device, drop_last=True)

    def run() -> int:
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            loss.item()
        return len(loader) * batch_size

    start = time.perf_counter()
    run()
    return Case(run, time.perf_counter() - start)


def flops_per_image() -> float:
    """Floating-point operations of forward and backward pass, two a multiply-add."""
    batch = 2
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(CustomResNet()(torch.zeros(batch, 3, 32, 32)), torch.zeros(batch, dtype=torch.int64)).backward()
    return counter.get_total_flops() / batch


def make_rows(
    compared: list[Variant], rates: dict[str, dict], cases: dict[str, Case], seconds_per_image_at_best: float
) -> list[dict]:
    """One row a case; one with a loader is compared with the same step on a fixed batch, by medians."""
    medians = {name: rate["images_per_second"] for name, rate in rates.items()}
    fed_by_loader = {variant.name for variant in compared if variant.loader}
    rows = []
    for name, median in medians.items():
        row = {"variant": name} | rates[name]
        row |= {"times_first": median / medians[compared[0].name], "times_baseline": median / medians[BASELINE]}
        fixed = name.removesuffix(", loader")
        if name in fed_by_loader and fixed in medians:
            row["of_fixed_batch"] = median / medians[fixed]
        row["mfu"] = median * seconds_per_image_at_best
        if cases[name].peak_memory_bytes is not None:
            row["peak_memory_bytes"] = cases[name].peak_memory_bytes
        rows.append(row | {"warm_up_seconds": cases[name].warm_up_seconds})
    return rows


if __name__ == "__main__":
    sys.exit(run_script(main))
