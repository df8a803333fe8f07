"""Everything that depends on the device: choosing it, precision, compiler, streams, random state, and memory."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
import torch

from fast_cifar.system.errors import UserError, counted

T = TypeVar("T")
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_MAX = -1, -4  # of mallopt, in glibc's malloc.h
# In the message of a RuntimeError, where torch does not raise its OutOfMemoryError.
OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class Precision:
    """How the network computes on a device.

    Attributes:
        device_type: "cpu", "cuda" or "mps".
        dtype: float32, bfloat16 or float16; with the last two, autocast chooses per operator and weights
            stay in float32.
        note: one line for the user when AMP was asked for and is not available; otherwise None.
    """

    device_type: str
    dtype: torch.dtype
    note: str | None = None

    @property
    def name(self) -> str:
        """ "fp32", "bf16" or "fp16"."""
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]

    @property
    def scales_gradients(self) -> bool:
        """True for float16, whose small gradients would vanish without a `GradScaler`."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager[None]:
        if self.dtype == torch.float32:
            return nullcontext()
        # Each weight is used once a step, so caching its cast copy saves nothing, and in a captured graph the cache
        # would keep returning the copy from the step that was recorded.
        return torch.autocast(self.device_type, dtype=self.dtype, cache_enabled=False)


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then Apple's MPS, then the CPU.

    A GPU with a number becomes torch's current device, where graphs are captured; "cuda" is the current one already.

    Raises:
        UserError: there is no such kind of device, or this machine has none.
    """
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if _is_present(torch.device(kind)))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:N or mps")
    if not _is_present(device):
        raise UserError(
            f"this machine has no device {name!r} that torch {torch.__version__} can use; try --device auto"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _is_present(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available() and not device.index
    return not device.index


def resolve_precision(device: torch.device, amp: bool, amp_dtype: str) -> Precision:
    """Chooses the precision: `amp_dtype` is "auto", "bf16" or "fp16".

    "auto" takes bfloat16 where the hardware has it natively, float16 on other CUDA cards, and float32 with a note
    elsewhere, where reduced precision would be emulated and slower. "bf16" where it is not native has a note, too: a
    run may have been moved from another GPU.

    Raises:
        UserError: float16 on a device that has no gradient scaling.
    """
    if amp_dtype == "fp16" and device.type != "cuda":
        raise UserError(f"--amp-dtype fp16 needs a CUDA device, not {device.type}; use --amp-dtype auto")
    if not amp:
        return Precision(device.type, torch.float32)
    native = has_native_bf16(device)
    if amp_dtype == "bf16" and not native:
        note = f"--amp-dtype bf16: {describe_device(device)} has no native bf16 known to torch; emulation is slow"
        return Precision(device.type, torch.bfloat16, note)
    if native and amp_dtype in ("auto", "bf16"):
        return Precision(device.type, torch.bfloat16)
    if device.type == "cuda":
        return Precision(device.type, torch.float16)
    why = "is not used on mps" if device.type == "mps" else f"needs bf16, which torch does not find on {device.type}"
    note = f"--amp: mixed precision {why}, so this run computes in fp32"
    return Precision(device.type, torch.float32, note)


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16: torch's emulation of it is slower than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def has_compiler() -> bool:
    """Whether `torch.compile` finds the C++ compiler it needs."""
    return shutil.which(_compiler()) is not None


def check_compiler(device: torch.device) -> None:
    """Checks, before any work is done, that `torch.compile` can run.

    Raises:
        UserError: there is no C++ compiler, or, on CUDA, no header of Python, with which Triton builds a module.
    """
    if not has_compiler():
        raise UserError(
            f"--compile needs a C++ compiler and {_compiler()!r} is not on the PATH; install it or leave --compile out"
        )
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if device.type == "cuda" and not os.path.isfile(header):
        raise UserError(f"--compile needs {header}; install Python's headers (python3-dev) or leave --compile out")


def _compiler() -> str:
    return os.environ.get("CXX", {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++"))


def supports_channels_last(device: torch.device) -> bool:
    """Whether networks train correctly in channels_last: on MPS, BatchNorm's gradients are wrong (pytorch #175189)."""
    return device.type != "mps"


def supports_compile(device: torch.device) -> bool:
    """Whether `torch.compile` can compile a training step: on MPS, the backward pass of a ResNet fails (pytorch
    #161905)."""
    return device.type != "mps"


def compiled(function: Callable[..., T], device: torch.device) -> Callable[..., T]:
    """`function` compiled for inputs of one shape, or as it is where the device does not support that."""
    return torch.compile(function, dynamic=False) if supports_compile(device) else function


def evaluation_batch_size(device: torch.device, batch_size: int) -> int:
    """Images per batch in evaluation: a GPU is not busy with a training batch that needs no backward pass."""
    return max(batch_size, 2500) if device.type == "cuda" else batch_size


def works_asynchronously(device: torch.device) -> bool:
    """Whether the device works on while the program goes on: what the CPU does meanwhile then costs no time."""
    return device.type != "cpu"


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on the device; to CUDA it is copied in order with the work submitted before and after it, and
    the program goes on at once."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def checkpoint_interval(device: torch.device) -> float:
    """Seconds that pass at least between the checkpoints of two epochs: a GPU may train several epochs in one."""
    return 5.0 if device.type == "cuda" else 0.0


