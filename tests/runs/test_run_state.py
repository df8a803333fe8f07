"""Whatever stops a run, it goes on where it was; what it must not go on with, it refuses."""

import io
import json
import os
import time
import zipfile

import pytest
import torch

from fast_cifar import TrainOptions, engine, train
from fast_cifar.runs import checkpoint
from fast_cifar.system.errors import UserError
from tests.conftest import (
    SmallNetwork,
    interrupted_after,
    killed_before_step,
    needs_cuda,
    rows,
    silent,
    stopped_at_check,
    without_times,
    write_class_folder,
)


def stop(options, when, n, monkeypatch):
    """Trains until `when(n, ...)` stops it."""
    with monkeypatch.context() as patch:
        when(n, patch)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train(options, log=silent)


@pytest.mark.parametrize("changed", [{}, {"dropout": 0.3}, {"ema": 0.9}, {"alternate_flips": True}], ids=str)
def test_a_resumed_run_ends_as_one_that_never_stopped(small_network, quick, tmp_path, monkeypatch, changed):
    options = quick(out=str(tmp_path), epochs=3, deterministic=True, **changed)
    train(options.replace(name="whole"), log=silent)
    stop(options.replace(name="stopped"), interrupted_after, 2, monkeypatch)
    train(TrainOptions(resume=str(tmp_path / "stopped")), log=silent)
    whole, stopped = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "stopped"))
    for part in {"model", "weights"} & whole.keys():
        for key, value in whole[part].items():
            assert torch.equal(value, stopped[part][key]), key
    assert [*map(without_times, rows(tmp_path / "whole"))] == [*map(without_times, rows(tmp_path / "stopped"))]


@needs_cuda
@pytest.mark.parametrize("amp_dtype", ["bf16", "fp16"])
def test_a_run_on_cuda_goes_on_on_the_cpu_and_back(quick, tmp_path, monkeypatch, amp_dtype):
    options = quick(out=str(tmp_path), name="a", epochs=4, device="cuda", amp=True, amp_dtype=amp_dtype, compile=True)
    stop(options, interrupted_after, 1, monkeypatch)
    on_cpu = TrainOptions(resume=str(tmp_path / "a"), device="cpu", amp=False, given=frozenset({"device", "amp"}))
    stop(on_cpu.replace(amp_dtype="auto", given=on_cpu.given | {"amp_dtype"}), interrupted_after, 2, monkeypatch)
    assert train(TrainOptions(resume=str(tmp_path / "a")), log=silent)["epochs"] == 4


def test_a_run_without_a_checkpoint_starts_at_epoch_1(small_network, quick, tmp_path, monkeypatch):
    stop(quick(out=str(tmp_path), name="a"), interrupted_after, 0, monkeypatch)
    assert not (tmp_path / "a/last.pt").exists()
    assert train(TrainOptions(resume=str(tmp_path / "a")), log=silent)["epochs"] == 2


