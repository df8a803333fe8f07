"""The trainings of the benchmarks: their options on the command line, and one training without a run folder."""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import torch

from fast_cifar.build import TrainingState
from fast_cifar.command_line import parse
from fast_cifar.engine import Row, fit
from fast_cifar.optimizer import one_cycle_scheduler
from fast_cifar.options import TrainOptions, flag_of
from fast_cifar.system.device import explain_out_of_memory, gradients_enabled, has_compiler, seeded_run
from fast_cifar.system.errors import UserError
from fast_cifar.trainer import Diverged, cycle_steps

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


def train_once(training: TrainingState, options: TrainOptions) -> dict[str, Any]:
    """Trains from new weights and evaluates the held-out images after the last epoch.

    Args:
        training: of a setup with `val_split`; it may have trained before, and compiles once.
        options: those of the setup but for seed and learning rates.

    Returns:
        `val_accuracy`, `val_loss` and `train_accuracy` of the last epoch, `seconds` of training, and `diverged`: the
        loss became infinite or NaN. Then both accuracies are those of a blind guess, and there is no `val_loss`.
    """
    options, setup = options.resolved(), training.setup
    total, peak = cycle_steps(options, len(training.loader))
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        if not all(math.isfinite(row[name]) for name in ("train_loss", "val_loss") if row[name] is not None):
            raise Diverged

    with (
        gradients_enabled(),
        seeded_run(options.seed, setup.device, deterministic=options.deterministic),
        explain_out_of_memory(options.batch_size),
    ):
        training.reset(options.seed)
        diverged = False
        try:
            fit(
                training.model,
                training.optimizer,
                training.loader,
                epochs=options.epochs,
                scheduler=one_cycle_scheduler(training.optimizer, total, peak, options.lr_min, options.lr_max),
                step=training.step,
                evaluators={"val": partial(training.evaluate, "val", tta=options.tta)},
                eval_every=options.epochs,
                on_epoch=keep,
            )
        except Diverged:
            diverged = True
    seconds = sum(row["seconds"] for row in rows)
    if diverged:
        chance = 1 / len(setup.data.classes)
        return {"val_accuracy": chance, "train_accuracy": chance, "seconds": seconds, "diverged": True}
    result = {name: rows[-1][name] for name in ("val_accuracy", "val_loss", "train_accuracy")}
    return result | {"seconds": seconds, "diverged": False}
