"""The augmentation benchmark: its rivals produce correct images, and the command writes what it prints."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

from bench.augmentation import (
    MEAN,
    STD,
    TransformedImages,
    augment_by_masks,
    data_loader_case,
    normalise_and_pad,
    torchvision_transform,
)
from fast_cifar.augment import apply, draw
from fast_cifar.options import CUTOUT
from tests.helpers.images import random_images, seeded
from tests.helpers.scripts import ROOT, run_module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_masked_crop_equals_apply(dtype):
    images = random_images(300)
    draws = draw(300, generator=seeded(1))
    theirs = augment_by_masks(normalise_and_pad(images, dtype), draws).permute(0, 3, 1, 2)
    assert theirs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(theirs, apply(images, draws, mean=MEAN, std=STD, dtype=dtype, pad_mode="zeros"))


def test_the_worker_processes_receive_whole_augmented_images():
    white = torch.full((3, 3, 32, 32), 255, dtype=torch.uint8)
    images = pickle.loads(pickle.dumps(TransformedImages(white, torch.arange(3), torchvision_transform())))
    assert len(images) == 3
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    image, label = images[1]
    assert (image.shape, label) == ((3, 32, 32), 1)
    cut, added = (image == 0).all(dim=0), torch.isclose(image, -mean / std).all(dim=0)
    assert cut.sum() == CUTOUT * CUTOUT
    assert (cut | added | torch.isclose(image, (1 - mean) / std).all(dim=0)).all()


def test_an_epoch_of_the_data_loader_is_as_long_as_its_data():
    run = data_loader_case(random_images(600), torch.device("cpu"), torch.float32)
    assert run() == 600


# Ctrl-C reaches a whole group of processes, and here that is this program and its workers.
INTERRUPTED = """
import multiprocessing, os, signal, sys, torch
from bench.augmentation import data_loader_case
from fast_cifar.system.errors import run_script

def main():
    case = data_loader_case(torch.zeros(1024, 32, 32, 3, dtype=torch.uint8), torch.device("cpu"), torch.float32)
    case()
    print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
    os.killpg(0, signal.SIGINT)
    case()

if __name__ == "__main__":
    sys.exit(run_script(main))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
def test_no_worker_process_outlives_an_interrupted_run(tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False, start_new_session=True
    )
    assert finished.returncode == 130, finished.stderr
    workers = [int(pid) for pid in finished.stdout.split()]
    assert len(workers) == 2
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_a_quick_run_writes_every_variant_with_its_ratios(tmp_path):
    path = tmp_path / "results" / "augmentation.json"
    finished = run_module("bench.augmentation", "--quick", "--device", "cpu", "--dtype", "float32", "--json", path)
    assert finished.returncode == 0, finished.stderr
    written = json.loads(path.read_text())
    assert written["environment"]["dtype"] == "float32"
    variants = {row["variant"]: row for row in written["rows"]}
    assert set(variants) >= {
        "loader, compiled",
        "loader, eager",
        "torchvision v2, one image at a time",
        "torchvision v2, DataLoader, 2 workers",
        "masked crop, an epoch at once",
    }
    for name, row in variants.items():
        assert name in finished.stdout
        assert 0 < row["min"] <= row["images_per_second"] <= row["max"]
    loader, torchvision = variants["loader, eager"], variants["torchvision v2, one image at a time"]
    assert loader["times_torchvision"] == pytest.approx(loader["images_per_second"] / torchvision["images_per_second"])
