"""One run, a small one: what it writes, and what its options change."""

import itertools
import json

import pytest
import torch
from PIL import Image

from fast_cifar import TrainOptions, build, engine, train
from fast_cifar.runs import checkpoint
from fast_cifar.system.errors import UserError
from fast_cifar.train_step import TrainStep
from fast_cifar.trainer import cycle_steps
from tests.conftest import rows, silent, without_times


def test_the_folder_holds_all_that_was_promised(run):
    names = {path.name for path in run[0].iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "last.pt",
        "best.pt",
        "samples.png",
        "augmented.png",
        "schedule.png",
        "curves.png",
        "confusion.png",
        "misclassified.png",
    }


def test_every_picture_can_be_opened(run):
    for path in run[0].glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 200
            image.load()


def test_the_summary_is_returned_and_written(run):
    folder, summary, _ = run
    assert json.loads((folder / "summary.json").read_text()) == summary
    promised = (
        "test_accuracy best_test_accuracy train_accuracy seconds images_per_second compile_seconds dataset device"
    )
    assert {*promised.split(), "torch", "parameters"} <= summary.keys()
    assert 0 <= summary["test_accuracy"] <= summary["best_test_accuracy"] <= 1


def test_there_is_one_history_line_an_epoch(run):
    history = rows(run[0])
    assert [row["epoch"] for row in history] == [1, 2, 3]
    keys = ["epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "images_per_second", "seconds"]
    assert all(set(keys) <= row.keys() for row in history)
    assert history[-1]["test_accuracy"] == run[1]["test_accuracy"]


def test_the_lr_of_the_history_is_that_of_each_epochs_last_step(run):
    lrs = [row["lr"] for row in rows(run[0])]
    assert lrs[0] == pytest.approx(0.001)  # the peak is the last step of epoch 1
    assert lrs[-1] == pytest.approx(1e-5)


def test_each_epoch_has_its_line(run):
    lines = [line for line in run[2] if line.startswith("epoch ")]
    assert len(lines) == 3
    assert "images/sec" in lines[0]
    assert "/24 (" in lines[0]


def test_checkpoints_describe_themselves_and_hold_no_clock_time(run):
    for name in ("last.pt", "best.pt"):
        contents = torch.load(run[0] / name, weights_only=True)
        assert contents["network"] == "CustomResNet"
        assert contents["classes"] == ["cat", "dog"]
        assert contents["size"] == 32
        assert len(contents["mean"]) == len(contents["std"]) == 3
        assert contents["options"]["batch_size"] == 8
        assert "seconds" not in str(contents.keys())
        assert not any(key.startswith(("_orig_mod.", "module.")) for key in contents["model"])


def test_the_last_checkpoint_has_the_last_epochs_accuracy(run, quick):
    from fast_cifar.predict import evaluate_checkpoint

    result = evaluate_checkpoint(quick(eval_only=str(run[0] / "last.pt")))
    assert result.accuracy == run[1]["test_accuracy"]


def test_a_class_that_differs_in_colour_is_learnt(run):
    assert run[1]["train_accuracy"] > 0.7


def test_the_same_seed_gives_the_same_run(small_network, quick, tmp_path):
    for name in ("a", "b"):
        train(quick(out=str(tmp_path), name=name, epochs=1, deterministic=True), log=silent)
    assert [*map(without_times, rows(tmp_path / "a"))] == [*map(without_times, rows(tmp_path / "b"))]


def test_a_held_out_split_chooses_the_best_checkpoint(small_network, quick, tmp_path):
    train(quick(out=str(tmp_path), name="a", val_split=8, epochs=3), log=silent)
    history = rows(tmp_path / "a")
    accuracies = [row["val_accuracy"] for row in history]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    best = torch.load(tmp_path / "a/best.pt", weights_only=True)
    assert best["epoch"] == accuracies.index(max(accuracies)) + 1


def test_epochs_without_a_test_are_null_but_never_the_last(small_network, quick, tmp_path):
    train(quick(out=str(tmp_path), name="a", epochs=3, eval_every=2), log=silent)
    accuracies = [row["test_accuracy"] for row in rows(tmp_path / "a")]
    assert accuracies[0] is None
    assert accuracies[1] is not None
    assert accuracies[2] is not None


def test_every_way_of_changing_the_recipe_runs(small_network, quick, tmp_path):
    options = quick(
        out=str(tmp_path),
        name="a",
        epochs=2,
        amp=True,
        amp_dtype="bf16",
        dropout=0.2,
        label_smoothing=0.1,
        weight_decay=0.01,
        padding=0,
        cutout=0,
        flip=False,
        pad_mode="reflect",
        channels_last=False,
        tta=True,
        limit_train=16,
        limit_test=10,
    )
    summary = train(options, log=silent)
    assert summary["precision"] == "bf16"


@pytest.mark.parametrize(
    "changed",
    [
        {"padding": 0},
        {"pad_mode": "zeros"},
        {"cutout": 0},
        {"flip": False},
        {"dropout": 0.5},
        {"width": 32},
        {"ema": 0.9},
        {"alternate_flips": True},
        {"label_smoothing": 0.3},
        {"weight_decay": 10.0},
        {"lr_max": 0.002},
        {"lr_min": 0.0005},
        {"peak_epoch": 2},
        {"seed": 1},
        {"amp": True, "amp_dtype": "bf16"},
        {"tta": True},
        {"limit_train": 16},
        {"limit_test": 10},
        {"val_split": 4},
    ],
    ids=str,
)
def test_every_option_of_the_recipe_changes_the_run(small_network, quick, tmp_path, changed):
    for name, options in (("plain", {}), ("changed", changed)):
        train(quick(out=str(tmp_path), name=name, epochs=3, deterministic=True, **options), log=silent)
    plain, other = ([*map(without_times, rows(tmp_path / name))] for name in ("plain", "changed"))
    assert plain != other


def test_without_matplotlib_a_run_says_so_and_draws_the_grids(small_network, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("fast_cifar.plots.style.matplotlib_available", lambda: False)
    lines = []
    train(quick(out=str(tmp_path), name="a", epochs=1), log=lines.append)
    assert sum("pip install matplotlib" in line for line in lines) == 1
    assert (tmp_path / "a/samples.png").exists()
    assert not (tmp_path / "a/curves.png").exists()


def diverge_in_epoch(epoch, monkeypatch):
    def diverging(*positional, title, **keywords):
        metrics = train_epoch(*positional, title=title, **keywords)
        if title.startswith(f"epoch {epoch}/"):
            metrics.loss_sum.fill_(float("nan"))
        return metrics

    train_epoch = engine.train_epoch
    monkeypatch.setattr(engine, "train_epoch", diverging)


def test_a_diverged_run_names_epoch_and_rate_and_keeps_the_checkpoint_before(
    small_network, quick, tmp_path, monkeypatch
):
    diverge_in_epoch(2, monkeypatch)
    with pytest.raises(UserError, match=r"diverged in epoch 2.*0\.001"):
        train(quick(out=str(tmp_path), name="a", epochs=3), log=silent)
    assert checkpoint.load(tmp_path / "a/last.pt")["epoch"] == 1
    assert len(rows(tmp_path / "a")) == 1


def test_two_runs_that_differ_in_name_write_the_same_checkpoint(small_network, quick, tmp_path):
    for name in ("a", "b"):
        train(quick(out=str(tmp_path / name), name=name, deterministic=True), log=silent)
    assert (tmp_path / "a/a/last.pt").read_bytes() == (tmp_path / "b/b/last.pt").read_bytes()


@pytest.mark.parametrize(
    ("epochs", "peak_epoch", "steps", "expected"),
    [(24, 5, 97, (2328, 484)), (1, None, 97, (97, 19)), (1, None, 3, (3, 1)), (5, 1, 50, (250, 49))],
)
def test_the_peak_is_the_last_step_of_its_epoch(epochs, peak_epoch, steps, expected):
    options = TrainOptions(epochs=epochs, peak_epoch=peak_epoch)
    assert cycle_steps(options, steps) == expected


@pytest.mark.parametrize(("epochs", "peak_epoch", "steps"), [(1, None, 2), (2, 1, 1), (3, 2, 0)])
def test_too_few_steps_for_a_cycle_are_refused(epochs, peak_epoch, steps):
    with pytest.raises(UserError, match="too few steps"):
        cycle_steps(TrainOptions(epochs=epochs, peak_epoch=peak_epoch), steps)


def test_a_loss_that_diverges_inside_an_epoch_never_reaches_a_checkpoint(small_network, quick, tmp_path, monkeypatch):
    def diverging(self, inputs, labels):
        loss, correct, updated = step(self, inputs, labels)
        return loss.fill_(float("nan")) if next(calls) == 4 else loss, correct, updated

    calls, step = itertools.count(1), TrainStep.__call__  # an epoch has 3 steps
    monkeypatch.setattr(TrainStep, "__call__", diverging)
    with pytest.raises(UserError, match="diverged in epoch 2"):
        train(quick(out=str(tmp_path), name="a", checkpoint_steps=1), log=silent)
    contents = checkpoint.load_training(tmp_path / "a/last.pt")
    assert (contents["epoch"], contents["metrics"]["steps"]) == (1, 0)


def test_without_a_test_the_held_out_images_judge_and_the_test_images_change_nothing(
    small_network, quick, tmp_path, monkeypatch
):
    asked = []
    evaluate = engine.evaluate
    monkeypatch.setattr(
        build, "evaluate", lambda *args, **options: asked.append(options["title"]) or evaluate(*args, **options)
    )
    summary = train(quick(out=str(tmp_path), name="untested", val_split=8, test=False), log=silent)
    folder = tmp_path / "untested"
    assert set(asked) == {"val"}
    assert all(row["test_accuracy"] is None and row["test_loss"] is None for row in rows(folder))
    assert summary["test_accuracy"] is None
    assert summary["best_test_accuracy"] is None
    assert summary["val_accuracy"] == rows(folder)[-1]["val_accuracy"]
    assert torch.load(folder / "best.pt", weights_only=True)["epoch"] >= 1
    assert train(quick(resume=str(folder)), log=silent) == summary
    tested = train(quick(out=str(tmp_path), name="tested", val_split=8), log=silent)
    assert tested["val_accuracy"] == summary["val_accuracy"]


def test_without_a_test_something_has_to_be_held_out(small_network, quick):
    with pytest.raises(UserError, match="--no-test leaves nothing to evaluate; .*--val-split"):
        train(quick(test=False), log=silent)
