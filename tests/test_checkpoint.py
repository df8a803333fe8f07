"""Checkpoints: whole or not at all, and never trusted."""

import pickle

import pytest
import torch

from fast_cifar import checkpoint
from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.errors import UserError


def contents(model, classes=10):
    return {
        "classes": [str(i) for i in range(classes)],
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
    loaded = checkpoint.network_of(checkpoint.load(saved), saved)
    for mine, theirs in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_plain_torch_reads_it_with_weights_only(saved):
    assert torch.load(saved, weights_only=True)["epoch"] == 1


def test_the_same_contents_give_the_same_bytes(saved, tmp_path, model):
    checkpoint.save(tmp_path / "other.pt", contents(model))
    assert (tmp_path / "other.pt").read_bytes() == saved.read_bytes()


def write(path, data):
    path.write_bytes(data)
    return path


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt: no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")


def test_an_empty_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.pt is empty"):
        checkpoint.load(write(tmp_path / "x.pt", b""))


@pytest.mark.parametrize("junk", [b"junk", b"\x80\x02junk", b"PK\x03\x04junk", b"<html>no</html>", bytes(1000)])
def test_junk_is_named(tmp_path, junk):
    with pytest.raises(UserError, match=r"x\.pt is no readable checkpoint"):
        checkpoint.load(write(tmp_path / "x.pt", junk))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_named(saved, tmp_path, share):
    data = saved.read_bytes()
    with pytest.raises(UserError, match=r"x\.pt is no readable checkpoint"):
        checkpoint.load(write(tmp_path / "x.pt", data[: int(len(data) * share)]))


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    with pytest.raises(UserError, match="no readable checkpoint"):
        checkpoint.load(write(tmp_path / "x.pt", pickle.dumps(Harm())))
    torch.save({"format": checkpoint.FORMAT, "harm": Harm()}, tmp_path / "y.pt")
    with pytest.raises(UserError, match="no readable checkpoint"):
        checkpoint.load(tmp_path / "y.pt")
    assert not (tmp_path / "harm").exists()


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


def test_training_cannot_go_on_from_weights_alone(saved):
    with pytest.raises(UserError, match="incomplete: it has no best, optimizer"):
        checkpoint.load_training(saved)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(name)


def test_weights_of_another_shape_are_refused(tmp_path, model):
    checkpoint.save(tmp_path / "x.pt", contents(model, classes=7))
    with pytest.raises(UserError, match="another network"):
        checkpoint.network_of(checkpoint.load(tmp_path / "x.pt"), tmp_path / "x.pt")
