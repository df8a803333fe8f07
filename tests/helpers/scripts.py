"""The scripts and benchmarks of this checkout, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_module(name: str, *options: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m name options`, with these variables in its environment."""
    command = [sys.executable, "-m", name, *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | environment)


def refused(result: tuple[int, str, str]) -> str:
    """The one line with which a script refused, of its exit code, its output and its errors."""
    code, _, errors = result
    assert code == 2, errors
    assert errors.startswith("error: "), errors
    assert errors.count("\n") == 1, errors
    return errors
