"""Training as the options say: a run folder around `fit`, resume, and several seeds."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fast_cifar.build import Setup, TrainingState, build_setup
from fast_cifar.custom_resnet import parameter_count, training_flops
from fast_cifar.engine import EpochMetrics, Evaluation, Row, evaluate, fit
from fast_cifar.lr_curve import RangeTest
from fast_cifar.lr_finder import sweep, write_range_test
from fast_cifar.options import SWEEP_STEPS, RangeTestOptions, TrainOptions, flag_of
from fast_cifar.plots import run_images, style
from fast_cifar.runs import checkpoint, console
from fast_cifar.runs.run_folder import RunFolder, check_new, new_path
from fast_cifar.runs.run_state import RunState
from fast_cifar.runs.stats import summarize
from fast_cifar.system.device import (
    checkpoint_interval,
    describe_device,
    explain_out_of_memory,
    gradients_enabled,
    peak_memory,
    reset_peak_memory,
    seeded_run,
    works_asynchronously,
)
from fast_cifar.system.distributed import ALONE, DistributedContext, process_group
from fast_cifar.system.errors import UserError, counted
from fast_cifar.system.progress import progress_bar
from fast_cifar.system.signals import Stopped, StopRequest, stop_on_signal

ESTIMATE_AFTER = 10.0  # seconds of training, after which its duration can be estimated
STOP_CHECK_STEPS = 20  # steps between two agreements of several GPUs on whether to stop, for which their hosts wait
Log = Callable[[str], None]
OnEpoch = Callable[[Row], None]


def train(options: TrainOptions, *, on_epoch: OnEpoch | None = None, log: Log = tqdm.write) -> dict[str, Any]:
    """Trains as `options` say and fills a run folder.

    Args:
        options: see `TrainOptions`; the defaults are the recipe.
        on_epoch: called with each epoch's row of `metrics.jsonl` as a dictionary.
        log: takes each line for the screen.

    Returns:
        The summary, as in the run folder's `summary.json`: accuracies in 0..1, times in seconds.

    Raises:
        UserError: the options, the data, the machine or a run folder do not allow it, or the loss diverged.
        KeyboardInterrupt: interrupted; the message says how to resume.
    """
    with gradients_enabled(), process_group() as distributed:
        if not distributed.is_main:
            on_epoch, log = None, lambda line: None
        if options.resume is not None:
            folder = RunFolder.open(Path(options.resume))
            with _locked(folder, distributed):
                options, summary = _reopen(folder, options, distributed)
                if summary is not None:
                    log(f"{folder.path} is finished: {console.headline(summary)}")
                    return summary
                setup = build_setup(options, distributed, test=options.test)
                return _train_seeds(setup, options, folder, on_epoch, log)
        setup, options, found = _prepare(options, distributed, log)
        folder = RunFolder.create(options.out, options.name, options.data) if distributed.is_main else None
        folder = distributed.broadcast(folder)
        options = options.replace(name=folder.path.name, **setup.resolved_machine())
        with _locked(folder, distributed), _removed_if_useless(folder, distributed):
            if distributed.is_main:
                folder.write_config(options.as_dict())
                if found is not None:
                    write_range_test(folder, found, setup.title(options.seed))
            return _train_seeds(setup, options, folder, on_epoch, log)


def _locked(folder: RunFolder, distributed: DistributedContext) -> AbstractContextManager[None]:
    return folder.locked() if distributed.is_main else nullcontext()


def _reopen(
    folder: RunFolder, options: TrainOptions, distributed: DistributedContext
) -> tuple[TrainOptions, dict[str, Any] | None]:
    """The options of an existing run, and its summary if it is finished."""
    if distributed.is_main:
        folder.tidy()
    options = options.continued(folder.config())
    options.check()
    return options, distributed.broadcast(folder.summary())


def _prepare(
    options: TrainOptions, distributed: DistributedContext, log: Log
) -> tuple[Setup, TrainOptions, RangeTest | None]:
    """All that can be refused before a run folder is made: options, machine, data, and with `--find-lr` the rates."""
    options.check()
    options = options.resolved()
    options.check()
    if distributed.is_main:
        check_new(new_path(options.out, options.name, options.data))
    if options.lr_from is not None:
        options = _with_rates_of(options, log)
    setup = build_setup(options, distributed, test=options.test)
    steps, _ = cycle_steps(options, len(setup.data.train) // options.batch_size)
    found = None
    if options.find_lr:
        if distributed.is_main:
            found = sweep(dataclasses.replace(setup, distributed=ALONE), options.seed, RangeTestOptions())
        found = distributed.broadcast(found)
        options = options.replace(lr_min=found.suggestion.lr_min, lr_max=found.suggestion.lr_max)
        log(f"range test: LRMIN {options.lr_min:.3g}, LRMAX {options.lr_max:.3g}")
        for warning in found.warnings:
            log(f"warning: {warning}; then use --lr-from with its run folder{_instead(options)}")
    if (options.find_lr or options.lr_from is not None) and steps < SWEEP_STEPS:
        log(
            f"warning: {counted(steps, 'step')} are few for the LRMAX of a range test, which was three to six times "
            "too high in runs of 90 steps (docs/recipe.md); make the run longer with more --epochs or a smaller "
            f"--batch-size, or use --lr-max {options.lr_max / 4:.2g}{_instead(options)}"
        )
    return setup, options, found


def _instead(options: TrainOptions) -> str:
    """ " instead of --find-lr": the given option that would contradict another source of LRMAX."""
    given = [name for name in ("find_lr", "lr_from") if name in options.explicit]
    return f" instead of {flag_of(given[0])}" if given else ""


def _with_rates_of(options: TrainOptions, log: Log) -> TrainOptions:
    """The options with LRMIN and LRMAX of the range test in `--lr-from`; warns where its recipe was another one.

    Raises:
        UserError: there is no range test, or its rates are damaged.
    """
    folder = RunFolder.open(Path(options.lr_from))
    lr_min, lr_max = folder.suggested_rates()
    config, recipe = folder.config(), options.as_dict()
    shared = RangeTestOptions.names(resumable=False, recorded=True) - {"seed", "val_split", "limit_test"} | {"data"}
    for name in sorted(shared & recipe.keys() & config.keys()):
        same_path = name == "data" and os.path.abspath(config[name]) == os.path.abspath(recipe[name])
        if config[name] != recipe[name] and not same_path:
            log(f"warning: the range test in {folder.path} had {flag_of(name)} {config[name]}, not {recipe[name]}")
    log(f"range test of {folder.path}: LRMIN {lr_min:.3g}, LRMAX {lr_max:.3g}")
    return options.replace(lr_min=lr_min, lr_max=lr_max)


@contextmanager
def _removed_if_useless(folder: RunFolder, distributed: DistributedContext) -> Iterator[None]:
    """Removes the folder of a run that failed before it could be resumed: without a configuration, or refused before
    its first checkpoint, as it would be again."""
    try:
        yield
    except BaseException as end:
        configured, started = (folder / "config.json").exists(), any(folder.path.rglob("last.pt"))
        if distributed.is_main and (not configured or (isinstance(end, UserError) and not started)):
            shutil.rmtree(folder.path)
        raise


def _train_seeds(
    setup: Setup, options: TrainOptions, folder: RunFolder, on_epoch: OnEpoch | None, log: Log
) -> dict[str, Any]:
    """One run, or with `--runs` several, each in a folder of its own; the step is compiled once for all."""
    try:
        with explain_out_of_memory(options.batch_size):
            training = setup.training_state(options.lr_max, options.ema)
            if options.runs is None:
                return _train_one(training, options, folder, on_epoch, log)
            return _train_several(training, options, folder, on_epoch, log)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; finished work is saved. To resume: python run_train.py --resume {folder.path}"
        ) from None


def _train_one(
    training: TrainingState, options: TrainOptions, folder: RunFolder, on_epoch: OnEpoch | None, log: Log
) -> dict[str, Any]:
    with seeded_run(options.seed, training.setup.device, deterministic=options.deterministic):
        return Run(training, options, folder, on_epoch, log).train()


def _train_several(
    training: TrainingState, options: TrainOptions, folder: RunFolder, on_epoch: OnEpoch | None, log: Log
) -> dict[str, Any]:
    distributed = training.setup.distributed
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
            with _locked(run, distributed):
                finished = distributed.broadcast(run.summary())
                summaries.append(finished or _train_one(training, one, run, on_epoch, log))
        except Diverged as error:
            failures.append(f"seed {one.seed}: {error}")
            log(f"run {k} failed: {error}")
    if not summaries:
        whole = "the run" if options.runs == 1 else f"all {options.runs} runs"
        raise Diverged(f"{whole} failed; {failures[0]}")
    summary = summarize(summaries) | {"failures": failures}
    if distributed.is_main:
        folder.write_summary(summary)
    log(console.several_line(summary))
    if failures:
        raise Diverged(f"{len(failures)} of {options.runs} runs failed; {failures[0]}")
    return summary


class Diverged(UserError):
    """The loss became infinite or NaN."""


def cycle_steps(options: TrainOptions, steps_per_epoch: int) -> tuple[int, int]:
    """(steps of the run, 0-based step of the peak).

    Raises:
        UserError: too few steps to rise and to fall.
    """
    total = options.epochs * steps_per_epoch
    peak = options.peak_epoch * steps_per_epoch - 1 if options.peak_epoch else max(1, round(total * 5 / 24) - 1)
    if not 0 < peak < total - 1:
        raise UserError(
            f"too few steps for a cycle: {counted(options.epochs, 'epoch')} of {steps_per_epoch}; "
            "use more --epochs, more images, or a smaller --batch-size"
        )
    return total, peak


class Run:
    """One run, from its first epoch or its last checkpoint to its summary: what surrounds `fit`."""

    def __init__(
        self, training: TrainingState, options: TrainOptions, folder: RunFolder, on_epoch: OnEpoch | None, log: Log
    ) -> None:
        self.training, self.options, self.folder, self.on_epoch, self.log = training, options, folder, on_epoch, log
        self.setup, self.distributed = training.setup, training.setup.distributed
        self.steps_per_epoch = len(training.loader)
        self.state = RunState(training, options, folder, *cycle_steps(options, self.steps_per_epoch))
        self.stop = StopRequest(self.distributed.any_rank)
        self.history: list[Row] = []
        self.evaluation: Evaluation | None = None  # the last one on the headline's split
        self.save_seconds = 0.0
        self.last_saved = -math.inf  # when the last.pt of an epoch was, by the clock
        self.started = 0.0  # when this process began to train, by the clock; and the epochs and steps done by then
        self.first_epoch = self.first_step = 0
        self.estimated = False  # whether the screen has said how long the run will take

    def train(self) -> dict[str, Any]:
        setup, options, training, progress = self.setup, self.options, self.training, self.state.progress
        self.state.restore(self.log)
        history = self.folder.cut_history(progress.epoch) if self.distributed.is_main else []
        self.history = self.distributed.broadcast(history)
        for line in console.opening_lines(setup, options, describe_device(setup.device), self.steps_per_epoch):
            self.log(line)
        if not style.matplotlib_available():
            self.log(style.NO_MATPLOTLIB)
        compile_seconds = self._warm_up()
        self._seed_dropout()
        self.started, self.first_epoch, self.first_step = time.perf_counter(), progress.epoch, progress.metrics.steps
        bar = progress_bar(total=options.epochs, initial=progress.epoch, desc="epochs", unit="epoch")
        keep = {self.folder.last: self.folder.previous}
        evaluators = {split: partial(self._evaluate, split) for split in training.eval_loaders}
        evaluators.setdefault("test", None)  # with --no-test its fields are null
        alone = self.distributed.size == 1
        announcement = "stopping after this step" + ("; interrupt again to stop at once" if alone else "")
        with (
            stop_on_signal(self.stop, partial(self.log, announcement), patient=not alone),
            checkpoint.Writer(setup.device, keep) as writer,
            bar,
        ):
            try:
                fit(
                    training.model,
                    training.optimizer,
                    training.loader,
                    epochs=options.epochs,
                    scheduler=self.state.scheduler,
                    step=training.step,
                    evaluators=evaluators,
                    eval_every=options.eval_every,
                    progress=progress,
                    on_step=partial(self._after_step, writer),
                    on_epoch=partial(self._after_epoch, writer, bar),
                )
            except Stopped:
                self._check_finite(progress.epoch + 1, [progress.metrics.over_all_processes().loss])
                self._save(writer, self.state.last_checkpoint())
        if self.distributed.any_rank(self.stop.made):  # all is saved
            raise KeyboardInterrupt
        if self.evaluation is None:
            self.evaluation = self._evaluate(setup.headline)
        summary = self._write_summary(compile_seconds) if self.distributed.is_main else {}
        return self.distributed.broadcast(summary)

    def _warm_up(self) -> float:
        """Compiles loader and step, if asked to, and on a GPU lets cuDNN choose algorithms, so that no epoch's time has
        that in it; returns the seconds."""
        step, started = self.training.step, time.perf_counter()
        if not step.needs_warm_up:
            return 0.0
        step.warm_up(*next(iter(self.training.loader)))
        if step.note:
            self.log(step.note)
        if works_asynchronously(self.setup.device):  # cuDNN chooses algorithms for each shape of a batch
            for loader in self.training.eval_loaders.values():
                evaluate(self.training.model, [next(iter(loader))], self.setup.precision)
        reset_peak_memory(self.setup.device)  # cuDNN's search for algorithms takes more than training does
        return time.perf_counter() - started

    def _seed_dropout(self) -> None:
        """With several processes, dropout must differ between the slices of a batch."""
        if self.distributed.size > 1:
            seeds = np.random.SeedSequence([self.options.seed, self.state.progress.epoch + 1, self.distributed.rank])
            torch.manual_seed(int(seeds.generate_state(1)[0]))

    def _evaluate(self, split: str) -> Evaluation:
        evaluation = self.training.evaluate(split, tta=self.options.tta, check=self.stop.check)
        if split == self.setup.headline:
            self.evaluation = evaluation
        return evaluation

    def _after_step(self, writer: checkpoint.Writer, metrics: EpochMetrics) -> None:
        waits = self.distributed.size > 1 and works_asynchronously(self.setup.device)
        if not waits or metrics.steps % STOP_CHECK_STEPS == 0 or metrics.steps == self.steps_per_epoch:
            self.stop.check()
        if not self.estimated and time.perf_counter() - self.started > ESTIMATE_AFTER:
            self._estimate(metrics.steps)
        every = self.options.checkpoint_steps
        if every and metrics.steps % every == 0 and metrics.steps < self.steps_per_epoch:
            with metrics.clock_stopped():
                self._check_finite(self.state.progress.epoch + 1, [metrics.over_all_processes().loss])
                self._save(writer, self.state.last_checkpoint())

    def _estimate(self, steps: int) -> None:
        """Says once how long the run will take, where that is more than a minute."""
        self.estimated = True
        epochs = self.options.epochs - self.state.progress.epoch
        done = steps + (self.state.progress.epoch - self.first_epoch) * self.steps_per_epoch - self.first_step
        seconds = (epochs * self.steps_per_epoch - steps) * (time.perf_counter() - self.started) / done
        if seconds > 60:
            self.log(f"about {console.clock(seconds)} of training to go for {counted(epochs, 'epoch')} on this machine")

    def _after_epoch(self, writer: checkpoint.Writer, bar: tqdm, row: Row) -> None:
        """Writes history and checkpoints, then tells the screen and whoever else asked."""
        epoch, epochs = row["epoch"], self.options.epochs
        self._check_finite(epoch, [value for key, value in row.items() if key.endswith("_loss")])
        if self.distributed.is_main:
            self.folder.append_history(row)
        self.history.append(row)
        self._save(writer, self.state.checkpoints(row, last=self._last_is_due(epoch)))
        pace = (time.perf_counter() - self.started) / (epoch - self.first_epoch)
        counts = {split: len(self.setup.split(split)) for split in self.training.eval_loaders}
        self.log(console.epoch_line(row, epochs, counts, pace * (epochs - epoch)))
        bar.update()
        if self.on_epoch is not None:
            self.on_epoch(dict(row))
        self._seed_dropout()

    def _last_is_due(self, epoch: int) -> bool:
        """Whether last.pt is written after this epoch: not as often as a fast GPU finishes one. All processes agree."""
        now = time.perf_counter()
        due = epoch == self.options.epochs or now - self.last_saved >= checkpoint_interval(self.setup.device)
        self.last_saved = now if due else self.last_saved
        return self.distributed.broadcast(due)

    def _check_finite(self, epoch: int, losses: list[float | None]) -> None:
        """Raises `Diverged` where a loss of this epoch is infinite or NaN."""
        if all(math.isfinite(loss) for loss in losses if loss is not None):
            return
        kept = f"; {self.folder.path} keeps the epochs before" if epoch > 1 else ""
        lower = f"--lr-max {self.options.lr_max / 4:.2g}"
        if self.options.lr_min >= self.options.lr_max / 4:
            lower += f" --lr-min {self.options.lr_min / 4:.2g}"
        raise Diverged(
            f"the loss diverged in epoch {epoch}, at learning rates up to {self.options.lr_max:g}; "
            f"try {lower}{_instead(self.options)}{kept}"
        )

    def _save(self, writer: checkpoint.Writer, checkpoints: dict[Path, dict[str, Any]]) -> None:
        if self.distributed.is_main:
            started = time.perf_counter()
            writer.save(checkpoints)
            self.save_seconds += time.perf_counter() - started

    def _write_summary(self, compile_seconds: float) -> dict[str, Any]:
        """Draws and writes what a finished run has; the summary last: a run folder with a summary is complete."""
        setup, last, evaluation, epochs = self.setup, self.history[-1], self.evaluation, self.state.progress.epoch
        tested = [row["test_accuracy"] for row in self.history if row["test_accuracy"] is not None]
        seconds = sum(row["seconds"] for row in self.history)
        images = sum(row["images_per_second"] * row["seconds"] for row in self.history)
        summary = {
            "test_accuracy": last["test_accuracy"],
            "best_test_accuracy": max(tested, default=None),
            "test_loss": last["test_loss"],
            "train_accuracy": last["train_accuracy"],
            "train_loss": last["train_loss"],
            **({"val_accuracy": last["val_accuracy"]} if setup.val is not None else {}),
            "tta": self.options.tta,
            "ema": self.options.ema,
            "epochs": epochs,
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
            "parameters": parameter_count(self.training.model),
            "training_flops": training_flops(
                self.training.model, epochs * self.steps_per_epoch * self.options.batch_size
            ),
        }
        title, result = setup.title(self.options.seed), f"{console.headline(summary)} after {counted(epochs, 'epoch')}"
        (cycle,) = self.state.scheduler.lr_lambdas
        lrs = [self.options.lr_max * cycle(step) for step in range(epochs * self.steps_per_epoch)]
        try:
            run_images.draw_training_data(self.folder.path, setup, self.training.loader, lrs)
            run_images.draw_results(self.folder.path, setup, self.history, evaluation, title, result)
        except UserError:
            raise
        except Exception as error:  # a broken matplotlib can raise anything, and must not cost the result
            self.log(f"warning: not every figure could be drawn ({type(error).__name__}: {error})")
        self.folder.previous.unlink(missing_ok=True)
        self.folder.write_summary(summary)
        for line in console.closing_lines(summary, str(self.folder.path)):
            self.log(line)
        return summary
