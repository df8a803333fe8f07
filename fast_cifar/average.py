"""A running average of a network's weights, which often answers better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of the weights and of BatchNorm's statistics.

    Each update moves the average by the share 1 - `decay` towards the network: it looks back over about
    1 / (1 - decay) steps.

    Args:
        model: on its device. Its tensors are to be changed in place and never replaced.
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
        # Only what can be averaged: BatchNorm counts its batches in whole numbers.
        self._live = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self._averaged = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each step of the optimiser."""
        torch._foreach_lerp_(list(self._averaged.values()), list(self._live.values()), 1 - self._decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begins anew from the network as it is now."""
        torch._foreach_copy_(list(self._averaged.values()), list(self._live.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged network, under the names of the network's own `state_dict()`."""
        return {name: self._averaged.get(name, tensor) for name, tensor in self._model.state_dict().items()}

    @contextmanager
    def in_the_network(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own, bit for bit."""
        own = {name: tensor.clone() for name, tensor in self._live.items()}
        with torch.no_grad():
            torch._foreach_copy_(list(self._live.values()), list(self._averaged.values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self._live.values()), list(own.values()))
