"""Where does the time of a training step go? Its operators, sorted by their own time, and the kinds of work they do.

    python -m bench.trace                            # the recipe's step, one operator after another
    python -m bench.trace --compile                  # the fused kernels that torch.compile makes of it
    python -m bench.trace --compile --no-amp         # in float32
    python -m bench.trace --chrome trace.json.gz     # a time line, too, for ui.perfetto.dev or chrome://tracing

torch.profiler looks at a few whole steps, 3 on a CPU and 20 on a GPU: `DeviceLoader` makes the batch, augmentation
included, then forward, loss, backward and the optimiser. Warm-up and compilation come before. The precision is what
`--amp` would compute in on this device, unless `--no-amp` says float32.

An operator's own time is without that of the operators it calls; so the column adds up to the whole. On a GPU it is the
time that its kernels ran, and what is missing from a step's time as measured without the profiler (the last line) is
time in which the GPU had nothing to do. On a CPU it is the time that passed until it returned; there the sum is a
whole step, the profiler's own cost included.

Whatever the loader does counts as augmentation; the kinds of the rest are told by the operators' names. A kernel into
which several things are fused belongs to the first of: normalisation and activation, pooling, copies and casts.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch._inductor import config as inductor
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bench.measure import arguments, environment, header, interleave, print_table, write_rows
from bench.training import Rung, step_and_loader
from fast_cifar.loader import DeviceLoader
from fast_cifar.system.device import (
    Precision,
    check_compiler,
    resolve_device,
    resolve_precision,
    seeded_run,
    synchronize,
)
from fast_cifar.system.errors import UserError, run_script
from fast_cifar.train_step import TrainStep

AUGMENTATION, STEP = "augmentation", "training step"  # what the profiler calls the two parts of a step
BETWEEN = "(Python, between operators)"
OTHER = "other"
WIDTH = 70  # of an operator's name in the table

# What tells a kind, in the names that torch, Inductor, cuDNN and CUTLASS give their operators and kernels. The first
# kind that fits is taken, for a kernel's name may mention others: cuDNN has convolutions called relu.
SIGNS = {
    "optimiser": ("adam", "optimizer", "_foreach_", "multi_tensor_apply"),
    "convolution": ("convol", "conv2d", "fprop", "dgrad", "wgrad", "winograd", "scudnn", "cudnn_fp16"),
    "normalisation and activation": ("batch_norm", "batchnorm", "bn_fw", "bn_bw", "relu", "threshold", "clamp_min"),
    "pooling": ("max_pool", "maxpool"),
    "copies and casts": ("copy", "memcpy", "clone", "contiguous", "nchwtonhwc", "nhwctonchw"),
}


@dataclass(frozen=True)
class Operator:
    """What one operator or kernel took: its own milliseconds and its calls, a step."""

    operator: str
    kind: str
    ms: float
    calls: float


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch-size", type=int, default=None, metavar="N", help="default: 512; with --quick 32")
    parser.add_argument("--compile", action="store_true", help="compile the step and the loader with torch.compile")
    parser.add_argument("--no-amp", action="store_true", help="compute in float32")
    parser.add_argument("--rows", type=int, default=20, metavar="N", help="operators to show; default: 20")
    parser.add_argument("--chrome", type=Path, metavar="PATH", help="write a time line there (.json or .json.gz)")
    options = parser.parse_args()
    device = resolve_device(options.device)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"torch.profiler can look into a CPU and into CUDA, but not into {device}; use --device cpu")
    batch_size = options.batch_size if options.batch_size is not None else 32 if options.quick else 512
    if min(batch_size, options.rows) < 1:
        raise UserError("--batch-size and --rows are at least 1")
    if options.compile:
        check_compiler()
    precision = resolve_precision(device, not options.no_amp, "auto")
    steps = 3 if device.type == "cpu" else 20

    # Without this, the kernels that Inductor makes for a CPU are no operators of which the profiler would know.
    named_kernels = inductor.patch({"cpp.enable_kernel_profile": True})
    with seeded_run(0, device, deterministic=False), named_kernels:
        step, loader = make_step(batch_size, steps, device, precision, compile=options.compile)
        cases = {"step": lambda: train(step, loader)}
        rate = interleave(cases, repeats=1 if options.quick else 3, device=device, warm_ups=0)["step"]
        events = look_at(step, loader, device, options.chrome)
    operators = by_operator(events, steps)
    total = sum(operator.ms for operator in operators)

    mode = "compiled" if options.compile else "eager"
    where = environment(device) | {"precision": precision.name, "mode": mode, "batch": batch_size, "steps": steps}
    clock = "device time" if device.type == "cuda" else "time"
    title = f"training step, {precision.name}, {mode}, batch {batch_size}: own {clock} of a step, mean of {steps}"
    columns = ["operator", "kind", "ms", "share", "calls"]
    print_table(f"{header(where)}\n{title}", columns, operator_rows(operators, options.rows))
    print()
    print_table("by kind", ["kind", "ms", "share"], kind_rows(operators))
    print(
        f"\nwithout the profiler: {rate} images/sec, {1000 * batch_size / rate.median:,.2f} ms a step; "
        f"sum of the operators: {total:,.2f} ms"
    )
    for note in filter(None, (precision.note, step.note)):
        print(note)
    rows = [asdict(operator) | {"share": operator.ms / total} for operator in operators]
    write_rows(options.json, where | rate.as_dict(), rows)


def make_step(
    batch_size: int, steps: int, device: torch.device, precision: Precision, *, compile: bool
) -> tuple[TrainStep, DeviceLoader]:
    """The recipe's step, warmed up, and a loader with random pictures for `steps` of them."""
    images = torch.randint(256, (batch_size * steps, 32, 32, 3), dtype=torch.uint8)
    labels = torch.randint(10, (len(images),))
    rung = Rung("traced", precision, compile=compile, graph=compile)
    step, loader = step_and_loader(rung, images, labels, batch_size, device)
    step.warm_up(*next(iter(loader)))
    return step, loader


