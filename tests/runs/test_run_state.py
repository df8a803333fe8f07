"""Whatever stops a run, it resumes where it was; what it must not resume with, it refuses."""

import io
import math
import os
import time
import zipfile

import pytest
import torch

from fast_cifar import TrainOptions, engine, train
from fast_cifar.runs import checkpoint
from fast_cifar.system.errors import UserError
from tests.helpers.devices import needs_cuda
from tests.helpers.images import write_class_folder
from tests.helpers.networks import flat, use_small_network
from tests.helpers.pages import write
from tests.helpers.runs import (
    interrupted_after,
    killed_before_step,
    read_json,
    resume,
    rows,
    rows_without_times,
    silent,
    stop,
    stopped_at_check,
)

EXACT = {"dropout": 0.3, "deterministic": True}


@pytest.fixture(scope="module")
def uninterrupted(quick, tmp_path_factory):
    """The folder of an `EXACT` run of 2 epochs, each of 3 steps and of 3 batches to test."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_small_network(patch)
        train(quick(out=str(out), name="a", **EXACT), log=silent)
    return out / "a"


def assert_same_end(folder, other):
    """The last checkpoints hold the same, bit for bit, and the histories but for the times."""
    mine, theirs = (flat(torch.load(path / "last.pt", weights_only=True)) for path in (folder, other))
    assert [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)] == []
    assert rows_without_times(folder) == rows_without_times(other)
    assert not (folder / "previous.pt").exists()


def contents_of(folder):
    return {path: path.read_bytes() for path in folder.iterdir()}


def edit_config(folder, **changes):
    write(folder / "config.json", read_json(folder / "config.json") | changes)


@pytest.mark.parametrize("changed", [{}, {"ema": 0.9}, {"alternate_flips": True}], ids=str)
def test_a_run_resumed_in_a_later_epoch_ends_as_one_that_never_stopped(options, tmp_path, changed):
    exact = options(epochs=3, **EXACT, **changed)
    train(exact.replace(out=str(tmp_path / "whole")), log=silent)
    stop(exact, interrupted_after, 2)
    resume(tmp_path / "a")
    assert_same_end(tmp_path / "a", tmp_path / "whole/a")


@pytest.mark.parametrize("check", range(1, 13))
def test_a_run_stopped_at_any_step_or_test_batch_ends_as_one_that_never_was(options, folder, uninterrupted, check):
    stop(options(**EXACT), stopped_at_check, check)
    resume(folder)
    assert_same_end(folder, uninterrupted)


@pytest.mark.parametrize(
    ("when", "n", "epoch", "steps"),
    [(stopped_at_check, 14, 2, 2), (killed_before_step, 8, 1, 0)],
    ids=["stopped", "killed"],
)
def test_between_checkpoints_a_stopped_run_saves_its_newest_state_and_a_killed_one_repeats_epochs(
    options, tmp_path, folder, monkeypatch, when, n, epoch, steps
):
    monkeypatch.setattr("fast_cifar.trainer.checkpoint_interval", lambda device: math.inf)  # only the first is due
    exact = options(epochs=3, **EXACT)
    train(exact.replace(out=str(tmp_path / "whole")), log=silent)
    stop(exact, when, n)
    contents = checkpoint.load_training(folder / "last.pt")
    assert (contents["epoch"], contents["metrics"]["steps"]) == (epoch, steps)
    assert [row["epoch"] for row in rows(folder)] == [1, 2]
    resume(folder)
    assert_same_end(folder, tmp_path / "whole/a")
    assert (folder / "best.pt").read_bytes() == (tmp_path / "whole/a/best.pt").read_bytes()


def test_a_run_killed_after_a_checkpoint_inside_an_epoch_resumes_from_it_and_removes_its_unfinished_file(
    options, folder, uninterrupted
):
    stop(options(checkpoint_steps=2, **EXACT), killed_before_step, 6)  # the last step of the second epoch
    contents = checkpoint.load_training(folder / "last.pt")
    assert (contents["epoch"], contents["metrics"]["steps"]) == (1, 2)
    (folder / ".last.pt.0123abcd.tmp").write_bytes(b"half")
    resume(folder)
    assert_same_end(folder, uninterrupted)
    assert not list(folder.glob(".*"))


@needs_cuda
@pytest.mark.parametrize("amp_dtype", ["bf16", "fp16"])
def test_a_run_on_cuda_resumes_on_the_cpu_and_back(quick, tmp_path, amp_dtype):
    options = quick(out=str(tmp_path), name="a", epochs=4, device="cuda", amp=True, amp_dtype=amp_dtype, compile=True)
    stop(options, interrupted_after, 1)
    on_cpu = TrainOptions(
        resume=str(tmp_path / "a"), device="cpu", amp=False, given=frozenset({"device", "amp", "amp_dtype"})
    )
    stop(on_cpu, interrupted_after, 2)
    assert resume(tmp_path / "a")["epochs"] == 4


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
def test_a_run_resumes_compiled_or_not_and_in_any_precision(options, folder, first, then):
    stop(options(**first), stopped_at_check, 2)
    before = checkpoint.load_training(folder / "last.pt")
    resume(folder, given=frozenset({"resume", *then}), **then)
    contents = checkpoint.load_training(folder / "last.pt")
    assert contents["model"].keys() == before["model"].keys()
    assert [row["epoch"] for row in rows(folder)] == [1, 2]


@pytest.mark.parametrize("history", [None, '{"epoch": 1}\n{"epoch": 2, "lr'])
def test_a_run_without_a_checkpoint_starts_at_epoch_1_whatever_its_history(options, folder, history):
    stop(options(), interrupted_after, 0)
    assert not (folder / "last.pt").exists()
    if history is not None:
        (folder / "metrics.jsonl").write_text(history)
    assert resume(folder)["epochs"] == 2
    assert [row["epoch"] for row in rows(folder)] == [1, 2]


def flip(data):
    """One bit of the largest part of the file: between its parts there is padding, which has no meaning."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
    header = data[part.header_offset : part.header_offset + 30]
    start = part.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    place = start + part.file_size // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def mark_as_folder(data):
    """The attributes of the first tensor say that it is a folder; torch would not read it."""
    place = data.rindex(b"archive/data/0") - 8
    return data[:place] + b"\x10" + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip, mark_as_folder, lambda data: data[:-100], lambda data: b""],
    ids=["flip", "folder", "cut", "empty"],
)
def test_a_damaged_last_checkpoint_is_reported_and_the_one_before_is_used(options, folder, uninterrupted, damage):
    stop(options(**EXACT), stopped_at_check, 9)
    (folder / "last.pt").write_bytes(damage((folder / "last.pt").read_bytes()))
    lines = []
    train(TrainOptions(resume=str(folder)), log=lines.append)
    assert any("last.pt" in line and "resuming from the checkpoint before" in line for line in lines)
    assert_same_end(folder, uninterrupted)


