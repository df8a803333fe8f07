"""The training loop: `fit` trains epoch after epoch, `train_epoch` step after step, `evaluate` tests.

It knows no files and no folders: rows of metrics go to whoever asked for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fast_cifar.loader import DeviceLoader
from fast_cifar.system.device import Precision, resolve_precision, synchronize
from fast_cifar.system.distributed import ALONE, DistributedContext
from fast_cifar.system.errors import percent
from fast_cifar.system.progress import progress_bar
from fast_cifar.train_step import Criterion, TrainStep, memory_format_of, modes_kept

Batches = Iterable[tuple[Tensor, Tensor]]
Row = dict[str, Any]
Evaluators = Mapping[str, "Callable[[], Evaluation] | None"]
LOOK_EVERY = 1.0  # seconds between two looks of the progress bar at the loss: each look waits for the device


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    loader: Batches,
    *,
    epochs: int,
    scheduler: LRScheduler | None = None,
    test_loader: Batches | None = None,
    criterion: Criterion | None = None,
    amp: bool = False,
    compile: bool = False,
    step: TrainStep | None = None,
    evaluators: Evaluators | None = None,
    eval_every: int = 1,
    progress: Progress | None = None,
    on_step: Callable[[EpochMetrics], None] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Trains for `epochs` epochs, evaluates after each, and returns a row of metrics for each; see `make_row`.

    Args:
        loader, test_loader: batches of (inputs, labels): a `DeviceLoader`, or any iterable with a length.
        scheduler: advanced after each update of the weights.
        criterion: from logits and labels to the mean loss; cross-entropy when not given.
        amp, compile: as the options of `run_train.py`.
        step: a prepared step of this model and optimiser, instead of criterion, amp and compile.
        evaluators: for each split what evaluates it, instead of `test_loader`; None for one without evaluation.
        eval_every: evaluate every so many epochs, and after the last.
        progress: where to continue; it is kept up to date.
        on_step: called after each step with the epoch's metrics so far; it may raise to stop.
        on_epoch: called with each epoch's row.
    """
    precision = resolve_precision(next(model.parameters()).device, amp, "auto")
    step = step or TrainStep(model, optimizer, precision, criterion=criterion or F.cross_entropy, compile=compile)
    if evaluators is None:
        evaluators = {"test": partial(evaluate, model, test_loader, precision) if test_loader is not None else None}
    if step.needs_warm_up:
        step.warm_up(*next(iter(loader)))
    progress = progress or Progress.start(next(model.parameters()).device)
    rows = []
    for epoch in range(progress.epoch + 1, epochs + 1):
        if isinstance(loader, DeviceLoader):
            loader.set_epoch(epoch - 1)
        title = f"epoch {epoch}/{epochs}"
        metrics = train_epoch(step, loader, scheduler, progress.metrics, on_step=on_step, title=title)
        started, is_due = time.perf_counter(), epoch % eval_every == 0 or epoch == epochs
        results = {split: run() if run is not None and is_due else None for split, run in evaluators.items()}
        row = make_row(epoch, metrics, results) | {"evaluation_seconds": time.perf_counter() - started}
        progress.finish_epoch()
        rows.append(row)
        if on_epoch is not None:
            on_epoch(row)
    return rows


def train_epoch(
    step: TrainStep,
    loader: Batches,
    scheduler: LRScheduler | None = None,
    metrics: EpochMetrics | None = None,
    *,
    on_step: Callable[[EpochMetrics], None] | None = None,
    title: str = "",
) -> EpochMetrics:
    """Trains on every batch, and advances `scheduler` after each update.

    Loss and correct predictions add up on the device; the host waits for them once, at the end. A progress bar, where
    there is one, looks at them once a second.

    Args:
        metrics: of the epoch's batches that were trained before an interruption; they are skipped and added to.
        on_step: called after each step; when it raises, the metrics are right up to that step.
        title: of the progress bar.
    """
    step.model.train()
    device = next(step.model.parameters()).device
    metrics = EpochMetrics.start(device) if metrics is None else metrics
    batches = loader.batches(first=metrics.steps) if metrics.steps else loader
    bar = progress_bar(total=len(loader), initial=metrics.steps, desc=title, unit="batch", leave=False)
    synchronize(device)
    start = last_look = time.perf_counter()
    try:
        for inputs, labels in batches:
            loss, correct, updated = step(inputs, labels)
            metrics.add(loss, correct, len(labels))
            if scheduler is not None:
                lr = scheduler.get_last_lr()[0]
                metrics.lr = lr.clone() if isinstance(lr, Tensor) else lr  # step() may change the tensor
                if updated:
                    scheduler.step()
            bar.update()
            if not bar.disable and time.perf_counter() - last_look > LOOK_EVERY:
                bar.set_postfix_str(f"loss {metrics.loss:.4f}, accuracy {percent(metrics.accuracy)}", refresh=False)
                last_look = time.perf_counter()
            if on_step is not None:
                on_step(metrics)
    finally:
        synchronize(device)
        metrics.seconds += time.perf_counter() - start
        bar.close()
    if scheduler is None:
        metrics.lr = step.optimizer.param_groups[0]["lr"]
    return metrics


