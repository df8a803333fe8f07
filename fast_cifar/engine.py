"""One training step, one epoch, one evaluation: where precision, compilation and the optimiser meet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from fast_cifar.optimizer import create_state, is_capturable
from fast_cifar.runtime import Precision, capture, side_stream, synchronize
from fast_cifar.snapshot import preserved

Batches = Iterable[tuple[Tensor, Tensor]]


def memory_format_of(model: nn.Module) -> torch.memory_format:
    """The memory order of a network's first convolution. A batch in another order would impose its own on the whole
    network: a convolution follows its input."""
    filters = next((p for p in model.parameters() if p.ndim == 4), None)
    last = filters is not None and not filters.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class TrainStep:
    """One optimiser update: forward, loss, backward, optimiser.

    Args:
        model: network from images to logits, on its device.
        optimizer: holds the model's parameters; its learning rate is somebody else's concern.
        precision: float32 runs as it is; below it, autocast, with gradient scaling for float16.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        compile: compile forward, loss and backward with `torch.compile`. Batches must then have one shape.
        graph: with `compile`, on CUDA: record the whole step, optimiser included, as one CUDA graph in `warm_up`, and
            replay it from then on. Where that cannot be done, `note` says why.

    Attributes:
        note: one line for the user when a graph was asked for and is not to be had; otherwise None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        precision: Precision,
        *,
        label_smoothing: float = 0.0,
        compile: bool = False,
        graph: bool = True,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(precision.device_type, enabled=precision.scales_gradients)
        self.note: str | None = None
        self._scale = self.scaler.get_scale()
        self._memory_format = memory_format_of(model)
        self._compiled = compile
        self._wants_graph = compile and graph and precision.device_type == "cuda"
        self._graph: _StepGraph | None = None
        self._is_warm = False

        def forward(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            with precision.autocast():
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
            return loss, (logits.detach().argmax(dim=1) == labels).sum()

        self._forward = torch.compile(forward, dynamic=False) if compile else forward

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Trains on one batch.

        Returns:
            The batch's mean loss and its number of correct answers, both 0-dimensional, still on the device and valid
            until the next call; and whether the weights moved: float16 skips the update after an overflow, and then
            the schedule must wait.
        """
        inputs = inputs.contiguous(memory_format=self._memory_format)
        if self._graph is not None and self._graph.fits(inputs):
            return *self._graph.replay(inputs, labels), True
        if not self.scaler.is_enabled():
            return *self._update(inputs, labels), True
        return *self._scaled_update(inputs, labels), self._has_moved()

    def _update(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = self._forward(inputs, labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), correct

    def _scaled_update(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = self._forward(inputs, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), correct

    def _has_moved(self) -> bool:
        """A fused optimiser skips inside its kernel; that the scale shrank is the only sign of it. One host read."""
        before, self._scale = self._scale, self.scaler.get_scale()
        return self._scale >= before

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Goes on with the gradient scale of another `TrainStep`; its `scaler.state_dict()` may be empty."""
        if state:
            self.scaler.load_state_dict(state)
        self._scale = self.scaler.get_scale()

    @property
    def needs_warm_up(self) -> bool:
        """Whether the next step is slower than the rest: the first one is, but for a CPU without compilation."""
        return not self._is_warm and (self._compiled or next(self.model.parameters()).device.type != "cpu")

    def warm_up(self, inputs: Tensor, labels: Tensor) -> float:
        """Compiles, lets kernels be chosen and records the graph, on a throw-away batch of the shape to come.

        Model, optimiser and randomness are as before, but that with a graph the optimiser's state is there, all zeros.

        Returns:
            The seconds it took.
        """
        device = inputs.device
        scaler_state = self.scaler.state_dict()
        synchronize(device)
        start = time.perf_counter()
        if self._wants_graph:
            create_state(self.optimizer)  # a graph keeps its address, so it has to be there before and afterwards
        with preserved(self.model, self.optimizer):
            self.model.train()
            with side_stream(device):
                for _ in range(3 if self._wants_graph else 2):
                    self(inputs, labels)
            if self._wants_graph:
                self._record(inputs.contiguous(memory_format=self._memory_format), labels)
            synchronize(device)
        self.load_scaler(scaler_state)
        self._is_warm = True
        return time.perf_counter() - start

    def _record(self, inputs: Tensor, labels: Tensor) -> None:
        """Records a graph of the step where that can be done, and notes why where it cannot."""
        if self.scaler.is_enabled():
            self.note = "--compile: float16 looks at its gradient scale after each step, so there is no CUDA graph"
        elif not is_capturable(self.optimizer):
            self.note = "--compile: this optimiser cannot be captured, so there is no CUDA graph"
        else:
            try:
                self._graph = _StepGraph(self._update, inputs, labels)
            except RuntimeError as error:
                self.note = f"--compile: there is no CUDA graph, which is slower ({str(error).splitlines()[0]})"


class _StepGraph:
    """A training step recorded once and replayed on whatever lies in its input buffers: one launch instead of hundreds.

    Raises:
        RuntimeError: something in the step cannot be recorded.
    """

    def __init__(
        self, update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], inputs: Tensor, labels: Tensor
    ) -> None:
        self._inputs, self._labels = inputs.clone(), labels.clone()
        self._results: tuple[Tensor, Tensor]

        def work() -> None:
            self._results = update(self._inputs, self._labels)

        self._run = capture(work)

    def fits(self, inputs: Tensor) -> bool:
        return inputs.shape == self._inputs.shape

    def replay(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._run()
        return self._results


@dataclass
class Tally:
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
    def empty(cls, device: torch.device) -> Tally:
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
    tally: Tally | None = None,
    *,
    check: Callable[[], None] = lambda: None,
    title: str = "",
    steps: int | None = None,
) -> Tally:
    """Trains on every batch and advances `scheduler` after each update.

    Loss and correct answers add up on the device, and the host waits for them once, at the end. A progress bar, on a
    terminal only, looks at them once a second: a third of a second, an epoch on a fast card, passes without a look.

    Args:
        tally: of the batches of the epoch before these; it is added to.
        check: called after each step; when it raises, the tally is right up to that step.
        title, steps: what the progress bar says, and the steps of the whole epoch.
    """
    step.model.train()
    device = next(step.model.parameters()).device
    tally = Tally.empty(device) if tally is None else tally
    synchronize(device)
    start = last_look = time.perf_counter()
    bar = tqdm(
        total=steps, initial=tally.steps, desc=title, unit="batch", leave=False, disable=None, dynamic_ncols=True
    )
    try:
        for inputs, labels in batches:
            loss, correct, advanced = step(inputs, labels)
            if advanced:
                scheduler.step()
            tally.loss_sum.add_(loss, alpha=len(labels))
            tally.correct_sum.add_(correct)
            tally.images += len(labels)
            tally.images_in_them += len(labels)
            tally.steps += 1
            bar.update()
            if not bar.disable and time.perf_counter() - last_look > 1.0:
                bar.set_postfix_str(f"loss {tally.loss:.4f}, accuracy {tally.accuracy:.2%}", refresh=False)
                last_look = time.perf_counter()
            check()
    finally:
        synchronize(device)
        tally.seconds += time.perf_counter() - start
        bar.close()
    return tally


@dataclass(frozen=True)
class Evaluation:
    """How a network did on N images: mean cross-entropy, correct answers, logits float32 [N, classes], labels [N]."""

    loss: float
    correct: int
    logits: Tensor
    labels: Tensor

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
    title: str = "",
) -> Evaluation:
    """Answers every image of `loader` with the network in evaluation mode; its training flag is as before afterwards.

    Args:
        tta: average the logits of a picture and of its mirror image.
        check: called after each batch; it may raise.
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
    logits, labels = torch.cat(all_logits), torch.cat(all_labels)
    correct = int((logits.argmax(dim=1) == labels).sum())
    return Evaluation(float(F.cross_entropy(logits, labels)), correct, logits, labels)
