"""A small network for range tests, and images of two classes that it learns in a few steps."""

import numpy as np
import torch
from torch import nn

from fast_cifar.loader import DeviceLoader
from fast_cifar.optimizer import make_optimizer


def network(dropout=0.1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def network_and_optimizer():
    model = network()
    return model, make_optimizer(model, 0.01)


def red_or_not():
    """Batches of 16 images; those of one class are redder than the others."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, 128))
    images = rng.integers(0, 100, (128, 32, 32, 3), dtype=np.uint8)
    images[..., 0] += (100 * labels.numpy().astype(np.uint8))[:, None, None]
    return DeviceLoader(torch.from_numpy(images), labels, 16, train=True, device="cpu")
