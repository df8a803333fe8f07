"""The range test: trains at learning rates that rise from step to step, and suggests LRMIN and LRMAX from the loss.

`range_test` takes a network of your own; `find_lr` is the whole of `run_lrfind.py`.
"""

from __future__ import annotations

import copy
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from fast_cifar.build import Setup, build_setup, eval_loader, limited
from fast_cifar.engine import Batches
from fast_cifar.lr_curve import Curve, RangeTest, Suggestion, combine, failure, has_diverged, read_curve
from fast_cifar.optimizer import rate_ratios, set_rate
from fast_cifar.options import LR_END, LR_START, SWEEP_STEPS, RangeTestOptions, TrainOptions, flag_of
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
from fast_cifar.system.progress import progress_bar
from fast_cifar.train_step import Criterion, TrainStep, memory_format_of, preserve_state

HELD_OUT = 500  # images for --loss-on val, which are evaluated after every step


def range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loader: Batches,
    *,
    criterion: Criterion | None = None,
    lr_start: float = LR_START,
    lr_end: float = LR_END,
    iters: int = SWEEP_STEPS,
    amp: bool = False,
    amp_dtype: str = "auto",
    compile: bool = False,
    sweep: str = "exponential",
    held_out: Batches | None = None,
) -> RangeTest:
    """Trains for `iters` steps while the learning rate rises, then restores everything.

    Afterwards model, optimiser, random state and the loader's epoch are as they were, bit for bit. A sweep longer than
    the loader continues with its next epoch.

    Args:
        model, optimizer: on the device to use. Parameter groups keep the ratios of their learning rates, of which
            nothing else matters: the highest one gets the rates of the sweep.
        loader: yields (inputs, labels), on any device.
        criterion: (logits in float32, labels) -> mean loss of the batch; cross-entropy by default.
        lr_start, lr_end: 0 < lr_start < lr_end.
        iters: steps, at least 2; the sweep ends sooner when the loss diverges.
        amp, amp_dtype, compile: as in training.
        sweep: "exponential" or "linear" rise.
        held_out: other images, to measure the loss on all of them after each step; by default the loss is that of the
            step's own batch.

    Raises:
        ValueError: the rates, `iters` or `sweep` are out of range, or a loader has no batches.
        UserError: the loss diverged at once.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3, whose sweep
        is linear; later ones rise exponentially.
    """
    rates = sweep_rates(sweep, iters, lr_start, lr_end)
    precision = resolve_precision(next(model.parameters()).device, amp, amp_dtype)
    with preserve_state(model, optimizer):
        step = TrainStep(model, optimizer, precision, criterion=criterion or F.cross_entropy, compile=compile)
        evaluate = None if held_out is None else held_out_loss(model, precision, held_out, criterion)
        losses, diverged = sweep_losses(step, loader, rates, evaluate)
    why = failure(rates, losses, diverged)
    if len(losses) < 2:
        raise UserError(f"range test: {why}")
    curve = read_curve(rates, losses, diverged)
    return combine([curve], rates, sweep=sweep, warnings=[why] if why else [])


def sweep(setup: Setup, first_seed: int, test: RangeTestOptions) -> RangeTest:
    """Range tests of new networks on the training split of `setup`, with `test.repeats` seeds from `first_seed` on.

    Raises:
        UserError: with every seed the loss diverged at once or never fell.
    """
    options = setup.options
    rates = sweep_rates(test.sweep, test.iters, test.lr_start, test.lr_end)
    curves: dict[int, Curve] = {}
    failures: dict[int, str] = {}
    with gradients_enabled(), explain_out_of_memory(options.batch_size):
        training = setup.training_state(test.lr_end)
        evaluate = None
        if test.loss_on == "val":
            val = limited(setup.val, max(HELD_OUT, len(setup.data.classes)))
            # One batch, for the statistics of BatchNorm: a folder's images are sorted by class.
            loader = training.loader
            batches = eval_loader(val, len(val), setup.device, setup.precision, loader.mean, loader.std)
            evaluate = held_out_loss(training.model, setup.precision, batches)
        for seed in range(first_seed, first_seed + test.repeats):
            with seeded_run(seed, setup.device, deterministic=options.deterministic):
                training.reset(seed)
                title = f"range test, seed {seed}" if test.repeats > 1 else "range test"
                losses, diverged = sweep_losses(training.step, training.loader, rates, evaluate, title)
            if why := failure(rates, losses, diverged):
                failures[seed] = why
            else:
                curves[seed] = read_curve(rates, losses, diverged)
    if not curves:
        raise UserError(f"range test: {failures[first_seed]}")
    warnings = [f"seed {seed} is left out: {why}" for seed, why in failures.items()]
    return combine(list(curves.values()), rates, sweep=test.sweep, seeds=list(curves), warnings=warnings)


def sweep_losses(
    step: TrainStep,
    loader: Batches,
    rates: Sequence[float],
    evaluate: Callable[[], float] | None,
    title: str = "range test",
) -> tuple[list[float], bool]:
    """Trains one step at each rate; the loader's epoch is restored.

    Returns:
        The loss of each step, or of `evaluate()` after it, and whether it diverged: then the sweep ends, and a loss
        that is not finite is left out.
    """
    losses: list[float] = []
    ratios = rate_ratios(step.optimizer)
    step.model.train()
    bar = progress_bar(rates, desc=title, unit="step", leave=False)
    with _epoch_restored(loader):
        for lr, (inputs, labels) in zip(bar, _endless(loader), strict=False):
            for group, ratio in zip(step.optimizer.param_groups, ratios, strict=True):
                set_rate(group, lr * ratio)
            loss = float(step(inputs, labels)[0])
            if evaluate is not None and math.isfinite(loss):
                loss = evaluate()
            if not math.isfinite(loss):
                return losses, True
            losses.append(loss)
            if has_diverged(losses):
                return losses, True
    return losses, False


