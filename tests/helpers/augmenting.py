"""Images to augment, and torchvision's own operators to compare with."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fast_cifar.augment import Draws

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NAMES = [field.name for field in fields(Draws)]


def random_images(n: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torchvision_reference(image: Tensor, one: Draws, padding: int, cutout: int, pad_mode: str) -> Tensor:
    """float32 [3, H, W]: one image through torchvision's pad, crop, flip, normalise and erase."""
    height, width, _ = image.shape
    picture = F.pad(image.permute(2, 0, 1), padding, padding_mode={"zeros": "constant"}.get(pad_mode, pad_mode))
    picture = F.crop(picture, int(one.crop_y), int(one.crop_x), height, width)
    picture = F.horizontal_flip(picture) if one.flip else picture
    picture = F.normalize(F.to_dtype(picture, torch.float32, scale=True), list(MEAN), list(STD))
    return F.erase(picture, int(one.cut_y), int(one.cut_x), cutout, cutout, torch.zeros(()))
