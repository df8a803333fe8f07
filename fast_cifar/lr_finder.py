"""The range test: sweep the learning rate over a hundred batches, watch the loss, and say which rates to use."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from fast_cifar import plots
from fast_cifar.assembly import Workspace, assemble
from fast_cifar.engine import Batches
from fast_cifar.errors import UserError
from fast_cifar.lr_curve import FEWEST_POINTS, Suggestion, has_diverged, has_fallen, smooth, suggest
from fast_cifar.memory import enough_memory
from fast_cifar.optimizer import set_rate
from fast_cifar.options import RangeTestOptions, TrainOptions, flag_of
from fast_cifar.run_folder import RunFolder, check_new, new_path
from fast_cifar.runtime import describe_device, recording_gradients, reproducible, resolve_precision
from fast_cifar.schedules import exponential_sweep
from fast_cifar.snapshot import preserved
from fast_cifar.train_step import TrainStep


@dataclass(frozen=True)
class RangeTest:
    """A finished sweep: one entry per optimiser step in each list, cut where the loss diverged."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: Suggestion


def range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loader: Batches,
    *,
    lr_start: float = 1e-6,
    lr_end: float = 1.0,
    iters: int = 118,
    amp: bool = False,
    amp_dtype: str = "auto",
    label_smoothing: float = 0.0,
    compile: bool = False,
) -> RangeTest:
    """Trains for `iters` steps while the learning rate rises exponentially, then puts everything back.

    Afterwards model, optimiser, random state and the loader's epoch are as they were, bit for bit. A sweep longer than
    the loader goes on with its next epoch.

    Args:
        model, optimizer: on the device to use; the optimiser's own learning rate does not matter.
        loader: yields (inputs, labels); they are moved to the model's device where they are elsewhere.
        lr_start, lr_end: 0 < lr_start < lr_end.
        iters: steps at most, at least 2; a loss that diverges ends the sweep sooner.
        amp, amp_dtype, label_smoothing, compile: as in training.

    Raises:
        ValueError: the rates or `iters` are out of range, or the loader has no batches.
        UserError: the loss diverged at once.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3.
    """
    multiplier = exponential_sweep(iters, lr_start, lr_end)
    device = next(model.parameters()).device
    precision = resolve_precision(device, amp, amp_dtype)
    lrs: list[float] = []
    losses: list[float] = []
    with preserved(model, optimizer), _endless(loader) as batches:
        step = TrainStep(model, optimizer, precision, label_smoothing=label_smoothing, compile=compile)
        model.train()
        for i in tqdm(range(iters), desc="range test", unit="step", leave=False, disable=None, dynamic_ncols=True):
            inputs, labels = next(batches)
            for group in optimizer.param_groups:
                set_rate(group, lr_end * multiplier(i))
            loss = float(step(inputs.to(device), labels.to(device))[0])
            if not math.isfinite(loss):
                break
            lrs.append(lr_end * multiplier(i))
            losses.append(loss)
            if has_diverged(losses):
                break
    if len(lrs) < 2:
        raise UserError(
            f"range test: the loss diverged at once, at {lr_start:g}; start lower: run_lrfind.py --lr-start"
        )
    smoothed = smooth(losses)
    return RangeTest(lrs, losses, smoothed.tolist(), suggest(lrs, smoothed))


def sweep(workspace: Workspace, seed: int, test: RangeTestOptions) -> RangeTest:
    """A range test of a new network on the training split of `workspace`, with `test`'s rates and number of steps.

    Raises:
        UserError: the loss diverged at once or never fell, so that the suggestion would mean nothing.
    """
    options = workspace.options
    with (
        recording_gradients(),
        reproducible(seed, workspace.device, deterministic=options.deterministic),
        enough_memory(options.batch_size),
    ):
        model = workspace.network()
        result = range_test(
            model,
            workspace.optimizer(model, test.lr_end),
            workspace.train_loader(seed),
            lr_start=test.lr_start,
            lr_end=test.lr_end,
            iters=test.iters,
            amp=options.amp,
            amp_dtype=options.amp_dtype,
            label_smoothing=options.label_smoothing,
            compile=options.compile,
        )
    if len(result.lrs) < FEWEST_POINTS:
        raise UserError(
            f"range test: the loss diverged after {len(result.lrs)} steps; start lower: run_lrfind.py --lr-start"
        )
    if not has_fallen(np.asarray(result.smoothed)):
        raise UserError(
            f"range test: the loss never fell between {result.lrs[0]:.3g} and {result.lrs[-1]:.3g}; "
            "sweep further or more slowly: run_lrfind.py --lr-start --lr-end --iters"
        )
    return result


def find_lr(options: RangeTestOptions, *, log: Callable[[str], None] = tqdm.write) -> RangeTest:
    """The whole of `run_lrfind.py`: range test, run folder with `lrfind.json` and `lrfind.png`, and what to do next.

    Raises:
        UserError: the options, the data, the machine or a run folder do not allow it, or the curve says nothing.
    """
    options.check()
    data = f"lrfind-{Path(options.data).name}"
    check_new(new_path(options.out, options.name, data))
    workspace = assemble(options)
    log(
        f"range test on {workspace.data.name}, {describe_device(workspace.device)}, {workspace.precision.name}: "
        f"{options.iters} steps of {options.batch_size} images, {options.lr_start:g} -> {options.lr_end:g}"
    )
    if workspace.precision.note:
        log(workspace.precision.note)
    result = sweep(workspace, options.seed, options)
    folder = RunFolder.create_new(options.out, options.name, data)
    folder.write_config(options.replace(name=folder.path.name, **workspace.resolved_machine()).as_dict())
    write_range_test(folder, result)
    found = result.suggestion
    log(f"LRMIN {found.lr_min:.3g}, LRMAX {found.lr_max:.3g}, after {len(result.lrs)} of {options.iters} steps")
    log(f"steepest {found.steepest:.3g}, valley {found.valley:.3g}, minimum {found.minimum:.3g}")
    log(f"everything is in {folder.path}; to train with these rates:")
    log(next_command(options, found))
    return result


def write_range_test(folder: RunFolder, result: RangeTest) -> None:
    """lrfind.json and, with matplotlib, lrfind.png."""
    folder.write_range_test(asdict(result))
    if plots.matplotlib_available():
        plots.range_test(folder / "lrfind.png", result.lrs, result.losses, result.smoothed, result.suggestion)


def next_command(options: RangeTestOptions, found: Suggestion) -> str:
    """The `run_train.py` line that trains as the range test did, at the rates it found."""
    recipe = TrainOptions().as_dict().keys() & options.explicit - {"out", "name"}
    words = ["python", "run_train.py"]
    for name, value in options.as_dict().items():
        if name in recipe:
            words += _words(flag_of(name), value)
    return shlex.join([*words, "--lr-min", f"{found.lr_min:.3g}", "--lr-max", f"{found.lr_max:.3g}"])


def _words(flag: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [word for one in value for word in (flag, one)]
    if isinstance(value, bool):
        return [flag] if value or flag.startswith("--no-") else []
    return [flag, str(value)]


@contextmanager
def _endless(loader: Batches) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """The loader's batches, epoch after epoch; a loader that counts epochs is set back to its own afterwards."""
    epoch = getattr(loader, "epoch", None)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        taken = 0
        for more in itertools.count():
            if epoch is not None:
                loader.set_epoch(epoch + more)
            before = taken
            for batch in loader:
                taken += 1
                yield batch
            if taken == before:
                raise ValueError(f"the loader has no batches left after {taken}")

    try:
        yield batches()
    finally:
        if epoch is not None:
            loader.set_epoch(epoch)
