"""`--runs`: several seeds, each in a folder of its own; interrupted, failed, and summed up."""

import pytest
import torch

from fast_cifar import train
from fast_cifar.system.errors import UserError
from tests.helpers.devices import DEVICES
from tests.helpers.networks import flat
from tests.helpers.runs import diverging_after, interrupted_after, read_json, resume, rows, silent, stop

HOPELESS = {"lr_max": 1e6, "weight_decay": 1e6}


@pytest.mark.parametrize("device", DEVICES)
def test_each_of_several_runs_is_the_run_that_its_seed_gives_alone(options, folder, device):
    on_one_graph = device == "cuda"
    several = options(runs=2, seed=5, dropout=0.2, ema=0.9, deterministic=True, device=device, compile=on_one_graph)
    summary = train(several, log=silent)
    each = [read_json(folder / f"run-{k}/summary.json") for k in (1, 2)]
    assert summary["mean"] == pytest.approx(sum(one["test_accuracy"] for one in each) / 2)
    assert summary["n"] == 2
    assert read_json(folder / "summary.json") == summary
    for k, seed in ((1, 5), (2, 6)):
        train(several.replace(name=f"alone-{k}", seed=seed, runs=None), log=silent)
        among, alone = (
            torch.load(path / "last.pt", weights_only=True)
            for path in (folder / f"run-{k}", folder.parent / f"alone-{k}")
        )
        assert read_json(folder / f"run-{k}/config.json")["seed"] == seed
        assert flat(among["model"]) == flat(alone["model"])


def test_several_runs_compile_once(options, folder):
    train(options(runs=3, compile=True, epochs=1), log=silent)
    first, *others = (read_json(folder / f"run-{k}/summary.json")["compile_seconds"] for k in (1, 2, 3))
    assert first > 0
    assert others == [0.0, 0.0]


def test_several_runs_resume_with_the_one_that_was_interrupted_and_name_their_common_folder(options, folder):
    message = stop(options(runs=2), interrupted_after, 3)  # in the second epoch of the second run
    assert message.endswith(str(folder))
    first = (folder / "run-1/last.pt").stat().st_mtime_ns
    assert resume(folder)["n"] == 2
    assert (folder / "run-1/last.pt").stat().st_mtime_ns == first
    assert len(rows(folder / "run-2")) == 2


def test_several_runs_resume_with_a_folder_that_had_only_just_been_created(options, folder):
    stop(options(runs=2), interrupted_after, 2)
    for path in (folder / "run-2").iterdir():
        path.unlink()
    assert resume(folder)["n"] == 2


def test_several_runs_continue_after_one_that_diverged_and_report_it(options, folder, monkeypatch):
    diverging_after(1, monkeypatch)  # in the second epoch of the first run
    lines = []
    with pytest.raises(UserError, match=r"1 of 3 runs failed; seed 0: the loss diverged in epoch 2"):
        train(options(runs=3), log=lines.append)
    summary = read_json(folder / "summary.json")
    assert summary["n"] == 2
    assert len(summary["failures"]) == 1
    assert any(line.startswith("run 1 failed") for line in lines)
    assert (folder / "run-1/last.pt").exists()
    assert (folder / "run-3/summary.json").exists()


def test_when_all_of_several_runs_diverge_no_folder_is_left(options, folder):
    with pytest.raises(UserError, match="all 2 runs failed; seed 0"):
        train(options(runs=2, **HOPELESS), log=silent)
    assert not folder.exists()
