"""Damaged files of every kind: each ends in success or in one line that names the file, and none runs code.

    FAST_CIFAR_FUZZ=1000 python -m pytest tests/test_fuzz.py   # so many cases of each kind

Case k of a kind is the same at any time, on any machine; a failure names it.
"""

import json
import math
import os
import pickle
import random
import shutil
import string
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from fast_cifar import TrainOptions, predict
from fast_cifar.data.load import load_dataset
from fast_cifar.options import flag_of
from fast_cifar.predict import evaluate_checkpoint
from fast_cifar.runs import checkpoint
from fast_cifar.system.errors import UserError
from tests.helpers import fake_cifar
from tests.helpers.images import random_image, write_class_folder
from tests.helpers.networks import flat, use_small_network
from tests.helpers.pages import write
from tests.helpers.runs import resume, rows, stop, stopped_at_check

CASES = int(os.environ.get("FAST_CIFAR_FUZZ", "0"))
HTML = b"<!DOCTYPE html>\n<html><body>Sign in to the campus network</body></html>\n"
NONSENSE = [None, True, False, 0, 1, 2, -1, 10**30, -(10**400), 0.5, 1e308, math.nan, math.inf, -math.inf]
NONSENSE += ["", "x", "a\nb", "a\0b", "\ud800", "../..", "x" * 5000, [], [1], ["x", None], {}, {"a": {"b": []}}]


def cases(kind, few):
    """(k, the random numbers of case k): `few` of them in the suite."""
    return [(k, random.Random(f"{kind} {k}")) for k in range(CASES or few)]


def damaged(data, rng):
    """The bytes with some flipped, zeroed, overwritten, doubled, removed, cut off or added, or others altogether."""
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([1, 2, 7, 64, 1000]))
    before, part, after = data[:start], data[start:end], data[end:]
    flipped = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 10, 100])):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    alternatives = [bytes(flipped), bytes(flipped), before]
    alternatives += [before + other + after for other in (bytes(len(part)), rng.randbytes(len(part)), part + part, b"")]
    alternatives.append(data + rng.randbytes(rng.choice([1, 100, 5000])))
    replaced = [b"", HTML, bytes(len(data)), rng.randbytes(len(data)), data[::-1], data[:4] + rng.randbytes(500)]
    return rng.choice([*alternatives, rng.choice(replaced)])


