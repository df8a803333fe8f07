"""One training step: autocast, compilation, CUDA graph and warm-up around forward, loss, backward and optimiser."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fast_cifar.optimizer import WeightEMA, constants, create_state, is_capturable, steps_done
from fast_cifar.system.device import (
    Precision,
    capture_graph,
    compiled,
    random_state,
    set_random_state,
    side_stream,
    synchronize,
)

Criterion = Callable[[Tensor, Tensor], Tensor]


def memory_format_of(model: nn.Module) -> torch.memory_format:
    """The memory format of a network's first convolution. Convolutions follow their input, so a batch in another format
    would impose it on the whole network."""
    filters = next((p for p in model.parameters() if p.ndim == 4), None)
    last = filters is not None and not filters.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class TrainStep:
    """One optimiser update: forward, loss, backward, optimiser.

    Args:
        model: network from images to logits, on its device.
        optimizer: holds the model's parameters; the scheduler sets its learning rate.
        precision: autocast below float32, with gradient scaling for float16.
        criterion: from float32 logits [n, classes] and int64 labels [n] to the batch's mean loss.
        compile: compile forward, loss and backward with `torch.compile`. Batches must then have one shape.
        network: called instead of `model` where given, such as its DistributedDataParallel form.
        ema: of the model's weights, updated after each step.
        graph: with `compile`, on CUDA: record the whole step, optimiser included, as one CUDA graph in `warm_up`, and
            replay it from then on. Where that is not possible, `note` says why.

    Attributes:
        note: one line for the user when a graph was asked for and could not be recorded; otherwise None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        precision: Precision,
        *,
        criterion: Criterion = F.cross_entropy,
        compile: bool = False,
        network: nn.Module | None = None,
        ema: WeightEMA | None = None,
        graph: bool = True,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.scaler = torch.amp.GradScaler(precision.device_type, enabled=precision.scales_gradients)
        self.note: str | None = None
        self._scale = self.scaler.get_scale()
        self._device = next(model.parameters()).device
        self._memory_format = memory_format_of(model)
        self._compiled = compile
        self._wants_graph = False
        if compile and graph and precision.device_type == "cuda":
            self.note = _why_no_graph(precision, optimizer)
            self._wants_graph = self.note is None
        self._graph: _StepGraph | None = None
        self._is_warm = False
        network = model if network is None else network

        def forward(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            with precision.autocast():
                logits = network(inputs)
            loss = criterion(logits.float(), labels)
            return loss, (logits.detach().argmax(dim=1) == labels).sum()

        self._forward = compiled(forward, self._device) if compile else forward

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Trains on one batch, which is moved to the model's device where it is elsewhere.

        Returns:
            loss: the batch's mean loss, and
            correct: its number of correct predictions, both 0-dimensional, on the device, valid until the next call.
            updated: whether the weights changed. Float16 skips the update after an overflow, and then the schedule
                must not advance.
        """
        inputs, labels = self._placed(inputs, labels)
        if self._graph is not None and self._graph.fits(inputs, self.optimizer):
            loss, correct = self._graph.replay(inputs, labels)
        else:
            loss, correct = self._update(inputs, labels)
        if self.ema is not None:
            self.ema.update()
        return loss, correct, self._has_updated()

    def _placed(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return inputs.to(self._device).contiguous(memory_format=self._memory_format), labels.to(self._device)

    def _update(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = self._forward(inputs, labels)
        self.scaler.scale(loss).backward()  # a disabled scaler changes nothing
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), correct

    def _has_updated(self) -> bool:
        """A fused optimiser skips inside its kernel; a smaller scale is the only sign of it. One host read."""
        if not self.scaler.is_enabled():
            return True
        before, self._scale = self._scale, self.scaler.get_scale()
        return self._scale >= before

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Continues with the gradient scale of another `TrainStep`; its `scaler.state_dict()` may be empty."""
        if state:
            self.scaler.load_state_dict(state)
        self._scale = self.scaler.get_scale()

    @property
    def needs_warm_up(self) -> bool:
        """Whether the next step is slower than the rest: the first one is, except on a CPU without compilation."""
        return not self._is_warm and (self._compiled or self._device.type != "cpu")

    def warm_up(self, inputs: Tensor, labels: Tensor) -> float:
        """Compiles, lets kernels be chosen and records the graph, on a throw-away batch of the shape to come.

        Model, optimiser and random state are unchanged afterwards, except that a graph leaves the optimiser's state
        behind, all zeros.

        Returns:
            The seconds it took.
        """
        scaler_state = self.scaler.state_dict()
        synchronize(self._device)
        start = time.perf_counter()
        if self._wants_graph:
            create_state(self.optimizer)  # a graph keeps its address
        inputs, labels = self._placed(inputs, labels)
        with preserve_state(self.model, self.optimizer):
            self.model.train()
            # Only a capture needs a stream of its own, which keeps a second pool of activations.
            with side_stream(self._device) if self._wants_graph else nullcontext():
                for _ in range(3 if self._wants_graph else 2):
                    self._update(inputs, labels)
            if self._wants_graph:
                self._record(inputs, labels)
            synchronize(self._device)
        self.load_scaler(scaler_state)
        self._is_warm = True
        return time.perf_counter() - start

    def _record(self, inputs: Tensor, labels: Tensor) -> None:
        """Records a graph of the step, or notes why that is not possible."""
        try:
            graph = _StepGraph(self._update, inputs, labels, self.optimizer)
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # leaving a failed capture raises an error of its own
                cause = cause.__context__
            self.note = f"--compile: there is no CUDA graph, which is slower ({str(cause).splitlines()[0]})"
            return
        steps = steps_done(self.optimizer)
        graph.replay(inputs, labels)
        if steps_done(self.optimizer) == steps + 1:
            self._graph = graph
        else:
            self.note = "--compile: the captured CUDA graph does not train, so the step runs without it, slower"


def _why_no_graph(precision: Precision, optimizer: Optimizer) -> str | None:
    """Why a step of this precision and optimiser cannot be recorded, as far as is known beforehand."""
    if precision.scales_gradients:
        return "--compile: float16 reads its gradient scale after each step, so there is no CUDA graph"
    if not is_capturable(optimizer):
        return "--compile: this optimiser cannot be captured, so there is no CUDA graph"
    return None


class _StepGraph:
    """A training step recorded once and replayed on the contents of its input buffers: one launch instead of hundreds.

    Args:
        update: the step, to be recorded.
        inputs, labels: a batch like those to come.
        optimizer: whose options other than its learning rate are recorded as they are.

    Raises:
        RuntimeError: something in the step cannot be recorded.
    """

    def __init__(
        self,
        update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        inputs: Tensor,
        labels: Tensor,
        optimizer: Optimizer,
    ) -> None:
        self._inputs, self._labels = inputs.clone(), labels.clone()
        self._constants = constants(optimizer)
        self._results: tuple[Tensor, Tensor]

        def work() -> None:
            self._results = update(self._inputs, self._labels)

        self._run = capture_graph(work, inputs.device)

    def fits(self, inputs: Tensor, optimizer: Optimizer) -> bool:
        """Whether the step is still the one that was recorded; torch's OneCycleLR changes Adam's betas, for example."""
        return inputs.shape == self._inputs.shape and constants(optimizer) == self._constants

    def replay(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._run()
        return self._results


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """After the block, each module of the model is in training or in evaluation mode as it was before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def preserve_state(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """After the block, model, optimiser and random state are bit-identical to before.

    Covers parameters, buffers, gradients, the training flag of every module, the optimiser's state and groups, and the
    random state of torch (all devices), numpy and Python. All tensors but the gradients keep their identity: compiled
    code, CUDA graphs and schedulers that hold them stay valid.
    """
    tensors = [*model.parameters(), *model.buffers()]
    saved_tensors = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p, None if p.grad is None else p.grad.detach().clone()) for p in model.parameters()]
    state = {p: {key: _frozen(value) for key, value in entry.items()} for p, entry in optimizer.state.items()}
    groups = [
        {key: _frozen(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    random_numbers = random_state()
    try:
        with modes_kept(model):
            yield
    finally:
        with torch.no_grad():
            for tensor, saved in zip(tensors, saved_tensors, strict=True):
                tensor.copy_(saved)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for parameter in list(optimizer.state):
            if parameter in state:
                _restore(optimizer.state[parameter], state[parameter])
            else:
                del optimizer.state[parameter]
        for group, saved_group in zip(optimizer.param_groups, groups, strict=True):
            _restore(group, {"params": group["params"]} | saved_group)
        set_random_state(random_numbers)


def _frozen(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _restore(live: dict, saved: dict) -> None:
    """Makes `live` equal to `saved`, writing into the tensors it has."""
    for key in list(live):
        if key not in saved:
            del live[key]
    for key, value in saved.items():
        target = live.get(key)
        if isinstance(target, Tensor) and isinstance(value, Tensor) and target.shape == value.shape:
            with torch.no_grad():
                target.copy_(value)
        else:
            live[key] = value
