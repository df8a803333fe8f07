"""What does each trick buy? Images/sec of the whole training step, one trick added a rung.

    python -m bench.training                     # ten minutes on two CPU cores, two on a GPU
    python -m bench.training --quick             # a smoke run
    python -m bench.training --batch-size 128 --json out.json

The network, loss and optimiser of the recipe: fp32 in NCHW, then channels_last, then mixed precision (what `--amp`
takes on this device), then torch.compile, then, on CUDA, the whole step as one graph. These are fed one fixed batch
again and again, which no loader can beat. A rung that says `loader` is fed by `DeviceLoader`, augmentation included, as
in `run_train.py`: what it keeps of the fixed batch's rate is what the data leave of it.

The last rung is the way most people write it: torchvision v2 transforms on PIL pictures in a `DataLoader` with two
workers, fp32, NCHW, torch.optim.Adam as it comes, and a host that asks for the loss after each step.

`of the matmul peak` is the arithmetic of forward and backward pass, as torch's own counter counts it, over what a large
matrix product in the mixed precision reaches in the same run (often called MFU). On CUDA, `peak memory` is what a rung
allocates. The rungs take turns; the table shows the median of the repeats and their range. Warm-up, compilation
included, is not in the rates and has a column of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from bench.measure import Rate, arguments, environment, header, interleave, print_table, write_rows
from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.loader import DeviceLoader
from fast_cifar.optimizer import make_optimizer
from fast_cifar.system.device import Precision, has_compiler, resolve_device, resolve_precision, seeded_run
from fast_cifar.system.errors import UserError, run_script
from fast_cifar.train_step import TrainStep, memory_format_of

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGES, WORKERS = 50_000, 2
COMMON = "the way most people write it"
MATMUL = "matrix product"


@dataclass(frozen=True)
class Rung:
    """One way to take a training step."""

    name: str
    precision: Precision
    channels_last: bool = True
    compile: bool = False
    graph: bool = False
    loader: bool = False


@dataclass
class Case:
    """A rung ready to be timed: `run` trains one repeat and returns its images."""

    run: Callable[[], int]
    warm_up_seconds: float
    peak_memory_bytes: int | None = None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch-size", type=int, default=None, metavar="N", help="default: 512; with --quick 32")
    parser.add_argument(
        "--steps", type=int, default=None, metavar="N", help="steps in a repeat; default: 2 on a CPU, else 97"
    )
    parser.add_argument("--repeats", type=int, default=None, metavar="N", help="default: 7; with --quick 2")
    options = parser.parse_args()
    device = resolve_device(options.device)
    batch_size = given_or(options.batch_size, 32 if options.quick else 512)
    steps = given_or(options.steps, 2 if device.type == "cpu" else IMAGES // 512)
    repeats = given_or(options.repeats, 2 if options.quick else 7)
    if min(batch_size, steps, repeats) < 1 or batch_size > IMAGES:
        raise UserError(f"--batch-size lies in 1..{IMAGES}, and --steps and --repeats are at least 1")

    ladder, note = rungs(device)
    images = torch.randint(256, (batch_size * steps, 32, 32, 3), dtype=torch.uint8)
    labels = torch.randint(10, (len(images),))
    with seeded_run(0, device, deterministic=False):
        cases = {rung.name: measured(make_case, rung, images, labels, batch_size, device) for rung in ladder}
        cases[COMMON] = measured(common_case, images, labels, batch_size, device)
        runs = {name: case.run for name, case in cases.items()}
        matmul = matmul_case(device, ladder[-1].precision.dtype, 512 if options.quick else None)
        rates = interleave(runs | {MATMUL: matmul}, repeats=repeats, device=device)

    peak = rates.pop(MATMUL).median
    flops = flops_per_image()
    where = environment(device) | {"batch": batch_size, "steps": steps}
    where |= {"matmul_tflops": peak / 1e12, "flops_per_image": flops}
    rows = make_rows(ladder, rates, cases, flops / peak)
    title = (
        f"{header(where)}\ntraining step, batch {batch_size}, {steps} steps a repeat, {repeats} repeats; "
        f"{flops / 1e9:.2f} GFLOP an image, matrix product {peak / 1e12:.3g} TFLOP/s"
    )
    columns = {key: name for key, name in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    cells = [[row["way"], str(rates[row["way"]])] + [row_text(row, key) for key in columns] for row in rows]
    print_table(title, ["way", "images/sec, median [range]", *columns.values()], cells)
    if note:
        print(note)
    write_rows(options.json, where, rows)


def given_or(value: int | None, default: int) -> int:
    return default if value is None else value


COLUMNS = {
    "times_first": "x first rung",
    "times_common": "x the usual way",
    "of_fixed_batch": "of a fixed batch",
    "mfu": "of the matmul peak",
    "peak_memory_bytes": "peak memory, GB",
    "warm_up_seconds": "warm-up, s",
}


def rungs(device: torch.device) -> tuple[list[Rung], str | None]:
    """The ladder that this machine can climb, and what is missing of it."""
    fp32, amp = (resolve_precision(device, on, "auto") for on in (False, True))
    ladder = [Rung("fp32, NCHW", fp32, channels_last=False), Rung("fp32, channels_last", fp32)]
    if amp.dtype != torch.float32:
        ladder.append(Rung(f"{amp.name}, channels_last", amp))
    ladder.append(Rung(f"{amp.name}, channels_last, loader", amp, loader=True))
    if not has_compiler():
        return ladder, "no compiled rungs: there is no C++ compiler on the PATH"
    name = f"{amp.name}, channels_last, compiled"
    ladder.append(Rung(name, amp, compile=True))
    graph = device.type == "cuda" and not amp.scales_gradients
    if graph:
        name += ", one graph"
        ladder.append(Rung(name, amp, compile=True, graph=True))
    return [*ladder, Rung(f"{name}, loader", amp, compile=True, graph=graph, loader=True)], amp.note


def measured(make: Callable[..., Case], *positional: Any) -> Case:
    """Makes a case and runs it once; on CUDA, notes the most memory that both took."""
    device = positional[-1]
    if device.type != "cuda":
        return make(*positional)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    case = make(*positional)
    case.run()
    case.peak_memory_bytes = torch.cuda.max_memory_allocated(device) - before
    return case


def step_and_loader(
    rung: Rung, images: Tensor, labels: Tensor, batch_size: int, device: torch.device
) -> tuple[TrainStep, DeviceLoader]:
    """The recipe's step as `rung` has it, not yet warmed up, and its loader."""
    layout = torch.channels_last if rung.channels_last else torch.contiguous_format
    model = CustomResNet().to(device, memory_format=layout).train()
    step = TrainStep(model, make_optimizer(model, 1e-4), rung.precision, compile=rung.compile, graph=rung.graph)
    loader = DeviceLoader(
        images,
        labels,
        batch_size,
        train=True,
        device=device,
        mean=MEAN,
        std=STD,
        dtype=rung.precision.dtype,
        compile=rung.compile,
    )
    return step, loader


