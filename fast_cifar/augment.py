"""Random crop, flip and cutout for a whole batch: `draw` decides what happens, `apply` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fast_cifar.options import CUTOUT, PAD_MODE, PAD_MODES, PADDING, SIZE


@dataclass(frozen=True, eq=False)
class Draws:
    """What happens to each of n images. The tensors have shape [n]; an index or slice selects images.

    Attributes:
        crop_y, crop_x: int64, upper left corner of the crop in the padded image, in [0, 2 * padding].
        flip: bool, mirror the crop left to right.
        cut_y, cut_x: int64, upper left corner of the cut box in the cropped and flipped image, in [0, size - cutout].
    """

    crop_y: Tensor
    crop_x: Tensor
    flip: Tensor
    cut_y: Tensor
    cut_x: Tensor

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, index: slice | Tensor) -> Draws:
        return Draws(*(getattr(self, field.name)[index] for field in fields(self)))


def draw(
    n: int,
    *,
    padding: int = PADDING,
    cutout: int = CUTOUT,
    size: int | tuple[int, int] = SIZE,
    flip: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Draws:
    """Draws, uniformly and independently, what `apply` does to n images.

    Args:
        n: number of images, at least 0.
        padding: pixels added on each side before the crop, at least 0.
        cutout: side of the cut box, in [0, size].
        size: side of the images, or (height, width).
        flip: False flips nothing.
        generator: source of the randomness; torch's global CPU generator when not given.
        device: where the draws go afterwards; they stay on the generator's device when not given. A CPU generator
            gives every device the same draws.

    Raises:
        ValueError: an argument is out of its range.

    Everything is drawn whatever the options, so that switching one off leaves the others' choices as they were.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if n < 0:
        raise ValueError(f"cannot draw for {n} images")
    check_options((height, width), padding, cutout, pad_mode="zeros")  # which any padding suits
    origin = torch.device("cpu") if generator is None else generator.device

    def choose(choices: int) -> Tensor:
        return torch.randint(choices, (n,), generator=generator, device=origin)

    crop_y, crop_x, coin = choose(2 * padding + 1), choose(2 * padding + 1), choose(2)
    cut_y, cut_x = choose(height - cutout + 1), choose(width - cutout + 1)
    drawn = (crop_y, crop_x, (coin == 1) & flip, cut_y, cut_x)
    return Draws(*(tensor.to(origin if device is None else device) for tensor in drawn))