def prefers_index_select(device: torch.device) -> bool:
    """Whether windows of an image should be copied with `index_select` instead of advanced indexing.

    On the CPU it is three times as fast. On MPS it would first materialise every overlapping window, and on CUDA it
    would compute addresses in 64 bits.
    """
    return device.type == "cpu"


def describe_device(device: torch.device) -> str:
    """The device's name for people, such as "NVIDIA H200" or "cpu (AVX512, 2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({torch.backends.cpu.get_cpu_capability()}, {counted(torch.get_num_threads(), 'thread')})"
    return device.type


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all work submitted so far; call it before reading the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """On CUDA, runs the block on a stream of its own; elsewhere it changes nothing.

    The block waits for the work submitted before it, and what is submitted after it waits for the block. Work that is
    to be captured has to be warmed up on such a stream.
    """
    if device.type != "cuda":
        yield
        return
    outside, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        yield
    outside.wait_stream(stream)


def capture_graph(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Captures the kernels that `work` launches on a CUDA device as a graph, without running them.

    The graph keeps the addresses of all tensors that `work` reads and writes, and owns those that it allocates.

    Returns:
        A function that replays the graph: all kernels in one launch.

    Raises:
        RuntimeError: `work` does something that cannot be captured, such as waiting for the device.
    """
    graph = torch.cuda.CUDAGraph()
    # A capture that fails would leave its own stream as the current one. The default stream would be another device's.
    with (
        torch.cuda.stream(torch.cuda.current_stream(device)),
        torch.cuda.graph(graph, stream=torch.cuda.Stream(device)),
    ):
        work()
    return graph.replay


def record_work(device: torch.device) -> Callable[[], None]:
    """A function that waits, in any thread, for the work submitted to the device up to now and for nothing later."""
    if device.type != "cuda":
        synchronize(device)
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """The global random state, for `set_random_state`.

    Args:
        device: take the torch generators that a run on this device draws from, as tensors that a checkpoint can hold.
            None takes every generator: torch's on all devices, numpy's and Python's.
    """
    return {name: get() for name, (get, _) in _generators(device).items()}


def set_random_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Restores a `random_state` taken with the same `device`; from one taken on another kind of device, the generators
    that both use."""
    for name, (_, set_state) in _generators(device).items():
        if name in state:
            set_state(state[name])


def _generators(device: torch.device | None) -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    """How to read and to set the state of each random generator that `device` uses; of all where it is None."""
    cards = {}
    if device is None and torch.cuda.is_available():
        cards = {f"cuda:{index}": index for index in range(torch.cuda.device_count())}
    elif device is not None and device.type == "cuda":
        cards = {"cuda": device}
    generators: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
        name: (partial(torch.cuda.get_rng_state, card), partial(torch.cuda.set_rng_state, device=card))
        for name, card in cards.items()
    }
    generators["cpu"] = (torch.get_rng_state, torch.set_rng_state)
    if torch.backends.mps.is_available() and (device is None or device.type == "mps"):
        generators["mps"] = (torch.mps.get_rng_state, torch.mps.set_rng_state)
    if device is None:
        generators["numpy"] = (np.random.get_state, np.random.set_state)  # noqa: NPY002 - the global state is meant
        generators["python"] = (random.getstate, random.setstate)
    return generators


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Records gradients inside the block, even if the caller has switched them off (or, in a notebook, an interrupted
    evaluation has)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """On a CPU, keeps the memory of freed tensors for the next ones, until the block ends.

    glibc returns the memory of a large tensor to the system at once, and the system clears each page of the next one:
    in steps of 512 images that takes longer than all BatchNorms and ReLUs together. Without glibc nothing changes.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MALLOC_MMAP_MAX, 0)
    libc.mallopt(MALLOC_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        libc.mallopt(MALLOC_MMAP_MAX, 65_536)  # glibc's defaults
        libc.mallopt(MALLOC_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


@contextmanager
def seeded_run(seed: int, device: torch.device, *, deterministic: bool, keep_memory: bool = True) -> Iterator[None]:
    """Seeds torch and sets it for speed or for determinism; after the block, on CPU and CUDA, torch is as before.

    Args:
        seed: of the initial weights and of dropout, in [0, 2**63). The loader's draws do not depend on it.
        deterministic: use only algorithms that repeat bit for bit, which is slower. Otherwise cuDNN may try all of its
            algorithms and keep the fastest.
        keep_memory: see `memory_kept`.
    """
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if deterministic:
        # cuBLAS reads this when it creates its first handle.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    cards = range(torch.cuda.device_count()) if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cards), memory_kept(device) if keep_memory else nullcontext():
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def reset_peak_memory(device: torch.device) -> None:
    """Restarts the measurement of `peak_memory` on CUDA; on a CPU, a process has one peak for its whole life."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """The most memory used so far, in bytes; None where it is not measured.

    On CUDA, all that torch has reserved, data set and captured graphs included, without the 0.5 GB or so of the
    driver's context. On a CPU, the resident memory of the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "cpu" and find_spec("resource"):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None


@contextmanager
def explain_out_of_memory(batch_size: int | None = None) -> Iterator[None]:
    """Turns an out-of-memory error into one line that names the option to change: `batch_size` where there is one.

    Raises:
        UserError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        of_batch = f" with --batch-size {batch_size}; use a smaller one"
        advice = "; use --device cpu, or fewer images" if batch_size is None else of_batch
        raise UserError(f"out of memory{advice}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY_MESSAGES)