def test_the_sound_checkpoint_survives_a_second_damage(options, folder, uninterrupted):
    for check, one in ((9, options(**EXACT)), (1, TrainOptions(resume=str(folder)))):
        stop(one, stopped_at_check, check)
        (folder / "last.pt").write_bytes(flip((folder / "last.pt").read_bytes()))
    resume(folder)
    assert_same_end(folder, uninterrupted)


def test_without_a_sound_checkpoint_a_run_is_refused_and_nothing_is_touched(options, folder):
    stop(options(), stopped_at_check, 9)
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(b"junk")
    before = contents_of(folder)
    with pytest.raises(UserError, match=r"not a readable checkpoint"):
        resume(folder)
    assert contents_of(folder) == before


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as Unix does")
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(options, folder, monkeypatch, uninterrupted):
    import resource

    def on_full_disk(*positional, title, **keywords):
        if title == "epoch 2/2":
            while not (folder / "last.pt").exists():  # it is written by another thread
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        return train_epoch(*positional, title=title, **keywords)

    train_epoch = engine.train_epoch
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_epoch", on_full_disk)
        try:
            with pytest.raises(UserError, match=r"cannot write .*\.pt \(File too large\); make room"):
                train(options(**EXACT), log=silent)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load_training(folder / "last.pt")["epoch"] == 1
    assert not list(folder.glob(".*"))
    resume(folder)
    assert_same_end(folder, uninterrupted)


