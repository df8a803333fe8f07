"""How fast are random crop, flip and cutout, next to what people use today?

    python -m bench.augmentation                    # about a minute
    python -m bench.augmentation --json out.json    # the numbers in a file, too
    python -m bench.augmentation --dtype float32    # the batches in another precision

Images/sec from uint8 pictures to finished batches of 512 on the device, on synthetic 32x32 images:

- loader: `DeviceLoader` over an epoch in random order, its random choices included, compiled and eager.
- torchvision v2: RandomCrop(32, padding=4), RandomHorizontalFlip, ToDtype, Normalize and RandomErasing with an 8x8 box
  on one uint8 tensor after another (quicker than on PIL pictures), in one process and without the cost of handing
  pictures over from a worker; stacked and brought into the loader's precision, layout and device. The column
  `torchvision` compares with this row.
- torchvision v2, DataLoader: the same five in the two worker processes of a shuffling `torch.utils.data.DataLoader`,
  which stack the batches and hand them over. Timed is an epoch, from asking for its first batch to having its last one
  on the device; the workers start in the warm-up and stay.
- kornia: the same five for a batch at a time on the device, in float32, then the loader's precision and layout.
- masked crop: an epoch at once, as cifar10-airbench does it. Beforehand the images are normalised in the batches'
  precision and padded. Timed is an epoch: drawing, on the device; cropping rows, then columns, where each offset copies
  the images that a mask selects; flipping with `torch.where`; cutting with a mask; picking the batches in random order.
- copy: `copy_` of a finished batch into another one, as many bytes as the loader writes: as fast as it could ever be.

The precision is what `--amp` would compute in on this device, unless `--dtype` says otherwise. The ways take turns; the
table shows the median of the repeats and their range. On a CPU that other programs use as well, threads
that wait for each other by spinning ruin the fast ways most; OMP_WAIT_POLICY=PASSIVE in the environment avoids it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench.measure import Rate, arguments, environment, header, interleave, print_table, write_rows
from fast_cifar.augment import Draws, draw
from fast_cifar.loader import DeviceLoader
from fast_cifar.system.device import has_compiler, resolve_device, resolve_precision
from fast_cifar.system.errors import run_script

BATCH, WORKERS = 512, 2
SIZE, PADDING, BOX = 32, 4, 8
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BOX_SHARE = (BOX / SIZE) ** 2
COMPILED, EAGER, TORCHVISION = "loader, compiled", "loader, eager", "torchvision v2, one image at a time"
DATA_LOADER, MASKED = f"torchvision v2, DataLoader, {WORKERS} workers", "masked crop, an epoch at once"
KORNIA, COPY = "kornia, batched", "copy of as many bytes written"
KORNIA_INSTALLED = find_spec("kornia") is not None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    options = parser.parse_args()
    device = resolve_device(options.device)
    dtype = resolve_precision(device, True, "auto").dtype if options.dtype == "auto" else getattr(torch, options.dtype)

    images = torch.randint(256, (2_000 if options.quick else 50_000, SIZE, SIZE, 3), dtype=torch.uint8)
    cases = make_cases(images, device, dtype, few=BATCH if options.quick else 4 * BATCH)
    rates = interleave(cases, repeats=2 if options.quick else 9, device=device)

    where = environment(device) | {"dtype": str(dtype).removeprefix("torch."), "batch": BATCH, "images": len(images)}
    report(rates, f"{header(where)}\n{where['dtype']} channels_last, batch {BATCH}, {len(images):,} images")
    rows = [{"way": way} | rate.as_dict() | ratios(rate, rates) for way, rate in rates.items()]
    write_rows(options.json, where, rows)


def make_cases(images: Tensor, device: torch.device, dtype: torch.dtype, few: int) -> dict[str, Callable[[], int]]:
    """The ways to be compared; the slow ones process only the first `few` images."""
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
    loader = DeviceLoader(
        images, labels, BATCH, train=True, device=device, mean=MEAN, std=STD, dtype=dtype, compile=compile
    )

    def run() -> int:
        loader.set_epoch(loader.epoch + 1)
        return sum(len(batch) for batch, _ in loader)

    return run


def torchvision_transform() -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomCrop(SIZE, padding=PADDING),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD, inplace=True),
            v2.RandomErasing(p=1, scale=(BOX_SHARE, BOX_SHARE), ratio=(1, 1), inplace=True),
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
class Pictures(Dataset):
    """uint8 images [N, 3, H, W] behind a transform. Worker processes may be handed a pickled copy."""

    images: Tensor
    transform: v2.Transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def data_loader_case(images: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """The workers start with the first call and end with the callable: `DataLoader` stops them when it is let go."""
    loader = DataLoader(
        Pictures(images.permute(0, 3, 1, 2).contiguous(), torchvision_transform()),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )

    def run() -> int:
        for batch in loader:
            batch.to(device, dtype, memory_format=torch.channels_last, non_blocking=True)
        return len(images)

    return run


def kornia_case(images: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    import kornia.augmentation as K

    transform = nn.Sequential(
        K.RandomCrop((SIZE, SIZE), padding=PADDING),
        K.RandomHorizontalFlip(),
        K.Normalize(MEAN, STD),
        K.RandomErasing(scale=(BOX_SHARE, BOX_SHARE), ratio=(1, 1), p=1),
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
        epoch = augment_by_masks(padded, draw(len(padded), padding=PADDING, cutout=BOX, size=SIZE, generator=generator))
        for part in torch.randperm(len(padded), device=device).split(BATCH):
            epoch[part].permute(0, 3, 1, 2)  # in channels_last: the pictures lie there as [H, W, 3]
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
    rows, columns = (below >= 0) & (below < BOX), (right >= 0) & (right < BOX)
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


def ratios(rate: Rate, rates: dict[str, Rate]) -> dict[str, float]:
    """How many times as fast as each of the others' ways, and which fraction of the copy, by medians."""
    references = {"times_torchvision": TORCHVISION, "times_kornia": KORNIA, "fraction_of_copy": COPY}
    return {name: rate.median / rates[way].median for name, way in references.items() if way in rates}


def report(rates: dict[str, Rate], title: str) -> None:
    rows = []
    for way, rate in rates.items():
        ratio = ratios(rate, rates)
        kornia = f"{ratio['times_kornia']:.2f} x" if "times_kornia" in ratio else "-"
        rows.append([way, str(rate), f"{ratio['times_torchvision']:.1f} x", kornia, f"{ratio['fraction_of_copy']:.2%}"])
    print_table(title, ["way", "images/sec, median [range]", "torchvision", "kornia", "of a copy"], rows)
    if not KORNIA_INSTALLED:
        print("kornia is not installed; to compare with it: pip install kornia")
    if COMPILED not in rates:
        print("no compiled loader: there is no C++ compiler on the PATH")


if __name__ == "__main__":
    sys.exit(run_script(main))
