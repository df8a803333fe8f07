"""The image grids hold the pixels and the captions, and need nothing but Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fast_cifar.plots import grids
from fast_cifar.system.errors import UserError
from tests.helpers.images import random_images

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
AWKWARD = [
    "Forêt de Fontainebleau, très longue",
    "кошка",
    "猫 🐱",
    "a\nb\x07",
    "undecodable \udce9",
    "$x_1$",
    "",
    "→ …",
]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.verify()
    return np.asarray(Image.open(path).convert("RGB"))


def places(grid: np.ndarray, image: torch.Tensor, factor: int) -> list[tuple[int, int]]:
    """Every (row, column) where the image stands, each of its pixels a square of factor x factor."""
    enlarged = image.numpy().repeat(factor, 0).repeat(factor, 1)
    height, width = enlarged.shape[:2]
    corners = np.argwhere((grid == enlarged[0, 0]).all(-1)).tolist()
    return [(y, x) for y, x in corners if np.array_equal(grid[y : y + height, x : x + width], enlarged)]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn while the test runs."""
    texts: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def recording(self, position, text, *args, **kwargs):
        texts.append(text)
        return draw(self, position, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recording)
    return texts


def test_samples_hold_every_image_exactly_once_row_by_row_and_its_name(tmp_path, written):
    images = random_images(11)
    grids.samples(tmp_path / "samples.png", images, NAMES + NAMES[:1])
    grid = pixels(tmp_path / "samples.png")
    found = [places(grid, image, factor=4) for image in images]
    assert [len(corners) for corners in found] == [1] * 11
    assert found == sorted(found)
    assert written[1:] == NAMES + NAMES[:1]


@pytest.mark.parametrize("shape", [(32, 32), (28, 20), (96, 96), (300, 200), (1, 1)])
def test_images_of_any_size_fit_their_tile(tmp_path, shape):
    grids.samples(tmp_path / "samples.png", random_images(8, *shape), NAMES[:8])
    grid = pixels(tmp_path / "samples.png")
    assert grid.shape[1] == 8 * (grids.TILE + grids.GAP) - grids.GAP + 2 * grids.MARGIN
    assert grid.std() > 0


def test_an_image_larger_than_its_tile_is_shrunk_and_keeps_its_colour(tmp_path):
    grids.samples(tmp_path / "samples.png", torch.full((1, 300, 300, 3), 90, dtype=torch.uint8), ["grey"])
    grid = pixels(tmp_path / "samples.png")
    assert (grid == 90).all(-1).sum() >= grids.TILE**2


def test_a_view_that_is_not_contiguous_is_drawn_as_it_looks(tmp_path):
    image = random_images(1)[0].transpose(0, 1)
    grids.samples(tmp_path / "samples.png", image[None], ["cat"])
    assert len(places(pixels(tmp_path / "samples.png"), image, factor=4)) == 1


def test_augmented_holds_each_original_left_of_its_views_under_titles(tmp_path, written):
    originals, views = random_images(3, seed=1), random_images(12, seed=2).view(3, 4, 32, 32, 3)
    grids.augmented(tmp_path / "augmented.png", originals, views, NAMES[:3])
    grid = pixels(tmp_path / "augmented.png")
    for original, its_views in zip(originals, views, strict=True):
        row = [places(grid, image, factor=4) for image in (original, *its_views)]
        assert [len(corners) for corners in row] == [1] * 5
        assert len({corners[0][0] for corners in row}) == 1
        assert row == sorted(row)
    assert written[0].startswith("Training images")
    assert written[1:] == ["original", *(f"epoch {k}" for k in (1, 2, 3, 4)), *NAMES[:3]]


@pytest.mark.parametrize(("count", "views"), [(1, 1), (1, 0), (0, 0), (0, 3)])
def test_augmented_works_with_few_images_and_views(tmp_path, count, views):
    its_views = random_images(count * views).view(count, views, 32, 32, 3)
    grids.augmented(tmp_path / "a.png", random_images(count), its_views, NAMES[:count])
    assert pixels(tmp_path / "a.png").std() > 0