def test_a_stopped_run_that_cannot_save_says_so(options, monkeypatch):
    def save(path, contents, previous=None):
        raise UserError(f"cannot write {path} (the disk is full)")

    monkeypatch.setattr(checkpoint, "save", save)
    stopped_at_check(2, monkeypatch)
    with pytest.raises(UserError, match="the disk is full"):
        train(options(), log=silent)


@pytest.mark.parametrize("stopped_in", ["draw_training_data", "draw_results"])
def test_a_run_stopped_while_it_draws_resumes_with_its_images(options, folder, monkeypatch, uninterrupted, stopped_in):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"fast_cifar.trainer.run_images.{stopped_in}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(options(**EXACT), log=silent)
    assert not (folder / "summary.json").exists()
    assert resume(folder)["test_accuracy"] == read_json(uninterrupted / "summary.json")["test_accuracy"]
    assert (folder / "misclassified.png").exists()
    assert_same_end(folder, uninterrupted)


def test_another_number_of_threads_is_reported_where_it_matters(options, folder, monkeypatch):
    stop(options(deterministic=True), stopped_at_check, 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    lines = []
    train(TrainOptions(resume=str(folder)), log=lines.append)
    assert any("77" in line and "--deterministic" in line for line in lines)


@pytest.mark.parametrize(
    ("data", "error"),
    [({"classes": ("bird", "fish")}, "other classes"), ({"per_class": 40}, "other images")],
    ids=["classes", "images"],
)
def test_resuming_on_other_data_is_refused(options, folder, tmp_path, data, error):
    stop(options(), interrupted_after, 1)
    other = write_class_folder(tmp_path / "others", **data)
    with pytest.raises(UserError, match=error):
        resume(folder, data=str(other))


def test_a_checkpoint_of_another_recipe_than_the_configurations_is_refused(options, folder):
    stop(options(), stopped_at_check, 4)
    edit_config(folder, label_smoothing=0.2)
    with pytest.raises(UserError, match=r"was trained with --label-smoothing 0\.1, and its config\.json says 0\.2"):
        resume(folder)


def test_a_value_of_the_configuration_is_quoted_on_one_line(options, folder):
    stop(options(), stopped_at_check, 4)
    edit_config(folder, eval_only="a\nb")
    for given in ({}, {"eval_only": "c"}):
        with pytest.raises(UserError) as caught:
            resume(folder, **given)
        assert len(str(caught.value).splitlines()) == 1
        assert r"'a\nb'" in str(caught.value)


def test_a_run_folder_is_locked_while_a_process_trains_in_it(options, folder):
    refused = []

    def resume_meanwhile(row):
        with pytest.raises(UserError, match="another process is training in .*a; wait for it"):
            resume(folder)
        refused.append(row["epoch"])

    train(options(), on_epoch=resume_meanwhile, log=silent)
    assert refused == [1, 2]
    resume(folder)


def test_a_resumed_run_keeps_a_best_checkpoint_that_no_later_epoch_beats(options, folder):
    stop(options(), interrupted_after, 1)
    best, last = folder / "best.pt", folder / "last.pt"
    torch.save(torch.load(last, weights_only=True) | {"best": 1.5}, last)
    before = best.read_bytes()
    resume(folder)
    assert best.read_bytes() == before
