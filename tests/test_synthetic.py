"""The synthetic data set: reproducible, balanced, and not to be solved by colour or by a linear classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fast_cifar.synthetic import CLASSES, generate


@pytest.fixture(scope="module")
def train_set() -> tuple[Tensor, Tensor]:
    return generate(2000, seed=0)


@pytest.fixture(scope="module")
def test_set() -> tuple[Tensor, Tensor]:
    return generate(1000, seed=1)


def ridge_accuracy(train_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor], penalty: float) -> float:
    """Test accuracy of a linear classifier on standardised pixels: one-against-all least squares with an L2 penalty."""
    train_pixels, test_pixels = train_set[0].flatten(1).double(), test_set[0].flatten(1).double()
    mean, std = train_pixels.mean(dim=0), train_pixels.std(dim=0)
    train_pixels, test_pixels = (train_pixels - mean) / std, (test_pixels - mean) / std
    targets = one_hot(train_set[1], len(CLASSES)).double() - 1 / len(CLASSES)
    gram = train_pixels @ train_pixels.T + penalty * torch.eye(len(train_pixels), dtype=torch.float64)
    scores = test_pixels @ (train_pixels.T @ torch.linalg.solve(gram, targets))
    return (scores.argmax(dim=1) == test_set[1]).double().mean().item()


def test_there_are_ten_classes_with_different_names():
    assert len(set(CLASSES)) == len(CLASSES) == 10


@pytest.mark.parametrize("n", [0, 1, 25, 1003])
def test_images_and_labels_have_the_promised_shapes_and_types(n):
    images, labels = generate(n)
    assert (images.shape, images.dtype) == ((n, 32, 32, 3), torch.uint8)
    assert (labels.shape, labels.dtype) == ((n,), torch.int64)


def test_images_are_contiguous():
    assert generate(7)[0].is_contiguous()


def test_a_negative_number_of_images_is_refused():
    with pytest.raises(ValueError, match="-1"):
        generate(-1)


def test_equal_arguments_give_equal_images_and_labels():
    first, second = generate(123, seed=5), generate(123, seed=5)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_different_seeds_give_different_images_and_orders():
    first, second = generate(100, seed=5), generate(100, seed=6)
    assert not (first[0] == second[0]).flatten(1).all(dim=1).any()
    assert not torch.equal(first[1], second[1])


def test_no_two_images_of_a_set_are_equal(train_set):
    assert len(torch.unique(train_set[0].flatten(1), dim=0)) == len(train_set[0])


@pytest.mark.parametrize("n", [9, 10, 25, 1000, 1003])
def test_classes_are_balanced_to_within_one(n):
    counts = torch.bincount(generate(n)[1], minlength=len(CLASSES))
    assert counts.max() - counts.min() <= 1


def test_labels_are_shuffled(train_set):
    labels = train_set[1]
    assert not torch.equal(labels, labels.sort().values)
    assert not torch.equal(labels[:-10], labels[10:])


def test_no_global_random_state_is_touched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    generate(20)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_global_random_state_does_not_change_the_images():
    torch.manual_seed(1)
    first = generate(20)[0]
    torch.manual_seed(2)
    assert torch.equal(first, generate(20)[0])


def test_every_channel_uses_the_whole_range_of_values(train_set):
    pixels = train_set[0].flatten(0, 2)
    assert pixels.amin(dim=0).tolist() == [0, 0, 0]
    assert pixels.amax(dim=0).tolist() == [255, 255, 255]


def test_every_class_comes_in_many_colours(train_set):
    images, labels = train_set
    for label in range(len(CLASSES)):
        mean_colours = images[labels == label].double().mean(dim=(1, 2))
        assert mean_colours.std(dim=0).min() > 20


def test_the_mean_colour_does_not_give_the_class_away(train_set, test_set):
    train_colours, test_colours = (images.double().mean(dim=(1, 2)) for images, _ in (train_set, test_set))
    centres = torch.stack([train_colours[train_set[1] == label].mean(dim=0) for label in range(len(CLASSES))])
    nearest = torch.cdist(test_colours, centres).argmin(dim=1)
    assert (nearest == test_set[1]).double().mean() < 0.2


@pytest.mark.parametrize("penalty", [1e2, 1e4])
def test_a_linear_classifier_on_pixels_stays_under_60_percent(train_set, test_set, penalty):
    assert ridge_accuracy(train_set, test_set, penalty) < 0.6


def test_classes_differ_in_shape(train_set):
    """The mean picture of each class, its brightness averaged around the centre, is that class's own."""
    brightness = train_set[0].double().mean(dim=-1)
    brightness = brightness - brightness.mean(dim=(1, 2), keepdim=True)
    means = torch.stack([brightness[train_set[1] == label].mean(dim=0).flatten() for label in range(len(CLASSES))])
    assert torch.pdist(means).min() > 20
