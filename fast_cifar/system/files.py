"""Files that are written whole or not at all; JSON files; what a folder must allow."""

from __future__ import annotations

import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fast_cifar.system.errors import UserError

if os.name == "posix":
    import fcntl

HIGHEST_NUMBER = 1e100


@contextmanager
def atomic_write(path: str | Path, *, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends without an error.

    It is written beside `path` under a temporary name, flushed to the disk and renamed: no other process ever sees a
    part of it. If the block raises, `path` is unchanged and the temporary file is removed.

    Args:
        previous: where to keep the file that was at `path`, in the same folder.

    Raises:
        UserError: the folder is missing, cannot be written to, or is full.
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
        with suppress(OSError):  # missing, or the folder is why it could not be written
            temporary.unlink()


def require_writable(folder: Path, remedy: str) -> None:
    """Checks, before any work is done and without creating anything, that `folder` can be created and written to.

    Raises:
        UserError: it cannot; the message ends with `remedy`.
    """
    present = (parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    nearest = next(present, folder)  # Windows may have no such drive
    if not os.path.isdir(nearest):
        raise UserError(f"cannot write to {folder}: {nearest} is not a folder; {remedy}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: {nearest} has no write permission; {remedy}")


def is_whole(path: str | Path) -> bool:
    """Whether every part of a file saved by torch has the right checksum, which torch itself does not verify.

    A part whose attributes say that it is a folder, after a bit has flipped, is one that torch does not read at all.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None and not any(part.external_attr for part in archive.infolist())
    except Exception:  # a damaged file can make zipfile raise almost anything
        return False


def read_json(path: Path, remedy: str = "fix it or delete it") -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file cannot be read, or holds something else; the message ends with `remedy`.
    """
    try:
        contents = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    if contents is None:
        raise UserError(f"{path} is damaged: it holds no JSON object; {remedy}")
    return contents


def parse_json(text: bytes) -> dict[str, Any] | None:
    """The object in a JSON text; None if it holds something else."""
    try:
        contents = json.loads(text.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of thousands of digits, or nested too deeply
        return None
    return contents if isinstance(contents, dict) else None


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes a JSON file as `atomic_write` does; its folder is created if it is missing.

    Raises:
        UserError: the file cannot be written.
        ValueError: a number is infinite or NaN, which JSON does not have.
    """
    text = json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path.parent} ({error.strerror}); choose another folder") from error
    with atomic_write(path) as file:
        # What UTF-8 cannot hold, in a file name that is not UTF-8, becomes \udcXX, which JSON reads back.
        file.write(f"{text}\n".encode(errors="backslashreplace"))


def is_number(value: Any) -> bool:
    """Whether a value read from a file is a number: no bool, not infinite, not NaN, and not absurdly large."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= HIGHEST_NUMBER


@contextmanager
def locked(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Holds a lock on a folder. The system releases it when the process ends, however it ends.

    Where folders cannot be locked (Windows, some network drives), nothing happens.

    Args:
        busy: the error if another process holds the lock; None waits for it.

    Raises:
        UserError: `busy`.
    """
    if os.name != "posix":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise UserError(busy) from error
        yield
    finally:
        os.close(descriptor)


def _keep(path: Path, previous: Path) -> None:
    """Gives the file at `path` the name `previous` too; on file systems without hard links it moves the file."""
    temporary = previous.with_name(f".{previous.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(path, temporary)
    except OSError:
        path.replace(previous)
    else:
        temporary.replace(previous)
        temporary.unlink(missing_ok=True)  # renaming does nothing where both are already the same file


def _flush_folder(folder: Path) -> None:
    """Makes a new name survive a power cut, on platforms that can."""
    if os.name == "nt":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
