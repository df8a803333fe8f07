"""Many short runs in a row in one process, interrupted at random and resumed: does anything grow?

    python -m tests.helpers.soak                    # 200 runs
    python -m tests.helpers.soak --runs 20 --seed 1

Each run trains a small network on a few images. Ctrl-C strikes at a random moment, sometimes twice, and the run is
resumed until it is finished: then its history must hold every epoch once, its folder the files of a run that was left
alone, and its last.pt the same weights. One run in ten draws its images, too, which takes longer than to train.
Memory, open files and threads are measured after some runs and at the end. One line sums up; the exit status is 1 if
anything went wrong or grew. Needs Linux, which says in /proc what is in use.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple
from unittest import mock

import pytest
import torch

from fast_cifar import TrainOptions, train
from tests.helpers.images import write_class_folder
from tests.helpers.networks import use_small_network
from tests.helpers.runs import rows, silent

EPOCHS = 3
ODDS_OF_AN_INTERRUPTION = 0.6  # in each attempt, so that a run ends sooner or later
ODDS_OF_A_SECOND = 0.4
MEMORY_TOLERANCE = 16  # MiB, for what the allocator scatters; 175 runs that leak their images and weights take more
FILES_TOLERANCE = 3  # matplotlib keeps the fonts open that it has read


class InUse(NamedTuple):
    """What the process holds at this moment."""

    memory: int  # MiB
    files: int
    threads: int
    temporary: int  # files in the folder for temporary files

    @classmethod
    def now(cls) -> InUse:
        gc.collect()
        with suppress(AttributeError):  # glibc's; it keeps what was freed by many threads, which looks like a leak
            ctypes.CDLL(None).malloc_trim(0)
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])  # shared: pages of libraries
        return cls(
            (resident - shared) * os.sysconf("SC_PAGE_SIZE") >> 20,
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            sum(path.is_file() for path in Path(tempfile.gettempdir()).rglob("*")),
        )

    def grown(self, before: InUse) -> list[str]:
        """What is more than before, and more than chance explains."""
        tolerance = InUse(MEMORY_TOLERANCE, FILES_TOLERANCE, 0, 0)
        return [
            name for name, was, now, more in zip(self._fields, before, self, tolerance, strict=True) if now > was + more
        ]


class Soak:
    """Runs below `root`, and what has become of them so far."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.data = write_class_folder(root / "images")
        self.seconds = functools.cache(self.time_a_run)
        self.seconds(drawn=False)
        self.reference = self.contents("reference")

    def time_a_run(self, *, drawn: bool) -> float:
        """How long an uninterrupted run takes, after one that imports all modules and decodes the images."""
        for name in ("reference", "reference-again"):
            shutil.rmtree(self.root / "runs" / name, ignore_errors=True)
            started = time.perf_counter()
            with plots(drawn):
                train(self.options(name), log=silent)
        return time.perf_counter() - started

    def options(self, name: str, checkpoint_steps: int | None = None) -> TrainOptions:
        return TrainOptions(
            data=str(self.data),
            data_dir=str(self.root / "data"),
            out=str(self.root / "runs"),
            name=name,
            epochs=EPOCHS,
            batch_size=8,
            lr_max=0.001,
            device="cpu",
            deterministic=True,
            checkpoint_steps=checkpoint_steps,
        )

    def contents(self, name: str) -> tuple[list[int], list[str], dict[str, list[float]]]:
        """Of a finished run: the epochs of its history, the names of its files but for images, and its weights."""
        folder = self.root / "runs" / name
        model = torch.load(folder / "last.pt", weights_only=True)["model"]
        weights = {key: value.flatten().tolist() for key, value in model.items()}
        names = sorted(path.name for path in folder.iterdir() if path.suffix != ".png")
        return [row["epoch"] for row in rows(folder)], names, weights

    def one_run(self, k: int) -> None:
        """Starts a run and resumes it until it is finished, then compares it with the reference."""
        name = f"run-{k}"
        folder = self.root / "runs" / name
        options = self.options(name, self.chance.choice([None, 1, 2]))
        drawn = k % 10 == 9
        with plots(drawn):
            while not self.attempt(TrainOptions(resume=str(folder)) if folder.exists() else options, drawn):
                if folder.exists() and not (folder / "config.json").exists():
                    self.counts["folders without a configuration"] += 1
                    shutil.rmtree(folder)
        for what, was, now in zip(("epochs", "files", "weights"), self.reference, self.contents(name), strict=True):
            if now != was:
                self.problems.append(f"{name}: other {what}{'' if what == 'weights' else f': {now} and not {was}'}")
        shutil.rmtree(folder)

    def attempt(self, options: TrainOptions, drawn: bool) -> bool:
        """Trains, perhaps not to the end; says whether it is finished."""
        delays = []
        if self.chance.random() < ODDS_OF_AN_INTERRUPTION:
            delays.append(self.moment(self.seconds(drawn=drawn)))
            if self.chance.random() < ODDS_OF_A_SECOND:
                delays.append(self.moment(0.1 * self.seconds(drawn=drawn)))
        with signals_after(delays) as sent:
            try:
                train(options, log=silent)
            except KeyboardInterrupt:
                self.counts["interruptions"] += 1
                self.counts["double"] += len(sent) == 2
                return False
        return True

    def moment(self, latest: float) -> float:
        """Between a hundredth of `latest` and `latest`, all orders of magnitude alike: it may be far too high, where
        the machine was busy when the run was timed."""
        return latest * 100 ** -self.chance.random()


