"""The augmentation benchmark runs from the command line and writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.augmentation", "--device", "cpu", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_quick_run_writes_every_way_with_its_ratios(tmp_path):
    path = tmp_path / "results" / "augmentation.json"
    finished = run_bench("--quick", "--dtype", "float32", "--json", str(path))
    assert finished.returncode == 0, finished.stderr
    written = json.loads(path.read_text())
    assert written["environment"]["dtype"] == "float32"
    ways = {row["way"]: row for row in written["rows"]}
    assert set(ways) >= {"loader, compiled", "loader, eager", "torchvision v2, one image at a time"}
    for way, row in ways.items():
        assert way in finished.stdout
        assert 0 < row["min"] <= row["images_per_second"] <= row["max"]
    loader, torchvision = ways["loader, eager"], ways["torchvision v2, one image at a time"]
    assert loader["times_torchvision"] == pytest.approx(loader["images_per_second"] / torchvision["images_per_second"])


def test_abbreviated_options_are_refused():
    finished = run_bench("--qui")
    assert finished.returncode == 2
    assert "--qui" in finished.stderr


def test_an_unknown_device_is_one_line_and_exit_code_2():
    finished = run_bench("--device", "abacus")
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
