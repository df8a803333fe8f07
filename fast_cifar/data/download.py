"""Downloads an archive: resumes an interrupted download, tries one mirror after another, and verifies the checksum."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from fast_cifar.system.errors import UserError
from fast_cifar.system.files import locked
from fast_cifar.system.progress import progress_bar

TIMEOUT = 30.0  # seconds without a byte after which a connection counts as dropped
RETRIES = 5  # connections in a row that may bring nothing new, once the server has sent something
PAUSE = 2.0  # seconds before reconnecting
CHUNK = 1 << 16


class TransferError(Exception):
    """A server did not deliver the archive; the next one may."""


def download(urls: Sequence[str], path: Path, md5: str) -> None:
    """Downloads an archive to `path` from the first of several servers that delivers it.

    The bytes are collected in `<path>.part`, which survives an interruption: the next attempt, in this process or a
    later one and from any of the servers, requests only what is missing. The file is renamed to `path` once its MD5 is
    right. A second process that needs the same archive waits, and uses the one that the first has downloaded.

    Args:
        urls: full http or https URLs of the archive, tried in order.
        path: where the archive goes; its folder is created if it is missing.
        md5: the archive's checksum, in hexadecimal.

    Raises:
        UserError: a URL is malformed, no server delivered the archive, it cannot be written, or another process is
            writing it on a file system that cannot lock folders.
    """
    for url in urls:
        _require_web_address(url)
    part = path.with_name(f"{path.name}.part")
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            if path.exists():
                return
            for url in urls:
                try:
                    _fetch_verified(url, part, md5)
                except TransferError as error:
                    failures.append(f"{urlsplit(url).netloc.rpartition('@')[2]}: {_one_line(error)}")
                else:
                    part.replace(path)
                    return
    except OSError as error:
        raise UserError(f"cannot write {part} ({_reason(error)}); fix that or choose another --data-dir") from error
    raise UserError(
        f"cannot download {path.name} ({'; '.join(failures)}); continue with --mirror URL (another server), "
        f"--data /path/to/{path.name} (a copy you have) or --data synthetic (no download)"
    )


def file_md5(path: Path) -> str:
    """The MD5 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _require_web_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"--mirror {url!r} is not a web address; give the archive's full http:// or https:// URL")


def _fetch_verified(url: str, part: Path, md5: str) -> None:
    """Completes `part` from one server; if resuming gives a wrong checksum, starts over once."""
    resumed = _size(part) > 0
    try:
        _fetch(url, part)
    except TransferError:
        if part.exists() and file_md5(part) == md5:  # it is complete, and the server was wrong about its length
            return
        raise
    if file_md5(part) == md5:
        return
    part.unlink()
    if not resumed:
        raise TransferError("it sent something other than the archive (wrong MD5)")
    _fetch_verified(url, part, md5)


def _fetch(url: str, part: Path) -> None:
    """Reconnects after a dropped connection, until `RETRIES` connections in a row have brought nothing new."""
    farthest, retries = _size(part), 0
    with progress_bar(desc=part.stem, unit="B", unit_scale=True) as bar:
        while True:
            try:
                _receive(url, part, bar)
                return
            except TransferError:
                if _size(part) > farthest:
                    farthest, retries = _size(part), RETRIES
                elif retries == 0:
                    raise
                else:
                    retries -= 1
            time.sleep(PAUSE)


def _receive(url: str, part: Path, bar: tqdm) -> None:
    """Makes one connection and appends what the server sends to `part`.

    Raises:
        TransferError: the server refused, stalled, or closed the connection early.
        OSError: `part` cannot be written.
    """
    offset = _size(part)
    response = _request(url, offset)
    if response is None:
        return
    with response:
        start, total = _extent(response)
        if start != offset:
            part.unlink(missing_ok=True)
        if start in (0, offset):
            _append(response, part, bar, start, total)
    if start not in (0, offset):
        if offset == 0:
            raise TransferError("it sent a part of the archive instead of all of it")
        _receive(url, part, bar)
    elif total is not None and _size(part) < total:
        raise TransferError(f"the connection broke off after {_size(part):,} of {total:,} bytes, which are kept")


def _append(response: http.client.HTTPResponse, part: Path, bar: tqdm, start: int, total: int | None) -> None:
    """Appends a response that begins at byte `start`; refuses to mix it with the bytes of another process."""
    bar.reset(total)
    bar.initial = bar.n = bar.last_print_n = start
    bar.refresh()
    with part.open("ab") as file:
        reached = start
        while chunk := _read(response):
            if os.fstat(file.fileno()).st_size != reached:
                raise UserError(f"another process is writing {part} too; start this one again when it has ended")
            file.write(chunk)
            file.flush()
            reached += len(chunk)
            bar.update(len(chunk))


def _request(url: str, offset: int) -> http.client.HTTPResponse | None:
    """Requests the archive from byte `offset` on; None if the server says that there is nothing beyond it."""
    headers = {"User-Agent": "fast_cifar", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return None
        raise TransferError(f"HTTP {error.code} {error.reason}".strip()) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TransferError(_reason(error)) from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise TransferError(_reason(error)) from error


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """The byte of the archive at which the response begins (-1 if unknown), and the archive's length, if known."""
    if response.headers.get_content_type() == "text/html":
        raise TransferError("it sent a web page instead of the archive")
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        extent = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", response.headers.get("Content-Range", "").strip())
        if extent is None:
            return -1, None
        return int(extent[1]), None if extent[2] == "*" else int(extent[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"\d{1,18}", length) else None


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT:g} seconds"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _one_line(error: TransferError) -> str:
    """The error's message on one line, without control characters: parts of it may come from the server."""
    printable = "".join(character if character.isprintable() else " " for character in str(error))
    return textwrap.shorten(printable, 200, placeholder=" ...")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
