"""The machine a run finds: device, precision, compiler, seeds."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from fast_cifar.errors import UserError


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
        return torch.autocast(self.device_type, dtype=self.dtype)


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
    """Chooses the precision: `amp_dtype` is "auto", "bf16", "fp16", or "fp32" (what "auto" once came to).

    "auto" takes bfloat16 where the hardware has it natively, float16 on other CUDA cards, and float32 with a note
    elsewhere, where reduced precision would be emulated and slower.

    Raises:
        UserError: float16 on a device that has no gradient scaling.
    """
    if amp_dtype == "fp16" and device.type != "cuda":
        raise UserError(f"--amp-dtype fp16 needs a CUDA device, not {device.type}; use --amp-dtype auto")
    if not amp or amp_dtype == "fp32":
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
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def check_compiler() -> None:
    """Makes sure that `torch.compile` finds the C++ compiler it needs, before any work is done.

    Raises:
        UserError: there is none.
    """
    default = {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    compiler = os.environ.get("CXX", default)
    if shutil.which(compiler) is None:
        raise UserError(
            f"--compile needs a C++ compiler and {compiler!r} is not on the PATH; install it or leave --compile out"
        )


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
def reproducible(seed: int, device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Seeds torch and sets the switches of speed or determinism; all are as before afterwards.

    Args:
        seed: seeds the initial weights and dropout. The loader's draws do not depend on it.
        deterministic: only algorithms that repeat bit for bit; slower. Otherwise cuDNN may try them all and keep the
            fastest, and float32 products on CUDA may use TF32.
    """
    old = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )
    if deterministic:
        # cuBLAS reads this when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _set_switches(deterministic, not deterministic, not deterministic, not deterministic)
    accelerators = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=accelerators):
            torch.manual_seed(seed)
            yield
    finally:
        _set_switches(*old)


def _set_switches(deterministic: bool, benchmark: bool, cudnn_tf32: bool, matmul_tf32: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = cudnn_tf32
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
