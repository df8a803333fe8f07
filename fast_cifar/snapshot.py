"""Leaving no trace: work on a model and put everything back, in place and bit for bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@contextmanager
def preserved(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
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
