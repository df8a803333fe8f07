"""Tiny archives with the layout and pickle format of the official ones, a way to make torchvision accept them, and a
pickle that must not be read."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision

from fast_cifar.data import cifar

SOURCES = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
LABELS_KEYS = {"cifar10": "labels", "cifar100": "fine_labels"}


def build(name: str, *, images_per_member: int = 10, seed: int = 0, junk: str = "readme.html") -> bytes:
    """An archive of random images, its members in no particular order as in the original; the member `junk` is not a
    pickle."""
    source = SOURCES[name]
    rng = np.random.default_rng(seed)
    members = {}
    for member in ["readme.html", *(m for m, _ in source.test_list), *(m for m, _ in reversed(source.train_list))]:
        members[member] = python2_pickle(
            {
                "data": rng.integers(0, 256, (images_per_member, 3072), dtype=np.uint8),
                LABELS_KEYS[name]: [i % 10 for i in range(images_per_member)],
            }
        )
    members[junk] = b"<html>not a pickle</html>"
    members[source.meta["filename"]] = python2_pickle({source.meta["key"]: [f"class {i}" for i in range(10)]})
    return pack({f"{source.base_folder}/{member}": contents for member, contents in members.items()})


def pack(members: dict[str, bytes]) -> bytes:
    """A .tar.gz of these files, the same bytes at any time."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, contents in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return gzip.compress(archive.getvalue(), mtime=0)


def python2_pickle(contents: dict) -> bytes:
    """Pickles as Python 2 and the numpy of 2009 did: old module names, and 0 and 1 where today's dtype wants bools."""
    return (
        pickle.dumps(contents, protocol=2)
        .replace(b"numpy._core", b"numpy.core")
        .replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    )


class Harm:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def publish(monkeypatch: pytest.MonkeyPatch, name: str, archive: bytes, url: str = "http://localhost:9/never") -> None:
    """Makes `archive` the official one; by default no server delivers it."""
    monkeypatch.setattr(SOURCES[name], "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(SOURCES[name], "url", url)
    monkeypatch.setitem(cifar.SIZES, name, len(archive))
