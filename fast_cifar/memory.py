"""How much memory a run takes, and what to say when there is not enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from fast_cifar.errors import UserError

# What torch says where it has no exception of its own for it: on the CPU, and on MPS.
SIGNS = ("can't allocate memory", "not enough memory", "MPS backend out of memory")


def reset_peak_memory(device: torch.device) -> None:
    """Starts measuring anew, on a GPU; a process has one peak for its whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """The most memory taken so far, in bytes; None where nobody counts it.

    On CUDA all that torch has reserved of the card, data set and captured graphs included, but not the 0.5 GB or so
    that the driver's context takes. On a CPU the resident memory of the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "cpu" and find_spec("resource"):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None


@contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """Turns running out of memory into a line that names the option to change.

    Raises:
        UserError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory with --batch-size {batch_size}; use a smaller one") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