def train(step: TrainStep, loader: DeviceLoader) -> int:
    """Trains on every batch and returns the number of images; the profiler is told which part is whose."""
    with record_function(AUGMENTATION):
        batches = iter(loader)
    for _ in range(len(loader)):
        with record_function(AUGMENTATION):
            batch = next(batches)
        with record_function(STEP):
            step(*batch)
    return len(loader) * loader.batch_size


def look_at(step: TrainStep, loader: DeviceLoader, device: torch.device, chrome: Path | None) -> list[FunctionEvent]:
    """What the device that trains did in an epoch of the loader; the time line goes to `chrome`."""
    activities = {"cpu": [ProfilerActivity.CPU], "cuda": [ProfilerActivity.CPU, ProfilerActivity.CUDA]}
    with profile(activities=activities[device.type]) as profiler:
        train(step, loader)
        synchronize(device)
    if chrome is not None:
        chrome.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(chrome))
    where = {"cpu": DeviceType.CPU, "cuda": DeviceType.CUDA}[device.type]
    return [event for event in profiler.events() if event.device_type == where]


def by_operator(events: Sequence[FunctionEvent], steps: int) -> list[Operator]:
    """The events of one device in `steps` steps, an `Operator` for each name and kind, longest first."""
    loading = [event.time_range for event in events if event.name == AUGMENTATION]
    microseconds: Counter[tuple[str, str]] = Counter()
    calls: Counter[tuple[str, str]] = Counter()
    for event in events:
        on_gpu = event.device_type != DeviceType.CPU
        if on_gpu and event.is_user_annotation:
            continue  # from the first to the last kernel of a part: no work of its own
        name = BETWEEN if event.name in (AUGMENTATION, STEP) else event.name
        loads = any(part.start <= event.time_range.start < part.end for part in loading)
        key = name, AUGMENTATION if loads else kind_of(name)
        microseconds[key] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        calls[key] += 1
    return [
        Operator(*key, ms=time / 1000 / steps, calls=calls[key] / steps) for key, time in microseconds.most_common()
    ]


def kind_of(name: str) -> str:
    """The kind of work of an operator or kernel with this name: one of `SIGNS`, or `OTHER`."""
    name = name.lower()
    if "_fused_" in name and "triton_tem" not in name:
        # Inductor leaves convolutions to libraries, templates apart: what it names after one moves data to or from it.
        name = name.replace("convolution", "copy")
    return next((kind for kind, signs in SIGNS.items() if any(sign in name for sign in signs)), OTHER)


def by_kind(operators: Iterable[Operator]) -> dict[str, float]:
    """Milliseconds a step of each kind, longest first."""
    ms: Counter[str] = Counter()
    for operator in operators:
        ms[operator.kind] += operator.ms
    return dict(ms.most_common())


def operator_rows(operators: Sequence[Operator], count: int) -> list[list[str]]:
    """The table's lines: the first `count` operators, and the others as one."""
    total = sum(operator.ms for operator in operators)
    shown, others = operators[:count], operators[count:]
    rows = [[shortened(o.operator), o.kind, f"{o.ms:,.3f}", f"{o.ms / total:.1%}", f"{o.calls:,.1f}"] for o in shown]
    if others:
        ms, calls = sum(o.ms for o in others), sum(o.calls for o in others)
        rows.append([f"({len(others)} more)", "", f"{ms:,.3f}", f"{ms / total:.1%}", f"{calls:,.1f}"])
    return rows


def kind_rows(operators: Sequence[Operator]) -> list[list[str]]:
    total = sum(operator.ms for operator in operators)
    return [[kind, f"{ms:,.3f}", f"{ms / total:.1%}"] for kind, ms in by_kind(operators).items()]


def shortened(name: str) -> str:
    """A name without its middle if it is longer than a line allows: fused kernels tell themselves apart at the end."""
    head = WIDTH * 3 // 4
    return name if len(name) <= WIDTH else f"{name[:head]}…{name[head + 1 - WIDTH :]}"


if __name__ == "__main__":
    sys.exit(run_script(main))
