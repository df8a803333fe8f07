"""CIFAR-10 and CIFAR-100 as their authors publish them: checked, read straight from the tar file, and kept decoded."""

from __future__ import annotations

import os
import pickle
import tarfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fast_cifar.data import cache
from fast_cifar.data.download import download, file_md5
from fast_cifar.data.splits import Dataset, Split
from fast_cifar.system.errors import UserError

SIZES = {"cifar10": 170_498_071, "cifar100": 169_001_437}


@dataclass(frozen=True)
class Official:
    """What is known of an official archive: where it is, what it must be, and where in it the pictures are."""

    name: str
    url: str
    filename: str
    md5: str
    train_members: list[str]
    test_members: list[str]
    meta_member: str
    classes_key: str
    labels_key: str


def load_official(name: str, data_dir: Path, mirrors: Sequence[str] = ()) -> Dataset:
    """Loads CIFAR-10 or CIFAR-100 from the decoded cache, from the archive in `data_dir`, or from the network.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: holds the archive and, under `cache/`, its decoded images. With the latter the former is not needed.
        mirrors: full URLs of the archive, tried in order; the official server is asked only when there are none.

    Raises:
        UserError: the archive in `data_dir` is damaged, it cannot be downloaded, or `data_dir` cannot be written to.
    """
    official = describe(name)
    if dataset := cache.load(_cache_path(official, data_dir), official.md5):
        return dataset
    archive = data_dir / official.filename
    cache.require_writable(data_dir)
    if not os.path.exists(archive):
        download(mirrors or [official.url], archive, official.md5)
    if _md5(archive) != official.md5:
        raise UserError(f"{archive} {_damage(archive, official)}; delete it to have it downloaded again")
    return _decode(official, archive, data_dir)


def load_local(archive: Path, data_dir: Path) -> Dataset:
    """Loads an official archive from any place and under any name; its checksum tells which of the two it is.

    Raises:
        UserError: it is neither archive, it is damaged, or `data_dir` cannot be written to.
    """
    officials = {official.md5: official for official in map(describe, SIZES)}
    official = officials.get(_md5(archive))
    if official is None:
        resembled = describe("cifar100" if "100" in archive.name else "cifar10")
        damage = _damage(archive, resembled)
        raise UserError(f"{archive} {damage}; give the official archive, an image folder, or --data synthetic")
    if dataset := cache.load(_cache_path(official, data_dir), official.md5):
        return dataset
    return _decode(official, archive, data_dir)


def describe(name: str) -> Official:
    """Looks up "cifar10" or "cifar100" in torchvision, which is where the checksums come from."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return Official(
        name,
        source.url,
        source.filename,
        source.tgz_md5,
        train_members=[member for member, _ in source.train_list],
        test_members=[member for member, _ in source.test_list],
        meta_member=source.meta["filename"],
        classes_key=source.meta["key"],
        labels_key="labels" if name == "cifar10" else "fine_labels",
    )


def _cache_path(official: Official, data_dir: Path) -> Path:
    return data_dir / "cache" / f"{official.name}.pt"


def _md5(archive: Path) -> str:
    try:
        return file_md5(archive)
    except OSError as error:
        raise UserError(f"{archive} cannot be read ({error.strerror}); mend that or give another copy") from error


def _damage(archive: Path, official: Official) -> str:
    """Says what a file is that should have been the official archive."""
    size, whole = archive.stat().st_size, SIZES[official.name]
    with archive.open("rb") as file:
        start = file.read(1024).lower()
    if size == 0:
        return "is empty"
    if b"<!doctype" in start or b"<html" in start:
        return f"is an HTML page, not {official.filename}"
    if not start.startswith(b"\x1f\x8b"):
        return "is not a .tar.gz archive"
    if size < whole:
        return f"is truncated ({size:,} of {whole:,} bytes), or not {official.filename} at all"
    return f"is damaged (its MD5 is not {official.md5}), or not {official.filename} at all"


def _decode(official: Official, archive: Path, data_dir: Path) -> Dataset:
    cache.require_writable(data_dir)
    members = _unpickle(archive, {*official.train_members, *official.test_members, official.meta_member})
    dataset = Dataset(
        official.name,
        _split([members[name] for name in official.train_members], official.labels_key),
        _split([members[name] for name in official.test_members], official.labels_key),
        classes=list(members[official.meta_member][official.classes_key]),
    )
    cache.save(_cache_path(official, data_dir), official.md5, dataset)
    return dataset


def _unpickle(archive: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Reads the wanted pickles of an archive that has been verified: unpickling other people's bytes runs them."""
    with tarfile.open(archive, "r|gz") as tar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy has changed since these arrays were pickled, and says so
        return {
            Path(member.name).name: pickle.loads(tar.extractfile(member).read(), encoding="latin1")
            for member in tar
            if Path(member.name).name in wanted
        }


def _split(batches: list[dict[str, Any]], labels_key: str) -> Split:
    planes = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch[labels_key] for batch in batches])
    return Split(
        torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 2, 3, 1))),
        torch.from_numpy(labels.astype(np.int64)),
    )
