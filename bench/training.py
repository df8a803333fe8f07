"""What does each trick buy? Images/sec of the whole training step, one trick added a rung.

    python -m bench.training                     # six minutes on two CPU cores, one on a GPU
    python -m bench.training --quick             # a smoke run
    python -m bench.training --batch-size 128 --json out.json

The network, loss and optimiser of the recipe: fp32 in NCHW, then channels_last, then mixed precision (what `--amp`
takes on this device), then torch.compile. These are fed one fixed batch again and again, which no loader can beat. A
rung that says `loader` is fed by `DeviceLoader`, augmentation included, as in `run_train.py`: what it keeps of the
fixed batch's rate is what the data leave of it.

The rungs take turns; the table shows the median of the repeats and their range. Warm-up, compilation included, is not
in the rates and has a column of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.measure import Rate, arguments, environment, header, interleave, print_table, write_json
from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.engine import Batches, TrainStep, make_optimizer
from fast_cifar.errors import UserError, run_script
from fast_cifar.loader import DeviceLoader
from fast_cifar.runtime import Precision, has_compiler, reproducible, resolve_device, resolve_precision

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGES = 50_000


@dataclass(frozen=True)
class Rung:
    """One way to take a training step."""

    name: str
    precision: Precision
    channels_last: bool = True
    compile: bool = False
    loader: bool = False


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
    with reproducible(0, device, deterministic=False):
        cases, warm_ups = {}, {}
        for rung in ladder:
            cases[rung.name], warm_ups[rung.name] = make_case(rung, images, labels, batch_size, device)
        rates = interleave(cases, repeats=repeats, device=device)

    where = environment(device) | {"batch": batch_size, "steps": steps}
    rows = make_rows(ladder, rates, warm_ups)
    title = f"{header(where)}\ntraining step, batch {batch_size}, {steps} steps a repeat, {repeats} repeats"
    cells = [[*map(str, (row["way"], rates[row["way"]]))] + [row_text(row, key) for key in COLUMNS] for row in rows]
    print_table(title, ["way", "images/sec, median [range]", *COLUMNS.values()], cells)
    if note:
        print(note)
    write_json(options.json, where, rows)


def given_or(value: int | None, default: int) -> int:
    return default if value is None else value


COLUMNS = {"times_first": "x first rung", "of_fixed_batch": "of a fixed batch", "warm_up_seconds": "warm-up, s"}


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
    return [*ladder, Rung(name, amp, compile=True), Rung(f"{name}, loader", amp, compile=True, loader=True)], amp.note


def make_case(
    rung: Rung, images: torch.Tensor, labels: torch.Tensor, batch_size: int, device: torch.device
) -> tuple[Callable[[], int], float]:
    """A callable that trains one repeat and returns its images, and the seconds that its warm-up took."""
    layout = torch.channels_last if rung.channels_last else torch.contiguous_format
    model = CustomResNet().to(device, memory_format=layout).train()
    step = TrainStep(model, make_optimizer(model, 1e-4), rung.precision, compile=rung.compile)
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
    inputs, answers = next(iter(loader))
    fixed = (inputs.clone().contiguous(memory_format=layout), answers.clone())
    warm_up_seconds = step.warm_up(*fixed)

    def run() -> int:
        loader.set_epoch(loader.epoch + 1)
        batches: Batches = loader if rung.loader else [fixed] * len(loader)
        for batch in batches:
            step(*batch)
        return len(loader) * batch_size

    return run, warm_up_seconds


def make_rows(ladder: list[Rung], rates: dict[str, Rate], warm_ups: dict[str, float]) -> list[dict]:
    """One row a rung; a rung with a loader is compared with the same rung on a fixed batch, by medians."""
    first = rates[ladder[0].name].median
    rows = []
    for rung in ladder:
        rate = rates[rung.name]
        row = {"way": rung.name} | rate.as_dict() | {"times_first": rate.median / first}
        fixed = rates.get(rung.name.removesuffix(", loader"))
        if rung.loader and fixed is not None:
            row["of_fixed_batch"] = rate.median / fixed.median
        rows.append(row | {"warm_up_seconds": warm_ups[rung.name]})
    return rows


def row_text(row: dict, key: str) -> str:
    if key not in row:
        return ""
    return {"times_first": "{:.2f} x", "of_fixed_batch": "{:.1%}", "warm_up_seconds": "{:.1f}"}[key].format(row[key])


if __name__ == "__main__":
    sys.exit(run_script(main))
