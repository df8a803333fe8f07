"""Decoding one image file of any kind; Pillow's own conversions are the oracle."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from fast_cifar.data.image_folder import read_image
from fast_cifar.system.errors import UserError
from tests.helpers.images import random_image


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_grey_palette_and_transparent_images_become_rgb(tmp_path, mode):
    Image.fromarray(random_image()).convert(mode).save(tmp_path / "a.png")
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_a_palette_with_transparency_gives_no_warning(tmp_path):
    Image.fromarray(random_image()).quantize(16).save(tmp_path / "a.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (32, 32, 3)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(tmp_path / "a.jpg")
    red, green, blue = read_image(tmp_path / "a.jpg")[16, 16].tolist()
    assert red < 64 < 192 < min(green, blue)


def test_16_bit_grey_keeps_its_upper_bits(tmp_path):
    grey = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 1], grey >> 8)


def test_resize_keeps_the_centre_square(tmp_path):
    image = np.zeros((64, 192, 3), dtype=np.uint8)
    image[:, :64] = 255
    image[:, 64:128] = (10, 200, 30)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", resize=True)[:, 2:-2] == (10, 200, 30)).all()


def test_resize_averages_fine_detail(tmp_path):
    board = np.indices((256, 256)).sum(0) % 2 * np.uint8(255)
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    assert np.abs(read_image(tmp_path / "a.png", resize=True).astype(int) - 128)[4:-4, 4:-4].max() <= 2


def test_resize_leaves_a_32x32_image_alone(tmp_path):
    Image.fromarray(random_image()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", resize=True), random_image())


def test_resize_applies_the_exif_orientation(tmp_path):
    halves = Image.fromarray(np.repeat(np.uint8([[0], [255]]), 320, axis=0).repeat(640, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    halves.save(tmp_path / "a.jpg", exif=exif)
    upright = read_image(tmp_path / "a.jpg", resize=True)
    assert upright[0].min() > 200
    assert upright[-1].max() < 50


def test_no_truncation_of_a_jpeg_goes_unnoticed(tmp_path):
    Image.fromarray(random_image()).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for length in range(0, len(whole) - 2, 97):
        (tmp_path / "a.jpg").write_bytes(whole[:length])
        with pytest.raises(UserError, match="a.jpg is .*; replace it or delete it"):
            read_image(tmp_path / "a.jpg")