def make_case(rung: Rung, images: Tensor, labels: Tensor, batch_size: int, device: torch.device) -> Case:
    step, loader = step_and_loader(rung, images, labels, batch_size, device)
    inputs, answers = next(iter(loader))
    fixed = (inputs.clone().contiguous(memory_format=memory_format_of(step.model)), answers.clone())
    warm_up_seconds = step.warm_up(*fixed)
    if step.note:
        print(f"{rung.name}: {step.note}")

    def run() -> int:
        loader.set_epoch(loader.epoch + 1)
        batches: Iterable[tuple[Tensor, Tensor]] = loader if rung.loader else [fixed] * len(loader)
        for batch in batches:
            step(*batch)
        return len(loader) * batch_size

    return Case(run, warm_up_seconds)


@dataclass(frozen=True)
class Pictures(Dataset):
    """PIL pictures of uint8 [N, H, W, 3] behind a transform, with their labels."""

    images: Tensor
    labels: Tensor
    transform: v2.Transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index].numpy())), int(self.labels[index])


def common_case(images: Tensor, labels: Tensor, batch_size: int, device: torch.device) -> Case:
    """The step as tutorials have it; nothing of ours but the network."""
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(p=1, scale=(1 / 16, 1 / 16), ratio=(1, 1)),
        ]
    )
    model = CustomResNet().to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    loader = DataLoader(
        Pictures(images, labels, transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )

    def run() -> int:
        for inputs, answers in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs.to(device)), answers.to(device))
            loss.backward()
            optimizer.step()
            loss.item()
        return len(loader) * batch_size

    start = time.perf_counter()
    run()
    return Case(run, time.perf_counter() - start)


def matmul_case(device: torch.device, dtype: torch.dtype, side: int | None) -> Callable[[], int]:
    """A product of two square matrices of random numbers, on zeros the hardware would look faster; counts FLOPs."""
    n = given_or(side, 2048 if device.type == "cpu" else 8192)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    products = 5

    def run() -> int:
        for _ in range(products):
            a @ b
        return products * 2 * n**3

    return run


def flops_per_image() -> float:
    """Floating-point operations of forward and backward pass, two a multiply-add."""
    batch = 2
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(CustomResNet()(torch.zeros(batch, 3, 32, 32)), torch.zeros(batch, dtype=torch.int64)).backward()
    return counter.get_total_flops() / batch


def make_rows(
    ladder: list[Rung], rates: dict[str, Rate], cases: dict[str, Case], seconds_per_image_at_peak: float
) -> list[dict]:
    """One row a case; a rung with a loader is compared with the same rung on a fixed batch, by medians."""
    first, common = rates[ladder[0].name].median, rates[COMMON].median
    fed_by_loader = {rung.name for rung in ladder if rung.loader}
    rows = []
    for name, rate in rates.items():
        row = {"way": name} | rate.as_dict()
        row |= {"times_first": rate.median / first, "times_common": rate.median / common}
        fixed = rates.get(name.removesuffix(", loader"))
        if name in fed_by_loader and fixed is not None:
            row["of_fixed_batch"] = rate.median / fixed.median
        row["mfu"] = rate.median * seconds_per_image_at_peak
        if cases[name].peak_memory_bytes is not None:
            row["peak_memory_bytes"] = cases[name].peak_memory_bytes
        rows.append(row | {"warm_up_seconds": cases[name].warm_up_seconds})
    return rows


def row_text(row: dict, key: str) -> str:
    if row.get(key) is None:
        return ""
    if key == "peak_memory_bytes":
        return f"{row[key] / 1e9:.2f}"
    forms = {"of_fixed_batch": "{:.1%}", "mfu": "{:.1%}", "warm_up_seconds": "{:.1f}"}
    return forms.get(key, "{:.2f} x").format(row[key])


if __name__ == "__main__":
    sys.exit(run_script(main))
