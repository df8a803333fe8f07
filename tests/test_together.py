"""Several runs at once that share their images, their download and their output folder: each is as if it ran alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fast_cifar.data import cache
from fast_cifar.data.splits import Dataset, Split
from tests.helpers import fake_cifar
from tests.helpers.archive_server import Server, resumable
from tests.helpers.networks import flat
from tests.helpers.runs import read_json, rows, rows_without_times
from tests.helpers.scripts import ROOT

# Imports what it needs, says so, waits for its options, and trains the small network.
WORKER = """
import json, sys
import pytest
from fast_cifar import TrainOptions, train
from fast_cifar.system.errors import run_script
from tests.helpers import fake_cifar
from tests.helpers.networks import use_small_network
from tests.helpers.runs import silent

patch = pytest.MonkeyPatch()
use_small_network(patch)
if len(sys.argv) > 1:
    fake_cifar.publish(patch, "cifar10", open(sys.argv[1], "rb").read())
print("ready", flush=True)
options = TrainOptions(**json.loads(sys.stdin.readline()))
sys.exit(run_script(lambda: train(options, log=silent)))
"""


@pytest.fixture
def together() -> Iterator[Callable[..., list[str]]]:
    """`together(options of one, options of another, ...)` trains in so many processes that begin at the same moment,
    and returns what each wrote to standard error if it failed, or ""."""
    workers: list[subprocess.Popen[str]] = []

    def run_all(*options: dict[str, object], archive: Path | None = None) -> list[str]:
        arguments = [sys.executable, "-c", WORKER, *([str(archive)] if archive else [])]
        environment = os.environ | {"no_proxy": "*", "PYTHONPATH": str(ROOT)}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        workers.extend(subprocess.Popen(arguments, cwd=ROOT, env=environment, text=True, **pipes) for _ in options)
        for worker in workers:
            assert worker.stdout.readline() == "ready\n", worker.stderr.read()
        for worker, of_one in zip(workers, options, strict=True):
            worker.stdin.write(json.dumps(of_one) + "\n")
            worker.stdin.flush()
        errors = [worker.communicate(timeout=900)[1] for worker in workers]
        return [error if worker.returncode else "" for worker, error in zip(workers, errors, strict=True)]

    yield run_all
    for worker in workers:
        worker.kill()
        worker.wait()


@pytest.fixture
def recipe(class_folder, tmp_path) -> dict[str, object]:
    """Two epochs of a class folder without a cache."""
    places = {"data": str(class_folder), "data_dir": str(tmp_path / "data"), "out": str(tmp_path / "runs")}
    return places | {"epochs": 2, "batch_size": 8, "lr_max": 0.001, "device": "cpu", "deterministic": True}


def names_in(folder: Path) -> list[str]:
    """Every file at any depth, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_equal_and_complete(runs: list[Path]) -> None:
    first = flat(torch.load(runs[0] / "last.pt", weights_only=True)["model"])
    for run in runs:
        assert [row["epoch"] for row in rows(run)] == [1, 2]
        assert rows_without_times(run) == rows_without_times(runs[0])
        assert flat(torch.load(run / "last.pt", weights_only=True)["model"]) == first
        assert read_json(run / "config.json")["name"] == run.name
        assert names_in(run) == names_in(runs[0])
        assert not [name for name in names_in(run) if name.startswith(".")]


def test_three_runs_without_a_name_that_decode_the_same_images_first_have_a_folder_each(together, recipe, tmp_path):
    assert together(recipe, recipe, recipe) == ["", "", ""]
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 3
    assert_equal_and_complete(runs)
    (decoded,) = names_in(tmp_path / "data")
    assert decoded.startswith("cache/")
    assert decoded.endswith(".pt")


def test_of_two_runs_with_the_same_name_one_trains_and_the_other_is_refused(together, recipe, tmp_path):
    errors = sorted(together(recipe | {"name": "a"}, recipe | {"name": "a"}))
    assert errors[0] == ""
    assert errors[1].startswith("error: ")
    assert len(errors[1].splitlines()) == 1
    assert str(tmp_path / "runs" / "a") in errors[1]
    assert_equal_and_complete([tmp_path / "runs" / "a"])


@pytest.mark.skipif(os.name == "nt", reason="a folder cannot be locked there")
def test_two_runs_that_download_the_same_archive_first_fetch_it_once(together, recipe, tmp_path):
    archive = tmp_path / "official.tar.gz"
    archive.write_bytes(fake_cifar.build("cifar10"))
    server = Server(resumable(archive.read_bytes()))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        asked = recipe | {"data": "cifar10", "mirror": [server.url]}
        assert together(asked | {"name": "a"}, asked | {"name": "b"}, archive=archive) == ["", ""]
    finally:
        server.shutdown()
        server.server_close()
    assert server.ranges == [None]
    assert_equal_and_complete([tmp_path / "runs" / "a", tmp_path / "runs" / "b"])
    assert names_in(tmp_path / "data") == ["cache/cifar10.pt", "cifar-10-python.tar.gz"]
    downloaded = (tmp_path / "data" / "cifar-10-python.tar.gz").read_bytes()
    assert hashlib.md5(downloaded).digest() == hashlib.md5(archive.read_bytes()).digest()


def test_a_cache_that_is_being_replaced_is_read_whole(tmp_path):
    """Each data set holds one number only, so that a mixture of two, or a part of one, would show."""
    path, keys = tmp_path / "cache" / "images.pt", {"train": "key", "test": "key"}
    over = threading.Event()

    def dataset(number: int) -> Dataset:
        split = Split(torch.full((20, 32, 32, 3), number, dtype=torch.uint8), torch.full((20,), number))
        return Dataset("images", split, split, ["cat", "dog"])

    def write(start: int) -> None:
        for number in range(start, 256, 2):
            if over.is_set():
                return
            cache.save(path, keys, dataset(number))

    cache.save(path, keys, dataset(0))
    writers = [threading.Thread(target=write, args=(start,)) for start in (0, 1)]
    for writer in writers:
        writer.start()
    seen = set()
    try:
        while any(writer.is_alive() for writer in writers) and len(seen) < 20:
            loaded = cache.load(path, keys)
            splits = (loaded.train, loaded.test)
            values = {value for split in splits for value in torch.cat([split.images.flatten(), split.labels]).tolist()}
            assert len(values) == 1
            seen |= values
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert len(seen) > 1
    assert names_in(tmp_path) == ["cache/images.pt"]
