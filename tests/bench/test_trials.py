"""One training of the benchmarks against `fast_cifar.train` with the same options."""

from __future__ import annotations

import dataclasses
import math

import pytest

from bench import trials
from bench.trials import train_once
from fast_cifar import train
from fast_cifar.build import build_setup
from fast_cifar.runs.run_folder import RunFolder
from tests.helpers.runs import silent


@pytest.fixture
def options(quick):
    return quick(val_split=8, epochs=3, lr_max=0.01, seed=4)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_it_reaches_what_train_reaches_with_parts_that_have_trained_before(options, ema, tmp_path, small_network):
    options = options.replace(ema=ema)
    setup = build_setup(options)
    parts = setup.parts(0.5, ema)
    train_once(setup, parts, options.replace(seed=1, lr_max=0.3))
    result = train_once(setup, parts, options)
    summary = train(options.replace(out=str(tmp_path), name="a"), log=silent)
    assert result["val_accuracy"] == summary["val_accuracy"]
    assert result["train_accuracy"] == summary["train_accuracy"]
    assert result["val_loss"] == RunFolder(tmp_path / "a").history()[-1]["val_loss"]
    assert not result["diverged"]


def test_the_test_images_are_not_used(options, small_network, monkeypatch):
    setup = build_setup(options)
    parts = setup.parts(0.01)
    used = []

    def evaluate(model, loader, *positional, **named):
        used.append(loader)
        return original(model, loader, *positional, **named)

    original = trials.evaluate
    monkeypatch.setattr(trials, "evaluate", evaluate)
    train_once(setup, parts, options)
    assert used == [parts.eval_loaders["val"]]


@pytest.mark.parametrize("broken", ["train_epoch", "evaluate"])
def test_a_training_that_diverges_counts_as_a_blind_guess(options, small_network, monkeypatch, broken):
    original = getattr(trials, broken)

    def diverged(*positional, **named):
        result = original(*positional, **named)
        if broken == "train_epoch":
            result.loss_sum.fill_(math.nan)
            return result
        return dataclasses.replace(result, loss=math.inf)

    monkeypatch.setattr(trials, broken, diverged)
    setup = build_setup(options)
    result = train_once(setup, setup.parts(0.01), options)
    assert result["diverged"]
    assert (result["val_accuracy"], result["train_accuracy"]) == (0.5, 0.5)  # of two classes
