"""The augmentation benchmark: its rivals produce correct images, and the command writes what it prints."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

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

ROOT = Path(__file__).parents[2]


def run_bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.augmentation", "--device", "cpu", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def random_images(n: int) -> torch.Tensor:
    return torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_masked_crop_equals_apply(dtype):
    images = random_images(300)
    draws = draw(300, generator=torch.Generator().manual_seed(1))
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
    finished = run_bench("--quick", "--dtype", "float32", "--json", str(path))
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


def test_abbreviated_options_are_refused():
    finished = run_bench("--qui")
    assert finished.returncode == 2
    assert "--qui" in finished.stderr


def test_an_unknown_device_is_one_line_and_exit_code_2():
    finished = run_bench("--device", "abacus")
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
