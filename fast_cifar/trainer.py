"""Training as the options say: one run, several seeds of it, or going on with an interrupted one.

`Run` is one seed, from its first epoch, or from its last checkpoint, to its summary.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fast_cifar.build import Setup, TrainingState, build_setup
from fast_cifar.custom_resnet import parameter_count
from fast_cifar.engine import EpochMetrics, Evaluation, evaluate, train_epoch
from fast_cifar.lr_finder import sweep, write_range_test
from fast_cifar.options import RangeTestOptions, TrainOptions
from fast_cifar.plots import run_images, style
from fast_cifar.runs import checkpoint, console
from fast_cifar.runs.run_folder import RunFolder, check_new, new_path
from fast_cifar.runs.run_state import RunState
from fast_cifar.runs.stats import summarize
from fast_cifar.schedules import one_cycle
from fast_cifar.system.device import (
    describe_device,
    explain_out_of_memory,
    gradients_enabled,
    peak_memory,
    reset_peak_memory,
    seeded_run,
)
from fast_cifar.system.distributed import DistributedContext, process_group
from fast_cifar.system.errors import UserError
from fast_cifar.system.signals import Stopped, StopRequest, stop_on_signal

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
    with gradients_enabled(), process_group() as distributed:
        begin = _start if options.resume is None else _resume
        return begin(options, distributed, log if distributed.is_main else _say_nothing)


def _say_nothing(line: str) -> None:
    pass


def _start(options: TrainOptions, distributed: DistributedContext, log: Log) -> dict[str, Any]:
    options.check()
    options = options.resolved()
    options.check()
    if distributed.is_main:
        check_new(new_path(options.out, options.name, options.data))
    setup = build_setup(options, distributed)
    steps, _ = cycle_steps(options, len(setup.data.train) // options.batch_size)
    found = None
    if options.find_lr:
        alone, test = dataclasses.replace(setup, distributed=DistributedContext()), RangeTestOptions()
        found = distributed.broadcast(sweep(alone, options.seed, test) if distributed.is_main else None)
        options = options.replace(lr_min=found.suggestion.lr_min, lr_max=found.suggestion.lr_max)
        log(f"range test: LRMIN {options.lr_min:.3g}, LRMAX {options.lr_max:.3g}")
        for warning in found.warnings:
            log(f"warning: {warning}")
        if steps < test.iters:
            log(
                f"warning: a run of {steps} steps is shorter than the range test, and often wants a third of its LRMAX "
                "(docs/recipe.md); more --epochs or a smaller --batch-size make it longer"
            )
    folder = RunFolder.create_new(options.out, options.name, options.data) if distributed.is_main else None
    folder = distributed.broadcast(folder)
    options = options.replace(name=folder.path.name, **setup.resolved_machine())
    try:
        if distributed.is_main:
            folder.write_config(options.as_dict())
            if found is not None:
                write_range_test(folder, found)
        return _train(setup, options, folder, log)
    except BaseException as end:
        # Nobody could go on with a folder that has no configuration, and nobody wants one of a run that cannot be.
        useless = not (folder / "config.json").exists() or (
            isinstance(end, UserError) and not any(folder.path.rglob("last.pt"))
        )
        if distributed.is_main and useless:
            shutil.rmtree(folder.path)
        raise


def _resume(options: TrainOptions, distributed: DistributedContext, log: Log) -> dict[str, Any]:
    folder = RunFolder.open(Path(options.resume))
    if distributed.is_main:
        folder.tidy()
    options = options.continued(folder.config())
    options.check()
    finished = distributed.broadcast(folder.summary())
    if finished is not None:
        judge = "val" if finished["test_accuracy"] is None else "test"
        log(f"{folder.path} is finished: {judge} accuracy {finished[f'{judge}_accuracy']:.2%}")
        return finished
    return _train(build_setup(options, distributed), options, folder, log)


def _train(setup: Setup, options: TrainOptions, folder: RunFolder, log: Log) -> dict[str, Any]:
    train_some = _train_alone if options.runs is None else _train_several
    reset_peak_memory(setup.device)
    try:
        with explain_out_of_memory(options.batch_size):
            return train_some(setup, setup.parts(options.lr_max, options.ema), options, folder, log)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; what is done is saved, to go on: python run_train.py --resume {folder.path}"
        ) from None


def _train_several(
    setup: Setup, parts: TrainingState, options: TrainOptions, folder: RunFolder, log: Log
) -> dict[str, Any]:
    distributed = setup.distributed
    summaries, failures = [], []
    for k in range(1, options.runs + 1):
        one = options.replace(seed=options.seed + k - 1, runs=None, out=str(folder.path), name=f"run-{k}")
        log(f"run {k} of {options.runs}, seed {one.seed}")
        run = RunFolder(folder / one.name)
        if distributed.is_main:
            run.path.mkdir(exist_ok=True)
            if not (run / "config.json").exists():
                run.write_config(one.as_dict())
        try:
            summaries.append(distributed.broadcast(run.summary()) or _train_alone(setup, parts, one, run, log))
        except Diverged as error:
            failures.append(f"seed {one.seed}: {error}")
            log(f"run {k} failed: {error}")
    if not summaries:
        raise Diverged(f"all {options.runs} runs failed; {failures[0]}")
    summary = summarize(summaries) | {"failures": failures}
    if distributed.is_main:
        folder.write_summary(summary)
    log(console.several_line(summary))
    if failures:
        raise Diverged(f"{len(failures)} of {options.runs} runs failed; {failures[0]}")
    return summary


def _train_alone(
    setup: Setup, parts: TrainingState, options: TrainOptions, folder: RunFolder, log: Log
) -> dict[str, Any]:
    with seeded_run(options.seed, setup.device, deterministic=options.deterministic):
        return Run(setup, parts, options, folder, log).to_the_end()


class Diverged(UserError):
    """The loss became infinite or NaN."""


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


class Run:
    """The epochs of a run.

    Args:
        setup: machine and data.
        parts: of this setup; another run may have used them before.
        options: resolved; `runs` does not count here.
        folder: exists, with its configuration; a last.pt in it is where the run goes on.
        log: takes each line for the screen.
    """

    def __init__(
        self,
        setup: Setup,
        parts: TrainingState,
        options: TrainOptions,
        folder: RunFolder,
        log: Callable[[str], None],
    ) -> None:
        self.setup, self.parts, self.options, self.folder, self.log = setup, parts, options, folder, log
        self.loader, self.eval_loaders = parts.loader, parts.eval_loaders
        self.model, self.step = parts.model, parts.step
        total, peak = cycle_steps(options, len(self.loader))
        self.multiplier = one_cycle(total, peak, options.lr_min, options.lr_max)
        self.state = RunState(setup, parts, options, folder, self.multiplier, log)
        self.distributed = setup.distributed
        self.stop = StopRequest(self.distributed.any)
        self.save_seconds = 0.0
        self.history: list[dict[str, Any]] = []

    def to_the_end(self) -> dict[str, Any]:
        setup, options = self.setup, self.options
        self.state.restore()
        self.history = self.distributed.broadcast(
            self.folder.cut_history(self.state.epoch) if self.distributed.is_main else []
        )
        for line in console.opening_lines(setup, options, describe_device(setup.device), len(self.loader)):
            self.log(line)
        if not style.matplotlib_available():
            self.log(style.NO_MATPLOTLIB)
        compile_seconds = self._warm_up()
        started = time.perf_counter()
        first = self.state.epoch
        evaluation = None
        with (
            stop_on_signal(self.stop, self._announce_stop, patient=self.distributed.size > 1),
            checkpoint.Writer(setup.device, keep={self.folder.last: self.folder.previous}) as writer,
            tqdm(
                total=options.epochs, initial=first, desc="epochs", unit="epoch", disable=None, dynamic_ncols=True
            ) as bar,
        ):
            for epoch in range(first + 1, options.epochs + 1):
                try:
                    evaluation = self._one_epoch(epoch, writer)
                except Stopped:
                    self._refuse_divergence(epoch, [self.state.metrics.over(self.distributed).loss])
                    self._save(writer, self.state.last_checkpoint())
                    raise KeyboardInterrupt from None
                pace = (time.perf_counter() - started) / (epoch - first)
                counts = {split: len(setup.split(split)) for split in self.eval_loaders}
                self.log(console.epoch_line(self.history[-1], options.epochs, counts, pace * (options.epochs - epoch)))
                bar.set_postfix_str(console.epoch_glance(self.history[-1]), refresh=False)
                bar.update()
        return self._finish(evaluation or self._evaluate(setup.judge), compile_seconds)

    def _announce_stop(self) -> None:
        self.log("stopping after this step; once more to stop at once")

    def _warm_up(self) -> float:
        """Compiles loader and step, if asked to, so that no epoch's throughput contains it; returns the seconds."""
        if not self.step.needs_warm_up:
            return 0.0
        started = time.perf_counter()
        self.step.warm_up(*next(iter(self.loader)))
        if self.step.note:
            self.log(self.step.note)
        return time.perf_counter() - started

    def _one_epoch(self, epoch: int, writer: checkpoint.Writer) -> Evaluation | None:
        """Trains, evaluates, writes history, orders checkpoints; returns the evaluation that judges the run, if any."""
        options = self.options
        self.loader.set_epoch(epoch - 1)
        if self.distributed.size > 1:  # dropout is to differ between the slices of a batch
            torch.manual_seed(
                int(np.random.SeedSequence([options.seed, epoch, self.distributed.rank]).generate_state(1)[0])
            )
        self._train_what_is_left(epoch, writer)
        started = time.perf_counter()
        evaluations: dict[str, Evaluation | None] = dict.fromkeys(self.eval_loaders)
        if epoch % options.eval_every == 0 or epoch == options.epochs:
            evaluations = {split: self._evaluate(split) for split in self.eval_loaders}
        row = self._row(epoch, self.state.metrics.over(self.distributed), evaluations) | {
            "evaluation_seconds": time.perf_counter() - started
        }
        self._refuse_divergence(epoch, [value for key, value in row.items() if key.endswith("_loss")])
        if self.distributed.is_main:
            self.folder.append_history(row)
        self.history.append(row)
        self.state.finish_epoch()
        started = time.perf_counter()
        self._save(writer, self.state.checkpoints(row))
        self.save_seconds += time.perf_counter() - started
        return evaluations[self.setup.judge]

    def _train_what_is_left(self, epoch: int, writer: checkpoint.Writer) -> None:
        """Trains on the rest of an epoch, of which a checkpoint may have been written in the middle."""
        steps, every = len(self.loader), self.options.checkpoint_steps or len(self.loader)
        batches = self.loader.batches(self.state.metrics.steps)
        while self.state.metrics.steps < steps:
            some = itertools.islice(batches, every - self.state.metrics.steps % every)
            train_epoch(
                self.step,
                some,
                self.state.scheduler,
                self.state.metrics,
                check=self.stop.check,
                title=f"epoch {epoch}/{self.options.epochs}",
                steps=steps,
            )
            if self.state.metrics.steps < steps:
                self._refuse_divergence(epoch, [self.state.metrics.over(self.distributed).loss])
                self._save(writer, self.state.last_checkpoint())

    def _refuse_divergence(self, epoch: int, losses: list[float | None]) -> None:
        if all(math.isfinite(loss) for loss in losses if loss is not None):
            return
        kept = f"; {self.folder.path} keeps the epochs before" if self.state.epoch else ""
        raise Diverged(
            f"the loss diverged in epoch {epoch}, at learning rates up to {self.options.lr_max:g}; "
            f"lower --lr-max (run_lrfind.py measures one){kept}"
        )

    def _save(self, writer: checkpoint.Writer, checkpoints: dict[Path, dict[str, Any]]) -> None:
        if self.distributed.is_main:
            writer.save(checkpoints)

    def _row(self, epoch: int, metrics: EpochMetrics, evaluations: dict[str, Evaluation | None]) -> dict[str, Any]:
        last_step = max(0, self.state.scheduler.last_epoch - 1)  # float16 may have skipped some
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": self.options.lr_max * self.multiplier(last_step),
            "train_loss": metrics.loss,
            "train_accuracy": metrics.accuracy,
        }
        for split in ("val", "test") if "val" in evaluations else ("test",):
            evaluation = evaluations.get(split)
            row[f"{split}_loss"] = evaluation.loss if evaluation else None
            row[f"{split}_accuracy"] = evaluation.accuracy if evaluation else None
        return row | {"images_per_second": metrics.images_per_second, "seconds": metrics.seconds}

    def _evaluate(self, split: str) -> Evaluation:
        loader = self.eval_loaders[split]
        alone = self.distributed.size == 1
        self.distributed.broadcast_buffers(self.model)
        with self.parts.answering():
            self.distributed.broadcast_buffers(self.model)  # each process averages its own
            return evaluate(
                self.model,
                loader,
                self.setup.precision,
                tta=self.options.tta,
                check=self.stop.check if alone else lambda: None,  # shares may differ by a batch
                distributed=self.distributed,
                title=split,
            )

    def _finish(self, evaluation: Evaluation, compile_seconds: float) -> dict[str, Any]:
        """Pictures, then the summary: a run folder with a summary is complete."""
        summary = self._write_summary(evaluation, compile_seconds) if self.distributed.is_main else {}
        return self.distributed.broadcast(summary)

    def _write_summary(self, evaluation: Evaluation, compile_seconds: float) -> dict[str, Any]:
        setup, last = self.setup, self.history[-1]
        headline = f"{setup.data.name}: {evaluation.accuracy:.2%} after {self.state.epoch} epochs"
        lrs = [self.options.lr_max * self.multiplier(step) for step in range(self.state.epoch * len(self.loader))]
        run_images.draw_training_data(self.folder.path, setup, self.loader, lrs)
        run_images.draw_results(self.folder.path, setup, self.history, evaluation, headline)
        seconds = sum(row["seconds"] for row in self.history)
        images = sum(row["images_per_second"] * row["seconds"] for row in self.history)
        tested = [row["test_accuracy"] for row in self.history if row["test_accuracy"] is not None]
        summary = {
            "test_accuracy": evaluation.accuracy if tested else None,
            "best_test_accuracy": max(tested, default=None),
            "test_loss": evaluation.loss if tested else None,
            "train_accuracy": last["train_accuracy"],
            "train_loss": last["train_loss"],
            **({"val_accuracy": last["val_accuracy"]} if "val" in self.eval_loaders else {}),
            "epochs": self.state.epoch,
            "seed": self.options.seed,
            "seconds": seconds,
            "images_per_second": images / seconds if seconds else 0.0,
            "evaluation_seconds": sum(row["evaluation_seconds"] for row in self.history),
            "save_seconds": self.save_seconds,
            "compile_seconds": compile_seconds,
            "peak_memory_bytes": peak_memory(setup.device),
            "dataset": setup.data.name,
            "device": describe_device(setup.device),
            "precision": setup.precision.name,
            "torch": str(torch.__version__),
            "parameters": parameter_count(self.model),
        }
        self.folder.previous.unlink(missing_ok=True)
        self.folder.write_summary(summary)
        for line in console.closing_lines(summary, str(self.folder.path)):
            self.log(line)
        return summary
