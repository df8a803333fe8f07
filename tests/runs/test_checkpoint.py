"""Checkpoints: written whole or not at all, and checked when they are read."""

import threading

import pytest
import torch

from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.runs import checkpoint
from fast_cifar.system.errors import UserError
from tests.helpers.devices import needs_cuda


def contents(model):
    return {
        "classes": [str(i) for i in range(10)],
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "size": 32,
        "options": {"dropout": 0.0},
        "epoch": 1,
        "model": model.state_dict(),
    }


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CustomResNet()


@pytest.fixture
def saved(tmp_path, model):
    checkpoint.save(tmp_path / "last.pt", contents(model))
    return tmp_path / "last.pt"


def test_what_was_saved_is_loaded(saved, model):
    loaded = checkpoint.load(saved)
    weights = loaded.pop("model")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert loaded == {
        "format": checkpoint.FORMAT,
        "network": "CustomResNet",
        "classes": [str(i) for i in range(10)],
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "size": 32,
        "options": {"dropout": 0.0, "width": 64},
        "epoch": 1,
    }


def test_an_empty_checkpoint_is_named(tmp_path):
    (tmp_path / "x.pt").touch()
    with pytest.raises(UserError, match=r"x\.pt is empty"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize("other", [[1, 2], {"model": {}}, {"format": "something else"}])
def test_a_file_of_another_program_is_refused(tmp_path, other):
    torch.save(other, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a checkpoint of fast_cifar"):
        checkpoint.load(tmp_path / "x.pt")


def test_another_network_by_name_is_refused(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "network": "VGG"}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="'VGG'"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize("key", ["classes", "mean", "options", "model"])
def test_a_checkpoint_that_lacks_something_is_refused(tmp_path, model, key):
    described = contents(model)
    del described[key]
    checkpoint.save(tmp_path / "x.pt", described)
    with pytest.raises(UserError, match=f"incomplete: it has no {key}"):
        checkpoint.load(tmp_path / "x.pt")


NONSENSE = [
    ("classes", []),
    ("classes", [1]),
    ("classes", "cat"),
    ("mean", [0.5] * 2),
    ("mean", [0.5, 0.5, "x"]),
    ("mean", [0.5, 0.5, float("nan")]),
    ("mean", [0.5, 0.5, 10**400]),
    ("mean", [0.5, 0.5, 1.5]),
    ("mean", [0.5, 0.5, -0.5]),
    ("std", [0.5, 0.5, 0]),
    ("std", [0.5, 0.5, 2]),
    ("model", {"a": 1}),
    ("model", [1]),
    ("options", {}),
    ("options", {"dropout": "x"}),
    ("options", {"dropout": 1.0}),
    ("options", {"dropout": 0.0, "width": 0}),
    ("options", {"dropout": 0.0, "width": 64.0}),
    ("options", {"dropout": 0.0, "width": True}),
    ("options", {"dropout": 0.0, "width": 10**9}),
    ("epoch", None),
    ("size", 1.5),
]


@pytest.mark.parametrize(("key", "value"), NONSENSE, ids=range(len(NONSENSE)))
def test_a_checkpoint_with_nonsense_in_it_is_refused(tmp_path, model, key, value):
    checkpoint.save(tmp_path / "x.pt", contents(model) | {key: value})
    with pytest.raises(UserError, match=r"x\.pt cannot be used: its "):
        checkpoint.load(tmp_path / "x.pt")


def test_training_cannot_continue_from_weights_alone(saved):
    with pytest.raises(UserError, match="incomplete: it has no best, metrics, optimizer"):
        checkpoint.load_training(saved)


@pytest.mark.parametrize("name", ["none.pt", "x" * 300, "a\0b"])
def test_a_file_that_is_missing_or_cannot_exist_is_named(name):
    with pytest.raises(UserError, match=f"{name}: no such checkpoint"):
        checkpoint.load(name)


def test_weights_of_another_shape_are_refused(model):
    with pytest.raises(UserError, match=r"x\.pt holds the weights of another network"):
        checkpoint.load_weights(CustomResNet(num_classes=7), model.state_dict(), "x.pt")


def slow_save(monkeypatch):
    """Blocks every write until `go` is set; returns (go, the list of files in the order of writing)."""
    go, written = threading.Event(), []

    def save(path, contents, previous=None):
        go.wait(300)
        written.append((path.name, contents["epoch"]))

    monkeypatch.setattr(checkpoint, "save", save)
    return go, written


CPU = torch.device("cpu")


def test_training_may_change_the_weights_after_saving(tmp_path, monkeypatch):
    real, go = checkpoint.save, threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: go.wait(300) and real(*arguments))
    weights = torch.zeros(3)
    with checkpoint.Writer(CPU) as writer:
        writer.save({tmp_path / "a.pt": {"model": {"w": weights}, "list": [weights]}})
        weights.fill_(1)
        go.set()
    stored = torch.load(tmp_path / "a.pt", weights_only=True)
    assert not stored["model"]["w"].any()
    assert not stored["list"][0].any()


def test_a_slow_disk_delays_nothing_and_newer_contents_replace_waiting_ones(tmp_path, monkeypatch):
    go, written = slow_save(monkeypatch)
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    with checkpoint.Writer(CPU) as writer:
        writer.save({best: {"epoch": 1}, last: {"epoch": 1}})
        while writer._waiting:  # until the thread has started to write it
            pass
        writer.save({last: {"epoch": 2}})
        writer.save({best: {"epoch": 3}, last: {"epoch": 3}})
        writer.save({last: {"epoch": 4}})
        assert not written
        go.set()
    assert written == [("best.pt", 1), ("last.pt", 1), ("best.pt", 3), ("last.pt", 4)]


def save_one(path, then):
    with checkpoint.Writer(CPU) as writer:
        writer.save({path: {"epoch": 1}})
        then(writer)


def test_a_failed_write_is_raised_by_the_next_save(tmp_path):
    def save_another(writer):
        while not all(write.done() for write in writer._writes):
            pass
        writer.save({tmp_path / "last.pt": {"epoch": 2}})
        raise AssertionError("the second save should have raised")

    with pytest.raises(UserError, match="cannot write"):
        save_one(tmp_path / "gone" / "last.pt", save_another)


def test_an_interruption_is_not_hidden_and_waiting_files_are_written(tmp_path):
    def interrupt(writer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_one(tmp_path / "a.pt", interrupt)
    assert torch.load(tmp_path / "a.pt", weights_only=True)["epoch"] == 1


@needs_cuda
def test_a_copy_from_cuda_has_the_values_of_the_moment_of_saving(tmp_path):
    weights = torch.zeros(2**24, device="cuda")
    with checkpoint.Writer(torch.device("cuda")) as writer:
        writer.save({tmp_path / "a.pt": {"w": weights}})
        weights.fill_(1)
    assert not torch.load(tmp_path / "a.pt", weights_only=True)["w"].any()
