"""The machine a run finds: device, precision, compiler, seeds; how much memory a run takes, and what to say when there
is not enough."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from fast_cifar.system.errors import UserError

# What torch says where it has no exception of its own for it: on the CPU, and on MPS.
SIGNS = ("can't allocate memory", "not enough memory", "MPS backend out of memory")


@dataclass(frozen=True)
class Precision:
    """How the network computes on a device.

    Attributes:
        device_type: "cpu", "cuda" or "mps".
        dtype: float32, bfloat16 or float16; in the last two autocast chooses per operator, and weights stay in float32.
        note: one line for the user when AMP was asked for and is not to be had; otherwise None.
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
        # Each weight is used once a step, so a cache of its cast copies has nothing to give; in a captured graph it
        # would go on handing out the copies of the step that was recorded.
        return torch.autocast(self.device_type, dtype=self.dtype, cache_enabled=False)


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: no such kind of device, or none of it here.
    """
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if _is_present(torch.device(kind))))
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
    elsewhere, where reduced precision would be emulated and slower.

    Raises:
        UserError: float16 on a device that has no gradient scaling.
    """
    if amp_dtype == "fp16" and device.type != "cuda":
        raise UserError(f"--amp-dtype fp16 needs a CUDA device, not {device.type}; use --amp-dtype auto")
    if not amp:
        return Precision(device.type, torch.float32)
    if amp_dtype == "bf16" or (amp_dtype == "auto" and has_native_bf16(device)):
        return Precision(device.type, torch.bfloat16)
    if device.type == "cuda":
        return Precision(device.type, torch.float16)
    note = f"--amp: {describe_device(device)} has no native bf16, so this run computes in fp32"
    return Precision(device.type, torch.float32, note)


def has_native_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is in the hardware: emulation, which torch offers too, is slower than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def has_compiler() -> bool:
    """Whether `torch.compile` finds the C++ compiler it needs."""
    return shutil.which(_compiler()) is not None


def check_compiler() -> None:
    """Refuses to compile without a C++ compiler, before any work is done.

    Raises:
        UserError: there is none.
    """
    if not has_compiler():
        raise UserError(
            f"--compile needs a C++ compiler and {_compiler()!r} is not on the PATH; install it or leave --compile out"
        )


def _compiler() -> str:
    return os.environ.get("CXX", {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++"))


def prefers_index_select(device: torch.device) -> bool:
    """Whether `index_select` on overlapping windows copies them one by one: the CPU's does, three times as fast as
    advanced indexing. Others would first write all windows out (MPS), or compute addresses in 64 bits (CUDA)."""
    return device.type == "cpu"


def pools_by_maximum(device: torch.device) -> bool:
    """Whether the code being run is compiled for a CPU: what Inductor makes of a max-pooling there, and above all of
    its backward pass, is slower than no compilation at all, and `torch.maximum` is not."""
    return torch.compiler.is_compiling() and device.type == "cpu"


def describe_device(device: torch.device) -> str:
    """The device in words, such as "NVIDIA H200" or "cpu (AVX512, 2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
    return device.type


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given, so that a clock read next is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """On CUDA, a stream of the block's own that waits for the work before it; the work after it waits for the block.

    What is to be captured has to be warmed up there, and a copy there does not hold up the training.
    """
    if device.type != "cuda":
        yield
        return
    outside, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        yield
    outside.wait_stream(stream)


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """Records what `work` launches on CUDA, without running it, and returns what runs it again, as one launch.

    All that `work` reads and writes stays where it is; what it allocates belongs to the recording.

    Raises:
        RuntimeError: `work` does something that cannot be recorded, such as waiting for the device.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def record_work(device: torch.device) -> Callable[[], None]:
    """What to call, from any thread, to wait for the work that the device has been given up to now, but no more."""
    if device.type != "cuda":
        synchronize(device)
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators that a run on `device` draws from, as uint8 tensors on the CPU."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    """Goes back to a `random_state`; one that was taken on another kind of device restores what the two share."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Gradients are recorded in the block, whatever the caller switched off, or a second Ctrl-C in the middle of an
    evaluation left switched off in a notebook."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def seeded_run(seed: int, device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Seeds torch and sets the switches of speed or determinism; on CPU and CUDA all is as before afterwards.

    Args:
        seed: of the initial weights and of dropout, in [0, 2**63). The loader's draws do not depend on it.
        deterministic: only algorithms that repeat bit for bit; slower. Otherwise cuDNN may try them all and keep the
            fastest, and float32 products on CUDA may use TF32.
    """
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    speed = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    if deterministic:
        # cuBLAS reads this when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = (not deterministic,) * 3
    cards = range(torch.cuda.device_count()) if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = speed


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
def explain_out_of_memory(batch_size: int) -> Iterator[None]:
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
