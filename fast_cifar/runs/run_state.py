"""What changes during a run, and how it gets into a checkpoint and out again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fast_cifar.build import TrainingState
from fast_cifar.engine import EpochMetrics, Progress
from fast_cifar.optimizer import load_state, one_cycle_scheduler
from fast_cifar.options import SIZE, TrainOptions, flag_of
from fast_cifar.runs import checkpoint
from fast_cifar.runs.run_folder import RunFolder
from fast_cifar.system.device import random_state, set_random_state
from fast_cifar.system.errors import UserError, counted


class RunState:
    """Weights, optimiser, schedule, and how far a run of one seed has come.

    Args:
        training: reset for this run; another run may have used it before.
        options: resolved; `runs` does not matter here.
        folder: exists, with its configuration; a last.pt in it is where the run continues.
        total_steps, peak_step: of the run's cycle.

    Attributes:
        scheduler: sets the learning rate of each step.
        progress: finished epochs, and the metrics of the one that is being trained, in this process.
        best: the highest accuracy on the split that chooses best.pt.
    """

    def __init__(
        self, training: TrainingState, options: TrainOptions, folder: RunFolder, total_steps: int, peak_step: int
    ) -> None:
        self._training, self._options, self._folder = training, options, folder
        self._setup, self._distributed = training.setup, training.setup.distributed
        training.reset(options.seed)
        self.scheduler = one_cycle_scheduler(training.optimizer, total_steps, peak_step, options.lr_min, options.lr_max)
        self.progress = Progress.start(self._setup.device, self._distributed)
        self.best = -1.0

    def checkpoints(self, row: dict[str, Any], *, last: bool) -> dict[Path, dict[str, Any]]:
        """The files to write after the epoch of `row`: best.pt when it is the best so far, then last.pt if wanted."""
        accuracy = row["val_accuracy" if self._setup.val is not None else "test_accuracy"]
        files = {}
        if accuracy is not None and accuracy > self.best:
            self.best = accuracy
            files = {self._folder.best: self._description()}
        return files | (self.last_checkpoint() if last else {})

    def last_checkpoint(self) -> dict[Path, dict[str, Any]]:
        """last.pt: all that the run needs to continue from here as if it had never stopped."""
        training = self._training
        contents = {
            "metrics": self.progress.metrics.over_all_processes().state_dict(),
            "best": self.best,
            "optimizer": training.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": training.step.scaler.state_dict(),
            "random_state": random_state(self._setup.device),
            "steps_per_epoch": len(training.loader),
            "threads": torch.get_num_threads(),
        }
        if training.ema is not None:  # then "model" is the average
            contents["weights"] = training.model.state_dict()
        return {self._folder.last: self._description() | contents}

    def _description(self) -> dict[str, Any]:
        """The network as it is now, and what one has to know to use it."""
        training, options = self._training, self._options.as_dict()
        return {
            "classes": self._setup.data.classes,
            "mean": list(training.loader.mean),
            "std": list(training.loader.std),
            "size": SIZE,
            "options": {name: options[name] for name in options if name in TrainOptions.names(recorded=True)},
            "epoch": self.progress.epoch,
            "model": (training.ema or training.model).state_dict(),
        }

    def restore(self, log: Callable[[str], None]) -> None:
        """Returns to where the last checkpoint was written; without one, nothing changes.

        `log` takes each line for the screen.

        Raises:
            UserError: no sound checkpoint is left, or it is one of other images, classes or another network.
        """
        contents = self._last_checkpoint(log)
        if contents is None:
            return
        folder = self._folder
        self._check_recipe(contents)
        try:
            self._load(contents)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder.last} is damaged or of another network ({error})") from error
        steps = self.progress.metrics.steps
        within = f" and {counted(steps, 'step')}" if steps else ""
        log(f"resuming {folder.path} after epoch {self.progress.epoch}{within}")
        if self._options.deterministic and contents["threads"] != torch.get_num_threads():
            log(
                f"--deterministic: the run began with {contents['threads']} threads and continues with "
                f"{torch.get_num_threads()}, so the numbers may differ in their last bits"
            )

    def _last_checkpoint(self, log: Callable[[str], None]) -> dict[str, Any] | None:
        """The last sound checkpoint; None before the first. Rank 0 looks, and repairs, before the others read."""
        if self._distributed.is_main:
            contents = self._sound_checkpoint(log)
            self._distributed.broadcast(contents is None)
            return contents
        return None if self._distributed.broadcast(None) else checkpoint.load_training(self._folder.last)

    def _sound_checkpoint(self, log: Callable[[str], None]) -> dict[str, Any] | None:
        """last.pt, or the one before it where that is damaged."""
        last, previous = self._folder.last, self._folder.previous
        try:
            if last.exists():
                return checkpoint.load_training(last)
        except UserError as damage:
            if not previous.exists():
                raise
            log(f"{damage}; resuming from the checkpoint before it")
        if not previous.exists():
            return None
        contents = checkpoint.load_training(previous)
        previous.replace(last)  # or the next save would keep the damaged one as the previous
        return contents

    def _check_recipe(self, contents: dict[str, Any]) -> None:
        path, options, loader = self._folder.path, self._options, self._training.loader
        if contents["classes"] != self._setup.data.classes:
            raise UserError(f"{path} was trained on other classes than those of {options.data}")
        recipe, trained = options.as_dict(), contents["options"]
        for name in recipe.keys() & trained.keys() & TrainOptions.names(resumable=False, recorded=True):
            if recipe[name] != trained[name]:
                raise UserError(
                    f"{path} was trained with {flag_of(name)} {trained[name]!r}, "
                    f"and its config.json says {recipe[name]!r}"
                )
        images = (list(loader.mean), list(loader.std), len(loader))
        if (contents["mean"], contents["std"], contents["steps_per_epoch"]) != images:
            raise UserError(f"{path} was trained on other images than those of {options.data}")

    def _load(self, contents: dict[str, Any]) -> None:
        training, device, last = self._training, self._setup.device, self._folder.last
        checkpoint.load_weights(training.model, contents["model"], last)
        if training.ema is not None:
            training.ema.reset()
            checkpoint.load_weights(training.model, contents["weights"], last)
        load_state(training.optimizer, contents["optimizer"])
        self.scheduler.load_state_dict(contents["scheduler"])
        if training.step.scaler.is_enabled():
            training.step.load_scaler(contents["scaler"])
        set_random_state(contents["random_state"], device)
        self.best = contents["best"]
        self.progress.epoch = contents["epoch"]
        metrics = self.progress.metrics
        metrics.load_state_dict(contents["metrics"])
        if not self._distributed.is_main:  # rank 0 takes over the sums of all
            started = EpochMetrics.start(device, self._distributed)
            started.steps, started.lr = metrics.steps, metrics.lr
            self.progress.metrics = started