def apply(
    images: Tensor,
    draws: Draws,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int = PADDING,
    cutout: int = CUTOUT,
    pad_mode: str = PAD_MODE,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Crops, then flips, normalises and cuts a batch, as `draws` says.

    Args:
        images: uint8 [n, H, W, 3].
        draws: n draws for this padding, cutout and size, on the images' device. (Their ranges are not checked: on a
            GPU that would wait for it.)
        mean, std: 3 numbers each, per channel, on the 0..1 scale; std above 0.
        padding: pixels added on each side before the crop; 0 crops nothing.
        cutout: side of the box that becomes 0 after normalising (the mean colour); 0 cuts nothing.
        pad_mode: "zeros" pads raw pixels with 0, "reflect" mirrors without repeating the edge.
        dtype: floating-point type of the result. The arithmetic is float32, rounded once at the end.

    Returns:
        dtype [n, 3, H, W] in channels_last memory format. Devices, eager and compiled code give the same values.

    Raises:
        ValueError: an argument has the wrong type, shape or range.
    """
    check_images(images)
    n, height, width, _ = images.shape
    check_options((height, width), padding, cutout, pad_mode, dtype)
    if len(draws) != n:
        raise ValueError(f"{len(draws)} draws for {n} images")
    padded = pad(images, padding, pad_mode)
    column = torch.arange(width, device=images.device)
    crop_y, crop_x = (draws.crop_y, draws.crop_x) if padding else (0 * draws.crop_y, 0 * draws.crop_x)
    y = crop_y[:, None] + torch.arange(height, device=images.device)
    x = crop_x[:, None] + torch.where(draws.flip[:, None], width - 1 - column, column)
    row = torch.arange(n, device=images.device)[:, None] * padded.shape[1] + y
    pixel = row[:, :, None] * padded.shape[2] + x[:, None, :]
    rows = padded.view(-1, 3).index_select(0, pixel.view(-1)).view(n, height, width * 3)
    offset, scales = row_tables(mean, std, width, cutout, images.device)
    return normalise_and_cut(rows, draws.cut_y, draws.cut_x, offset, scales, cutout, dtype)


def pad(images: Tensor, padding: int, pad_mode: str) -> Tensor:
    """images [n, H, W, 3] with `padding` pixels more on each side: [n, H + 2 * padding, W + 2 * padding, 3]."""
    n, height, width, _ = images.shape
    if pad_mode == "reflect":
        rows, columns = (_mirrored(size, padding, images.device) for size in (height, width))
        return images.index_select(1, rows).index_select(2, columns)
    padded = images.new_zeros(n, height + 2 * padding, width + 2 * padding, 3)
    padded[:, padding : padding + height, padding : padding + width] = images
    return padded


def _mirrored(size: int, padding: int, device: torch.device) -> Tensor:
    """The pixel that each place of a padded line shows: with 2 more, 0 1 2 3 becomes 2 1 0 1 2 3 2 1."""
    last = size - 1
    return last - (last - torch.arange(-padding, size + padding, device=device).abs()).abs()


def row_tables(
    mean: Sequence[float], std: Sequence[float], width: int, cutout: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """What `normalise_and_cut` subtracts from a row of pixels, and the rows it may multiply it by.

    Returns:
        offset: float32 [3 * width], 255 * mean.
        scales: float32 [2 + width - cutout, 3 * width]: row 0 is 1 / (255 * std); row 1 + x the same but for `cutout`
            zeros that start at column x. Cutting is then no work at all: the row is multiplied by another row.

    Raises:
        ValueError: mean or std is not 3 numbers, or a std is not above 0.
    """
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ValueError(f"mean and std are 3 numbers each, and std is above 0; got {mean} and {std}")
    offset = torch.tensor([255 * float(value) for value in mean], device=device).repeat(width)
    scale = torch.tensor([1 / (255 * float(value)) for value in std], device=device).repeat(width)
    column = torch.arange(3 * width, device=device) // 3
    box = torch.arange(width - cutout + 1, device=device)[:, None]
    cut = (column >= box) & (column < box + cutout)
    return offset, torch.cat((scale[None], scale.masked_fill(cut, 0)))


def normalise_and_cut(
    rows: Tensor, cut_y: Tensor, cut_x: Tensor, offset: Tensor, scales: Tensor, cutout: int, dtype: torch.dtype
) -> Tensor:
    """Cropped and flipped pixels, uint8 [n, H, 3 * W], to the finished batch, dtype [n, 3, H, W] in channels_last.

    Subtracting before multiplying leaves no compiler an addition to fuse with the product, which would round once
    instead of twice: that is why all devices agree on every bit.
    """
    n, height, values = rows.shape
    below = torch.arange(height, device=rows.device) - cut_y[:, None]
    table_row = torch.where((below >= 0) & (below < cutout), cut_x[:, None] + 1, 0)
    scale = scales.index_select(0, table_row.view(-1)).view(n, height, values)
    finished = rows.float().sub_(offset).mul_(scale).to(dtype)
    return finished.view(n, height, values // 3, 3).permute(0, 3, 1, 2)


def check_images(images: Tensor) -> None:
    """Raises ValueError unless images is a uint8 tensor [n, H, W, 3]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are uint8 [n, H, W, 3], not {images.dtype} {list(images.shape)}")


def check_options(
    size: tuple[int, int], padding: int, cutout: int, pad_mode: str = PAD_MODE, dtype: torch.dtype = torch.float32
) -> None:
    """Raises ValueError unless images of size (H, W) can be padded and cut like that, and handed out as `dtype`."""
    if pad_mode not in PAD_MODES:
        raise ValueError(f"unknown pad_mode {pad_mode!r}; choose one of {', '.join(PAD_MODES)}")
    if padding < 0:
        raise ValueError(f"padding is {padding}, below 0")
    if pad_mode == "reflect" and padding >= min(size):
        raise ValueError(f"{min(size)} pixels cannot be mirrored into a padding of {padding}")
    if not 0 <= cutout <= min(size):
        raise ValueError(f"cutout is {cutout}, and must be in [0, {min(size)}]")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}, and must be a floating-point type")
