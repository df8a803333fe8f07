"""One training of the benchmarks against `fast_cifar.train` with the same options."""

from __future__ import annotations

import dataclasses
import math

import pytest

from bench.trials import train_once
from fast_cifar import build, engine, train
from fast_cifar.build import build_setup
from fast_cifar.runs.run_folder import RunFolder
from tests.helpers.runs import silent


@pytest.fixture
def options(quick):
    return quick(val_split=8, epochs=3, lr_max=0.01, seed=4)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_it_reaches_what_train_reaches_after_an_earlier_training(options, ema, tmp_path, small_network):
    options = options.replace(ema=ema)
    training = build_setup(options, test=False).training_state(0.5, ema)
    train_once(training, options.replace(seed=1, lr_max=0.3))
    result = train_once(training, options)
    summary = train(options.replace(out=str(tmp_path), name="a"), log=silent)
    assert result["val_accuracy"] == summary["val_accuracy"]
    assert result["train_accuracy"] == summary["train_accuracy"]
    assert result["val_loss"] == RunFolder(tmp_path / "a").history()[-1]["val_loss"]
    assert not result["diverged"]


@pytest.mark.parametrize(("module", "broken"), [(engine, "train_epoch"), (build, "evaluate")])
def test_a_training_that_diverges_counts_as_a_blind_guess(options, small_network, monkeypatch, module, broken):
    original = getattr(module, broken)

    def diverged(*positional, **named):
        result = original(*positional, **named)
        if broken == "train_epoch":
            result.loss_sum.fill_(math.nan)
            return result
        return dataclasses.replace(result, loss=math.inf)

    monkeypatch.setattr(module, broken, diverged)
    result = train_once(build_setup(options, test=False).training_state(0.01), options)
    assert result["diverged"]
    assert (result["val_accuracy"], result["train_accuracy"]) == (0.5, 0.5)  # of two classes
