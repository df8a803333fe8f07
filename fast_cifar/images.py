"""One image file of any kind, decoded to what the network takes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fast_cifar.errors import UserError

SIZE = 32


def read_image(path: str | Path, *, resize: bool = False) -> np.ndarray:
    """Decodes one image file.

    Grey, palette and CMYK images become RGB, transparency is dropped, and 16-bit grey keeps its upper 8 bits.

    Args:
        path: a file of any format that Pillow reads.
        resize: turn the image upright as its EXIF data say, crop the largest square from its centre, and scale that to
            32x32, up or down, with antialiasing.

    Returns:
        uint8 [32, 32, 3].

    Raises:
        UserError: the file cannot be read or decoded, or it is not 32x32 and `resize` is off.
    """
    try:
        with Image.open(path) as image:
            if resize:
                return np.array(_resized(image))
            if image.size == (SIZE, SIZE):
                return np.array(_rgb(image))
            width, height = image.size
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f"{path} {_fault(path, error)}") from error
    raise UserError(f"{path} is {width}x{height} pixels, not {SIZE}x{SIZE}; --resize crops and scales every image")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resized(image: Image.Image) -> Image.Image:
    image.draft("RGB", (4 * SIZE, 4 * SIZE))  # a large JPEG is decoded at a fraction of its size
    return ImageOps.fit(_rgb(ImageOps.exif_transpose(image)), (SIZE, SIZE), Image.Resampling.BICUBIC)


def _fault(path: str | Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror}); mend that or delete it"
    size = os.path.getsize(path)
    if size == 0:
        return "is empty; replace it or delete it"
    if "truncated" in str(error).lower():
        return f"is truncated (it breaks off after {size:,} bytes); replace it or delete it"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that can be decoded; replace it or delete it"
    return f"is damaged ({' '.join(str(error).split())}); replace it or delete it"
