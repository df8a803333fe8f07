"""The devices that a test runs on, each skipped where this machine lacks it."""

import pytest
import torch

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
needs_mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs MPS")
CUDA, MPS = pytest.param("cuda", marks=needs_cuda), pytest.param("mps", marks=needs_mps)
DEVICES = ["cpu", CUDA]
