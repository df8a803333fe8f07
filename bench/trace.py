"""Where does the time of a training step go? torch.profiler's operators, and their sums by kind of work.

    python -m bench.trace                            # the recipe's step, one operator after another
    python -m bench.trace --compile                  # the fused kernels that torch.compile makes of it
    python -m bench.trace --compile --no-amp         # in float32
    python -m bench.trace --chrome trace.json.gz     # also a timeline for ui.perfetto.dev or chrome://tracing

torch.profiler records a few whole steps of `TrainOptions()`, 3 on a CPU and 20 on a GPU: `DeviceLoader` makes the
batch, augmentation included, then forward, loss, backward and the optimiser. Warm-up and compilation come before. The
precision is that of `--amp` on this device, or float32 with `--no-amp`.

An operator's own ("self") time excludes the operators that it calls, so the kinds add up to the whole. On a GPU it is
the time that its kernels ran; the difference to a step's time without the profiler (the last line) is the GPU's idle
time. On a CPU it is wall-clock time; there the sum is a whole step, the profiler's overhead included.

Whatever the loader does counts as augmentation; the kind of the rest follows from the operator's name. A kernel into
which several things are fused belongs to the first of: normalisation and activation, pooling, copies and casts.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config as inductor
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bench.markdown import COLUMNS, caption, print_rows, rate
from bench.measure import arguments, check_counts, environment, interleave, parsed, save_rows
from bench.training import Variant, random_images, step_and_loader
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

AUGMENTATION, STEP = "augmentation", "training step"  # the profiler's labels of the two parts of a step
OTHER = "other"
WIDTH = 70  # of an operator's name in the table

# Parts of the names that torch, Inductor, cuDNN and CUTLASS give their operators and kernels. The first kind that fits
# is taken, for a kernel's name may mention others: cuDNN has convolutions called relu.
SIGNS = {
    "optimiser": ("adam", "optimizer", "_foreach_", "multi_tensor_apply"),
    "convolution": ("convol", "conv2d", "fprop", "dgrad", "wgrad", "winograd", "scudnn", "cudnn_fp16"),
    "normalisation and activation": ("batch_norm", "batchnorm", "bn_fw", "bn_bw", "relu", "threshold", "clamp_min"),
    "pooling": ("max_pool", "maxpool"),
    "copies and casts": ("copy", "memcpy", "clone", "contiguous", "nchwtonhwc", "nhwctonchw"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch-size", type=int, default=512, metavar="N", help="default: 512; with --quick 32")
    parser.add_argument("--compile", action="store_true", help="compile the step and the loader with torch.compile")
    parser.add_argument("--no-amp", action="store_true", help="compute in float32")
    parser.add_argument("--rows", type=int, default=20, metavar="N", help="operators to show; default: 20")
    parser.add_argument("--chrome", type=Path, metavar="PATH", help="write a timeline there (.json or .json.gz)")
    options = parsed(parser, batch_size=32)
    check_counts(options, "batch_size", "rows")
    device = resolve_device(options.device)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"torch.profiler supports cpu and cuda here, not {device}; use --device cpu")
    if options.compile:
        check_compiler(device)
    precision = resolve_precision(device, not options.no_amp, "auto")
    batch_size, steps = options.batch_size, 3 if device.type == "cpu" else 20

    # Without this the profiler does not see the kernels that Inductor makes for a CPU; those of its cache may lack it.
    named_kernels = inductor.patch({"cpp.enable_kernel_profile": True, "force_disable_caches": device.type == "cpu"})
    with seeded_run(0, device, deterministic=False), named_kernels:
        step, loader = make_step(batch_size, steps, device, precision, compile=options.compile)
        cases = {"step": lambda: train(step, loader)}
        measured = interleave(cases, repeats=1 if options.quick else 3, device=device, warm_ups=0)["step"]
        profiler = recorded(step, loader, device, options.chrome)
    mode = "compiled" if options.compile else "eager"
    where = environment(device) | {"precision": precision.name, "mode": mode, "batch": batch_size, "steps": steps}
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    operators = profiler.key_averages()
    print(operators.table(sort_by=own, row_limit=options.rows, max_name_column_width=WIDTH))
    kinds = by_kind(profiler.events(), device, steps)
    print_rows(caption(where), COLUMNS["trace"], kinds)
    print(
        f"\nwithout the profiler: {rate(measured)} images/sec, "
        f"{1000 * batch_size / measured['images_per_second']:,.2f} ms a step; "
        f"sum of the kinds: {sum(row['ms'] for row in kinds):,.2f} ms"
    )
    for note in filter(None, (precision.note, step.note)):
        print(note)
    save_rows(options.json, where | measured, kinds)


def make_step(
    batch_size: int, steps: int, device: torch.device, precision: Precision, *, compile: bool
) -> tuple[TrainStep, DeviceLoader]:
    """The recipe's step, warmed up, and a loader with random images for `steps` of them."""
    variant = Variant("traced", precision, compile=compile, graph=compile)
    step, loader = step_and_loader(variant, random_images(batch_size * steps), batch_size, device)
    step.warm_up(*next(iter(loader)))
    return step, loader


def train(step: TrainStep, loader: DeviceLoader) -> int:
    """Trains on every batch and returns the number of images, with each part labelled for the profiler."""
    with record_function(AUGMENTATION):
        batches = iter(loader)
    for _ in range(len(loader)):
        with record_function(AUGMENTATION):
            batch = next(batches)
        with record_function(STEP):
            step(*batch)
    return len(loader) * loader.batch_size


def recorded(step: TrainStep, loader: DeviceLoader, device: torch.device, chrome: Path | None) -> profile:
    """The profile of an epoch of the loader; the timeline goes to `chrome`."""
    activities = {"cpu": [ProfilerActivity.CPU], "cuda": [ProfilerActivity.CPU, ProfilerActivity.CUDA]}
    with profile(activities=activities[device.type]) as profiler:
        train(step, loader)
        synchronize(device)
    if chrome is not None:
        chrome.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(chrome))
    return profiler


def by_kind(events: Sequence[FunctionEvent], device: torch.device, steps: int) -> list[dict[str, Any]]:
    """The own time of the device's events in `steps` steps, longest first: `kind`, `ms` per step and `share`."""
    on_gpu = device.type == "cuda"
    events = [event for event in events if event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU)]
    loading = [event.time_range for event in events if event.name == AUGMENTATION]
    microseconds: Counter[str] = Counter()
    for event in events:
        if on_gpu and event.is_user_annotation:
            continue  # it spans the kernels of a part and has no work of its own
        loads = any(part.start <= event.time_range.start < part.end for part in loading)
        kind = AUGMENTATION if loads else kind_of(event.name)
        microseconds[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    whole = microseconds.total()
    return [
        {"kind": kind, "ms": time / 1000 / steps, "share": time / whole} for kind, time in microseconds.most_common()
    ]


def kind_of(name: str) -> str:
    """The kind of work of an operator or kernel with this name: one of `SIGNS`, or `OTHER`."""
    name = name.lower()
    if "_fused_" in name and "triton_tem" not in name:
        # Libraries do the convolutions, templates apart: what Inductor names after one moves data to or from it.
        name = name.replace("convolution", "copy")
    return next((kind for kind, signs in SIGNS.items() if any(sign in name for sign in signs)), OTHER)


if __name__ == "__main__":
    sys.exit(run_script(main))
