"""The one error that is the user's to mend, and how a script ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

from fast_cifar.system.signals import interrupt_on_sigterm


class UserError(Exception):
    """Something the user can mend: the message is one line that says what is wrong, where, and what to do."""


def run_script(script: Callable[[], None]) -> int:
    """Runs a script's body and turns the way it ends into an exit code.

    Returns:
        0 done; 2 the user can mend it (one line on standard error that begins `error: `); 130 interrupted, by Ctrl-C or
        by SIGTERM.
        Any other exception passes through, so that Python prints its traceback and exits with 1.
    """
    try:
        with interrupt_on_sigterm():
            script()
    except UserError as error:
        line = " ".join(str(error).splitlines())  # a path may have line breaks
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    return 0
