"""One run, a small one: what it writes, and that it goes on where it stopped."""

import io
import json
import os
import time
import zipfile

import pytest
import torch
from PIL import Image

from fast_cifar import TrainOptions, checkpoint, engine, train
from fast_cifar import run as run_module
from fast_cifar.errors import UserError
from fast_cifar.run import cycle_steps
from tests.conftest import SmallNetwork, interrupted_after, needs_cuda, rows, silent, stopped_at_check, without_times


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
    from fast_cifar.evaluation import evaluate_checkpoint

    result = evaluate_checkpoint(quick(eval_only=str(run[0] / "last.pt")))
    assert result.accuracy == run[1]["test_accuracy"]


def test_a_class_that_differs_in_colour_is_learnt(run):
    assert run[1]["train_accuracy"] > 0.7


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_ends_as_one_that_never_stopped(small_network, quick, tmp_path, monkeypatch, dropout):
    options = quick(out=str(tmp_path), epochs=3, dropout=dropout, deterministic=True)
    train(options.replace(name="whole"), log=silent)
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train(options.replace(name="stopped"), log=silent)
    train(TrainOptions(resume=str(tmp_path / "stopped")), log=silent)
    whole, stopped = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "stopped"))
    for key, value in whole["model"].items():
        assert torch.equal(value, stopped["model"][key]), key
    assert [*map(without_times, rows(tmp_path / "whole"))] == [*map(without_times, rows(tmp_path / "stopped"))]


@needs_cuda
@pytest.mark.parametrize("amp_dtype", ["bf16", "fp16"])
def test_a_run_on_cuda_goes_on_on_the_cpu_and_back(quick, tmp_path, monkeypatch, amp_dtype):
    options = quick(out=str(tmp_path), name="a", epochs=4, device="cuda", amp=True, amp_dtype=amp_dtype, compile=True)
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train(options, log=silent)
    on_cpu = TrainOptions(resume=str(tmp_path / "a"), device="cpu", amp=False, given=frozenset({"device", "amp"}))
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(on_cpu.replace(amp_dtype="auto", given=on_cpu.given | {"amp_dtype"}), log=silent)
    assert train(TrainOptions(resume=str(tmp_path / "a")), log=silent)["epochs"] == 4


