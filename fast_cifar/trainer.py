"""The run: epochs, history, checkpoints, resume, and the summary of one or of several seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from fast_cifar import checkpoint, console, gallery, plots
from fast_cifar.aggregate import aggregate
from fast_cifar.assembly import Workspace, assemble
from fast_cifar.custom_resnet import parameter_count
from fast_cifar.engine import EpochResult, Evaluation, TrainStep, evaluate, train_epoch
from fast_cifar.errors import UserError
from fast_cifar.lr_finder import sweep, write_range_test
from fast_cifar.options import SIZE, RangeTestOptions, TrainOptions
from fast_cifar.run_folder import RunFolder, new_path, refuse_existing
from fast_cifar.runtime import describe_device, reproducible
from fast_cifar.schedules import one_cycle

Log = Callable[[str], None]


def train(options: TrainOptions, *, log: Log = tqdm.write) -> dict[str, Any]:
    """Trains as `options` say and fills a run folder.

    Args:
        options: see `TrainOptions`; the defaults are the recipe.
        log: takes each line for the screen.

    Returns:
        The summary, as in the run folder's `summary.json`: accuracies in 0..1, times in seconds.

    Raises:
        UserError: the options, the data, the machine or a run folder do not allow it, or the loss diverged.
        KeyboardInterrupt: interrupted; the message says how to go on.
    """
    if options.resume is not None:
        return _resume(options, log)
    options.check()
    options = options.resolved()
    path = new_path(options.out, options.name, options.data)
    refuse_existing(path)
    workspace = assemble(options)
    cycle_steps(options, len(workspace.data.train) // options.batch_size)
    found = None
    if options.find_lr:
        found = sweep(workspace, options.seed, RangeTestOptions())
        options = options.replace(lr_min=found.suggestion.lr_min, lr_max=found.suggestion.lr_max)
        log(f"range test: LRMIN {options.lr_min:.3g}, LRMAX {options.lr_max:.3g}")
    folder = RunFolder.create(path)
    options = options.replace(name=path.name, device=str(workspace.device))
    folder.write_config(options.as_dict())
    if found is not None:
        write_range_test(folder, found)
    return _train(workspace, options, folder, log)


def _resume(options: TrainOptions, log: Log) -> dict[str, Any]:
    folder = RunFolder.open(Path(options.resume))
    options = options.continued(folder.config())
    options.check()
    finished = folder.summary()
    if finished is not None:
        log(f"{folder.path} is finished: test accuracy {finished['test_accuracy']:.2%}")
        return finished
    return _train(assemble(options), options, folder, log)


def _train(workspace: Workspace, options: TrainOptions, folder: RunFolder, log: Log) -> dict[str, Any]:
    if options.runs is None:
        return _train_one(workspace, options, folder, log)
    summaries = []
    for k in range(1, options.runs + 1):
        path = folder / f"run-{k}"
        one = options.replace(seed=options.seed + k - 1, runs=None, out=str(folder.path), name=path.name)
        log(f"run {k} of {options.runs}, seed {one.seed}")
        run = RunFolder.open(path) if path.exists() else RunFolder.create(path)
        run.write_config(one.as_dict())
        summaries.append(run.summary() or _train_one(workspace, one, run, log))
    summary = aggregate(summaries)
    folder.write_summary(summary)
    log(console.several_line(summary))
    return summary


def _train_one(workspace: Workspace, options: TrainOptions, folder: RunFolder, log: Log) -> dict[str, Any]:
    with reproducible(options.seed, workspace.device, deterministic=options.deterministic):
        run = _Run(workspace, options, folder, log)
        try:
            return run.to_the_end()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted after {run.epoch} of {options.epochs} epochs; to go on: "
                f"python run_train.py --resume {folder.path}"
            ) from None


def cycle_steps(options: TrainOptions, steps_per_epoch: int) -> tuple[int, int]:
    """(steps of the run, 0-based step of the peak).

    Raises:
        UserError: too few steps to climb and to come down.
    """
    total = options.epochs * steps_per_epoch
    peak = options.peak_epoch * steps_per_epoch - 1 if options.peak_epoch else max(1, round(total * 5 / 24) - 1)
    if not 0 < peak < total - 1:
        raise UserError(
            f"too few steps for a cycle: {options.epochs} epochs of {steps_per_epoch}; "
            "use more --epochs, more images, or a smaller --batch-size"
        )
    return total, peak


class _Run:
    """One seed, from its first epoch, or from its last checkpoint, to its summary."""

    def __init__(self, workspace: Workspace, options: TrainOptions, folder: RunFolder, log: Log) -> None:
        self.workspace, self.options, self.folder, self.log = workspace, options, folder, log
        self.loader = workspace.train_loader(options.seed)
        self.eval_loaders = {"test": workspace.eval_loader(workspace.data.test, self.loader)}
        if workspace.val is not None:
            self.eval_loaders = {"val": workspace.eval_loader(workspace.val, self.loader)} | self.eval_loaders
        self.model = workspace.network()
        self.optimizer = workspace.optimizer(self.model, options.lr_max)
        total, peak = cycle_steps(options, len(self.loader))
        self.multiplier = one_cycle(total, peak, options.lr_min, options.lr_max)
        self.scheduler = LambdaLR(self.optimizer, self.multiplier)
        self.step = TrainStep(
            self.model,
            self.optimizer,
            workspace.precision,
            label_smoothing=options.label_smoothing,
            compile=options.compile,
        )
        self.epoch = 0
        self.best = -1.0
        self.history: list[dict[str, Any]] = []

    def to_the_end(self) -> dict[str, Any]:
        workspace, options = self.workspace, self.options
        if self.folder.last.exists():
            self._restore()
        for line in console.opening_lines(workspace, options, describe_device(workspace.device), len(self.loader)):
            self.log(line)
        if not plots.matplotlib_available():
            self.log(gallery.NO_MATPLOTLIB)
        lrs = [options.lr_max * self.multiplier(step) for step in range(options.epochs * len(self.loader))]
        gallery.opening_pictures(self.folder.path, workspace, self.loader, lrs)
        compile_seconds = self._warm_up()
        started = time.perf_counter()
        first = self.epoch
        evaluation = None
        with tqdm(
            total=options.epochs, initial=first, desc="epochs", unit="epoch", disable=None, dynamic_ncols=True
        ) as bar:
            for epoch in range(first + 1, options.epochs + 1):
                evaluation = self._one_epoch(epoch)
                pace = (time.perf_counter() - started) / (epoch - first)
                counts = {split: len(loader.labels) for split, loader in self.eval_loaders.items()}
                self.log(console.epoch_line(self.history[-1], options.epochs, counts, pace * (options.epochs - epoch)))
                bar.update()
        return self._finish(evaluation or self._evaluate("test"), compile_seconds)

    def _warm_up(self) -> float:
        """Compiles loader and step, if asked to, so that no epoch's throughput contains it; returns the seconds."""
        if not self.options.compile and self.workspace.device.type == "cpu":
            return 0.0
        started = time.perf_counter()
        self.step.warm_up(*next(iter(self.loader)))
        return time.perf_counter() - started

    def _one_epoch(self, epoch: int) -> Evaluation | None:
        """Trains, evaluates, writes history and checkpoints; returns the evaluation on the test split, if any."""
        options = self.options
        self.loader.set_epoch(epoch - 1)
        result = train_epoch(self.step, self.loader, self.scheduler, title=f"epoch {epoch}/{options.epochs}")
        started = time.perf_counter()
        evaluations: dict[str, Evaluation | None] = dict.fromkeys(self.eval_loaders)
        if epoch % options.eval_every == 0 or epoch == options.epochs:
            evaluations = {split: self._evaluate(split) for split in self.eval_loaders}
        row = self._row(epoch, result, evaluations) | {"evaluation_seconds": time.perf_counter() - started}
        if not all(math.isfinite(value) for name, value in row.items() if name.endswith("_loss") and value is not None):
            raise UserError(
                f"the loss diverged in epoch {epoch}, at learning rates up to {options.lr_max:g}; lower --lr-max "
                f"(run_lrfind.py measures one); {self.folder.path} keeps what came before"
            )
        self.folder.append_history(row)
        self.history.append(row)
        self.epoch = epoch
        self._save(row)
        return evaluations["test"]

    def _row(self, epoch: int, result: EpochResult, evaluations: dict[str, Evaluation | None]) -> dict[str, Any]:
        last_step = epoch * len(self.loader) - 1
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": self.options.lr_max * self.multiplier(last_step),
            "train_loss": result.loss,
            "train_accuracy": result.accuracy,
        }
        for split, evaluation in evaluations.items():
            row[f"{split}_loss"] = evaluation.loss if evaluation else None
            row[f"{split}_accuracy"] = evaluation.accuracy if evaluation else None
        return row | {"images_per_second": result.images_per_second, "seconds": result.seconds}

    def _evaluate(self, split: str) -> Evaluation:
        loader = self.eval_loaders[split]
        return evaluate(self.model, loader, self.workspace.precision, tta=self.options.tta, title=split)

    def _save(self, row: dict[str, Any]) -> None:
        """Writes best.pt when this epoch is the best so far, then last.pt."""
        described = {
            "classes": self.workspace.data.classes,
            "mean": list(self.loader.mean),
            "std": list(self.loader.std),
            "size": SIZE,
            "options": self.options.as_dict(),
            "epoch": self.epoch,
            "model": self.model.state_dict(),
        }
        judge = "val_accuracy" if "val" in self.eval_loaders else "test_accuracy"
        if row[judge] is not None and row[judge] > self.best:
            self.best = row[judge]
            checkpoint.save(self.folder.best, described)
        training = {
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "random_state": torch.get_rng_state(),
        }
        checkpoint.save(self.folder.last, described | training)

    def _restore(self) -> None:
        """Goes back to where last.pt was written; what the history says beyond that is done again."""
        contents = checkpoint.load(self.folder.last)
        if contents["classes"] != self.workspace.data.classes:
            raise UserError(f"{self.folder.path} was trained on other classes than those of {self.options.data}")
        checkpoint.load_weights(self.model, contents, self.folder.last)
        # The saved groups carry the fused flag of the machine that wrote them.
        for saved, mine in zip(contents["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            saved.update({flag: mine[flag] for flag in ("fused", "foreach", "capturable")})
        self.optimizer.load_state_dict(contents["optimizer"])
        self.scheduler.load_state_dict(contents["scheduler"])
        if self.step.scaler.is_enabled() and contents["scaler"]:
            self.step.scaler.load_state_dict(contents["scaler"])
        torch.set_rng_state(contents["random_state"])
        self.best, self.epoch = contents["best"], contents["epoch"]
        self.history = self.folder.cut_history(self.epoch)
        self.log(f"going on after epoch {self.epoch} of {self.folder.path}")

    def _finish(self, evaluation: Evaluation, compile_seconds: float) -> dict[str, Any]:
        """Pictures, then the summary: a run folder with a summary is complete."""
        workspace, last = self.workspace, self.history[-1]
        headline = f"{workspace.data.name}: {evaluation.accuracy:.2%} after {self.epoch} epochs"
        gallery.closing_pictures(self.folder.path, workspace, self.history, evaluation, headline)
        seconds = sum(row["seconds"] for row in self.history)
        images = sum(row["images_per_second"] * row["seconds"] for row in self.history)
        summary = {
            "test_accuracy": evaluation.accuracy,
            "best_test_accuracy": max(row["test_accuracy"] for row in self.history if row["test_accuracy"] is not None),
            "test_loss": evaluation.loss,
            "train_accuracy": last["train_accuracy"],
            "train_loss": last["train_loss"],
            **({"val_accuracy": last["val_accuracy"]} if "val" in self.eval_loaders else {}),
            "epochs": self.epoch,
            "seed": self.options.seed,
            "seconds": seconds,
            "images_per_second": images / seconds,
            "evaluation_seconds": sum(row["evaluation_seconds"] for row in self.history),
            "compile_seconds": compile_seconds,
            "dataset": workspace.data.name,
            "device": describe_device(workspace.device),
            "precision": workspace.precision.name,
            "torch": str(torch.__version__),
            "parameters": parameter_count(self.model),
        }
        self.folder.write_summary(summary)
        for line in console.closing_lines(summary, str(self.folder.path)):
            self.log(line)
        return summary
