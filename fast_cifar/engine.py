"""One epoch and one evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from fast_cifar.system.device import Precision, synchronize
from fast_cifar.system.distributed import DistributedContext
from fast_cifar.train_step import TrainStep, memory_format_of

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass
class EpochMetrics:
    """What an epoch has come to so far.

    Attributes:
        loss_sum, correct_sum: over its images, float32 and int64, 0-dimensional, on the device.
        images, steps: how many were trained.
        seconds, images_in_them: of training in this process, which may have taken over in the middle of the epoch.
    """

    loss_sum: Tensor
    correct_sum: Tensor
    images: int = 0
    steps: int = 0
    seconds: float = 0.0
    images_in_them: int = 0

    @classmethod
    def empty(cls, device: torch.device) -> EpochMetrics:
        return cls(torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device))

    @property
    def loss(self) -> float:
        """Mean loss of an image. Waits for the device, as `accuracy` does."""
        return self.loss_sum.item() / self.images

    @property
    def accuracy(self) -> float:
        return self.correct_sum.item() / self.images

    @property
    def images_per_second(self) -> float:
        return self.images_in_them / self.seconds if self.seconds else 0.0

    def over(self, distributed: DistributedContext) -> EpochMetrics:
        """What all processes together have come to."""
        counts = distributed.sum(torch.tensor([self.images, self.images_in_them]))
        images, images_in_them = counts.tolist()
        sums = distributed.sum(self.loss_sum), distributed.sum(self.correct_sum)
        return EpochMetrics(*sums, images, self.steps, self.seconds, images_in_them)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: all but the clock's time."""
        return {name: getattr(self, name) for name in ("loss_sum", "correct_sum", "images", "steps")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loss_sum.copy_(state["loss_sum"])
        self.correct_sum.copy_(state["correct_sum"])
        self.images, self.steps = state["images"], state["steps"]


def train_epoch(
    step: TrainStep,
    batches: Batches,
    scheduler: LRScheduler,
    metrics: EpochMetrics | None = None,
    *,
    check: Callable[[], None] = lambda: None,
    title: str = "",
    steps: int | None = None,
) -> EpochMetrics:
    """Trains on every batch and advances `scheduler` after each update.

    Loss and correct answers add up on the device, and the host waits for them once, at the end. A progress bar, on a
    terminal only, looks at them once a second: a third of a second, an epoch on a fast card, passes without a look.

    Args:
        metrics: of the batches of the epoch before these; it is added to.
        check: called after each step; when it raises, the metrics is right up to that step.
        title, steps: what the progress bar says, and the steps of the whole epoch.
    """
    step.model.train()
    device = next(step.model.parameters()).device
    metrics = EpochMetrics.empty(device) if metrics is None else metrics
    synchronize(device)
    start = last_look = time.perf_counter()
    bar = tqdm(
        total=steps, initial=metrics.steps, desc=title, unit="batch", leave=False, disable=None, dynamic_ncols=True
    )
    try:
        for inputs, labels in batches:
            loss, correct, advanced = step(inputs, labels)
            if advanced:
                scheduler.step()
            metrics.loss_sum.add_(loss, alpha=len(labels))
            metrics.correct_sum.add_(correct)
            metrics.images += len(labels)
            metrics.images_in_them += len(labels)
            metrics.steps += 1
            bar.update()
            if not bar.disable and time.perf_counter() - last_look > 1.0:
                bar.set_postfix_str(f"loss {metrics.loss:.4f}, accuracy {metrics.accuracy:.2%}", refresh=False)
                last_look = time.perf_counter()
            check()
    finally:
        synchronize(device)
        metrics.seconds += time.perf_counter() - start
        bar.close()
    return metrics


@dataclass(frozen=True)
class Evaluation:
    """How a network did on N images: mean cross-entropy, correct answers, logits float32 [N, classes], labels [N]."""

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
    precision: Precision,
    *,
    tta: bool = False,
    check: Callable[[], None] = lambda: None,
    distributed: DistributedContext = DistributedContext(),  # noqa: B008 - it is immutable
    title: str = "",
) -> Evaluation:
    """Answers every image of `loader` with the network in evaluation mode; its training flag is as before afterwards.

    Args:
        tta: average the logits of a picture and of its mirror image.
        check: called after each batch; it may raise.
        world: where each process's `loader` has a share of the images, in the order of the ranks.
        title: what the progress bar says.
    """
    was_training = model.training
    memory_format = memory_format_of(model)
    model.eval()
    all_logits, all_labels = [], []
    with torch.inference_mode(), precision.autocast():
        for inputs, labels in tqdm(loader, desc=title, unit="batch", leave=False, disable=None, dynamic_ncols=True):
            inputs = inputs.contiguous(memory_format=memory_format)
            logits = model(inputs).float()
            if tta:
                logits = (logits + model(inputs.flip(-1)).float()) / 2
            all_logits.append(logits)
            all_labels.append(labels.clone())
            check()
    model.train(was_training)
    return Evaluation.of(distributed.gather(torch.cat(all_logits)), distributed.gather(torch.cat(all_labels)))