def places(value, path=()):
    """The paths of all entries in a nest of dictionaries and lists."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def altered(contents, rng):
    """A nest of dictionaries and lists with one entry deleted, added, or replaced by nonsense; changed in place."""
    path = rng.choice(list(places(contents)))
    holder = contents
    for key in path[:-1]:
        holder = holder[key]
    what = rng.randrange(6)
    if what == 0:
        del holder[path[-1]]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(string.ascii_letters)] = rng.choice(NONSENSE)
    else:
        holder[path[-1]] = rng.choice(NONSENSE)
    return contents


def damaged_json(data, rng):
    """Bytes of a JSON file, or of one with a JSON object a line, damaged as text or as values."""
    what = rng.randrange(20)
    if what == 0:
        return b'{"epochs": ' + b"[" * 100_000
    if what == 1:
        return b'{"epochs": ' + b"9" * 5000 + b"}\n"
    if what == 2:
        return json.dumps(rng.choice(NONSENSE)).encode()
    if what < 6:
        return damaged(data, rng)
    lines = [data] if data.startswith(b"{\n") else data.splitlines()
    index = rng.randrange(len(lines))
    lines[index] = json.dumps(altered(json.loads(lines[index]), rng)).encode()
    return b"\n".join(lines) + b"\n"


def outcome(action, names, case):
    """Does what the user would do; returns the result, or None where it is refused in one line that has one of
    `names`."""
    try:
        return action()
    except UserError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, (case, message)
        assert any(name in message for name in names), (case, message)
        return None
    except Exception as error:
        error.add_note(f"case {case}")
        raise


@pytest.fixture(scope="module", autouse=True)
def quick_and_small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        use_small_network(patch)
        patch.setattr("fast_cifar.system.device.has_compiler", lambda: False)
        place = tmp_path_factory.mktemp("work") / "a/b/c"  # contains whatever folder a damaged configuration names
        place.mkdir(parents=True)
        patch.chdir(place)
        yield


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("resize", [False, True])
def test_a_damaged_image_is_read_or_named(tmp_path, suffix, resize):
    write_class_folder(tmp_path / "images", per_class=1, suffix=suffix)
    broken = tmp_path / f"images/train/dog/000{suffix}"
    sound = broken.read_bytes()
    read = 0
    for k, rng in cases(f"image {suffix}", 100):
        broken.write_bytes(damaged(sound, rng))
        data = outcome(lambda: load_dataset(tmp_path / "images", tmp_path / "data", resize=resize), [str(broken)], k)
        if data is not None:
            assert data.train.images.shape == (2, 32, 32, 3)
            read += 1
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
    assert read < (CASES or 100)


def test_a_damaged_archive_is_refused_by_name(tmp_path, monkeypatch):
    sound = fake_cifar.build("cifar10", images_per_member=3)
    fake_cifar.publish(monkeypatch, "cifar10", sound)
    path = tmp_path / "cifar-10-python.tar.gz"
    for k, rng in cases("archive", 100):
        bad = damaged(sound, rng)
        path.write_bytes(bad)
        for data in ("cifar10", str(path)):
            loaded = outcome(lambda data=data: load_dataset(data, tmp_path), [str(path)], k)
            assert (loaded is None) == (bad != sound), k


def test_a_damaged_cache_is_rebuilt_and_never_used(tmp_path):
    write_class_folder(tmp_path / "images", per_class=2)
    sound = flat(asdict(load_dataset(tmp_path / "images", tmp_path / "data")))
    [cache] = (tmp_path / "data/cache").iterdir()
    contents = cache.read_bytes()
    for k, rng in cases("cache", 100):
        cache.write_bytes(damaged(contents, rng))
        loaded = outcome(lambda: load_dataset(tmp_path / "images", tmp_path / "data"), [str(cache)], k)
        assert flat(asdict(loaded)) == sound, k


@pytest.fixture(scope="module")
def interrupted(quick, tmp_path_factory):
    """The folder of a run of three epochs that was stopped in the third; it has a last.pt and a previous.pt."""
    out = tmp_path_factory.mktemp("interrupted")
    stop(quick(out=str(out), name="a", epochs=3), stopped_at_check, 14)
    assert (out / "a/previous.pt").exists()
    return out / "a"


@pytest.fixture
def copy_of(interrupted, tmp_path):
    """A fresh copy of the interrupted run each time it is called."""

    def make():
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        return shutil.copytree(interrupted, tmp_path / "a")

    return make


@pytest.fixture
def without_images(monkeypatch):
    for name in ("draw_training_data", "draw_results"):
        monkeypatch.setattr(f"fast_cifar.plots.run_images.{name}", lambda *_: None)


def test_a_damaged_checkpoint_that_loads_equals_the_sound_one(interrupted, tmp_path):
    data = (interrupted / "last.pt").read_bytes()
    sound = flat(checkpoint.load_training(interrupted / "last.pt"))
    path = tmp_path / "last.pt"
    for k, rng in cases("checkpoint", 300):
        path.write_bytes(damaged(data, rng))
        contents = outcome(lambda: checkpoint.load_training(path), [str(path)], k)
        if contents is not None:
            assert flat(contents) == sound, k


def test_a_checkpoint_with_nonsense_in_it_is_used_or_refused(interrupted, tmp_path, quick):
    path, image = tmp_path / "best.pt", tmp_path / "a.png"
    Image.fromarray(random_image()).save(image)
    options = quick(eval_only=str(path))
    for k, rng in cases("contents", 100):
        torch.save(altered(torch.load(interrupted / "best.pt", weights_only=True), rng), path)
        outcome(lambda: predict.predict(path, [image], "cpu"), [str(path)], k)
        outcome(lambda: evaluate_checkpoint(options), [str(path), *map(flag_of, options.as_dict()), "no data"], k)


def test_a_run_with_damaged_checkpoints_resumes_or_names_one(copy_of, without_images):
    for k, rng in cases("resume", 20):
        folder = copy_of()
        for name in rng.choice([["last.pt"], ["last.pt", "previous.pt"]]):
            path = folder / name
            path.write_bytes(damaged(path.read_bytes(), rng))
        before = {path: path.read_bytes() for path in folder.iterdir()}
        summary = outcome(lambda folder=folder: resume(folder), [".pt"], k)
        if summary is None:
            assert {path: path.read_bytes() for path in folder.iterdir()} == before, k
        else:
            assert summary["epochs"] == 3, k


def resumed(folder, name, few):
    """Resumes the run again and again with another damage to the file `name`; each summary, None where refused."""
    path = folder() / name
    sound = path.read_bytes()
    for k, rng in cases(name, few):
        path = folder() / name
        path.write_bytes(damaged_json(sound, rng))
        said = [str(path.parent), "no data set", "has no train/ folder", "unknown device"]
        names = [*said, *map(flag_of, TrainOptions().as_dict())]
        yield outcome(lambda path=path: resume(path.parent), names, k)


def test_a_run_with_a_damaged_configuration_resumes_or_says_why_not(copy_of, without_images):
    outcomes = list(resumed(copy_of, "config.json", 60))
    assert None in outcomes


def test_a_run_with_a_damaged_history_resumes_or_says_why_not(copy_of, tmp_path, without_images):
    outcomes = []
    for summary in resumed(copy_of, "metrics.jsonl", 40):
        outcomes.append(summary)
        if summary is not None:
            assert [row["epoch"] for row in rows(tmp_path / "a")] == [1, 2, 3]
            assert summary["test_accuracy"] == rows(tmp_path / "a")[-1]["test_accuracy"]
    assert None in outcomes


def test_a_damaged_summary_of_a_finished_run_is_used_or_refused(copy_of, without_images):
    summary = resume(copy_of())

    def finished():
        folder = copy_of()
        write(folder / "summary.json", summary)
        return folder

    outcomes = list(resumed(finished, "summary.json", 60))
    assert None in outcomes


def test_no_code_in_a_checkpoint_or_cache_is_executed(interrupted, tmp_path, class_folder, quick):
    load_dataset(class_folder, tmp_path / "data")
    [cache] = (tmp_path / "data/cache").iterdir()
    sound = torch.load(interrupted / "last.pt", weights_only=True), torch.load(cache, weights_only=True)
    harm = tmp_path / "harm"
    for key in [*sound[0], "other"]:
        torch.save(sound[0] | {key: fake_cifar.Harm(harm)}, tmp_path / "last.pt")
        with pytest.raises(UserError, match=r"last\.pt is not a readable checkpoint"):
            checkpoint.load_training(tmp_path / "last.pt")
    for key in [*sound[1], "other"]:
        torch.save(sound[1] | {key: fake_cifar.Harm(harm)}, cache)
        assert len(load_dataset(class_folder, tmp_path / "data").train) == 24
    for path in (tmp_path / "last.pt", cache):
        path.write_bytes(pickle.dumps(fake_cifar.Harm(harm)))
    with pytest.raises(UserError, match=r"last\.pt is not a readable checkpoint"):
        checkpoint.load(tmp_path / "last.pt")
    load_dataset(class_folder, tmp_path / "data")
    assert not harm.exists()
