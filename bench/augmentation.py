"""How fast are random crop, flip and cutout, compared with torchvision, kornia and masks?

    python -m bench.augmentation                    # about a minute
    python -m bench.augmentation --json out.json    # the numbers in a file, too
    python -m bench.augmentation --dtype float32    # the batches in another precision

Images/sec from uint8 to finished batches of 512 on the device, on random 32x32 images, black padding:

- loader: `DeviceLoader` over an epoch in random order, its random choices included, compiled and eager.
- torchvision v2: RandomCrop(32, padding=4), RandomHorizontalFlip, ToDtype, Normalize and RandomErasing with an 8x8 box
  on one uint8 tensor after another (faster than on PIL images), in one process; stacked and brought into the loader's
  precision, layout and device. The column `x torchvision` compares with this row.
- torchvision v2, DataLoader: the same five in the two worker processes of a shuffling `torch.utils.data.DataLoader`.
  Timed is an epoch, from asking for its first batch to having its last one on the device; the workers start in the
  warm-up and stay.
- kornia: the same five for a batch at a time on the device, in float32, then the loader's precision and layout.
- masked crop: an epoch at once, as cifar10-airbench does it. Beforehand the images are normalised in the batches'
  precision and padded. Timed is an epoch: drawing, on the device; cropping rows, then columns, where each offset copies
  the images that a mask selects; flipping with `torch.where`; cutting with a mask; picking the batches in random order.
- copy: `copy_` of a finished batch into another one: the upper limit for anything that writes as many bytes.

The precision is what `--amp` would compute in on this device, unless `--dtype` says otherwise. The variants take turns;
the table shows the median of the repeats and their range. On a CPU that other programs use as well, threads that wait
for each other by spinning slow the fast variants most; OMP_WAIT_POLICY=PASSIVE in the environment avoids it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench.markdown import COLUMNS, caption, print_rows
from bench.measure import arguments, environment, interleave, parsed, save_rows
from fast_cifar.augment import Draws, draw
from fast_cifar.loader import DeviceLoader
from fast_cifar.options import CUTOUT, PADDING, SIZE
from fast_cifar.system.device import has_compiler, resolve_device, resolve_precision
from fast_cifar.system.errors import run_script

BATCH, WORKERS = 512, 2
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CUTOUT_SHARE = (CUTOUT / SIZE) ** 2  # of the image's area
COMPILED, EAGER, TORCHVISION = "loader, compiled", "loader, eager", "torchvision v2, one image at a time"
DATA_LOADER, MASKED = f"torchvision v2, DataLoader, {WORKERS} workers", "masked crop, an epoch at once"
KORNIA, COPY = "kornia, batched", "copy of as many bytes written"
KORNIA_INSTALLED = find_spec("kornia") is not None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    options = parsed(parser)
    device = resolve_device(options.device)
    dtype = resolve_precision(device, True, "auto").dtype if options.dtype == "auto" else getattr(torch, options.dtype)

    images = torch.randint(256, (2_000 if options.quick else 50_000, SIZE, SIZE, 3), dtype=torch.uint8)
    cases = make_cases(images, device, dtype, few=BATCH if options.quick else 4 * BATCH)
    rates = interleave(cases, repeats=2 if options.quick else 9, device=device)

    where = environment(device) | {"dtype": str(dtype).removeprefix("torch."), "batch": BATCH, "images": len(images)}
    rows = [{"variant": name} | rate | ratios(rate, rates) for name, rate in rates.items()]
    print_rows(caption(where, rows), COLUMNS["augmentation"], rows)
    if not KORNIA_INSTALLED:
        print("kornia is not installed; to compare with it: pip install kornia")
    if COMPILED not in rates:
        print("no compiled loader: there is no C++ compiler on the PATH")
    save_rows(options.json, where, rows)


def make_cases(images: Tensor, device: torch.device, dtype: torch.dtype, few: int) -> dict[str, Callable[[], int]]:
    """The variants to compare; the slow ones process only the first `few` images."""
    cases = {
        EAGER: loader_case(images, device, dtype, compile=False),
        TORCHVISION: torchvision_case(images[:few], device, dtype),
        DATA_LOADER: data_loader_case(images[: WORKERS * few], device, dtype),
    }
    if has_compiler():
        cases = {COMPILED: loader_case(images, device, dtype, compile=True)} | cases
    if KORNIA_INSTALLED:
        cases[KORNIA] = kornia_case(images[: 4 * few], device, dtype)
    cases[MASKED] = masked_case(images, device, dtype)
    cases[COPY] = copy_case(len(images) // BATCH, device, dtype)
    return cases


def loader_case(images: Tensor, device: torch.device, dtype: torch.dtype, *, compile: bool) -> Callable[[], int]:
    labels = torch.zeros(len(images), dtype=torch.int64)
    how = {"mean": MEAN, "std": STD, "dtype": dtype, "compile": compile, "pad_mode": "zeros"}
    loader = DeviceLoader(images, labels, BATCH, train=True, device=device, **how)

    def run() -> int:
        return sum(len(batch) for batch, _ in loader)

    return run


def torchvision_transform() -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomCrop(SIZE, padding=PADDING),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD, inplace=True),
            v2.RandomErasing(p=1, scale=(CUTOUT_SHARE, CUTOUT_SHARE), ratio=(1, 1), inplace=True),
        ]
    )


def torchvision_case(images: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    transform = torchvision_transform()
    batches = images.permute(0, 3, 1, 2).contiguous().split(BATCH)

    def run() -> int:
        for batch in batches:
            augmented = torch.stack([transform(image) for image in batch])
            augmented.to(device, dtype, memory_format=torch.channels_last)
        return len(images)

    return run


@dataclass(frozen=True)
class TransformedImages(Dataset):
    """Images behind a transform, with their labels. Worker processes may receive a pickled copy."""

    images: Tensor
    labels: Tensor
    transform: v2.Transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def worker_loader(images: TransformedImages, batch_size: int, device: torch.device, *, drop_last: bool) -> DataLoader:
    """A shuffling loader whose workers start with the first epoch and end when it is deleted."""
    return DataLoader(
        images,
        batch_size,
        shuffle=True,
        drop_last=drop_last,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )


def data_loader_case(images: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    labels = torch.zeros(len(images), dtype=torch.int64)
    data = TransformedImages(images.permute(0, 3, 1, 2).contiguous(), labels, torchvision_transform())
    loader = worker_loader(data, BATCH, device, drop_last=False)

    def run() -> int:
        for batch, _ in loader:
            batch.to(device, dtype, memory_format=torch.channels_last, non_blocking=True)
        return len(images)

    return run


def kornia_case(images: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    import kornia.augmentation as K

    transform = nn.Sequential(
        K.RandomCrop((SIZE, SIZE), padding=PADDING),
        K.RandomHorizontalFlip(),
        K.Normalize(MEAN, STD),
        K.RandomErasing(scale=(CUTOUT_SHARE, CUTOUT_SHARE), ratio=(1, 1), p=1),
    )
    batches = images.permute(0, 3, 1, 2).contiguous().to(device).split(BATCH)

    def run() -> int:
        for batch in batches:
            transform(batch.float() / 255).to(dtype, memory_format=torch.channels_last)
        return len(images)

    return run


def masked_case(images: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    padded = normalise_and_pad(images.to(device), dtype)
    generator = torch.Generator(device)

    def run() -> int:
        epoch = augment_by_masks(
            padded, draw(len(padded), padding=PADDING, cutout=CUTOUT, size=SIZE, generator=generator)
        )
        for part in torch.randperm(len(padded), device=device).split(BATCH):
            epoch[part].permute(0, 3, 1, 2)  # channels_last, as they are stored as [H, W, 3]
        return len(images)

    return run


def normalise_and_pad(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [N, H, W, 3], padded with 0, in [0, 255], and then normalised: dtype [N, H + 8, W + 8, 3]."""
    mean, std = (255 * torch.tensor(numbers, device=images.device) for numbers in (MEAN, STD))
    padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    return ((padded.float() - mean) / std).to(dtype)


