"""The synthetic data set: reproducible, balanced, and not solvable by colour or by a linear classifier."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fast_cifar.data.synthetic import CLASSES, _draw_scene, _mask, generate


@pytest.fixture(scope="module")
def train_set() -> tuple[Tensor, Tensor]:
    return generate(2000, seed=0)


@pytest.fixture(scope="module")
def test_set() -> tuple[Tensor, Tensor]:
    return generate(1000, seed=1)


def ridge_accuracy(train_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor]) -> float:
    """Test accuracy of a linear classifier on standardised pixels: one-against-all ridge regression."""
    train_pixels, test_pixels = train_set[0].flatten(1).float(), test_set[0].flatten(1).float()
    mean, std = train_pixels.mean(dim=0), train_pixels.std(dim=0)
    train_pixels, test_pixels = (train_pixels - mean) / std, (test_pixels - mean) / std
    targets = one_hot(train_set[1], len(CLASSES)) - 1 / len(CLASSES)
    gram = train_pixels @ train_pixels.T + 1e4 * torch.eye(len(train_pixels))
    scores = test_pixels @ (train_pixels.T @ torch.linalg.solve(gram, targets))
    return (scores.argmax(dim=1) == test_set[1]).float().mean().item()


def shape_masks(angle: float) -> Tensor:
    """Masks [10, 32, 32] of every class, centred, with a radius of 12 pixels, turned by `angle`."""
    scene = _draw_scene(len(CLASSES), torch.Generator().manual_seed(0))
    zero = torch.zeros_like(scene.radius)
    scene = replace(scene, radius=zero + 12, centre_x=zero, centre_y=zero, angle=zero + angle)
    return _mask(scene, torch.arange(len(CLASSES)))


@pytest.mark.parametrize("n", [0, 1, 25, 1003])
def test_images_and_labels_have_the_promised_shapes_and_types(n):
    images, labels = generate(n)
    assert (images.shape, images.dtype) == ((n, 32, 32, 3), torch.uint8)
    assert images.is_contiguous()
    assert (labels.shape, labels.dtype) == ((n,), torch.int64)


def test_a_negative_number_of_images_is_refused():
    with pytest.raises(ValueError, match="-1"):
        generate(-1)


def test_equal_arguments_give_equal_images_and_labels_and_the_global_random_state_has_no_part_in_it():
    first = generate(123, seed=5)
    torch.rand(1)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    second = generate(123, seed=5)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


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


def test_every_channel_uses_the_whole_range_of_values(train_set):
    pixels = train_set[0].flatten(0, 2)
    assert pixels.amin(dim=0).tolist() == [0, 0, 0]
    assert pixels.amax(dim=0).tolist() == [255, 255, 255]


def test_every_class_comes_in_many_colours(train_set):
    images, labels = train_set
    for label in range(len(CLASSES)):
        mean_colours = images[labels == label].double().mean(dim=(1, 2))
        assert mean_colours.std(dim=0).min() > 20


def test_the_mean_colour_does_not_reveal_the_class(train_set, test_set):
    train_colours, test_colours = (images.double().mean(dim=(1, 2)) for images, _ in (train_set, test_set))
    centres = torch.stack([train_colours[train_set[1] == label].mean(dim=0) for label in range(len(CLASSES))])
    nearest = torch.cdist(test_colours, centres).argmin(dim=1)
    assert (nearest == test_set[1]).double().mean() < 0.2


def test_a_linear_classifier_on_pixels_stays_under_60_percent(train_set, test_set):
    assert ridge_accuracy(train_set, test_set) < 0.6


def test_no_shape_can_be_rotated_into_another():
    masks = torch.stack([shape_masks(angle) for angle in torch.linspace(0, 2 * torch.pi, 25)]) > 0.5
    for label in range(len(CLASSES)):
        others = masks[:, torch.arange(len(CLASSES)) != label]
        overlap = (masks[0, label] & others).sum(dim=(-2, -1)) / (masks[0, label] | others).sum(dim=(-2, -1))
        assert overlap.max() < 0.85


def test_every_shape_is_its_own_mirror_image():
    masks = shape_masks(angle=0)
    flipped, transposed = masks.flip(1), masks.transpose(1, 2)
    difference = torch.minimum((masks - flipped).abs().amax(dim=(1, 2)), (masks - transposed).abs().amax(dim=(1, 2)))
    assert difference.max() < 1e-4


def test_every_shape_lies_inside_its_image():
    scene = _draw_scene(1000, torch.Generator().manual_seed(0))
    mask = _mask(scene, torch.arange(1000) % len(CLASSES))
    border = torch.cat([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], dim=1)
    assert border.mean() < 0.01
