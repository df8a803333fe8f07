"""Several processes that train one network together, each on its own device, started by torchrun.

    torchrun --nproc-per-node=4 run_train.py --amp

Each step's batch is cut into equal slices, a process takes one of them, and torch's DistributedDataParallel averages
the gradients. Everything that is written or said is rank 0's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fast_cifar.system.device import resolve_device
from fast_cifar.system.errors import UserError

T = TypeVar("T")
# What DistributedDataParallel calls the switch for sharing buffers in each forward pass; the older name warns.
NEW_NAME = "forward_sync_buffers"
SYNC_BUFFERS = NEW_NAME if NEW_NAME in signature(DistributedDataParallel).parameters else "broadcast_buffers"
SIGNS_OF_LOSS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
PATIENCE = timedelta(minutes=30)  # how long the others wait while rank 0 downloads and decodes


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run, as one of them sees it; on its own, a run is a world of one.

    Attributes:
        rank: 0 is the one that writes and speaks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with gradients that are the mean over all processes. The weights begin as rank 0's."""
        if self.size == 1:
            return model
        # Each process normalises by its own slice; the running statistics are shared where they are used.
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **{SYNC_BUFFERS: False})

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Gives rank 0's buffers, BatchNorm's running statistics, to all."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, a new tensor."""
        total = tensor.clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def any_rank(self, flag: bool) -> bool:
        """Whether it is true anywhere. No device is waited for."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, in all processes. Until it is there, the others wait."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, tensor: Tensor) -> Tensor:
        """All processes' tensors, one after another, on the CPU where there are several."""
        if self.size == 1:
            return tensor
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, tensor.cpu())
        return torch.cat(parts)

    def shard(self, n: int) -> slice:
        """Which of n things are this process's: contiguous, in the order of the ranks, and none left out."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)


ALONE = DistributedContext()


def started_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def local_device(name: str) -> str:
    """The device called `name`, which in a run on several GPUs is another one for each process.

    Raises:
        UserError: fewer GPUs than processes.
    """
    device = resolve_device(name)
    if not started_by_torchrun() or device.type != "cuda":
        return name
    index, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if processes > torch.cuda.device_count():
        raise UserError(
            f"{processes} processes for {torch.cuda.device_count()} GPUs; "
            f"torchrun --nproc-per-node={torch.cuda.device_count()}"
        )
    torch.cuda.set_device(index)
    return f"cuda:{index}"


@contextmanager
def process_group() -> Iterator[DistributedContext]:
    """The world that this process belongs to: those that torchrun started, or itself alone. In the block only rank 0
    has a standard error, where progress bars are drawn.

    Raises:
        UserError: another process has gone.
    """
    if not started_by_torchrun():
        yield DistributedContext()
        return
    # nccl between GPUs, gloo between hosts: tensors choose by where they are.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    distributed = DistributedContext(dist.get_rank(), dist.get_world_size())
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if distributed.is_main else redirect_stderr(nowhere):
            yield distributed
        dist.barrier()  # whoever leaves first takes the connections of those that still use them along
    except RuntimeError as error:
        if not any(sign in str(error) for sign in SIGNS_OF_LOSS):
            raise
        raise UserError("another process of this job has gone; its own message says why") from error
    finally:
        dist.destroy_process_group()