def augment_by_masks(padded: Tensor, draws: Draws) -> Tensor:
    """What `fast_cifar.augment.apply` does, for a whole epoch of `normalise_and_pad`: [N, H, W, 3]."""
    images = crop_by_masks(crop_by_masks(padded, draws.crop_y, dim=1), draws.crop_x, dim=2)
    images = torch.where(draws.flip[:, None, None, None], images.flip(2), images)
    place = torch.arange(SIZE, device=images.device)
    below, right = place - draws.cut_y[:, None], place - draws.cut_x[:, None]
    rows, columns = (below >= 0) & (below < CUTOUT), (right >= 0) & (right < CUTOUT)
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[..., None], 0)


def crop_by_masks(images: Tensor, first: Tensor, dim: int) -> Tensor:
    """`SIZE` rows (dim 1) or columns (dim 2) of each image, beginning with the one that `first`, int64 [N], names."""
    shape = list(images.shape)
    shape[dim] = SIZE
    cropped = images.new_empty(shape)
    for offset in range(2 * PADDING + 1):
        chosen = first == offset
        cropped[chosen] = images.narrow(dim, offset, SIZE)[chosen]
    return cropped


def copy_case(batches: int, device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    source = torch.randn(BATCH, 3, SIZE, SIZE, device=device).to(dtype, memory_format=torch.channels_last)
    target = torch.empty_like(source)

    def run() -> int:
        for _ in range(batches):
            target.copy_(source)
        return batches * BATCH

    return run


def ratios(rate: Mapping[str, float], rates: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How many times as fast as torchvision and kornia, and which fraction of the copy, by medians."""
    references = {"times_torchvision": TORCHVISION, "times_kornia": KORNIA, "fraction_of_copy": COPY}
    median = "images_per_second"
    return {key: rate[median] / rates[name][median] for key, name in references.items() if name in rates}


if __name__ == "__main__":
    sys.exit(run_script(main))
