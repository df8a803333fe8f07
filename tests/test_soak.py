"""The soak test with a few runs: interrupted and resumed, they leave nothing behind and end as if never interrupted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import soak
from tests.helpers.scripts import ROOT

LINE = re.compile(
    r"soak: 6 runs, (\d+) interruptions, \d+ double, memory \d+ -> \d+ MiB, open files (\d+) -> (\d+), "
    r"threads (\d+) -> (\d+), files left over 0(, started over \d+)?\n"
)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures as Linux does")
def test_a_few_interrupted_runs_leave_nothing_behind():
    command = [sys.executable, "-m", "tests.helpers.soak", "--runs", "6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    said = LINE.fullmatch(done.stdout)
    assert said, done.stdout
    interruptions, files_before, files_after, threads_before, threads_after = map(int, said.groups()[:5])
    assert interruptions > 0
    assert files_after <= files_before
    assert threads_after <= threads_before


def test_what_grows_is_named_and_fluctuation_is_not():
    before = soak.InUse(memory=500, files=9, threads=2, temporary=0)
    assert before.grown(before) == []
    assert before._replace(memory=500 + soak.MEMORY_TOLERANCE).grown(before) == []
    assert before._replace(memory=501 + soak.MEMORY_TOLERANCE).grown(before) == ["memory"]
    assert before._replace(files=8, threads=3, temporary=1).grown(before) == ["threads", "temporary"]


def test_a_run_that_lost_an_epoch_is_found(monkeypatch):
    every = soak.rows
    monkeypatch.setattr(soak, "rows", lambda folder: every(folder)[: None if folder.name == "reference" else 2])
    _, problems = soak.soak(1, seed=0)
    assert "run-0: other epochs: [1, 2] and not [1, 2, 3]" in problems
