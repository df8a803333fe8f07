"""What changes while a run goes on, and how it gets into a checkpoint and out again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fast_cifar.build import Setup, TrainingState
from fast_cifar.engine import EpochMetrics
from fast_cifar.optimizer import load_state, make_scheduler
from fast_cifar.options import SIZE, TrainOptions, flag_of
from fast_cifar.runs import checkpoint
from fast_cifar.runs.run_folder import RunFolder
from fast_cifar.system.device import random_state, set_random_state
from fast_cifar.system.errors import UserError


class RunState:
    """Weights, optimiser, schedule, and how far a run has come.

    Args:
        setup, parts, options, folder, log: those of the run.
        multiplier: of its schedule.

    Attributes:
        scheduler: moves the learning rate, one step at a time.
        epoch: how many are done.
        metrics: of the epoch that is being trained, in this process.
        best: the highest accuracy on the split that chooses best.pt.
    """

    def __init__(
        self,
        setup: Setup,
        parts: TrainingState,
        options: TrainOptions,
        folder: RunFolder,
        multiplier: Callable[[int], float],
        log: Callable[[str], None],
    ) -> None:
        self._workspace, self._parts, self._options, self._folder, self._log = setup, parts, options, folder, log
        self._world = setup.distributed
        parts.reset(setup, options.seed)
        self.scheduler = make_scheduler(parts.optimizer, options.lr_max, multiplier)
        self.epoch = 0
        self.metrics = EpochMetrics.empty(setup.device)
        self.best = -1.0

    def finish_epoch(self) -> None:
        self.epoch += 1
        self.metrics = EpochMetrics.empty(self._workspace.device)

    def checkpoints(self, row: dict[str, Any]) -> dict[Path, dict[str, Any]]:
        """What is to be written after the epoch of `row`: best.pt when it is the best so far, then last.pt."""
        judge = "val_accuracy" if self._workspace.val is not None else "test_accuracy"
        if row[judge] is None or row[judge] <= self.best:
            return self.last_checkpoint()
        self.best = row[judge]
        return {self._folder.best: self._description()} | self.last_checkpoint()

    def last_checkpoint(self) -> dict[Path, dict[str, Any]]:
        """last.pt: all that the run needs to go on from here as if it had never stopped."""
        parts = self._parts
        training = {
            "metrics": self.metrics.over(self._world).state_dict(),
            "best": self.best,
            "optimizer": parts.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": parts.step.scaler.state_dict(),
            "random_state": random_state(self._workspace.device),
            "steps_per_epoch": len(parts.loader),
            "threads": torch.get_num_threads(),
        }
        if parts.average is not None:  # then "model" is the average
            training["weights"] = parts.model.state_dict()
        return {self._folder.last: self._description() | training}

    def _description(self) -> dict[str, Any]:
        """The network as it is now, and what one has to know to use it."""
        loader = self._parts.loader
        recorded = TrainOptions.names(recorded=True)
        return {
            "classes": self._workspace.data.classes,
            "mean": list(loader.mean),
            "std": list(loader.std),
            "size": SIZE,
            "options": {name: value for name, value in self._options.as_dict().items() if name in recorded},
            "epoch": self.epoch,
            "model": (self._parts.average or self._parts.model).state_dict(),
        }

    def restore(self) -> None:
        """Goes back to where the last checkpoint was written; without one, nothing changes.

        Raises:
            UserError: no sound checkpoint is left, or it is one of other pictures, classes or another network.
        """
        contents = self._last_checkpoint()
        if contents is None:
            return
        self._check_recipe(contents)
        try:
            self._load(contents)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{self._folder.last} is damaged or of another network ({error})") from error
        steps = f" and {self.metrics.steps} steps" if self.metrics.steps else ""
        self._log(f"going on after epoch {self.epoch}{steps} of {self._folder.path}")
        if self._options.deterministic and contents["threads"] != torch.get_num_threads():
            self._log(
                f"--deterministic: it was begun with {contents['threads']} threads and goes on with "
                f"{torch.get_num_threads()}, so the numbers may differ in their last bits"
            )

    def _last_checkpoint(self) -> dict[str, Any] | None:
        """The last sound checkpoint; None before the first. Rank 0 looks, and mends, before the others read."""
        if self._world.is_main:
            contents = self._sound_checkpoint()
            self._world.broadcast(contents is None)
            return contents
        return None if self._world.broadcast(None) else checkpoint.load_training(self._folder.last)

    def _sound_checkpoint(self) -> dict[str, Any] | None:
        """last.pt, or the one before it where that is damaged."""
        last, previous = self._folder.last, self._folder.previous
        try:
            if last.exists():
                return checkpoint.load_training(last)
        except UserError as damage:
            if not previous.exists():
                raise
            self._log(f"{damage}; going on from the checkpoint before it")
        if not previous.exists():
            return None
        contents = checkpoint.load_training(previous)
        previous.replace(last)  # or the next save would keep the damaged one as the previous
        return contents

    def _check_recipe(self, contents: dict[str, Any]) -> None:
        path, data, loader = self._folder.path, self._options.data, self._parts.loader
        if contents["classes"] != self._workspace.data.classes:
            raise UserError(f"{path} was trained on other classes than those of {data}")
        recipe, trained = self._options.as_dict(), contents["options"]
        for name in recipe.keys() & trained.keys() & TrainOptions.names(resumable=False, recorded=True):
            if recipe[name] != trained[name]:
                raise UserError(
                    f"{path} was trained with {flag_of(name)} {trained[name]!r}, "
                    f"and its config.json says {recipe[name]!r}"
                )
        pictures = (list(loader.mean), list(loader.std), len(loader))
        if (contents["mean"], contents["std"], contents["steps_per_epoch"]) != pictures:
            raise UserError(f"{path} was trained on other pictures than those of {data}")

    def _load(self, contents: dict[str, Any]) -> None:
        parts, device = self._parts, self._workspace.device
        checkpoint.load_weights(parts.model, contents["model"], self._folder.last)
        if parts.average is not None:
            parts.average.reset()
            checkpoint.load_weights(parts.model, contents["weights"], self._folder.last)
        load_state(parts.optimizer, contents["optimizer"])
        self.scheduler.load_state_dict(contents["scheduler"])
        if parts.step.scaler.is_enabled():
            parts.step.load_scaler(contents["scaler"])
        set_random_state(contents["random_state"], device)
        self.best, self.epoch = contents["best"], contents["epoch"]
        self.metrics.load_state_dict(contents["metrics"])
        if not self._world.is_main:  # rank 0 takes over what all had come to
            self.metrics = dataclasses.replace(EpochMetrics.empty(device), steps=self.metrics.steps)
