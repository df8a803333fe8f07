"""Runs: what a test reads from their folders, and the ways to stop one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fast_cifar import TrainOptions, engine, train
from fast_cifar.system.signals import Stopped, StopRequest
from fast_cifar.train_step import TrainStep


def silent(line: str) -> None:
    pass


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rows_without_times(folder: Path) -> list[dict[str, Any]]:
    """What two equal runs have in common."""
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows(folder)]


def resume(folder: Path, **options: Any) -> dict[str, Any]:
    return train(TrainOptions(resume=str(folder), **options), log=silent)


def stop(options: TrainOptions, when: Callable[[int, pytest.MonkeyPatch], None], n: int) -> str:
    """Trains until `when(n, ...)`, one of the functions below, stops it; returns what the user is told."""
    with pytest.MonkeyPatch.context() as patch:
        when(n, patch)
        with pytest.raises(KeyboardInterrupt, match="--resume") as caught:
            train(options, log=silent)
    return str(caught.value)


def interrupted_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the first step of the epoch after `epochs`."""
    calls = iter(range(1000))
    train_epoch = engine.train_epoch

    def interrupted(step, loader, scheduler, metrics, **keywords):
        if next(calls) == epochs:
            step(*next(iter(loader)))
            scheduler.step()
            raise KeyboardInterrupt
        return train_epoch(step, loader, scheduler, metrics, **keywords)

    patch.setattr(engine, "train_epoch", interrupted)


def diverging_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    """The loss is NaN in the epoch after `epochs`, counted over several runs, and in no other."""
    calls = iter(range(1000))
    train_epoch = engine.train_epoch

    def diverging(*positional, **keywords):
        metrics = train_epoch(*positional, **keywords)
        if next(calls) == epochs:
            metrics.loss_sum.fill_(float("nan"))
        return metrics

    patch.setattr(engine, "train_epoch", diverging)


def killed_before_step(n: int, patch: pytest.MonkeyPatch) -> None:
    """Training ends before its n-th step, with no chance to save."""
    calls = iter(range(1, 1000))
    step = TrainStep.__call__

    def killed(self, inputs, labels):
        if next(calls) == n:
            raise KeyboardInterrupt
        return step(self, inputs, labels)

    patch.setattr(TrainStep, "__call__", killed)


def stopped_at_check(n: int, patch: pytest.MonkeyPatch) -> None:
    """The n-th check for a signal, after a step or a batch of an evaluation, finds one."""
    calls = iter(range(1, 1000))

    def check(self):
        if next(calls) == n:
            self.made = True
            raise Stopped

    patch.setattr(StopRequest, "check", check)
