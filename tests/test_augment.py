"""Augmentation against torchvision's own operators, and the draws against the distribution they promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fast_cifar.augment import Draws, apply, draw
from tests.helpers.devices import CUDA, DEVICES, MPS
from tests.helpers.images import MEAN, NAMES, STD, random_images, seeded, torchvision_reference

NORMALISED = {"mean": MEAN, "std": STD}
TOUCHED = {"padding": {"crop_y", "crop_x"}, "cutout": {"cut_y", "cut_x"}, "flip": {"flip"}}


@st.composite
def augmentations(draw_value):
    """Options of `draw` that fit each other."""
    height, width = draw_value(st.integers(1, 40)), draw_value(st.integers(1, 40))
    cutout = draw_value(st.integers(0, min(height, width)))
    return {"size": (height, width), "padding": draw_value(st.integers(0, 12)), "cutout": cutout}


@pytest.mark.parametrize("device", [*DEVICES, MPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pad_mode", ["zeros", "reflect"])
@pytest.mark.parametrize(
    ("height", "width", "padding", "cutout"),
    [(32, 32, 4, 8), (32, 32, 0, 8), (32, 32, 4, 0), (32, 32, 4, 32), (9, 14, 6, 5), (64, 48, 1, 1)],
)
def test_apply_matches_torchvision_image_by_image(height, width, padding, cutout, pad_mode, dtype, device):
    images = random_images(64, height, width)
    draws = draw(64, padding=padding, cutout=cutout, size=(height, width), generator=seeded(1))
    theirs = torch.stack(
        [torchvision_reference(image, draws[i], padding, cutout, pad_mode) for i, image in enumerate(images)]
    )
    there = Draws(*(getattr(draws, name).to(device) for name in NAMES))
    ours = apply(images.to(device), there, **NORMALISED, padding=padding, cutout=cutout, pad_mode=pad_mode, dtype=dtype)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.cpu(), theirs.to(dtype))


@given(augmentations(), st.integers(1, 4), st.sampled_from(["zeros", "reflect"]), st.booleans(), st.integers(0, 2**31))
def test_apply_matches_torchvision_for_any_size_and_options(options, n, pad_mode, flip, seed):
    (height, width), padding, cutout = options.values()
    assume(pad_mode == "zeros" or padding < min(height, width))
    images = random_images(n, height, width, seed)
    draws = draw(n, **options, flip=flip, generator=seeded(seed))
    ours = apply(images, draws, **NORMALISED, padding=padding, cutout=cutout, pad_mode=pad_mode)
    theirs = [torchvision_reference(image, draws[i], padding, cutout, pad_mode) for i, image in enumerate(images)]
    torch.testing.assert_close(ours, torch.stack(theirs))


@pytest.mark.parametrize("device", [CUDA, MPS])
def test_devices_agree_on_every_bit(device):
    images = random_images(256)
    here = apply(images, draw(256, generator=seeded(3)), **NORMALISED)
    there = apply(images.to(device), draw(256, generator=seeded(3), device=device), **NORMALISED)
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("device", [*DEVICES, MPS])
@pytest.mark.parametrize(("pad_mode", "dtype"), [("zeros", torch.bfloat16), ("reflect", torch.float32)])
def test_compiled_and_eager_agree_on_every_bit(pad_mode, dtype, device):
    images, draws = random_images(64).to(device), draw(64, generator=seeded(4), device=device)
    options = NORMALISED | {"pad_mode": pad_mode, "dtype": dtype}
    compiled = torch.compile(apply, dynamic=False)(images, draws, **options)
    assert torch.equal(apply(images, draws, **options), compiled)


def test_the_images_are_unchanged_afterwards():
    images = random_images(8)
    before = images.clone()
    apply(images, draw(8, generator=seeded(0)), **NORMALISED)
    assert torch.equal(images, before)


def test_no_images_make_an_empty_batch():
    assert apply(random_images(0), draw(0), **NORMALISED).shape == (0, 3, 32, 32)


def test_images_need_not_be_contiguous():
    images = random_images(16)[::2, :, ::2]
    options = NORMALISED | {"cutout": 4}
    draws = draw(8, cutout=4, size=(32, 16), generator=seeded(0))
    assert torch.equal(apply(images, draws, **options), apply(images.contiguous(), draws, **options))


@pytest.mark.parametrize(
    ("name", "low", "high"), [("crop_y", 0, 8), ("crop_x", 0, 8), ("cut_y", 0, 24), ("cut_x", 0, 16)]
)
def test_every_place_is_drawn_about_equally_often(name, low, high):
    places = getattr(draw(50_000, size=(32, 24), generator=seeded(5)), name)
    assert places.dtype == torch.int64
    assert (int(places.min()), int(places.max())) == (low, high)
    counts = torch.bincount(places).double()
    expected = 50_000 / len(counts)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # Chi-square with d degrees of freedom has mean d and deviation sqrt(2 d): six deviations are beyond chance.
    freedom = high - low
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5


def test_half_of_the_images_are_flipped():
    flip = draw(50_000, generator=seeded(6)).flip
    assert flip.dtype == torch.bool
    assert float(flip.double().mean()) == pytest.approx(0.5, abs=0.01)


def test_the_choices_do_not_depend_on_each_other():
    draws = draw(50_000, generator=seeded(7))
    columns = torch.stack([getattr(draws, name).double() for name in NAMES])
    assert float((torch.corrcoef(columns) - torch.eye(5)).abs().max()) < 0.03


@given(augmentations(), st.integers(0, 50), st.booleans(), st.integers(0, 2**63 - 1))
def test_draws_stay_in_their_ranges_and_repeat(options, n, flip, seed):
    (height, width), padding, cutout = options.values()
    draws, again = (draw(n, generator=seeded(seed), **options, flip=flip) for _ in range(2))
    highest = [2 * padding, 2 * padding, flip, height - cutout, width - cutout]
    for name, most in zip(NAMES, highest, strict=True):
        values = getattr(draws, name)
        assert values.shape == (n,)
        assert values.dtype == (torch.bool if name == "flip" else torch.int64)
        assert ((values >= 0) & (values <= most)).all()
        assert torch.equal(values, getattr(again, name))


@pytest.mark.parametrize("off", TOUCHED)
def test_switching_one_option_off_leaves_the_other_choices_as_they_were(off):
    all_on, one_off = draw(1000, generator=seeded(8)), draw(1000, generator=seeded(8), **{off: 0})
    for name in NAMES:
        assert torch.equal(getattr(all_on, name), getattr(one_off, name)) is (name not in TOUCHED[off])


def test_the_global_random_state_is_used_only_without_a_generator():
    with torch.random.fork_rng():
        torch.manual_seed(12)
        first = draw(100)
        torch.manual_seed(12)
        draw(100, generator=seeded(11))
        second = draw(100)
    assert torch.equal(first.crop_y, second.crop_y)


@pytest.mark.parametrize(
    "options",
    [{"n": -1}, {"padding": -1}, {"cutout": -1}, {"cutout": 33}, {"size": (32, 7)}, {"size": 0, "cutout": 1}],
    ids=str,
)
def test_draw_refuses_options_out_of_range(options):
    with pytest.raises(ValueError, match="padding|cutout|-1 images"):
        draw(**{"n": 4} | options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images.float(), "uint8"),
        (lambda images: images.permute(0, 3, 1, 2), "uint8"),
        (lambda images: images[0], "uint8"),
        (lambda images: images[:3], "4 draws for 3 images"),
    ],
)
def test_apply_refuses_images_it_cannot_use(change: Callable[[Tensor], Tensor], message: str):
    with pytest.raises(ValueError, match=message):
        apply(change(random_images(4)), draw(4), **NORMALISED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_mode": "circular"}, "pad_mode 'circular'"),
        ({"pad_mode": "reflect", "padding": 32}, "mirrored"),
        ({"padding": -1}, "padding"),
        ({"cutout": 33}, "cutout"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
        ({"std": (0.2, 0.2)}, "std"),
        ({"mean": (0.5,)}, "mean"),
        ({"dtype": torch.uint8}, "floating"),
    ],
)
def test_apply_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        apply(random_images(4), draw(4), **NORMALISED | options)


def test_without_padding_a_crop_that_was_drawn_has_no_effect():
    images = random_images(4)
    crops, none = (draw(4, padding=padding, flip=False, generator=seeded(1)) for padding in (4, 0))
    off = NORMALISED | {"padding": 0, "cutout": 0}
    assert torch.equal(apply(images, crops, **off), apply(images, none, **off))
