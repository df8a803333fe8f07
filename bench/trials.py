"""The trainings of the benchmarks: their options on the command line, and one training without a run folder."""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch

from fast_cifar.build import Setup, TrainingState
from fast_cifar.command_line import parse
from fast_cifar.engine import evaluate, train_epoch
from fast_cifar.optimizer import make_scheduler
from fast_cifar.options import TrainOptions, flag_of
from fast_cifar.schedules import one_cycle
from fast_cifar.system.device import explain_out_of_memory, gradients_enabled, has_compiler, seeded_run
from fast_cifar.system.errors import UserError
from fast_cifar.trainer import cycle_steps

# A benchmark trains its own seeds, into no lasting run folder.
REFUSED = TrainOptions.names(group="what to do") | TrainOptions.names(group="output") | {"seed", "runs", "find_lr"}


def split_command_line(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, TrainOptions]:
    """The options that `parser` knows, and the others as options of run_train.py: `given` names them.

    Raises:
        UserError: an option is neither, or does not apply to a benchmark.
    """
    options, words = parser.parse_known_args()
    recipe = parse(TrainOptions, parser.description, words)
    if refused := recipe.given & REFUSED:
        raise UserError(f"{flag_of(min(refused))} does not apply to this benchmark (--help lists its options)")
    return options, recipe


def with_defaults(recipe: TrainOptions, device: torch.device, **defaults: Any) -> TrainOptions:
    """`recipe` with mixed precision, compiled on CUDA, and `defaults`, unless the command line said otherwise."""
    usual = {"device": str(device), "amp": True, "compile": device.type == "cuda" and has_compiler()}
    return recipe.replace(**{name: value for name, value in (usual | defaults).items() if name not in recipe.given})


def train_once(setup: Setup, parts: TrainingState, options: TrainOptions) -> dict[str, Any]:
    """Trains from new weights and evaluates the held-out images after the last epoch.

    Args:
        setup: with `val_split`; `parts` are its own, and may have trained before: the step is compiled once.
        options: those of the setup but for seed and learning rates.

    Returns:
        `val_accuracy`, `val_loss` and `train_accuracy` of the last epoch, `seconds` of training, and `diverged`: the
        loss became infinite or NaN. Then both accuracies are those of a blind guess, and there is no `val_loss`.
    """
    options = options.resolved()
    total, peak = cycle_steps(options, len(parts.loader))
    with (
        gradients_enabled(),
        seeded_run(options.seed, setup.device, deterministic=options.deterministic),
        explain_out_of_memory(options.batch_size),
    ):
        parts.reset(setup, options.seed)
        cycle = one_cycle(total, peak, options.lr_min, options.lr_max)
        scheduler = make_scheduler(parts.optimizer, options.lr_max, cycle)
        if parts.step.needs_warm_up:
            parts.step.warm_up(*next(iter(parts.loader)))
        started = time.perf_counter()
        for epoch in range(options.epochs):
            parts.loader.set_epoch(epoch)
            title = f"epoch {epoch + 1}/{options.epochs}"
            metrics = train_epoch(parts.step, parts.loader, scheduler, title=title, steps=len(parts.loader))
            if not math.isfinite(metrics.loss):
                break
        seconds = time.perf_counter() - started
        with parts.answering():
            held_out = evaluate(parts.model, parts.eval_loaders["val"], setup.precision, tta=options.tta)
    if not (math.isfinite(metrics.loss) and math.isfinite(held_out.loss)):
        chance = 1 / len(setup.data.classes)
        return {"val_accuracy": chance, "train_accuracy": chance, "seconds": seconds, "diverged": True}
    return {
        "val_accuracy": held_out.accuracy,
        "val_loss": held_out.loss,
        "train_accuracy": metrics.accuracy,
        "seconds": seconds,
        "diverged": False,
    }
