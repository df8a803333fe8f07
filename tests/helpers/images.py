"""Random images, folders of them, and torchvision's own operators to compare augmentation with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fast_cifar.augment import Draws

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NAMES = [field.name for field in fields(Draws)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.randint(256, (n, height, width, 3), dtype=torch.uint8, generator=seeded(seed))


def random_image(seed: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """One image [H, W, 3], of this width and height."""
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)


def torchvision_reference(image: Tensor, one: Draws, padding: int, cutout: int, pad_mode: str) -> Tensor:
    """float32 [3, H, W]: one image through torchvision's pad, crop, flip, normalise and erase."""
    height, width, _ = image.shape
    image = F.pad(image.permute(2, 0, 1), padding, padding_mode={"zeros": "constant"}.get(pad_mode, pad_mode))
    image = F.crop(image, int(one.crop_y), int(one.crop_x), height, width)
    image = F.horizontal_flip(image) if one.flip else image
    image = F.normalize(F.to_dtype(image, torch.float32, scale=True), list(MEAN), list(STD))
    return F.erase(image, int(one.cut_y), int(one.cut_x), cutout, cutout, torch.zeros(()))


def write_class_folder(root, classes=("cat", "dog"), per_class=12, size=(32, 32), suffix=".png", seed=0) -> Path:
    """A data set folder whose classes differ in colour, so that a network can learn them."""
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(per_class):
                pixels = rng.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
                pixels[..., index % 3] += 120
                Image.fromarray(pixels).save(folder / f"{k:03}{suffix}")
    return root