def test_misclassified_says_truth_prediction_and_confidence(tmp_path, written):
    truths, predictions = ["cat", "ship"], ["dog", "automobile"]  # the longest name of CIFAR-10 is not shortened
    grids.misclassified(tmp_path / "m.png", random_images(2), truths, predictions, [0.934, 1.0])
    arrow = grids._known("→", grids._font(grids.FONT_SIZE))
    assert written[1:] == ["cat", f"{arrow} dog 93 %", "ship", f"{arrow} automobile 100 %"]


def test_misclassified_keeps_the_confidence_of_a_long_name(tmp_path, written):
    long = "a most peculiar and unlikely class"
    grids.misclassified(tmp_path / "m.png", random_images(1), [long], [long], [0.5])
    assert written[1].endswith("…")
    assert written[2].endswith("… 50 %")


def test_without_mistakes_the_grid_says_none(tmp_path, written):
    grids.misclassified(tmp_path / "m.png", random_images(0), [], [], [])
    assert "none" in written
    assert pixels(tmp_path / "m.png").std() > 0


def test_headings_say_whose_images_they_are(tmp_path, written):
    images, name = random_images(1), "pets\nand more"
    grids.samples(tmp_path / "s.png", images, ["cat"], f"Training images of {name}")
    grids.augmented(tmp_path / "a.png", images, images[:, None], ["cat"], f"Training images of {name}")
    grids.misclassified(tmp_path / "m.png", images, ["cat"], ["dog"], [0.5], f"test images of {name}")
    headings = [text for text in written if "images" in text]
    assert [heading.partition(" pets?and more")[0] for heading in headings] == [
        "Training images of",
        "Training images of",
        "Misclassified test images of",
    ]


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("fonts", [grids.FONT_FILES, ()], ids=["any font", "Pillow's own"])
def test_any_class_name_can_be_drawn(tmp_path, monkeypatch, name, fonts):
    monkeypatch.setattr(grids, "FONT_FILES", fonts)
    image = random_images(1)
    grids.samples(tmp_path / "s.png", image, [name])
    grids.augmented(tmp_path / "a.png", image, image[:, None], [name])
    grids.misclassified(tmp_path / "m.png", image, [name], [name], [0.1])
    assert all(pixels(tmp_path / file).std() > 0 for file in ("s.png", "a.png", "m.png"))


def test_pillows_own_font_gets_letters_that_it_has(monkeypatch):
    monkeypatch.setattr(grids, "FONT_FILES", ())
    assert grids._known("Forêt → été…", grids._font(13)) == "Foret > ete…"


@pytest.mark.parametrize("name", [*AWKWARD, *NAMES, "w" * 300])
def test_a_shortened_name_fits(name):
    font = grids._font(grids.FONT_SIZE)
    assert font.getlength(grids._shorten(name, font, 60)) <= 60


def test_a_failed_write_keeps_the_old_grid_and_leaves_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "s.png"
    grids.samples(path, random_images(1), ["cat"])
    before = path.read_bytes()

    def half_a_grid(self, file, **_):
        file.write(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half_a_grid)
    with pytest.raises(UserError, match="disk full"):
        grids.samples(path, random_images(1, seed=1), ["dog"])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["s.png"]


def test_a_name_too_few_is_refused_and_nothing_is_written(tmp_path):
    images = random_images(2)
    with pytest.raises(ValueError, match="shorter"):
        grids.samples(tmp_path / "s.png", images, ["cat"])
    with pytest.raises(ValueError, match="shorter"):
        grids.misclassified(tmp_path / "s.png", images, ["cat", "dog"], ["dog", "cat"], [0.5])
    assert not list(tmp_path.iterdir())