@contextmanager
def plots(drawn: bool) -> Iterator[None]:
    """Lets runs draw their plots and images, or not."""
    with ExitStack() as stack:
        for name in () if drawn else ("draw_training_data", "draw_results"):
            stack.enter_context(mock.patch(f"fast_cifar.plots.run_images.{name}", draw_nothing))
        yield


def draw_nothing(*_: object) -> None:
    pass


@contextmanager
def signals_after(delays: list[float]) -> Iterator[list[float]]:
    """Sends this process a SIGINT after each of the delays, as long as the block runs; yields those that were."""
    over, sent = threading.Event(), []

    def send() -> None:
        for delay in delays:
            if over.wait(delay):
                return
            sent.append(delay)
            os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield sent
    finally:
        over.set()
        sender.join()


def interrupt_training(number: int, frame: FrameType | None) -> None:
    """What Ctrl-C does where training does not handle it; a signal that comes after training is let pass."""
    while frame is not None:
        if frame.f_code is train.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back


@contextmanager
def prepared() -> Iterator[Path]:
    """The small network in place of the real one, Ctrl-C in our hands, and a folder that is afterwards gone."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        (root / "temporary").mkdir()
        stack.enter_context(mock.patch.object(tempfile, "tempdir", str(root / "temporary")))
        use_small_network(stack.enter_context(pytest.MonkeyPatch.context()))
        stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, interrupt_training))
        yield root


def soak(runs: int, seed: int) -> tuple[str, list[str]]:
    """The summary line, and what went wrong."""
    warm_up = min(max(runs // 4, 10), 25) if runs >= 10 else runs // 4  # a run that draws is among them, if any does
    with prepared() as root:
        state = Soak(root, seed)
        for k in range(warm_up):
            state.one_run(k)
        before = InUse.now()
        for k in range(warm_up, runs):
            state.one_run(k)
        after = InUse.now()
        left = [path.name for path in (root / "runs").iterdir() if path.name.startswith("run-")]
        left += [path.name for path in (root / "data").rglob("*") if path.is_file() and path.suffix != ".pt"]
    problems = state.problems + [f"{name} grew" for name in after.grown(before)] + [f"{name} is left" for name in left]
    line = (
        f"soak: {runs} runs, {state.counts['interruptions']} interruptions, {state.counts['double']} double, "
        f"memory {before.memory} -> {after.memory} MiB, open files {before.files} -> {after.files}, "
        f"threads {before.threads} -> {after.threads}, "
        f"files left over {len(left) + after.temporary - before.temporary}"
    )
    if started_over := state.counts["folders without a configuration"]:
        line += f", started over {started_over}"
    return line, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="how many runs (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the interruptions (default: 0)")
    options = parser.parse_args()
    line, problems = soak(options.runs, options.seed)
    for problem in problems:
        print(problem)
    print(line)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
