"""The JSON files of results: read with an error that names the file, written as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fast_cifar.errors import UserError
from fast_cifar.files import atomic_write


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        contents = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is no JSON; mend it or delete it") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object; mend it or delete it")
    return contents


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(contents, indent=2, ensure_ascii=False) + "\n")


def write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