def test_a_history_without_a_checkpoint_is_done_again(small_network, quick, tmp_path, monkeypatch):
    stop(quick(out=str(tmp_path), name="a"), interrupted_after, 0, monkeypatch)
    (tmp_path / "a/metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2, "lr')
    train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert [row["epoch"] for row in rows(tmp_path / "a")] == [1, 2]


def test_resuming_on_other_classes_or_images_is_refused(small_network, quick, tmp_path, monkeypatch):
    stop(quick(out=str(tmp_path), name="a"), interrupted_after, 1, monkeypatch)
    other = write_class_folder(tmp_path / "others", classes=("bird", "fish"))
    with pytest.raises(UserError, match="other classes"):
        train(TrainOptions(resume=str(tmp_path / "a"), data=str(other)), log=silent)
    more = write_class_folder(tmp_path / "more", per_class=40)
    with pytest.raises(UserError, match="other images"):
        train(TrainOptions(resume=str(tmp_path / "a"), data=str(more)), log=silent)


@pytest.fixture(scope="module")
def never_stopped(quick, tmp_path_factory):
    """The folder of a run of 2 epochs, each of 3 steps and of 3 batches to test."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("build", "predict"):
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
    stop(options, killed_before_step, 6, monkeypatch)  # the last step of the second epoch
    contents = checkpoint.load_training(tmp_path / "a/last.pt")
    assert (contents["epoch"], contents["metrics"]["steps"]) == (1, 2)
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
    stop(quick(out=str(tmp_path), name="a", dropout=0.3, deterministic=True), stopped_at_check, 9, monkeypatch)
    last = tmp_path / "a/last.pt"
    last.write_bytes(damage(last.read_bytes()))
    lines = []
    train(TrainOptions(resume=str(tmp_path / "a")), log=lines.append)
    assert any("last.pt" in line and "resuming from the checkpoint before" in line for line in lines)
    assert_same_end(tmp_path / "a", never_stopped)


def test_without_a_sound_checkpoint_a_run_is_refused_and_nothing_is_touched(
    small_network, quick, tmp_path, monkeypatch
):
    stop(quick(out=str(tmp_path), name="a"), stopped_at_check, 9, monkeypatch)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "a" / name).write_bytes(b"junk")
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(UserError, match=r"not a readable checkpoint"):
        train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_what_a_killed_process_was_writing_is_removed(small_network, quick, tmp_path, monkeypatch):
    stop(quick(out=str(tmp_path), name="a"), stopped_at_check, 4, monkeypatch)
    (tmp_path / "a/.last.pt.0123abcd.tmp").write_bytes(b"half")
    train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert not [path for path in (tmp_path / "a").iterdir() if path.suffix == ".tmp"]


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as Unix does")
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(
    small_network, quick, tmp_path, monkeypatch, never_stopped
):
    import resource

    def on_full_disk(*positional, title, **keywords):
        if title == "epoch 2/2":
            while not (tmp_path / "a/last.pt").exists():  # it is written beside the training
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        return train_epoch(*positional, title=title, **keywords)

    train_epoch = engine.train_epoch
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_epoch", on_full_disk)
        try:
            with pytest.raises(UserError, match=r"cannot write .*\.pt \(File too large\); make room"):
                train(quick(out=str(tmp_path), name="a", dropout=0.3, deterministic=True), log=silent)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load_training(tmp_path / "a/last.pt")["epoch"] == 1
    assert not [path for path in (tmp_path / "a").iterdir() if path.suffix == ".tmp"]
    train(TrainOptions(resume=str(tmp_path / "a")), log=silent)
    assert_same_end(tmp_path / "a", never_stopped)


def test_another_number_of_threads_is_said_where_it_matters(small_network, quick, tmp_path, monkeypatch):
    stop(quick(out=str(tmp_path), name="a", deterministic=True), stopped_at_check, 4, monkeypatch)
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    lines = []
    train(TrainOptions(resume=str(tmp_path / "a")), log=lines.append)
    assert any("77" in line and "--deterministic" in line for line in lines)


def test_what_a_configuration_says_is_quoted_on_one_line(small_network, quick, tmp_path, monkeypatch):
    stop(quick(out=str(tmp_path), name="a"), stopped_at_check, 4, monkeypatch)
    path = tmp_path / "a/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eval_only": "a\nb"}))
    for options in ({}, {"eval_only": "c"}):
        with pytest.raises(UserError) as caught:
            train(TrainOptions(resume=str(tmp_path / "a"), **options), log=silent)
        assert len(str(caught.value).splitlines()) == 1
        assert r"'a\nb'" in str(caught.value)


def test_a_checkpoint_of_another_recipe_than_the_configurations_is_refused(small_network, quick, tmp_path, monkeypatch):
    stop(quick(out=str(tmp_path), name="a"), stopped_at_check, 4, monkeypatch)
    path = tmp_path / "a/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_smoothing": 0.2}))
    with pytest.raises(UserError, match=r"was trained with --label-smoothing 0\.1, and its config\.json says 0\.2"):
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


@pytest.mark.parametrize("stopped_in", ["draw_training_data", "draw_results"])
def test_a_run_stopped_while_it_draws_goes_on_with_the_pictures(
    small_network, quick, tmp_path, monkeypatch, never_stopped, stopped_in
):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"fast_cifar.trainer.run_images.{stopped_in}", interrupt)
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
    stop(quick(out=str(tmp_path), name="a", **first), stopped_at_check, 2, monkeypatch)
    before = checkpoint.load_training(tmp_path / "a/last.pt")
    train(TrainOptions(resume=str(tmp_path / "a"), given=frozenset({"resume", *then}), **then), log=silent)
    contents = checkpoint.load_training(tmp_path / "a/last.pt")
    assert contents["model"].keys() == before["model"].keys()
    assert not any(name.startswith(("_orig_mod.", "module.")) for name in contents["model"])
    assert [row["epoch"] for row in rows(tmp_path / "a")] == [1, 2]
