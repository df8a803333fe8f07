"""The optimiser: Adam in one fused kernel, with state that stays where it is.

A captured CUDA graph and compiled code keep the addresses of what they work on. So the state is made before the first
step, emptied and loaded in place, and on CUDA the learning rate is a tensor that the schedule writes to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def make_optimizer(model: nn.Module, lr: float, weight_decay: float = 0.0) -> Optimizer:
    """Adam, or AdamW (decoupled weight decay) where there is a decay; in one fused kernel where the device has it."""
    device = next(model.parameters()).device
    on_cuda = device.type == "cuda"
    kind, decay = (AdamW, {"weight_decay": weight_decay}) if weight_decay > 0 else (Adam, {})
    return kind(
        model.parameters(),
        lr=torch.tensor(float(lr), device=device) if on_cuda else lr,
        fused=True if device.type in ("cpu", "cuda") else None,
        capturable=on_cuda,
        **decay,
    )


def make_scheduler(optimizer: Optimizer, lr: float, multiplier: Callable[[int], float]) -> LambdaLR:
    """Torch's `LambdaLR`: the rate of step k is `lr` times `multiplier(k)`.

    With plain numbers as base rates, so that no arithmetic is done on the device where the optimiser's is a tensor.
    """
    for group in optimizer.param_groups:
        set_rate(group, lr)
        group["initial_lr"] = lr
    scheduler = LambdaLR(optimizer, multiplier)
    scheduler.base_lrs = [float(lr) for _ in optimizer.param_groups]
    return scheduler


def set_rate(group: dict[str, Any], lr: float) -> None:
    """Changes a group's learning rate, in place where it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def is_capturable(optimizer: Optimizer) -> bool:
    """Whether a CUDA graph of `optimizer.step()` would notice that the learning rate changes and count its steps."""
    groups = optimizer.param_groups
    return all(group.get("capturable", False) and isinstance(group["lr"], Tensor) for group in groups)


def create_state(optimizer: Optimizer) -> None:
    """Makes the state that Adam would make in its first step, zeros, for each parameter that has none yet."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:
                step_device = parameter.device if group["fused"] or group["capturable"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=step_device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)


def empty_state(optimizer: Optimizer) -> None:
    """As before the first step: zeros, in the tensors there are."""
    for state in optimizer.state.values():
        for tensor in state.values():
            tensor.zero_()


def load_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Copies a `state_dict()` of the same parameters, from any device, into the tensors of this optimiser.

    `Optimizer.load_state_dict` would put other tensors in their places and bring the flags of the machine that wrote
    them.

    Raises:
        KeyError, RuntimeError, ValueError: it is the state of another network, or damaged.
    """
    create_state(optimizer)
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        set_rate(group, float(saved_group["lr"]))
        for parameter, index in zip(group["params"], saved_group["params"], strict=True):
            for key, tensor in optimizer.state[parameter].items():
                tensor.copy_(saved["state"][index][key])
