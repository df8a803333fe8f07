"""Several processes that train one network together, each on its own device, started by torchrun.

    torchrun --nproc-per-node=4 run_train.py --amp

Each step's batch is cut into equal slices, a process takes one of them, and torch's DistributedDataParallel averages
the gradients. Only rank 0 writes files and prints.
"""

from __future__ import annotations

import gc
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
CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
TIMEOUT = timedelta(days=1)  # the others wait while rank 0 downloads; where a process ends, torchrun ends them all


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run, seen from one of them; without torchrun there is one process.

    Attributes:
        rank: of this process; rank 0 writes files and prints.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with gradients averaged over all processes; its weights become those of rank 0."""
        if self.size == 1:
            return model
        # BatchNorm normalises by each process's own slice; `broadcast_buffers` shares the running statistics when they
        # are needed. torch has renamed the switch, and warns about the old name.
        names = signature(DistributedDataParallel).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **{switch: False})

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copies rank 0's buffers (BatchNorm's running statistics) to all processes."""
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
        """Whether `flag` is true in any process. Does not wait for the GPU."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, in all processes; the others wait for it."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, concatenated in the order of the ranks; on the CPU if there are several."""
        if self.size == 1:
            return tensor
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, tensor.cpu())
        return torch.cat(parts)

    def shard(self, n: int) -> slice:
        """Which of n items belong to this process: contiguous slices in the order of the ranks, together all n."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)


ALONE = DistributedContext()


def started_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def local_device(name: str) -> str:
    """The device called `name`; under torchrun, each process gets a GPU of its own.

    Raises:
        UserError: fewer GPUs than processes, or a device that cannot train with others.
    """
    device = resolve_device(name)
    if started_by_torchrun() and device.type == "mps":
        raise UserError("torchrun cannot use mps; add --device cpu, or train in one process")
    if not started_by_torchrun() or device.type != "cuda":
        return name
    index, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if processes > torch.cuda.device_count():
        raise UserError(
            f"{processes} processes for {torch.cuda.device_count()} GPUs; "
            f"torchrun --nproc-per-node={torch.cuda.device_count()}"
        )
    return f"cuda:{index}"


@contextmanager
def process_group() -> Iterator[DistributedContext]:
    """Joins the processes that torchrun started; without torchrun, this process is alone.

    Inside the block, only rank 0 writes to standard error, where progress bars are drawn.

    Raises:
        UserError: the connection to another process was lost.
    """
    if not started_by_torchrun():
        yield DistributedContext()
        return
    # nccl for tensors on GPUs, gloo for those on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    distributed = DistributedContext(dist.get_rank(), dist.get_world_size())
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if distributed.is_main else redirect_stderr(nowhere):
            yield distributed
        dist.barrier()  # a process that leaves early closes connections that others still use
    except RuntimeError as error:
        if not any(message in str(error) for message in CONNECTION_LOST):
            raise
        raise UserError("another process of this job has ended; its own message says why") from error
    finally:
        gc.collect()  # what still holds the group would keep its threads until Python ends, which can abort the process
        dist.destroy_process_group()
