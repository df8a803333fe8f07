from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from fast_cifar.data.load import load_dataset
from fast_cifar.system.errors import UserError
from tests.helpers import fake_cifar

FILENAMES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}


@pytest.fixture
def cifar10(monkeypatch, tmp_path) -> Path:
    """A small official CIFAR-10 archive, in its place in the data folder `tmp_path`."""
    contents = fake_cifar.build("cifar10")
    fake_cifar.publish(monkeypatch, "cifar10", contents)
    archive = tmp_path / FILENAMES["cifar10"]
    archive.write_bytes(contents)
    return archive


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_archive_is_read_as_torchvision_reads_it(monkeypatch, tmp_path, name):
    contents = fake_cifar.build(name)
    fake_cifar.publish(monkeypatch, name, contents)
    (tmp_path / FILENAMES[name]).write_bytes(contents)
    ours = load_dataset(name, tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    with tarfile.open(fileobj=io.BytesIO(contents)) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    for train, split in ((True, ours.train), (False, ours.test)):
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
        assert split.images.is_contiguous()
        theirs = fake_cifar.SOURCES[name](tmp_path / "unpacked", train=train)
        np.testing.assert_array_equal(split.images, theirs.data)
        assert split.labels.tolist() == theirs.targets
        assert ours.classes == theirs.classes


def test_pickles_of_an_old_numpy_are_read_without_a_warning(cifar10, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset("cifar10", tmp_path)


def test_an_archive_with_the_wrong_md5_is_never_unpickled(cifar10, tmp_path):
    harmful = fake_cifar.python2_pickle({"data": fake_cifar.Harm(tmp_path / "harm")})
    cifar10.write_bytes(fake_cifar.pack({"cifar-10-batches-py/data_batch_1": harmful}))
    with pytest.raises(UserError):
        load_dataset("cifar10", tmp_path)
    assert not (tmp_path / "harm").exists()


def test_the_cache_needs_neither_archive_nor_network(cifar10, tmp_path):
    first = load_dataset("cifar10", tmp_path)
    cifar10.unlink()
    second = load_dataset("cifar10", tmp_path)
    assert second.name == first.name
    assert second.classes == first.classes
    torch.testing.assert_close(second.train.images, first.train.images)
    torch.testing.assert_close(second.test.labels, first.test.labels)
    assert load_dataset("cifar10", tmp_path, test=False).test is None


def test_without_test_images_the_test_batch_is_not_decoded(monkeypatch, tmp_path):
    archive = fake_cifar.build("cifar10", junk="test_batch")
    fake_cifar.publish(monkeypatch, "cifar10", archive)
    (tmp_path / FILENAMES["cifar10"]).write_bytes(archive)
    dataset = load_dataset("cifar10", tmp_path, test=False)
    assert len(dataset.train) == 50
    assert dataset.test is None


def test_a_damaged_cache_is_written_anew(cifar10, tmp_path):
    sound = load_dataset("cifar10", tmp_path)
    [stored] = (tmp_path / "cache").iterdir()
    stored.write_bytes(stored.read_bytes()[:-100])
    assert torch.equal(load_dataset("cifar10", tmp_path).train.images, sound.train.images)
    cifar10.unlink()
    assert len(load_dataset("cifar10", tmp_path).train) == 50


def test_a_cache_of_another_archive_is_not_used(monkeypatch, cifar10, tmp_path):
    load_dataset("cifar10", tmp_path)
    other = fake_cifar.build("cifar10", images_per_member=20)
    fake_cifar.publish(monkeypatch, "cifar10", other)
    cifar10.write_bytes(other)
    assert len(load_dataset("cifar10", tmp_path).train) == 100


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_local_archive_is_recognised_by_its_bytes_under_any_name(monkeypatch, tmp_path, name):
    for each in ("cifar10", "cifar100"):
        fake_cifar.publish(monkeypatch, each, fake_cifar.build(each))
    archive = tmp_path / "from a friend"
    archive.write_bytes(fake_cifar.build(name))
    dataset = load_dataset(archive, tmp_path / "data")
    assert dataset.name == name
    assert dataset.title == {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]


def test_a_local_archive_is_checked_although_a_cache_exists(cifar10, tmp_path):
    load_dataset("cifar10", tmp_path)
    cifar10.write_bytes(cifar10.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        load_dataset(cifar10, tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b[:-1000], r"truncated \([\d,]+ of [\d,]+ bytes\)"),
        (lambda b: b[:-1] + b"!", "damaged"),
        (lambda b: b"\n<!DOCTYPE html>\n<html>Sign in to the campus network</html>", "HTML page"),
        (lambda b: b"", "is empty"),
        (lambda b: b"just some text", "not a .tar.gz archive"),
    ],
)
def test_a_damaged_archive_is_refused_and_the_damage_named(cifar10, tmp_path, damage, said):
    cifar10.write_bytes(damage(cifar10.read_bytes()))
    with pytest.raises(UserError, match=said) as given_as_a_path:
        load_dataset(cifar10, tmp_path / "data")
    with pytest.raises(UserError, match=said) as found_in_data_dir:
        load_dataset("cifar10", tmp_path)
    assert "give the official archive" in str(given_as_a_path.value)
    assert f"{cifar10} " in str(found_in_data_dir.value)
    assert "delete it" in str(found_in_data_dir.value)
    assert list(tmp_path.iterdir()) == [cifar10]


def test_a_data_dir_with_an_impossible_name_is_refused(cifar10, tmp_path):
    for data in ("cifar10", cifar10):
        with pytest.raises(UserError, match="--data-dir"):
            load_dataset(data, tmp_path / ("x" * 300))


def test_a_data_dir_that_is_a_file_is_refused(cifar10, tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match="data is not a folder.*--data-dir"):
        load_dataset(cifar10, tmp_path / "data")
