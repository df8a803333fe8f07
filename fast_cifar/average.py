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
        live = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self._names, self._live = list(live), list(live.values())
        self._averaged = [tensor.clone() for tensor in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each step of the optimiser."""
        torch._foreach_lerp_(self._averaged, self._live, 1 - self._decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begins anew from the network as it is now."""
        torch._foreach_copy_(self._averaged, self._live)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged network, under the names of the network's own `state_dict()`."""
        return self._model.state_dict() | dict(zip(self._names, self._averaged, strict=True))

    @contextmanager
    def in_the_network(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own, bit for bit."""
        own = [tensor.clone() for tensor in self._live]
        with torch.no_grad():
            torch._foreach_copy_(self._live, self._averaged)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._live, own)
