"""A small network, batches of random numbers to train it on, and its state as plain numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fast_cifar.system.device import Precision
from tests.helpers.images import seeded

FP32 = Precision("cpu", torch.float32)


class SmallNetwork(nn.Module):
    """Stands in for `CustomResNet` where a test is not about the network."""

    def __init__(self, num_classes: int = 10, dropout: float = 0.0, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width // 8, 4, stride=4, bias=False),
            nn.BatchNorm2d(width // 8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(width // 8, num_classes, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def use_small_network(patch: pytest.MonkeyPatch) -> None:
    """Runs train and predict with `SmallNetwork`."""
    for module in ("build", "predict"):
        patch.setattr(f"fast_cifar.{module}.CustomResNet", SmallNetwork)


def network(num_classes: int = 4, dropout: float = 0.0, device: str = "cpu") -> SmallNetwork:
    """The same weights each time."""
    torch.manual_seed(0)
    return SmallNetwork(num_classes, dropout).to(device)


def batches(count: int = 6, size: int = 16, device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    generator = seeded(0)
    drawn = (
        (torch.randn(size, 3, 8, 8, generator=generator), torch.randint(4, (size,), generator=generator))
        for _ in range(count)
    )
    return [(inputs.to(device), labels.to(device)) for inputs, labels in drawn]


def flat(state: Any) -> dict[str, Any]:
    """Every leaf of a nested state dict with its path; a tensor as its type and its numbers, to be compared."""
    if isinstance(state, dict):
        return {f"{key}/{path}": leaf for key, value in state.items() for path, leaf in flat(value).items()}
    if isinstance(state, list | tuple):
        return flat(dict(enumerate(state)))
    return {"": (state.dtype, state.tolist()) if isinstance(state, Tensor) else state}
