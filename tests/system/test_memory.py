"""Out-of-memory errors of every kind, the peak memory, and memory that is kept between tensors."""

import platform
import resource
import subprocess
import sys

import pytest
import torch

from fast_cifar.system.device import explain_out_of_memory, memory_kept, peak_memory, reset_peak_memory, seeded_run
from fast_cifar.system.errors import UserError
from tests.helpers.devices import needs_cuda


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=["cuda", "mps", "cuda late", "cudnn", "cublas", "python"],
)
def test_out_of_memory_names_the_batch_size(error):
    with pytest.raises(UserError, match="out of memory with --batch-size 512"), explain_out_of_memory(512):
        raise error


def test_the_cpus_own_refusal_is_recognised():
    with pytest.raises(UserError, match="--batch-size 7"), explain_out_of_memory(7):
        torch.empty(2**60, dtype=torch.uint8)


def test_another_error_passes_through():
    with pytest.raises(RuntimeError, match="shapes differ"), explain_out_of_memory(512):
        raise RuntimeError("shapes differ")


PEAK = """
import torch
from fast_cifar.system.device import peak_memory
before = peak_memory(torch.device("cpu"))
torch.ones(before + 2**26, dtype=torch.uint8)
assert peak_memory(torch.device("cpu")) >= before + 2**26
"""


def test_the_peak_of_a_process_includes_what_has_been_freed():
    """In a small process of its own: the peak of this one may be more than a machine has left."""
    subprocess.run([sys.executable, "-c", PEAK], check=True)


def test_the_peak_is_not_measured_on_mps():
    assert peak_memory(torch.device("mps")) is None


@needs_cuda
def test_the_peak_on_cuda_can_be_reset():
    device = torch.device("cuda")
    torch.empty(2**28, dtype=torch.uint8, device=device)
    torch.cuda.empty_cache()
    high = peak_memory(device)
    reset_peak_memory(device)
    assert peak_memory(device) <= high - 2**28


CPU = torch.device("cpu")
COUNT = """
import pathlib, resource, torch
from fast_cifar.system.device import seeded_run

def pages_cleared():
    counts = []
    for _ in range(12):  # small objects settle between the first ones
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**26, dtype=torch.uint8)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts), int(pathlib.Path("/proc/self/statm").read_text().split()[1])

print(*pages_cleared())
with seeded_run(0, torch.device("cpu"), deterministic=False):
    print(*pages_cleared())
print(0, pathlib.Path("/proc/self/statm").read_text().split()[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep memory in other ways")
def test_a_run_keeps_the_memory_of_freed_tensors_until_it_ends():
    """In a process of its own: one that has once been refused memory allocates in another way."""
    finished = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    (outside, _), (inside, kept), (_, after) = (map(int, line.split()) for line in finished.stdout.splitlines())
    assert inside < outside / 10
    # Not against the start: a run also loads parts of torch, whose resident pages are many or few, as files are cached.
    assert (kept - after) * resource.getpagesize() > 0.9 * 2**26


def test_a_run_may_leave_memory_as_it_is_and_other_devices_and_libraries_do(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # without mallopt
    with memory_kept(CPU):
        pass
    monkeypatch.setattr("ctypes.CDLL", None)
    with seeded_run(0, CPU, deterministic=False, keep_memory=False), memory_kept(torch.device("mps")):
        pass
