"""Small data and quick runs that several tests share."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fast_cifar import engine, train
from fast_cifar.options import TrainOptions
from fast_cifar.plots import style
from fast_cifar.report import report
from fast_cifar.system.signals import Stopped, StopRequest
from fast_cifar.train_step import TrainStep
from tests.helpers.pages import history, write_range_test, write_run, write_seeds
from tests.helpers.sweeping import network_and_optimizer, red_or_not

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)


def write_class_folder(root, classes=("cat", "dog"), per_class=12, size=(32, 32), suffix=".png", seed=0):
    """A data set folder whose classes differ in colour, so that a network can learn them."""
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(per_class):
                pixels = rng.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
                pixels[..., index % 3] += 120
                Image.fromarray(pixels).save(folder / f"{k:03}{suffix}")
    return root


class SmallNetwork(nn.Module):
    """Stands in for `CustomResNet` where a test is about the run and not about the network."""

    def __init__(self, num_classes: int = 10, dropout: float = 0.0, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width // 8, 4, stride=4, bias=False),
            nn.BatchNorm2d(width // 8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(width // 8, num_classes, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.fixture
def small_network(monkeypatch):
    for module in ("build", "predict"):
        monkeypatch.setattr(f"fast_cifar.{module}.CustomResNet", SmallNetwork)


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory):
    return write_class_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def quick(class_folder, tmp_path_factory):
    """Options of a run that takes a second: `quick(epochs=3, ...)`."""
    data_dir = tmp_path_factory.mktemp("cache")

    def options(**changes):
        defaults = {
            "data": str(class_folder),
            "data_dir": str(data_dir),
            "batch_size": 8,
            "epochs": 2,
            "lr_max": 0.001,
            "device": "cpu",
        }
        return TrainOptions(**defaults | changes)

    return options


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """Every figure that the test draws."""
    seen = []
    original = style.figure

    @contextmanager
    def recording(*args):
        with original(*args) as figure:
            seen.append(figure)
            yield figure

    monkeypatch.setattr(style, "figure", recording)
    return seen


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """Where to write a figure: its folder is empty."""
    return tmp_path / "figure.png"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run with images to report on; it was not trained."""
    return write_run(tmp_path / "a", history(6), images=True)


@pytest.fixture(params=["run", "seeds", "unfinished", "range test", "comparison"])
def any_page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A report of each kind."""
    folders = {
        "run": write_run(tmp_path / "run", history(6, ("train", "val", "test")), images=True),
        "seeds": write_seeds(tmp_path / "seeds", [history(4, seed=seed) for seed in range(3)]),
        "unfinished": write_run(tmp_path / "unfinished", history(2), finished=False, epochs=9),
        "range test": write_range_test(tmp_path / "lr"),
    }
    chosen = list(folders.values()) if request.param == "comparison" else [folders[request.param]]
    return report(chosen)


@pytest.fixture
def loader():
    """What a range test sweeps over; see `red_or_not`."""
    return red_or_not()


@pytest.fixture
def pair():
    """A network for it, and its optimiser."""
    return network_and_optimizer()


def silent(line):
    pass


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(row):
    return {key: value for key, value in row.items() if "second" not in key}


def interrupted_after(epochs, monkeypatch):
    """Makes training stop with Ctrl-C in the middle of the epoch after `epochs`."""
    calls = iter(range(1000))
    train_epoch = engine.train_epoch

    def interrupted(step, loader, scheduler, metrics, **keywords):
        if next(calls) == epochs:
            step(*next(iter(loader)))
            scheduler.step()
            raise KeyboardInterrupt
        return train_epoch(step, loader, scheduler, metrics, **keywords)

    monkeypatch.setattr(engine, "train_epoch", interrupted)


def killed_before_step(n, monkeypatch):
    """Makes training end without a word before its n-th step."""
    calls = iter(range(1, 1000))
    step = TrainStep.__call__

    def killed(self, inputs, labels):
        if next(calls) == n:
            raise KeyboardInterrupt
        return step(self, inputs, labels)

    monkeypatch.setattr(TrainStep, "__call__", killed)


def stopped_at_check(n, monkeypatch):
    """Makes the n-th look for a signal, after a step or a batch of an evaluation, find one."""
    calls = iter(range(1, 1000))

    def check(self):
        if next(calls) == n:
            raise Stopped

    monkeypatch.setattr(StopRequest, "check", check)


@pytest.fixture(scope="session")
def run(quick, tmp_path_factory):
    """A finished run of three epochs: (folder, summary, lines)."""
    out = tmp_path_factory.mktemp("runs")
    lines = []
    summary = train(quick(out=str(out), name="a", epochs=3), log=lines.append)
    return out / "a", summary, lines
