from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fast_cifar.data import load
from fast_cifar.data.load import Split, balanced_subset, hold_out, load_dataset
from fast_cifar.system.errors import UserError
from tests.helpers import fake_cifar

LABELS = st.lists(st.integers(0, 3), min_size=12, max_size=60).filter(lambda labels: len(set(labels)) == 4)


def numbered(labels: list[int]) -> Split:
    """A split in which every image holds its own index, so that a subset's indices can be read from its images."""
    index = torch.arange(len(labels), dtype=torch.uint8)
    return Split(index.view(-1, 1, 1, 1).expand(-1, 2, 2, 3).contiguous(), torch.tensor(labels))


def indices(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_synthetic_needs_no_files(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "SYNTHETIC_TRAIN", 40)
    monkeypatch.setattr(load, "SYNTHETIC_TEST", 20)
    dataset = load_dataset("synthetic", tmp_path / "data")
    assert dataset.name == dataset.title == "synthetic"
    assert dataset.train.images.shape == (40, 32, 32, 3)
    assert dataset.test.images.shape == (20, 32, 32, 3)
    assert len(dataset.classes) == 10
    assert not (dataset.train.images[:20] == dataset.test.images).all()
    without = load_dataset("synthetic", tmp_path / "data", test=False)
    assert torch.equal(without.train.images, dataset.train.images)
    assert without.test is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar11", "CIFAR10", "", "no/such/folder", "\0", "x" * 5000])
def test_an_unknown_name_is_refused_with_the_choices(tmp_path, name):
    with pytest.raises(UserError, match="cifar10, cifar100, synthetic, the path"):
        load_dataset(name, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@given(LABELS, st.integers(4, 60))
def test_a_subset_is_as_balanced_as_its_classes_allow(labels, n):
    split = numbered(labels)
    chosen, available = balanced_subset(split, n).labels.bincount(minlength=4), split.labels.bincount(minlength=4)
    assert chosen.sum() == min(n, len(labels))
    largest = chosen.max()
    assert ((chosen >= largest - 1) | (chosen == available)).all()


@given(LABELS, st.integers(4, 60))
def test_a_subset_is_a_fixed_choice_with_its_labels_in_the_splits_own_order(labels, n):
    torch.manual_seed(n)
    subset = balanced_subset(numbered(labels), n)
    chosen = indices(subset)
    torch.manual_seed(n + 1)
    before = torch.get_rng_state()
    assert chosen == indices(balanced_subset(numbered(labels), n))
    assert torch.equal(torch.get_rng_state(), before)
    assert chosen == sorted(set(chosen))
    assert subset.labels.tolist() == [labels[i] for i in chosen]


def test_a_smaller_subset_lies_inside_a_larger_one():
    split = numbered([0] * 30 + [1] * 30)
    assert set(indices(balanced_subset(split, 10))) < set(indices(balanced_subset(split, 25)))


def test_a_subset_is_not_just_the_first_images_of_each_class():
    assert indices(balanced_subset(numbered([0] * 30 + [1] * 30), 10)) != [*range(5), *range(30, 35)]


@pytest.mark.parametrize("n", [20, 21, 10**9])
def test_as_many_images_as_there_are_or_more_means_all(n):
    split = numbered([0, 1] * 10)
    assert balanced_subset(split, n) is split


@pytest.mark.parametrize("n", [-1, 0, 1])
def test_a_subset_too_small_for_every_class_is_refused(n):
    with pytest.raises(UserError, match=f"{n} images cannot hold all 2 classes; --limit-train and --limit-test take 2"):
        balanced_subset(numbered([0, 1] * 10), n)


def test_holding_out_divides_the_images_by_class():
    train, val = hold_out(numbered([0, 1, 2] * 10), 6)
    assert sorted(indices(train) + indices(val)) == list(range(30))
    assert val.labels.bincount().tolist() == [2, 2, 2]
    assert train.labels.bincount().tolist() == [8, 8, 8]


@given(LABELS, st.integers(-1, 61))
def test_holding_out_leaves_every_class_on_both_sides_or_is_refused(labels, n):
    try:
        train, val = hold_out(numbered(labels), n)
    except UserError:
        return
    assert len(val) == n
    assert set(train.labels.tolist()) == set(val.labels.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("n", [4, 18])
def test_the_error_of_holding_out_names_the_range_that_works(n):
    split = numbered([0, 1, 2, 3] * 5 + [0, 1])
    hold_out(split, n)
    with pytest.raises(UserError, match="give 4 to 18 for these 22 images"):
        hold_out(split, 3 if n == 4 else 19)


def test_a_class_of_one_image_cannot_be_divided():
    with pytest.raises(UserError, match="two training images of every class"):
        hold_out(numbered([0, 0, 0, 1]), 2)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_the_classes_of_an_archive_under_any_name_are_counted(monkeypatch, tmp_path, name, classes):
    fake_cifar.publish(monkeypatch, name, fake_cifar.build(name))
    (tmp_path / "archive").write_bytes(fake_cifar.build(name))
    assert load.count_classes(tmp_path / "archive") == classes


def test_the_classes_of_a_folder_are_counted_and_a_folder_without_any_is_refused(class_folder, tmp_path):
    assert load.count_classes(class_folder) == 2
    with pytest.raises(UserError, match="has no train/ folder"):
        load.count_classes(tmp_path)
