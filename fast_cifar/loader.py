"""A data set that lives on the device and is handed out in batches, cropped, flipped, cut and normalised in one pass.

The images are stored as uint8, already padded, once as they are and once mirrored. A crop, flipped or not, is then a
window of the store: `height` runs of `3 * width` neighbouring bytes, which need no arithmetic on single pixels. One
compiled kernel reads each byte of the window once and writes each value of the batch once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fast_cifar.augment import Draws, check_images, check_options, draw, normalise_and_cut, pad, row_tables
from fast_cifar.options import CUTOUT, PAD_MODE, PADDING
from fast_cifar.system.device import compiled, prefers_index_select, upload, works_asynchronously

CHUNK = 4096  # images handled at a time when the store is built or measured: bounds the memory it takes


class DeviceLoader:
    """Batches of a data set that never leaves the device.

    For training it shuffles, augments and drops the last short batch; for evaluation it does none of these. What epoch
    e hands out is a function of (seed, e) alone, the same on every device, and no global random state is touched. It
    begins at epoch 0 and moves on each time it has been iterated to its end, so that this is right:

        for epoch in range(24):
            for inputs, labels in loader:
                ...

    A batch is valid until the next one is asked for.

    Args:
        images: uint8 [N, H, W, 3], tensor or NumPy array, N at least 1. An evaluation loader on the same device uses
            this very memory.
        labels: int64 [N], tensor or NumPy array.
        batch_size: at least 1; for training at most N.
        train: shuffle, augment, drop the last short batch.
        device: where the data and the batches live.
        seed: at least 0.
        mean, std: 3 numbers each on the 0..1 scale; `channel_statistics(images)` for what is not given.
        dtype: floating-point type of the batches.
        compile: make each batch with `torch.compile`; the values are the same.
        alternate_flips: flip each image in every other epoch, the first at random, instead of at random each time
            (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498).
        shard: (k, n): hand out the k-th of n equal slices of each batch; for training n must divide `batch_size`.
        padding, cutout, flip, pad_mode: of `fast_cifar.augment`; evaluation ignores them.

    Attributes:
        images, labels: the data on the device. `images` is a view of the store, and not contiguous if that is padded.
        batch_size, padding, cutout, mean, std, epoch: in use (an evaluation loader has padding = cutout = 0).

    Memory: N * (H + 2 * padding) * (W + 2 * padding) * 3 bytes, twice with flip: 480 MB for the 50,000 images of CIFAR.

    Raises:
        ValueError: an argument has the wrong type, shape or range.
    """

    def __init__(
        self,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        batch_size: int,
        *,
        train: bool,
        device: torch.device | str,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        padding: int = PADDING,
        cutout: int = CUTOUT,
        flip: bool = True,
        pad_mode: str = PAD_MODE,
        alternate_flips: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
        _check_data(images, labels, batch_size, train)
        if batch_size % shard[1]:
            raise ValueError(f"batch_size is {batch_size}, which {shard[1]} cannot share equally")
        if seed < 0:
            raise ValueError(f"seed is {seed}, below 0")
        self.size = (images.shape[1], images.shape[2])
        self.padding, self.cutout, self.flip = (padding, cutout, flip) if train else (0, 0, False)
        check_options(self.size, self.padding, self.cutout, pad_mode, dtype)
        measured = channel_statistics(images) if mean is None or std is None else ()
        self.mean = tuple(map(float, measured[0] if mean is None else mean))
        self.std = tuple(map(float, measured[1] if std is None else std))
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.shard = shard
        self._alternate_flips = alternate_flips
        self.epoch = 0
        self._dtype = dtype
        self._offset, self._scales = row_tables(self.mean, self.std, self.size[1], self.cutout, device)
        self._store = _make_store(images, self.padding, pad_mode, mirrored=self.flip).to(device)
        inner = (slice(self.padding, self.padding + side) for side in self.size)
        self.images = self._store[(0, slice(None), *inner)]
        self.labels = labels.to(device)
        self._cut_batch = compiled(cut_batch, self.labels.device) if compile else cut_batch
        self._ahead: dict[tuple[int, int], tuple[Tensor, Draws]] = {}  # by seed and epoch: the next epoch's, if any

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, left = divmod(len(self.labels), self.batch_size)
        return whole if self.train else whole + (left > 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, at least 0, that the next iterator hands out."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, below 0")
        self.epoch = epoch

    def draws(self, epoch: int) -> tuple[Tensor, Draws]:
        """The random choices of an epoch: batch k is `apply(images[permutation[k]], draws[k], ...)`, where k stands for
        the k-th slice of `batch_size`.

        Returns:
            permutation: int64 [N] and the N draws, on the device. For evaluation, the order of the data and draws that
            change nothing.
        """
        count = len(self.labels)
        generator = torch.Generator().manual_seed(_hashed(self.seed, epoch))
        permutation = torch.randperm(count, generator=generator) if self.train else torch.arange(count)
        draws = draw(
            count, padding=self.padding, cutout=self.cutout, size=self.size, flip=self.flip, generator=generator
        )
        if self._alternate_flips and self.flip:
            draws = replace(draws, flip=self._first_flips()[permutation] ^ (epoch % 2 == 1))
        device = self.labels.device
        moved = {name: upload(tensor, device) for name, tensor in vars(draws).items()}
        return upload(permutation, device), Draws(**moved)

    def _first_flips(self) -> Tensor:
        """bool [N]: whether epoch 0 mirrors each image, in the order of the data."""
        generator = torch.Generator().manual_seed(_hashed(self.seed, 0, 1))  # no epoch has these numbers
        return torch.randint(2, (len(self.labels),), generator=generator) == 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (inputs, labels): dtype [B, 3, H, W] in channels_last, and int64 [B]."""
        return self.batches()

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """What iterating yields, beginning with batch `first` of the epoch, 0-based."""
        drawn = self._ahead.pop((self.seed, self.epoch), None) or self.draws(self.epoch)
        return self._produce(self.epoch, *drawn, first)

    def _produce(self, epoch: int, permutation: Tensor, draws: Draws, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        starts = self._window_starts(permutation, draws)
        labels = self.labels[permutation]
        each = self.batch_size // self.shard[1]
        before = each * self.shard[0]
        for begin in range(first * self.batch_size, len(self) * self.batch_size, self.batch_size):
            part = slice(begin + before, begin + before + each)
            whole = part.stop <= len(labels)
            # The short batch at the end of an evaluation is not worth a compilation of its own.
            yield self._inputs(starts[part], draws[part], self._cut_batch if whole else cut_batch), labels[part]
        if self.epoch == epoch:  # unless set_epoch has chosen another one meanwhile
            self.epoch += 1
        if self.train and works_asynchronously(self.labels.device):  # it is still busy with this epoch
            self._ahead = {(self.seed, self.epoch): self.draws(self.epoch)}

    def batch(self, indices: Tensor, draws: Draws) -> Tensor:
        """The images `indices`, changed by one of `draws` each: dtype [n, 3, H, W], as iterating yields them."""
        return self._inputs(self._window_starts(indices, draws), draws, cut_batch)

    def _inputs(self, starts: Tensor, draws: Draws, cut_batch: Callable[..., Tensor]) -> Tensor:
        return cut_batch(
            self._store,
            starts,
            draws.cut_y,
            draws.cut_x,
            self._offset,
            self._scales,
            self.size[0],
            self.cutout,
            self._dtype,
        )

    def _window_starts(self, permutation: Tensor, draws: Draws) -> Tensor:
        """int64 [N]: number of the store's pixel at which each crop begins, already in the mirrored half if flipped."""
        _, count, height, width, _ = self._store.shape
        x = torch.where(draws.flip, 2 * self.padding - draws.crop_x, draws.crop_x)
        return ((permutation + count * draws.flip) * height + draws.crop_y) * width + x


def _hashed(*numbers: int) -> int:
    """A seed for torch; those of neighbouring numbers are independent."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def cut_batch(
    store: Tensor,
    starts: Tensor,
    cut_y: Tensor,
    cut_x: Tensor,
    offset: Tensor,
    scales: Tensor,
    height: int,
    cutout: int,
    dtype: torch.dtype,
) -> Tensor:
    """The windows of `store` that begin at the pixels `starts`, normalised and cut: dtype [n, 3, H, W]."""
    values = len(offset)
    store_values = store.shape[3] * 3
    windows = (store.numel() - (height - 1) * store_values - values) // 3 + 1
    # Every place a window can begin, as a view: [windows, H, 3 * W], of which neighbours overlap.
    every_window = store.as_strided((windows, height, values), (3, store_values, 1))
    return normalise_and_cut(_select(every_window, starts), cut_y, cut_x, offset, scales, cutout, dtype)


def _select(windows: Tensor, starts: Tensor) -> Tensor:
    """windows[starts], by the way that suits the device; compiled, both are the same kernel."""
    return windows.index_select(0, starts) if prefers_index_select(windows.device) else windows[starts]


def _make_store(images: Tensor, padding: int, pad_mode: str, *, mirrored: bool) -> Tensor:
    """uint8 [1 or 2, N, H + 2 * padding, W + 2 * padding, 3]: the padded images and, if wanted, their mirror images."""
    if padding == 0 and not mirrored:
        return images.contiguous()[None]
    count, height, width, _ = images.shape
    shape = (1 + mirrored, count, height + 2 * padding, width + 2 * padding, 3)
    # numpy asks Linux for huge pages and torch does not: reading images in random order is then a sixth faster.
    store = torch.from_numpy(np.empty(shape, np.uint8))
    for begin in range(0, count, CHUNK):
        part = slice(begin, begin + CHUNK)
        store[0, part] = pad(images[part], padding, pad_mode)
        if mirrored:
            store[1, part] = store[0, part].flip(2)
    return store


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the 0..1 scale, exact but for the last rounding.

    Args:
        images: uint8 [N, H, W, 3], N at least 1.

    Returns:
        mean, std: 3 numbers each. A channel that never varies has std 1, so that normalising makes it 0.
    """
    value = torch.arange(256)
    mean, std = [], []
    for channel in range(3):
        parts = (images[begin : begin + CHUNK, :, :, channel] for begin in range(0, len(images), CHUNK))
        histogram = sum(torch.bincount(part.reshape(-1), minlength=256) for part in parts).cpu()
        count = int(histogram.sum())
        total = int((histogram * value).sum())
        squares = int((histogram * value * value).sum())
        mean.append(total / (255 * count))
        std.append((count * squares - total * total) ** 0.5 / (255 * count) or 1.0)
    return tuple(mean), tuple(std)


def _check_data(images: Tensor, labels: Tensor, batch_size: int, train: bool) -> None:
    """Raises ValueError unless the data fit together and fill at least one batch."""
    check_images(images)
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are int64 [{len(images)}], not {labels.dtype} {list(labels.shape)}")
    if len(images) == 0:
        raise ValueError("the data set holds no images")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, below 1")
    if train and batch_size > len(images):
        raise ValueError(f"batch_size is {batch_size}, above the {len(images)} images there are")
