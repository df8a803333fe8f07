"""Loading a data set by its name or path: the official archives, a folder of images, or the synthetic set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fast_cifar.data import cifar, image_folder, synthetic
from fast_cifar.data.splits import Dataset, Split, balanced_subset, hold_out
from fast_cifar.system.errors import UserError

__all__ = ["Dataset", "Split", "balanced_subset", "hold_out", "load_dataset"]

SYNTHETIC_TRAIN = 10_000
SYNTHETIC_TEST = 2_000


def load_dataset(
    name_or_path: str | Path,
    data_dir: str | Path = "data",
    *,
    mirrors: Sequence[str] = (),
    resize: bool = False,
    test: bool = True,
) -> Dataset:
    """Loads a data set into memory.

    Args:
        name_or_path: "cifar10" or "cifar100" (downloaded if not yet in `data_dir`), "synthetic" (generated), a folder
            with `train/<class>/*.png|jpg` and `test/<class>/*`, or a copy of the official `cifar-10-python.tar.gz` or
            `cifar-100-python.tar.gz` under any name.
        data_dir: where downloads and decoded images are kept; created when the first file is written to it.
        mirrors: full URLs of the official archive, tried in order instead of the official server.
        resize: crop and scale the images of a folder that are not 32x32, instead of refusing them.
        test: load the test images too. Without them, an image folder needs no `test/`.

    Returns:
        The data set; its images are uint8 [N, 32, 32, 3].

    Raises:
        UserError: there is no such data set, it is damaged or unsuitable, or it cannot be downloaded or cached.
    """
    name, data_dir = str(name_or_path), Path(data_dir)
    splits = ("train", "test") if test else ("train",)
    if name in cifar.SIZES:
        return cifar.load_official(name, data_dir, mirrors, splits)
    if name == "synthetic":
        return _synthetic(test)
    if os.path.isdir(name):
        return image_folder.load_folder(Path(name), data_dir, splits, resize=resize)
    if os.path.isfile(name):
        return cifar.load_local(Path(name), data_dir, splits)
    raise UserError(_unknown(name))


def _synthetic(test: bool) -> Dataset:
    train_split = Split(*synthetic.generate(SYNTHETIC_TRAIN, seed=0))
    test_split = Split(*synthetic.generate(SYNTHETIC_TEST, seed=1)) if test else None
    return Dataset("synthetic", train_split, test_split, list(synthetic.CLASSES))


def count_classes(name_or_path: str | Path) -> int:
    """The number of classes, without loading the data.

    Raises:
        UserError: there is no such data set, or it is damaged.
    """
    name = str(name_or_path)
    if name in ("cifar10", "cifar100", "synthetic"):
        return 100 if name == "cifar100" else 10
    if os.path.isdir(name):
        return image_folder.count_classes(Path(name))
    if os.path.isfile(name):
        return 100 if cifar.recognise(Path(name)) == "cifar100" else 10
    raise UserError(_unknown(name))


def _unknown(name: str) -> str:
    return (
        f"there is no data set {name!r}: give cifar10, cifar100, synthetic, the path of an image folder, "
        "or the path of cifar-10-python.tar.gz"
    )
