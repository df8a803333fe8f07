"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fast_cifar.system.errors import UserError


@contextmanager
def atomic_write(path: str | Path, *, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well.

    It is written beside `path` under a temporary name, flushed to the disk and renamed: no other process ever sees a
    part of it. If the block raises, `path` is as it was and the temporary file is gone.

    Args:
        previous: where to keep the file that was at `path`, in the same folder.

    Raises:
        UserError: the folder is not there, cannot be written to, or is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path} ({reason}); make room, or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def is_whole(path: str | Path) -> bool:
    """Whether the checksum of every part of a file that torch has saved is right, which torch does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # a damaged file makes zipfile, too, raise almost anything
        return False


def _keep(path: Path, previous: Path) -> None:
    """Gives the file at `path` the name `previous`, too; where a file has one name only, it changes its name."""
    temporary = previous.with_name(f".{previous.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(path, temporary)
    except OSError:
        path.replace(previous)
    else:
        temporary.replace(previous)


def _flush_folder(folder: Path) -> None:
    """Makes sure that a new name survives a power cut, where the platform can."""
    if os.name == "nt":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
