"""One training step: where precision, compilation, CUDA graphs and the optimiser meet.

`preserve_state` leaves no trace of what is tried: it puts everything back, in place and bit for bit.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fast_cifar.optimizer import WeightEMA, create_state, is_capturable
from fast_cifar.system.device import Precision, capture_graph, side_stream, synchronize


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
        network: what to call instead of `model`, such as its parallel form; it holds the same parameters.
        average: of the model's weights, to be updated after each step.
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
        network: nn.Module | None = None,
        average: WeightEMA | None = None,
        graph: bool = True,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.average = average
        self.scaler = torch.amp.GradScaler(precision.device_type, enabled=precision.scales_gradients)
        self.note: str | None = None
        self._scale = self.scaler.get_scale()
        self._memory_format = memory_format_of(model)
        self._compiled = compile
        self._wants_graph = compile and graph and precision.device_type == "cuda"
        self._graph: _StepGraph | None = None
        self._is_warm = False

        network = model if network is None else network

        def forward(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            with precision.autocast():
                logits = network(inputs)
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
        results = self._step(inputs, labels)
        if self.average is not None:
            self.average.update()
        return results

    def _step(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, bool]:
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
        with preserve_state(self.model, self.optimizer):
            self.model.train()
            with side_stream(device):
                for _ in range(3 if self._wants_graph else 2):
                    self._step(inputs, labels)
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

        self._run = capture_graph(work)

    def fits(self, inputs: Tensor) -> bool:
        return inputs.shape == self._inputs.shape

    def replay(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._run()
        return self._results


@contextmanager
def preserve_state(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Whatever happens inside, model, optimiser and random state are bit-identical afterwards.

    Covers parameters, buffers, gradients, the training flag of every module, the optimiser's state and groups, and the
    random state of torch (all devices), numpy and Python. All tensors but the gradients keep their identity: compiled
    code, CUDA graphs and schedulers that hold them go on working.
    """
    tensors = [*model.parameters(), *model.buffers()]
    saved_tensors = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p, None if p.grad is None else p.grad.detach().clone()) for p in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    state = {p: {key: _frozen(value) for key, value in entry.items()} for p, entry in optimizer.state.items()}
    groups = [
        {key: _frozen(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    random_state = _random_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, saved in zip(tensors, saved_tensors, strict=True):
                tensor.copy_(saved)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, flag in training:
            module.training = flag
        for parameter in list(optimizer.state):
            if parameter in state:
                _restore(optimizer.state[parameter], state[parameter])
            else:
                del optimizer.state[parameter]
        for group, saved_group in zip(optimizer.param_groups, groups, strict=True):
            _restore(group, {"params": group["params"]} | saved_group)
        _set_random_state(random_state)


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


def _random_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": np.random.get_state(),  # noqa: NPY002 - the global state is what has to be left alone
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if state["mps"] is not None:
        torch.mps.set_rng_state(state["mps"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
