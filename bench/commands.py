"""What to type for the same measurement on another machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

PLACES = ("--json", "--picture")  # where results go is nobody else's concern


def python_command(program: str, arguments: Sequence[str]) -> str:
    """The command in one line, with the variables that change its speed: `OMP_NUM_THREADS=1 python -m bench.training`.

    Args:
        program: what follows `python`, such as "-m bench.training".
        arguments: a path of this machine among them, which would say nothing to others, becomes FOLDER or ARCHIVE.
    """
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("OMP_")]
    return " ".join([*variables, "python", program, shlex.join(portable(arguments))]).rstrip()


def portable(arguments: Sequence[str]) -> list[str]:
    """`arguments` without `PLACES` and without paths; a list with commas keeps what is no path."""
    words = []
    skip = False
    for word in arguments:
        if skip or word in PLACES:
            skip = not skip
        elif not word.startswith(tuple(f"{place}=" for place in PLACES)):
            words.append(",".join(map(_without_path, word.split(","))))
    return words


def _without_path(word: str) -> str:
    flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if os.sep not in value:
        return word
    return flag + equals + ("ARCHIVE" if os.path.isfile(value) else "FOLDER")
