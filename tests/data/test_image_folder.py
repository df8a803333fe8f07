from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fast_cifar.data import image_folder
from fast_cifar.data.load import load_dataset
from fast_cifar.system.errors import UserError
from tests.helpers.images import random_image


@pytest.fixture
def pets(tmp_path) -> Path:
    """Three training images and one test image of each of two classes; cats are PNG, dogs JPEG."""
    root = tmp_path / "pets"
    for split, count in (("train", 3), ("test", 1)):
        for name, suffix in (("dog", "jpg"), ("cat", "png")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random_image(i)).save(root / split / name / f"{i:04}.{suffix}")
    return root


@pytest.fixture
def data_dir(tmp_path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The paths of the images that have been decoded."""
    paths = []
    original = image_folder.read_image

    def spy(path: str, *, resize: bool) -> np.ndarray:
        paths.append(path)
        return original(path, resize=resize)

    monkeypatch.setattr(image_folder, "read_image", spy)
    return paths


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_classes_and_images_are_sorted_and_decoded_as_pillow_does(pets, data_dir):
    dataset = load_dataset(pets, data_dir)
    assert dataset.name == "pets"
    assert dataset.classes == ["cat", "dog"]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]
    images = dataset.train.images
    assert images.dtype == torch.uint8
    for i in range(3):
        np.testing.assert_array_equal(images[i], random_image(i))
        np.testing.assert_array_equal(images[3 + i], np.asarray(Image.open(pets / f"train/dog/{i:04}.jpg")))


def test_other_files_and_hidden_files_are_ignored(pets, data_dir):
    for name in (".0001.png", "notes.txt", "Thumbs.db"):
        (pets / "train" / "cat" / name).write_text("no image")
    (pets / "train" / ".ipynb_checkpoints").mkdir()
    (pets / "train" / "README.md").write_text("no class")
    (pets / "train" / "cat" / "folder.png").mkdir()
    assert len(load_dataset(pets, data_dir).train) == 6


def test_names_of_classes_and_suffixes_may_have_any_letters(pets, data_dir):
    (pets / "train/cat/0000.png").rename(pets / "train/cat/0000.PNG")
    Image.fromarray(random_image()).save(pets / "train/cat/0009.JPeG", "JPEG")
    for split in ("train", "test"):
        (pets / split / "cat").rename(pets / split / "große Katze 猫")
    dataset = load_dataset(pets, data_dir)
    assert dataset.classes == ["dog", "große Katze 猫"]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_links_are_followed(pets, data_dir, tmp_path):
    (pets / "train/dog").rename(tmp_path / "elsewhere")
    (pets / "train/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(pets)
    assert load_dataset(tmp_path / "link", data_dir).train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_without_test_images_no_test_folder_is_needed(pets, data_dir):
    (pets / "test/cat/0000.png").write_bytes(b"damaged")
    assert load_dataset(pets, data_dir, test=False).test is None
    shutil.rmtree(pets / "test")
    dataset = load_dataset(pets, data_dir, test=False)
    assert len(dataset.train) == 6
    assert dataset.test is None


def test_a_cache_without_test_images_does_not_serve_a_run_with_them(pets, data_dir, decoded):
    load_dataset(pets, data_dir, test=False)
    assert len(decoded) == 6
    assert len(load_dataset(pets, data_dir).test) == 2


def test_a_cache_with_test_images_serves_a_run_without_them(pets, data_dir, decoded):
    load_dataset(pets, data_dir)
    decoded.clear()
    assert load_dataset(pets, data_dir, test=False).test is None
    assert decoded == []


def test_a_second_load_decodes_nothing_and_gives_the_same(pets, data_dir, decoded):
    first = load_dataset(pets, data_dir)
    assert len(decoded) == 8
    second = load_dataset(pets, data_dir)
    assert len(decoded) == 8
    assert second.classes == first.classes
    torch.testing.assert_close(second.train.images, first.train.images)
    torch.testing.assert_close(second.test.labels, first.test.labels)


def rewrite(file: Path, image: Image.Image | None = None) -> None:
    """Leaves the contents as they are, or has a new image; the time of the last change is a nanosecond later."""
    before = file.stat()
    if image is None:
        file.write_bytes(file.read_bytes())
    else:
        image.save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


CHANGES = {
    "an image is edited": lambda pets: rewrite(pets / "test/cat/0000.png", Image.fromarray(random_image(9))),
    "an image is written again": lambda pets: rewrite(pets / "test/cat/0000.png"),
    "an image is added": lambda pets: Image.fromarray(random_image(9)).save(pets / "train/dog/0009.png"),
    "an image is deleted": lambda pets: (pets / "train/dog/0000.jpg").unlink(),
    "an image is renamed": lambda pets: (pets / "train/dog/0000.jpg").rename(pets / "train/dog/0009.jpg"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_decoded_again(pets, data_dir, decoded, change):
    load_dataset(pets, data_dir)
    CHANGES[change](pets)
    decoded.clear()
    load_dataset(pets, data_dir)
    assert decoded


def test_two_folders_of_one_name_have_two_caches(pets, data_dir, tmp_path):
    load_dataset(pets, data_dir)
    other = tmp_path / "other" / "pets"
    other.parent.mkdir()
    pets.rename(other)
    load_dataset(other, data_dir)
    assert len(list((data_dir / "cache").iterdir())) == 2


@pytest.mark.parametrize("place", ["../data", ".", "data"])
def test_nothing_is_written_into_the_folder_even_if_the_data_dir_is_inside(pets, place):
    before = snapshot(pets)
    assert len(load_dataset(pets, pets / place).train) == 6
    assert snapshot(pets) == before


def test_an_image_of_another_size_is_named_with_its_size(pets, data_dir):
    Image.fromarray(random_image(size=(64, 48))).save(pets / "train/cat/0001.png")
    with pytest.raises(UserError, match=r"train/cat/0001.png is 64x48 pixels, not 32x32; --resize"):
        load_dataset(pets, data_dir)
    assert not data_dir.exists()


def test_the_cache_of_resized_images_is_not_used_without_resize(pets, data_dir):
    Image.fromarray(random_image(size=(64, 48))).save(pets / "train/cat/0001.png")
    load_dataset(pets, data_dir, resize=True)
    with pytest.raises(UserError, match="--resize"):
        load_dataset(pets, data_dir)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b[: len(b) // 2], r"is truncated \(it breaks off after [\d,]+ bytes\)"),
        (lambda b: b"", "is empty"),
        (lambda b: b"no image at all", "is not an image that can be decoded"),
    ],
)
@pytest.mark.parametrize("file", ["train/dog/0002.jpg", "test/cat/0000.png"])
def test_a_damaged_image_is_named(pets, data_dir, file, damage, said):
    (pets / file).write_bytes(damage((pets / file).read_bytes()))
    with pytest.raises(UserError, match=f"{pets / file} {said}; replace it or delete it"):
        load_dataset(pets, data_dir)
    assert not data_dir.exists()


def leave_one_class(pets: Path) -> None:
    for split in ("train", "test"):
        (pets / split / "cat").rename(pets / f"{split} cats")


def leave_no_class(pets: Path) -> None:
    shutil.rmtree(pets / "train")
    (pets / "train").mkdir()


REFUSALS = {
    "0004.png cannot be read": lambda pets: (pets / "train/cat/0004.png").symlink_to(pets / "nowhere.png"),
    "pets has no train/ folder; an image folder holds train/<class>": lambda pets: shutil.rmtree(pets / "train"),
    "pets has no test/ folder; an image folder holds train/<class>": lambda pets: shutil.rmtree(pets / "test"),
    "train has no class folders": leave_no_class,
    "only one class, 'dog'": leave_one_class,
    "test/cat has no png or jpg images": lambda pets: (pets / "test/cat/0000.png").unlink(),
    "train has the class 'hamster' and .*test has not": lambda pets: (pets / "train/hamster").mkdir(),
    "test has the class 'hamster' and .*train has not": lambda pets: (pets / "test/hamster").mkdir(),
}


@pytest.mark.parametrize("said", REFUSALS)
def test_a_folder_that_is_no_data_set_is_refused_and_the_reason_named(pets, data_dir, said):
    REFUSALS[said](pets)
    with pytest.raises(UserError, match=said):
        load_dataset(pets, data_dir)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_data_dir_that_is_a_file_is_refused_before_decoding(pets, data_dir, decoded, below):
    data_dir.write_text("")
    with pytest.raises(UserError, match="data is not a folder.*--data-dir"):
        load_dataset(pets, data_dir / below)
    assert decoded == []


def test_a_data_dir_that_cannot_be_written_to_is_refused_before_decoding(monkeypatch, pets, data_dir, decoded):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so permissions alone prove nothing
    with pytest.raises(UserError, match="has no write permission.*--data-dir"):
        load_dataset(pets, data_dir)
    assert decoded == []
