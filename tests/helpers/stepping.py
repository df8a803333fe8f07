"""What a training step needs: a network, batches of random numbers, and plain float32."""

import torch
from torch import nn

from fast_cifar.system.device import Precision

FP32 = Precision("cpu", torch.float32)


def network(seed=0, device="cpu"):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4, bias=False),
    )
    return model.to(device)


def batches(count=6, size=16, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 3, 8, 8, generator=generator).to(device),
            torch.randint(4, (size,), generator=generator).to(device),
        )
        for _ in range(count)
    ]
