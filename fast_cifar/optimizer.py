"""The optimiser: Adam in one fused kernel, its learning rate, and the exponential moving average of the weights.

A captured CUDA graph and compiled code keep the addresses of the tensors they work on. So the optimiser's state is
created before the first step, cleared and loaded in place, and on CUDA the learning rate is a tensor that the scheduler
writes to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fast_cifar.schedules import one_cycle


def make_optimizer(model: nn.Module, lr: float, weight_decay: float = 0.0) -> Optimizer:
    """AdamW (decoupled weight decay), or Adam without a decay; in one fused kernel."""
    device = next(model.parameters()).device
    on_cuda = device.type == "cuda"
    kind, decay = (AdamW, {"weight_decay": weight_decay}) if weight_decay > 0 else (Adam, {})
    return kind(
        model.parameters(),
        lr=torch.tensor(float(lr), device=device) if on_cuda else lr,
        fused=True,
        capturable=on_cuda,
        **decay,
    )


def one_cycle_scheduler(
    optimizer: Optimizer, total_steps: int, peak_step: int, lr_min: float, lr_max: float
) -> LambdaLR:
    """The `one_cycle` of an optimiser: call the scheduler's `step` after each of the optimiser's.

    The parameter group with the highest learning rate follows the cycle from `lr_min` to `lr_max` and back; the others
    keep their ratio to it. Nothing else of the optimiser's present rates matters.

    Args:
        total_steps, peak_step, lr_min, lr_max: as in `one_cycle`.

    Raises:
        ValueError: an argument is out of its range, or a rate of the optimiser is negative or not finite.
    """
    multiplier = one_cycle(total_steps, peak_step, lr_min, lr_max)
    for group, ratio in zip(optimizer.param_groups, rate_ratios(optimizer), strict=True):
        # A plain number, so that no arithmetic is done on the device where the optimiser's own rate is a tensor.
        group["initial_lr"] = lr_max * ratio
    return LambdaLR(optimizer, multiplier)


def rate_ratios(optimizer: Optimizer) -> list[float]:
    """The learning rate of each parameter group over the highest one.

    Raises:
        ValueError: a rate is negative or not finite.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not all(0 <= rate < math.inf for rate in rates):
        raise ValueError(f"the optimiser's learning rates must be finite and at least 0, not {rates}")
    highest = max(rates)
    return [rate / highest if highest else 1.0 for rate in rates]


def set_rate(group: dict[str, Any], lr: float) -> None:
    """Sets the learning rate of a parameter group, in place where it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def is_capturable(optimizer: Optimizer) -> bool:
    """Whether a CUDA graph of `optimizer.step()` would see a changed learning rate and count its steps, and whether the
    optimiser's state is that of `create_state`."""

    def on_device(group: dict[str, Any]) -> bool:  # a rate on the CPU would be captured as a number
        return isinstance(group["lr"], Tensor) and all(group["lr"].device == p.device for p in group["params"])

    return isinstance(optimizer, Adam | AdamW) and all(
        group["capturable"] and on_device(group) and not group["amsgrad"] for group in optimizer.param_groups
    )


def constants(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What a CUDA graph of `optimizer.step()` keeps as it is when it is captured: its options that are no tensors, not
    what schedulers note in the groups."""
    return [
        {name: group[name] for name in optimizer.defaults if not isinstance(group[name], Tensor)}
        for group in optimizer.param_groups
    ]


def create_state(optimizer: Optimizer) -> None:
    """Creates the state that Adam would create in its first step, zeros, for each parameter that has none yet."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:
                step_device = parameter.device if group["fused"] or group["capturable"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=step_device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)


def steps_done(optimizer: Optimizer) -> int:
    """How many steps the optimiser has taken. Waits for the device."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)


def empty_state(optimizer: Optimizer) -> None:
    """Resets the optimiser's state to zeros, in place."""
    for state in optimizer.state.values():
        for tensor in state.values():
            tensor.zero_()


def load_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Copies a `state_dict()` of the same parameters, from any device, into the tensors of this optimiser.

    `Optimizer.load_state_dict` would replace these tensors, and bring the flags of the machine that wrote the state.

    Raises:
        KeyError, RuntimeError, ValueError: it is the state of another network, or damaged.
    """
    create_state(optimizer)
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        set_rate(group, float(saved_group["lr"]))
        for parameter, index in zip(group["params"], saved_group["params"], strict=True):
            for key, tensor in optimizer.state[parameter].items():
                tensor.copy_(saved["state"][index][key])


class WeightEMA:
    """Exponential moving average of the weights and of BatchNorm's statistics.

    Each update moves the average by 1 - `decay` of the distance towards the weights: it averages over about
    1 / (1 - decay) steps.

    Args:
        model: on its device. Its tensors must be changed in place, never replaced.
        decay: in (0, 1).

    Raises:
        ValueError: `decay` is out of its range.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992); the exponential form
    is that of Szegedy et al., "Rethinking the Inception Architecture" (arXiv:1512.00567), section 8.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}, outside (0, 1)")
        self._decay = decay
        self._model = model
        # BatchNorm also counts its batches, in whole numbers, which are not averaged.
        live = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self._names, self._live = list(live), list(live.values())
        self._averaged = [tensor.clone() for tensor in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Call it after each step of the optimiser."""
        torch._foreach_lerp_(self._averaged, self._live, 1 - self._decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Restarts the average from the present weights."""
        torch._foreach_copy_(self._averaged, self._live)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, under the names of the network's own `state_dict()`."""
        return self._model.state_dict() | dict(zip(self._names, self._averaged, strict=True))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """In the block the network has the averaged weights; afterwards its own again, bit for bit."""
        own = [tensor.clone() for tensor in self._live]
        with torch.no_grad():
            torch._foreach_copy_(self._live, self._averaged)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._live, own)
