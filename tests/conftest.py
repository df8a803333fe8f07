"""Fixtures that several test files share."""

import signal
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from fast_cifar import train
from fast_cifar.options import TrainOptions
from fast_cifar.plots import style
from tests.helpers.images import write_class_folder
from tests.helpers.networks import use_small_network
from tests.helpers.pages import write_run
from tests.helpers.plots import history

settings.register_profile("the same examples each time", derandomize=True, deadline=None, database=None)
settings.load_profile("the same examples each time")


@pytest.fixture(autouse=True)
def compiled_anew():
    """Forgets what a test has compiled: torch keeps eight forms of a function, and any further one would not be
    compiled at all, silently."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(autouse=True)
def ctrl_c_handled():
    """Also where the tests run in a shell's background job, which ignores Ctrl-C; child processes inherit it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def small_network(monkeypatch):
    use_small_network(monkeypatch)


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory):
    return write_class_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def places(class_folder, tmp_path_factory):
    """The options of a run or a range test that say where its images, their cache and its device are."""
    return {"data": str(class_folder), "data_dir": str(tmp_path_factory.mktemp("cache")), "device": "cpu"}


@pytest.fixture(scope="session")
def quick(places):
    """Options of a run of two epochs, three steps each: `quick(epochs=3, ...)`."""
    return partial(TrainOptions, **places, batch_size=8, epochs=2, lr_max=0.001)


@pytest.fixture
def options(small_network, quick, tmp_path):
    """Options of such a run of the small network, in `folder`: `options(epochs=3, ...)`."""
    return partial(quick, out=str(tmp_path), name="a")


@pytest.fixture
def folder(tmp_path):
    """The run folder of `options()`."""
    return tmp_path / "a"


@pytest.fixture(scope="session")
def run(quick, tmp_path_factory):
    """A finished run of three epochs: (folder, summary, lines on the screen)."""
    out = tmp_path_factory.mktemp("runs")
    lines = []
    summary = train(quick(out=str(out), name="a", epochs=3), log=lines.append)
    return out / "a", summary, lines


@pytest.fixture
def run_here(monkeypatch, tmp_path, capsys):
    """Runs a script's `main` in this process and an empty folder: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run with images to report on; it was not trained."""
    return write_run(tmp_path / "a", history(6), images=True)


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