@contextmanager
def _epoch_restored(loader: Batches) -> Iterator[None]:
    """A loader that counts epochs is set back to its present one afterwards."""
    counts = hasattr(loader, "epoch") and hasattr(loader, "set_epoch")
    epoch = loader.epoch if counts else None
    try:
        yield
    finally:
        if counts:
            loader.set_epoch(epoch)


def _endless(loader: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches, epoch after epoch."""
    taken = 0
    while True:
        before = taken
        for batch in loader:
            taken += 1
            yield batch
        if taken == before:
            raise ValueError(f"the loader has no batches left after {taken}")


def held_out_loss(
    model: nn.Module, precision: Precision, batches: Batches, criterion: Criterion | None = None
) -> Callable[[], float]:
    """A function that returns the mean loss of all `batches`, cross-entropy by default, and leaves the model as it is.

    Raises:
        ValueError: there are no batches.
    """
    device = next(model.parameters()).device
    order = memory_format_of(model)
    with _epoch_restored(batches):
        kept = [(x.to(device, memory_format=order, copy=True), y.to(device, copy=True)) for x, y in batches]
    images = sum(len(labels) for _, labels in kept)
    if images == 0:
        raise ValueError("the held-out loader has no batches")
    replica = copy.deepcopy(model).eval()
    for module in replica.modules():
        # The running statistics lag about ten steps behind, which at high rates is a very different network: normalise
        # each batch by its own, as in training.
        module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)

    def summed(logits: Tensor, labels: Tensor) -> Tensor:
        if criterion is None:
            return F.cross_entropy(logits, labels, reduction="sum")
        return criterion(logits, labels) * len(labels)

    def loss() -> float:
        replica.load_state_dict(model.state_dict())
        with torch.no_grad(), precision.autocast():
            return float(sum(summed(replica(inputs).float(), labels) for inputs, labels in kept)) / images

    return loss


def find_lr(options: RangeTestOptions, *, log: Callable[[str], None] = tqdm.write) -> RangeTest:
    """The whole of `run_lrfind.py`: range test, run folder with `lrfind.json` and `lrfind.png`, and the next command.

    Raises:
        UserError: the options, the data, the machine or the run folder do not allow it, or no curve can be read.
    """
    options.check()
    data = f"lrfind-{Path(options.data).name}"
    check_new(new_path(options.out, options.name, data))
    setup = build_setup(options, test=False)
    seeds = f" with each of {options.repeats} seeds" if options.repeats > 1 else ""
    log(
        f"range test on {setup.data.name}, {describe_device(setup.device)}, {setup.precision.name}: "
        f"{options.iters} steps of {options.batch_size} images{seeds}, {options.lr_start:g} -> {options.lr_end:g}"
    )
    for note in setup.notes:
        log(note)
    result = sweep(setup, options.seed, options)
    folder = RunFolder.create(options.out, options.name, data)
    folder.write_config(options.replace(name=folder.path.name, **setup.resolved_machine()).as_dict())
    write_range_test(folder, result, setup.title(options.seed, options.repeats))
    for line in _report(result, options):
        log(line)
    if not style.matplotlib_available():
        log("no lrfind.png without matplotlib; to have it: pip install matplotlib")
    log(f"everything is in {folder.path}; to train with these rates:")
    log(next_command(options, result.suggestion))
    return result


def write_range_test(folder: RunFolder, result: RangeTest, title: str) -> None:
    """Writes lrfind.json and, with matplotlib, lrfind.png; `title` says what was swept."""
    folder.write_range_test(asdict(result))
    if style.matplotlib_available():
        result.plot(folder / "lrfind.png", f"Range test: {title}")


def _report(result: RangeTest, options: RangeTestOptions) -> Iterator[str]:
    """The lines that say what was found and how certain it is."""
    found, spread = result.suggestion, result.lr_max_spread
    if spread is not None:
        for seed, curve in zip(result.seeds, result.repeats, strict=True):
            rates = curve.suggestion
            yield f"seed {seed}: LRMIN {rates.lr_min:.3g}, LRMAX {rates.lr_max:.3g}, after {len(curve.lrs)} steps"
    yield f"LRMIN {found.lr_min:.3g}, LRMAX {found.lr_max:.3g}, after {len(result.lrs)} of {options.iters} steps"
    if spread is not None:
        interval = f", 95 % interval {spread.interval[0]:.3g} to {spread.interval[1]:.3g}" if spread.interval else ""
        yield f"LRMAX of {len(result.seeds)} seeds: {spread.lowest:.3g} to {spread.highest:.3g}{interval}"
    points = f"steepest {found.steepest:.3g}, valley {found.valley:.3g}, minimum {found.minimum:.3g}"
    yield points + ("" if result.divergence is None else f", divergence {result.divergence:.3g}")
    for warning in result.warnings:
        yield f"warning: {warning}"
    if options.repeats == 1:
        yield "this is one seed; --repeats 3 shows how far seeds agree"


def next_command(options: RangeTestOptions, found: Suggestion) -> str:
    """The `run_train.py` command that trains as the range test did, at the rates it found."""
    recipe = TrainOptions().as_dict()
    words = ["python", "run_train.py"]
    for name, value in options.as_dict().items():
        if name not in recipe or name not in options.explicit or name in ("out", "name"):
            continue
        if isinstance(value, bool):
            words.append(flag_of(name, value))
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [flag_of(name), str(one)]
    return shlex.join([*words, "--lr-min", f"{found.lr_min:.3g}", "--lr-max", f"{found.lr_max:.3g}"])
