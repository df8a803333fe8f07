"""The range test: sweep the learning rate over a hundred batches, watch the loss, and say which rates to use.

`sweep_losses` is the sweep itself: a training step at each of many learning rates, and the loss at each.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from fast_cifar import lr_curve
from fast_cifar.build import Setup, build_setup, evaluation_loader, limited
from fast_cifar.engine import Batches
from fast_cifar.lr_curve import (
    FEWEST_POINTS,
    RangeTest,
    RepeatedRangeTest,
    Suggestion,
    combined,
    failure,
    has_diverged,
    read,
)
from fast_cifar.optimizer import set_rate
from fast_cifar.options import RangeTestOptions, TrainOptions, flag_of
from fast_cifar.plots import range_test as range_test_plot
from fast_cifar.plots import style
from fast_cifar.runs.run_folder import RunFolder, check_new, new_path
from fast_cifar.schedules import sweep_rates
from fast_cifar.system.device import (
    Precision,
    describe_device,
    explain_out_of_memory,
    gradients_enabled,
    resolve_precision,
    seeded_run,
)
from fast_cifar.system.errors import UserError
from fast_cifar.train_step import TrainStep, memory_format_of, preserve_state

HELD_OUT = 500  # images at most: they are answered after every step


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
    sweep: str = "exponential",
    held_out: Batches | None = None,
) -> RangeTest:
    """Trains for `iters` steps while the learning rate rises, then puts everything back.

    Afterwards model, optimiser, random state and the loader's epoch are as they were, bit for bit. A sweep longer than
    the loader goes on with its next epoch.

    Args:
        model, optimizer: on the device to use; the optimiser's own learning rate does not matter.
        loader: yields (inputs, labels); they are moved to the model's device where they are elsewhere.
        lr_start, lr_end: 0 < lr_start < lr_end.
        iters: steps at most, at least 2; a loss that diverges ends the sweep sooner.
        amp, amp_dtype, label_smoothing, compile: as in training.
        sweep: the rate rises "exponential"ly or "linear"ly.
        held_out: other images to take the loss on, after each step and all of them; by default it is the step's own.

    Raises:
        ValueError: the rates or `iters` are out of range, `sweep` is neither, or a loader has no batches.
        UserError: the loss diverged at once.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3.
    """
    rates = sweep_rates(sweep, iters, lr_start, lr_end)
    precision = resolve_precision(next(model.parameters()).device, amp, amp_dtype)
    with preserve_state(model, optimizer):
        step = TrainStep(model, optimizer, precision, label_smoothing=label_smoothing, compile=compile)
        watched = None if held_out is None else held_out_loss(model, precision, held_out)
        losses, ruined = sweep_losses(step, loader, rates, watched)
    if len(losses) < 2:
        raise UserError(
            f"range test: the loss diverged at once, at {lr_start:g}; start lower: run_lrfind.py --lr-start"
        )
    result = read(rates, losses, ruined)
    why = failure(result.lrs, losses) if ruined or len(losses) >= FEWEST_POINTS else None
    return dataclasses.replace(result, warnings=[*([why] if why else []), *lr_curve.warnings([result], lr_end)])


def sweep(setup: Setup, seed: int, test: RangeTestOptions) -> RepeatedRangeTest:
    """Range tests of new networks on the training split of `setup`, as `test` says, with `seed` and those after it.

    Raises:
        UserError: with every seed the loss diverged at once or never fell, so that a suggestion would mean nothing.
    """
    options = setup.options
    rates = sweep_rates(test.sweep, test.iters, test.lr_start, test.lr_end)
    repeats: dict[int, RangeTest] = {}
    failures: dict[int, str] = {}
    with gradients_enabled(), explain_out_of_memory(options.batch_size):
        parts = setup.parts(test.lr_end)
        watched = None
        if test.loss_on == "val":
            val = limited(setup.val, max(HELD_OUT, len(setup.data.classes)))
            # In one batch: a folder's images come class after class.
            fixed = evaluation_loader(val, len(val), setup.device, setup.precision, parts.loader.mean, parts.loader.std)
            watched = held_out_loss(parts.model, setup.precision, fixed)
        for one in range(seed, seed + test.repeats):
            with seeded_run(one, setup.device, deterministic=options.deterministic):
                parts.reset(setup, one)
                title = f", seed {one}" if test.repeats > 1 else ""
                losses, ruined = sweep_losses(parts.step, parts.loader, rates, watched, title)
            if why := failure(rates[: len(losses)], losses):
                failures[one] = why
            else:
                repeats[one] = read(rates, losses, ruined)
    if not repeats:
        raise UserError(f"range test: {failures[seed]}")
    return combined(repeats, failures, test.sweep, test.lr_end)


def sweep_losses(
    step: TrainStep, loader: Batches, rates: Sequence[float], watched: Callable[[], float] | None, title: str = ""
) -> tuple[list[float], bool]:
    """One step at each of the rates, and its loss or, where one is given, what `watched` gives after it.

    Returns:
        The loss at each of them, as far as it is finite and has not diverged, and whether that ended the sweep.
    """
    device = next(step.model.parameters()).device
    losses: list[float] = []
    step.model.train()
    with _endless(loader) as batches:
        bar = tqdm(rates, desc=f"range test{title}", unit="step", leave=False, disable=None, dynamic_ncols=True)
        for lr in bar:
            inputs, labels = next(batches)
            for group in step.optimizer.param_groups:
                set_rate(group, lr)
            loss = float(step(inputs.to(device), labels.to(device))[0])
            if watched is not None and math.isfinite(loss):
                loss = watched()
            if not math.isfinite(loss):
                return losses, True
            losses.append(loss)
            if has_diverged(losses):
                return losses, True
    return losses, False


def held_out_loss(model: nn.Module, precision: Precision, batches: Batches) -> Callable[[], float]:
    """A function that gives the mean cross-entropy of all `batches`, and leaves the model as it is.

    Raises:
        ValueError: there are no batches.
    """
    device = next(model.parameters()).device
    memory_format = memory_format_of(model)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [
        (inputs.to(device).clone(memory_format=memory_format), labels.to(device).clone()) for inputs, labels in batches
    ]
    images = sum(len(labels) for _, labels in kept)
    if images == 0:
        raise ValueError("the held-out loader has no batches")

    def loss() -> float:
        flags = [(module, module.training) for module in model.modules()]
        tracking = [norm.track_running_stats for norm in norms]
        model.eval()
        for norm in norms:
            # The running statistics lag ten steps behind, which at high rates is another network's. So each batch is
            # normalised by its own, as in training, and they are not recorded.
            norm.training, norm.track_running_stats = True, False
        try:
            with torch.no_grad(), precision.autocast():
                sums = [F.cross_entropy(model(inputs).float(), labels, reduction="sum") for inputs, labels in kept]
        finally:
            for module, flag in flags:
                module.training = flag
            for norm, flag in zip(norms, tracking, strict=True):
                norm.track_running_stats = flag
        return float(sum(sums)) / images

    return loss


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


def find_lr(options: RangeTestOptions, *, log: Callable[[str], None] = tqdm.write) -> RepeatedRangeTest:
    """The whole of `run_lrfind.py`: range test, run folder with `lrfind.json` and `lrfind.png`, and what to do next.

    Raises:
        UserError: the options, the data, the machine or a run folder do not allow it, or the curve says nothing.
    """
    options.check()
    data = f"lrfind-{Path(options.data).name}"
    check_new(new_path(options.out, options.name, data))
    setup = build_setup(options)
    seeds = f" with each of {options.repeats} seeds" if options.repeats > 1 else ""
    log(
        f"range test on {setup.data.name}, {describe_device(setup.device)}, {setup.precision.name}: "
        f"{options.iters} steps of {options.batch_size} images{seeds}, {options.lr_start:g} -> {options.lr_end:g}"
    )
    if setup.precision.note:
        log(setup.precision.note)
    result = sweep(setup, options.seed, options)
    folder = RunFolder.create_new(options.out, options.name, data)
    folder.write_config(options.replace(name=folder.path.name, **setup.resolved_machine()).as_dict())
    write_range_test(folder, result)
    for line in _report(result, options):
        log(line)
    log(f"everything is in {folder.path}; to train with these rates:")
    log(next_command(options, result.suggestion))
    return result


def _report(result: RepeatedRangeTest, options: RangeTestOptions) -> Iterator[str]:
    """The lines that say what was found and how sure it is."""
    found, spread = result.suggestion, result.lr_max_spread
    if spread is not None:
        for seed, one in zip(result.seeds, result.repeats, strict=True):
            rates = one.suggestion
            yield f"seed {seed}: LRMIN {rates.lr_min:.3g}, LRMAX {rates.lr_max:.3g}, after {len(one.lrs)} steps"
    yield f"LRMIN {found.lr_min:.3g}, LRMAX {found.lr_max:.3g}, after {len(result.lrs)} of {options.iters} steps"
    if spread is not None:
        sure = f", 95 % interval {spread.interval[0]:.3g} to {spread.interval[1]:.3g}" if spread.interval else ""
        yield f"LRMAX of {len(result.seeds)} seeds: {spread.lowest:.3g} to {spread.highest:.3g}{sure}"
    points = f"steepest {found.steepest:.3g}, valley {found.valley:.3g}, minimum {found.minimum:.3g}"
    yield points + (f", divergence {result.divergence:.3g}" if result.diverged else "")
    for warning in result.warnings:
        yield f"warning: {warning}"
    if options.repeats == 1:
        yield "this is one seed; --repeats 3 says how sure it is"


def write_range_test(folder: RunFolder, result: RepeatedRangeTest) -> None:
    """lrfind.json and, with matplotlib, lrfind.png."""
    folder.write_range_test(asdict(result))
    if style.matplotlib_available():
        several = len(result.repeats) > 1
        range_test_plot.range_test(
            folder / "lrfind.png",
            result.lrs,
            result.losses,
            result.smoothed,
            result.suggestion,
            linear=result.sweep == "linear",
            seeds=[(one.lrs, one.smoothed) for one in result.repeats] if several else (),
            band=lr_curve.band([one.smoothed for one in result.repeats]) if several else None,
            lr_max_spread=result.lr_max_spread,
            divergence=result.divergence,
            notes=result.warnings,
        )


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
