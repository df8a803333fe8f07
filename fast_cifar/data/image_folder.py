"""A folder of images, `train/<class>/*.png|jpg` and `test/<class>/*`: listed, decoded once, and cached.

`read_image` decodes one image file of any kind to the network's size and format.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from fast_cifar.data import cache
from fast_cifar.data.splits import Dataset, Split
from fast_cifar.options import SIZE
from fast_cifar.system.errors import UserError
from fast_cifar.system.files import require_writable
from fast_cifar.system.progress import progress_bar

SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUT = "an image folder holds train/<class>/*.png|jpg and test/<class>/*"
THREADS = 8  # more would only wait for Python's global interpreter lock
BLOCK = 32  # images that a thread decodes between two updates of the progress bar


class ImageFile(NamedTuple):
    name: str
    bytes: int
    modified_ns: int


Listing = dict[str, dict[str, list[ImageFile]]]  # split -> class -> images, all sorted by name


def load_folder(folder: Path, data_dir: Path, splits: Sequence[str], *, resize: bool = False) -> Dataset:
    """Loads an image folder, from the cache if neither its files nor `resize` have changed since they were decoded.

    Nothing is ever written into the folder: if `data_dir` lies inside it, the images are decoded every time.

    Args:
        folder: holds `train/<class>/` and `test/<class>/`. Hidden files and files of other kinds are ignored.
        data_dir: the cache goes to `data_dir/cache`.
        splits: to load: "train", and "test" if the test images are wanted.
        resize: crop and scale the images that are not 32x32, instead of refusing them; see `read_image`.

    Returns:
        The data set, classes sorted by name and images sorted by class and name.

    Raises:
        UserError: a split or its images are missing, there are fewer than two classes, the splits have different
            classes, an image cannot be used, or `data_dir` cannot be written to.
    """
    listing = _list_folder(folder, splits)
    absolute = os.path.abspath(folder)
    name = os.path.basename(absolute)
    stored = data_dir / "cache" / f"{name[:40]}-{hashlib.sha256(os.fsencode(absolute)).hexdigest()[:12]}.pt"
    keys = {split: _fingerprint(classes, resize) for split, classes in listing.items()}
    if dataset := cache.load(stored, keys):
        return dataset
    if Path(os.path.realpath(data_dir)).is_relative_to(os.path.realpath(folder)):
        return _decode_folder(name, folder, listing, resize)
    require_writable(stored.parent, cache.REMEDY)
    dataset = _decode_folder(name, folder, listing, resize)
    cache.save(stored, keys, dataset)
    return dataset


def _list_folder(folder: Path, splits: Sequence[str]) -> Listing:
    try:
        listing = {split: _list_split(folder, split) for split in splits}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); fix that or delete it") from error
    _check_classes(folder, listing)
    return listing


def count_classes(folder: Path) -> int:
    """The number of classes in `folder/train`.

    Raises:
        UserError: there are none, or it cannot be read.
    """
    return len(_list_folder(folder, ["train"])["train"])


def _list_split(folder: Path, split: str) -> dict[str, list[ImageFile]]:
    root = folder / split
    if not root.is_dir():
        raise UserError(f"{folder} has no {split}/ folder; {LAYOUT}")
    classes = {entry.name: sorted(_images_in(entry.path)) for entry in _visible(root) if entry.is_dir()}
    if not classes:
        raise UserError(f"{root} has no class folders; {LAYOUT}")
    return dict(sorted(classes.items()))


def _images_in(folder: str) -> Iterator[ImageFile]:
    for entry in _visible(folder):
        if entry.name.lower().endswith(SUFFIXES):
            status = entry.stat()
            if stat.S_ISREG(status.st_mode):
                yield ImageFile(entry.name, status.st_size, status.st_mtime_ns)


def _visible(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _check_classes(folder: Path, listing: Listing) -> None:
    for split, other in itertools.permutations(listing, 2):
        if missing := sorted(listing[split].keys() - listing[other].keys()):
            raise UserError(
                f"{folder / split} has the class {missing[0]!r} and {folder / other} has not; both need the same"
            )
    if len(listing["train"]) < 2:
        only = next(iter(listing["train"]))
        raise UserError(f"{folder} has only one class, {only!r}; training needs two or more class folders")
    for split, classes in listing.items():
        for name, images in classes.items():
            if not images:
                raise UserError(f"{folder / split / name} has no png or jpg images; add some or delete the class")


def _fingerprint(classes: dict[str, list[ImageFile]], resize: bool) -> str:
    digest = hashlib.sha256(f"resize={resize}".encode())
    for name, images in classes.items():
        digest.update(os.fsencode(f"\n{name}/"))
        for image in images:
            digest.update(os.fsencode(f"\n{image.name}/{image.bytes}/{image.modified_ns}"))
    return digest.hexdigest()


def _decode_folder(name: str, folder: Path, listing: Listing, resize: bool) -> Dataset:
    total = sum(len(images) for classes in listing.values() for images in classes.values())
    with progress_bar(total=total, desc="decoding", unit=" images") as bar:
        splits = {split: _decode_split(folder / split, classes, resize, bar) for split, classes in listing.items()}
    return Dataset(name, splits["train"], splits.get("test"), list(listing["train"]))


def _decode_split(root: Path, classes: dict[str, list[ImageFile]], resize: bool, bar: tqdm) -> Split:
    paths = [os.path.join(root, name, image.name) for name, images in classes.items() for image in images]
    counts = torch.tensor([len(images) for images in classes.values()])
    return Split(_decode(paths, resize, bar), torch.arange(len(classes)).repeat_interleave(counts))


def _decode(paths: list[str], resize: bool, bar: tqdm) -> Tensor:
    decoded = np.empty((len(paths), SIZE, SIZE, 3), dtype=np.uint8)

    def decode_block(start: int) -> int:
        block = paths[start : start + BLOCK]
        for i, path in enumerate(block, start):
            decoded[i] = read_image(path, resize=resize)
        return len(block)

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for done in pool.map(decode_block, range(0, len(paths), BLOCK)):
            bar.update(done)
    return torch.from_numpy(decoded)


def read_image(path: str | Path, *, resize: bool = False) -> np.ndarray:
    """Decodes one image file.

    Grey, palette and CMYK images become RGB, transparency is dropped, and 16-bit grey keeps its upper 8 bits.

    Args:
        path: a file of any format that Pillow reads.
        resize: rotate the image as its EXIF orientation says, crop the largest square from its centre, and scale that
            to 32x32, up or down, with antialiasing.

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
    except Exception as error:  # a damaged file can make Pillow raise almost anything
        raise UserError(f"{path} {_fault(path, error)}") from error
    raise UserError(f"{path} is {width}x{height} pixels, not {SIZE}x{SIZE}; --resize crops and scales every image")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resized(image: Image.Image) -> Image.Image:
    image.draft("RGB", (4 * SIZE, 4 * SIZE))  # decodes a large JPEG at a fraction of its size
    return ImageOps.fit(_rgb(ImageOps.exif_transpose(image)), (SIZE, SIZE), Image.Resampling.BICUBIC)


def _fault(path: str | Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror}); fix that or delete it"
    size = os.path.getsize(path)
    if size == 0:
        return "is empty; replace it or delete it"
    if "truncated" in str(error).lower():
        return f"is truncated (it breaks off after {size:,} bytes); replace it or delete it"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that can be decoded; replace it or delete it"
    return f"is damaged ({' '.join(str(error).split())}); replace it or delete it"
