"""Ctrl-C and SIGTERM: the first asks the run to stop at the next safe point, the second stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The run was asked to stop, and its state is consistent and can be saved."""


class StopRequest:
    """Whether the run was asked to stop.

    Args:
        anywhere: turns "this process was asked" into "any process of the job was asked", so that all stop at the same
            step. All processes must then call `check` equally often.
    """

    def __init__(self, anywhere: Callable[[bool], bool] = bool) -> None:
        self.made = False
        self._anywhere = anywhere

    def check(self) -> None:
        """Call it where stopping is safe.

        Raises:
            Stopped: the run was asked to stop.
        """
        if self._anywhere(self.made):
            raise Stopped


@contextmanager
def stop_on_signal(request: StopRequest, announce: Callable[[], None], *, patient: bool = False) -> Iterator[None]:
    """While the block runs, the first SIGINT or SIGTERM makes `request` and calls `announce`; the second raises
    KeyboardInterrupt.

    Outside the main thread Python handles no signals, and the request is never made.

    Args:
        patient: ignore the second signal. torchrun needs this: a Ctrl-C reaches its processes twice, from the terminal
            and from torchrun itself, which kills those that do not end.
    """

    def stop(number: int, frame: object) -> None:
        if not request.made:
            request.made = True
            announce()
        elif not patient:
            raise KeyboardInterrupt

    with _handling(stop):
        yield


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM raises KeyboardInterrupt as Ctrl-C does, so that cleanup runs."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt, (signal.SIGTERM,)):
        yield


@contextmanager
def _handling(handler: Callable[[int, object], None], numbers: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """Installs `handler`, except for signals that are ignored: a shell's background job must survive Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