@dataclass
class EpochMetrics:
    """The sums of an epoch so far, over the images of this process.

    Attributes:
        loss_sum, correct_sum: float32 and int64, 0-dimensional, on the device.
        images, steps: how many were trained.
        lr: of the last step.
        seconds, timed_images: of training since this process began or resumed the epoch.
        distributed: the processes whose sums belong together.
    """

    loss_sum: Tensor
    correct_sum: Tensor
    images: int = 0
    steps: int = 0
    lr: float | Tensor = 0.0
    seconds: float = 0.0
    timed_images: int = 0
    distributed: DistributedContext = ALONE

    @classmethod
    def start(cls, device: torch.device, distributed: DistributedContext = ALONE) -> EpochMetrics:
        zeros = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
        return cls(*zeros, distributed=distributed)

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """One step: its mean loss and its number of correct predictions, both on the device."""
        self.loss_sum.add_(loss, alpha=images)
        self.correct_sum.add_(correct)
        self.images += images
        self.timed_images += images
        self.steps += 1

    @property
    def loss(self) -> float:
        """Mean loss of an image. Waits for the device, as `accuracy` does."""
        return self.loss_sum.item() / self.images

    @property
    def accuracy(self) -> float:
        return self.correct_sum.item() / self.images

    @property
    def images_per_second(self) -> float:
        return self.timed_images / self.seconds if self.seconds else 0.0

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """What happens in the block does not count as training time."""
        synchronize(self.loss_sum.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds -= time.perf_counter() - start

    def over_all_processes(self) -> EpochMetrics:
        counts = self.distributed.sum(torch.tensor([self.images, self.timed_images]))
        images, timed_images = counts.tolist()
        sums = self.distributed.sum(self.loss_sum), self.distributed.sum(self.correct_sum)
        return EpochMetrics(*sums, images, self.steps, self.lr, self.seconds, timed_images)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: everything but the time."""
        state = {name: getattr(self, name) for name in ("loss_sum", "correct_sum", "images", "steps")}
        return state | {"lr": rounded(self.lr)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loss_sum.copy_(state["loss_sum"])
        self.correct_sum.copy_(state["correct_sum"])
        self.images, self.steps, self.lr = state["images"], state["steps"], state["lr"]


@dataclass
class Progress:
    """How far a run has come: `epoch` finished epochs, and the metrics of the one that is being trained."""

    epoch: int
    metrics: EpochMetrics

    @classmethod
    def start(cls, device: torch.device, distributed: DistributedContext = ALONE) -> Progress:
        return cls(0, EpochMetrics.start(device, distributed))

    def finish_epoch(self) -> None:
        self.epoch += 1
        self.metrics = EpochMetrics.start(self.metrics.loss_sum.device, self.metrics.distributed)


def make_row(epoch: int, metrics: EpochMetrics, results: Mapping[str, Evaluation | None]) -> Row:
    """The row of an epoch, over all processes.

    Returns:
        `epoch` (1-based), `lr` (of its last step), `train_loss`, `train_accuracy`; of each split `SPLIT_loss` and
        `SPLIT_accuracy`, None where it was not evaluated; `images_per_second`, `seconds` (training only; of an epoch
        that was interrupted, since it was resumed). Accuracies are in 0..1.
    """
    metrics = metrics.over_all_processes()
    row: Row = {
        "epoch": epoch,
        "lr": rounded(metrics.lr),
        "train_loss": metrics.loss,
        "train_accuracy": metrics.accuracy,
    }
    for split, result in results.items():
        row[f"{split}_loss"] = result.loss if result else None
        row[f"{split}_accuracy"] = result.accuracy if result else None
    return row | {"images_per_second": metrics.images_per_second, "seconds": metrics.seconds}


def rounded(lr: float | Tensor) -> float:
    """A rate as a number; one that is a float32 tensor without the digits that float32 does not have."""
    return float(f"{lr.item():.7g}") if isinstance(lr, Tensor) else float(lr)


@dataclass(frozen=True)
class Evaluation:
    """Predictions for N images: mean cross-entropy, correct ones, logits float32 [N, classes], labels int64 [N]."""

    loss: float
    correct: int
    logits: Tensor
    labels: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Evaluation:
        correct = int((logits.argmax(dim=1) == labels).sum())
        return cls(float(F.cross_entropy(logits, labels)), correct, logits, labels)

    @property
    def count(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


def evaluate(
    model: nn.Module,
    loader: Batches,
    precision: Precision | None = None,
    *,
    tta: bool = False,
    check: Callable[[], None] = lambda: None,
    distributed: DistributedContext = ALONE,
    title: str = "",
) -> Evaluation:
    """Predicts every image of `loader` in evaluation mode; afterwards each module is in the mode it was in.

    Args:
        loader: batches of (inputs, labels), which are moved to the model's device where they are elsewhere.
        precision: float32 when not given.
        tta: test-time augmentation: average the logits of an image and its mirror image.
        check: called after each batch; it may raise.
        distributed: where each process's `loader` has a share of the images, in the order of the ranks.
        title: of the progress bar.
    """
    device = next(model.parameters()).device
    precision = precision or Precision(device.type, torch.float32)
    memory_format = memory_format_of(model)
    all_logits, all_labels = [], []
    with modes_kept(model), torch.inference_mode(), precision.autocast():
        model.eval()
        for inputs, labels in progress_bar(loader, desc=title, unit="batch", leave=False):
            inputs = inputs.to(device).contiguous(memory_format=memory_format)
            logits = model(inputs).float()
            if tta:
                logits = (logits + model(inputs.flip(-1)).float()) / 2
            all_logits.append(logits)
            all_labels.append(labels.to(device).clone())
            check()
    return Evaluation.of(distributed.gather(torch.cat(all_logits)), distributed.gather(torch.cat(all_labels)))