def test_a_run_without_a_checkpoint_starts_at_epoch_1(small_network, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(0, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a"), log=silent)
    assert not (tmp_path / "a/last.pt").exists()
    assert train(TrainOptions(resume=str(tmp_path / "a")), log=silent)["epochs"] == 2


def test_a_history_without_a_checkpoint_is_done_again(small_network, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(0, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a"), log=silent)
    (tmp_path / "a/metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2, "lr')
    train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert [row["epoch"] for row in rows(tmp_path / "a")] == [1, 2]


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
        {"pad_mode": "reflect"},
        {"cutout": 0},
        {"flip": False},
        {"dropout": 0.5},
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
    monkeypatch.setattr("fast_cifar.plots.matplotlib_available", lambda: False)
    lines = []
    train(quick(out=str(tmp_path), name="a", epochs=1), log=lines.append)
    assert sum("pip install matplotlib" in line for line in lines) == 1
    assert (tmp_path / "a/samples.png").exists()
    assert not (tmp_path / "a/curves.png").exists()


def diverge_in_epoch(epoch, monkeypatch):
    def train_epoch(step, batches, scheduler, tally, *, title, **keywords):
        engine.train_epoch(step, batches, scheduler, tally, title=title, **keywords)
        if title.startswith(f"epoch {epoch}/"):
            tally.loss_sum.fill_(float("nan"))

    monkeypatch.setattr(run_module, "train_epoch", train_epoch)


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


def test_resuming_on_other_classes_or_pictures_is_refused(small_network, quick, tmp_path, monkeypatch):
    from tests.conftest import write_class_folder

    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a"), log=silent)
    other = write_class_folder(tmp_path / "others", classes=("bird", "fish"))
    with pytest.raises(UserError, match="other classes"):
        train(TrainOptions(resume=str(tmp_path / "a"), data=str(other)), log=silent)
    more = write_class_folder(tmp_path / "more", per_class=40)
    with pytest.raises(UserError, match="other pictures"):
        train(TrainOptions(resume=str(tmp_path / "a"), data=str(more)), log=silent)


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


@pytest.fixture(scope="module")
def never_stopped(quick, tmp_path_factory):
    """The folder of a run of 2 epochs, each of 3 steps and of 3 batches to test."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("assembly", "checkpoint"):
            patch.setattr(f"fast_cifar.{module}.CustomResNet", SmallNetwork)
        train(quick(out=str(out), name="a", dropout=0.3, deterministic=True), log=silent)
    return out / "a"


def assert_same_end(folder, other):
    """The last checkpoints hold the same, bit for bit, and the histories but for the times."""
    mine, theirs = (torch.load(path / "last.pt", weights_only=True) for path in (folder, other))
    assert_equal(mine, theirs)
    assert [*map(without_times, rows(folder))] == [*map(without_times, rows(other))]
    assert not (folder / "previous.pt").exists()


def assert_equal(a, b, name="checkpoint"):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_equal(a[key], b[key], f"{name}[{key!r}]")
    else:
        assert a == b, name


@pytest.mark.parametrize("check", range(1, 13))
def test_a_run_stopped_at_any_step_or_test_batch_ends_as_one_that_never_was(
    small_network, quick, tmp_path, monkeypatch, never_stopped, check
):
    with monkeypatch.context() as patch:
        stopped_at_check(check, patch)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train(quick(out=str(tmp_path), name="a", dropout=0.3, deterministic=True), log=silent)
    train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert_same_end(tmp_path / "a", never_stopped)


def test_a_run_killed_after_a_checkpoint_inside_an_epoch_goes_on_from_it(
    small_network, quick, tmp_path, monkeypatch, never_stopped
):
    options = quick(out=str(tmp_path), name="a", dropout=0.3, deterministic=True, checkpoint_steps=2)
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)  # an epoch is two steps and one: after two steps of the second
        with pytest.raises(KeyboardInterrupt):
            train(options, log=silent)
    contents = checkpoint.load_training(tmp_path / "a/last.pt")
    assert (contents["epoch"], contents["tally"]["steps"]) == (1, 2)
    train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert_same_end(tmp_path / "a", never_stopped)


def flip(data):
    """One bit of the largest part of the file: between its parts there is padding, which nobody reads."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
    header = data[part.header_offset : part.header_offset + 30]
    start = part.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    place = start + part.file_size // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-100], lambda data: b""], ids=["flip", "cut", "empty"])
def test_a_damaged_last_checkpoint_is_said_and_the_one_before_is_used(
    small_network, quick, tmp_path, monkeypatch, never_stopped, damage
):
    with monkeypatch.context() as patch:
        stopped_at_check(9, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a", dropout=0.3, deterministic=True), log=silent)
    last = tmp_path / "a/last.pt"
    last.write_bytes(damage(last.read_bytes()))
    lines = []
    train(TrainOptions(resume=str(tmp_path / "a")), log=lines.append)
    assert any("last.pt" in line and "going on from the checkpoint before" in line for line in lines)
    assert_same_end(tmp_path / "a", never_stopped)


def test_without_a_sound_checkpoint_a_run_is_refused_and_nothing_is_touched(
    small_network, quick, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stopped_at_check(9, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a"), log=silent)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "a" / name).write_bytes(b"junk")
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(UserError, match=r"no readable checkpoint"):
        train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_what_a_killed_process_was_writing_is_removed(small_network, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_at_check(4, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a"), log=silent)
    (tmp_path / "a/.last.pt.0123abcd.tmp").write_bytes(b"half")
    train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert not [path for path in (tmp_path / "a").iterdir() if path.suffix == ".tmp"]


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as Unix does")
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(
    small_network, quick, tmp_path, monkeypatch, never_stopped
):
    import resource

    def train_epoch(step, batches, scheduler, tally, *, title, **keywords):
        if title == "epoch 2/2":
            while not (tmp_path / "a/last.pt").exists():  # it is written beside the training
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        return engine.train_epoch(step, batches, scheduler, tally, title=title, **keywords)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_epoch", train_epoch)
        try:
            with pytest.raises(UserError, match=r"cannot write .*\.pt \(File too large\); make room"):
                train(quick(out=str(tmp_path), name="a", dropout=0.3, deterministic=True), log=silent)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load_training(tmp_path / "a/last.pt")["epoch"] == 1
    assert not [path for path in (tmp_path / "a").iterdir() if path.suffix == ".tmp"]
    train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert_same_end(tmp_path / "a", never_stopped)


def test_a_loss_that_diverges_inside_an_epoch_never_reaches_a_checkpoint(small_network, quick, tmp_path, monkeypatch):
    diverge_in_epoch(2, monkeypatch)
    with pytest.raises(UserError, match="diverged in epoch 2"):
        train(quick(out=str(tmp_path), name="a", checkpoint_steps=1), log=silent)
    contents = checkpoint.load_training(tmp_path / "a/last.pt")
    assert (contents["epoch"], contents["tally"]["steps"]) == (1, 0)


def test_another_number_of_threads_is_said_where_it_matters(small_network, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_at_check(4, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a", deterministic=True), log=silent)
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    lines = []
    train(TrainOptions(resume=str(tmp_path / "a")), log=lines.append)
    assert any("77" in line and "--deterministic" in line for line in lines)


def test_a_checkpoint_of_another_recipe_than_the_configurations_is_refused(small_network, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_at_check(4, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a"), log=silent)
    path = tmp_path / "a/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_smoothing": 0.1}))
    with pytest.raises(UserError, match=r"was trained with --label-smoothing 0\.0, and its config\.json says 0\.1"):
        train(TrainOptions(resume=str(tmp_path / "a")), log=silent)


def test_the_sound_checkpoint_outlives_a_second_damage(small_network, quick, tmp_path, monkeypatch, never_stopped):
    last = tmp_path / "a/last.pt"
    for check, options in (
        (9, quick(out=str(tmp_path), name="a", dropout=0.3, deterministic=True)),
        (1, TrainOptions(resume=str(tmp_path / "a"))),
    ):
        with monkeypatch.context() as patch:
            stopped_at_check(check, patch)
            with pytest.raises(KeyboardInterrupt):
                train(options, log=silent)
        last.write_bytes(flip(last.read_bytes()))
    train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert_same_end(tmp_path / "a", never_stopped)


@pytest.mark.parametrize("stopped_in", ["opening_pictures", "closing_pictures"])
def test_a_run_stopped_while_it_draws_goes_on_with_the_pictures(
    small_network, quick, tmp_path, monkeypatch, never_stopped, stopped_in
):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"fast_cifar.run.gallery.{stopped_in}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a", dropout=0.3, deterministic=True), log=silent)
    assert not (tmp_path / "a/summary.json").exists()
    summary = train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert summary["test_accuracy"] == json.loads((never_stopped / "summary.json").read_text())["test_accuracy"]
    assert (tmp_path / "a/misclassified.png").exists()
    assert_same_end(tmp_path / "a", never_stopped)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"compile": True}),
        ({"compile": True}, {"compile": False}),
        ({}, {"amp": True, "amp_dtype": "bf16"}),
        ({"amp": True, "amp_dtype": "bf16"}, {"amp": False}),
        ({}, {"channels_last": False}),
    ],
    ids=str,
)
def test_a_run_goes_on_compiled_or_not_and_in_any_precision(small_network, quick, tmp_path, monkeypatch, first, then):
    with monkeypatch.context() as patch:
        stopped_at_check(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a", **first), log=silent)
    before = checkpoint.load_training(tmp_path / "a/last.pt")
    train(TrainOptions(resume=str(tmp_path / "a"), given=frozenset({"resume", *then}), **then), log=silent)
    contents = checkpoint.load_training(tmp_path / "a/last.pt")
    assert contents["model"].keys() == before["model"].keys()
    assert not any(name.startswith(("_orig_mod.", "module.")) for name in contents["model"])
    assert [row["epoch"] for row in rows(tmp_path / "a")] == [1, 2]
