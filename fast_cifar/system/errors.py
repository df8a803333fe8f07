"""The error that a user can fix, the exit code of a script, and numbers as people write them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from fast_cifar.system.signals import interrupt_on_sigterm


class UserError(Exception):
    """Something the user can fix: the message is one line that says what is wrong, where, and what to do."""


def counted(n: int, noun: str) -> str:
    """ "1 epoch", "24 epochs", "50,000 images"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def percent(share: float, digits: int = 2) -> str:
    """ "90.85 %" of 0.9085."""
    return f"{100 * share:.{digits}f} %"


def run_script(script: Callable[[], None]) -> int:
    """Runs a script's body and returns its exit code.

    Returns:
        0 done; 2 a `UserError`, printed on standard error as one line that begins `error: `; 130 interrupted by Ctrl-C
        or SIGTERM; 1 nobody reads standard output any more, as in `| head`. Any other exception passes through: Python
        prints its traceback and exits with 1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A log file has each line as soon as it is printed, and a file name that is no text does not end the script.
        replace = "backslashreplace" if sys.stdout.errors == "strict" else sys.stdout.errors
        sys.stdout.reconfigure(line_buffering=True, errors=replace)
    try:
        with interrupt_on_sigterm():
            script()
    except UserError as error:
        line = " ".join(str(error).splitlines())  # a path may contain line breaks
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python still writes what is buffered
        print("standard output was closed", file=sys.stderr)
        return 1
    return 0
