"""Ctrl-C and SIGTERM: the first finishes what is being done, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Somebody asked for an end, and this is a good moment: everything is consistent and can be saved."""


class StopRequest:
    """Whether somebody asked for an end.

    Args:
        anywhere: turns whether it was asked for here into whether it was asked for in any process of the job, so that
            all stop at the same step. All must then check equally often.
    """

    def __init__(self, anywhere: Callable[[bool], bool] = bool) -> None:
        self.made = False
        self._anywhere = anywhere

    def check(self) -> None:
        """To be called where stopping does no harm.

        Raises:
            Stopped: somebody asked for it.
        """
        if self._anywhere(self.made):
            raise Stopped


@contextmanager
def stop_on_signal(request: StopRequest, announce: Callable[[], None], *, patient: bool = False) -> Iterator[None]:
    """While the block runs, the first SIGINT or SIGTERM calls `announce` and makes `request`; the second raises
    KeyboardInterrupt.

    Outside the main thread Python handles no signals, and the request is never made.

    Args:
        patient: take the second for the first: a Ctrl-C reaches the processes of torchrun twice, from the terminal and
            from torchrun, which kills what does not end.
    """

    def stop(number: int, frame: object) -> None:
        if request.made and patient:
            return
        if request.made:
            raise KeyboardInterrupt
        request.made = True
        announce()

    with _handling(stop):
        yield


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM raises KeyboardInterrupt as Ctrl-C does, so that everything is tidied up."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt, (signal.SIGTERM,)):
        yield


@contextmanager
def _handling(handler: Callable[[int, object], None], numbers: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """Installs `handler`, but not for a signal that is ignored: a shell's background job is to survive Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
