"""What `train` does around a run: it refuses, resumes, repeats with other seeds, and leaves no trace."""

import itertools
import json

import pytest
import torch

from fast_cifar import TrainOptions, engine, train, trainer
from fast_cifar.system.errors import UserError
from tests.conftest import interrupted_after, rows, silent


def test_the_configuration_is_resolved(run):
    config = json.loads((run[0] / "config.json").read_text())
    assert config["peak_epoch"] == 1
    assert config["lr_min"] == pytest.approx(1e-5)
    assert config["device"] == "cpu"
    assert config["name"] == "a"


def test_a_finished_run_says_so_and_trains_no_more(run, monkeypatch):
    monkeypatch.setattr(trainer, "fit", None)
    lines = []
    assert train(TrainOptions(resume=str(run[0])), log=lines.append) == run[1]
    assert "is finished" in lines[0]


def test_several_runs_differ_by_seed_and_are_summed_up(small_network, quick, tmp_path):
    summary = train(quick(out=str(tmp_path), name="several", runs=2, seed=5), log=silent)
    configs = [json.loads((tmp_path / f"several/run-{k}/config.json").read_text()) for k in (1, 2)]
    assert [config["seed"] for config in configs] == [5, 6]
    each = [json.loads((tmp_path / f"several/run-{k}/summary.json").read_text()) for k in (1, 2)]
    assert summary["mean"] == pytest.approx(sum(one["test_accuracy"] for one in each) / 2)
    assert summary["n"] == 2
    assert json.loads((tmp_path / "several/summary.json").read_text()) == summary
    assert all((tmp_path / f"several/run-{k}/last.pt").exists() for k in (1, 2))


def test_several_runs_name_their_common_folder_when_interrupted(small_network, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        with pytest.raises(KeyboardInterrupt, match="several$"):
            train(quick(out=str(tmp_path), name="several", runs=2), log=silent)


def test_several_runs_go_on_from_a_folder_that_was_only_just_made(small_network, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="several", runs=2), log=silent)
    for path in (tmp_path / "several/run-2").iterdir():
        path.unlink()
    assert train(TrainOptions(resume=str(tmp_path / "several")), log=silent)["n"] == 2


def test_several_runs_go_on_with_the_one_that_was_interrupted(small_network, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)  # in the second epoch of the second run
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="several", runs=2), log=silent)
    first = (tmp_path / "several/run-1/last.pt").stat().st_mtime_ns
    assert train(TrainOptions(resume=str(tmp_path / "several")), log=silent)["n"] == 2
    assert (tmp_path / "several/run-1/last.pt").stat().st_mtime_ns == first
    assert len(rows(tmp_path / "several/run-2")) == 2


def test_find_lr_trains_at_the_rates_it_found(small_network, quick, tmp_path):
    lines = []
    train(quick(out=str(tmp_path), name="a", lr_max=None, find_lr=True, epochs=1), log=lines.append)
    config = json.loads((tmp_path / "a/config.json").read_text())
    found = json.loads((tmp_path / "a/lrfind.json").read_text())["suggestion"]
    assert (config["lr_min"], config["lr_max"]) == (found["lr_min"], found["lr_max"])
    assert (tmp_path / "a/lrfind.png").exists()
    warnings = json.loads((tmp_path / "a/lrfind.json").read_text())["warnings"]
    assert warnings  # this network takes a rate of 1 without diverging
    assert {f"warning: {warning}" for warning in warnings} <= set(lines)


@pytest.mark.parametrize(("epochs", "warned"), [(2, True), (40, False)])
def test_find_lr_warns_of_a_run_that_is_shorter_than_the_range_test(
    small_network, quick, tmp_path, monkeypatch, epochs, warned
):
    monkeypatch.setattr(trainer, "_train_seeds", lambda *_: {})
    lines = []
    train(quick(out=str(tmp_path), name="a", lr_max=None, find_lr=True, epochs=epochs), log=lines.append)
    assert any("steps is shorter than the range test" in line for line in lines) == warned


def test_a_run_that_diverges_at_once_leaves_no_folder(small_network, quick, tmp_path):
    with pytest.raises(UserError, match="diverged in epoch 1"):
        train(quick(out=str(tmp_path), name="a", lr_max=1e6, weight_decay=1e6), log=silent)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("damage", [{"epochs": "many"}, {"lr_max": []}, {"padding": None}, {"data": 7}])
def test_a_configuration_with_nonsense_in_it_is_refused(small_network, quick, tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(out=str(tmp_path), name="a"), log=silent)
    path = tmp_path / "a/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(UserError, match="wrong type"):
        train(TrainOptions(resume=str(tmp_path / "a")), log=silent)


def test_paths_may_be_given_as_paths(small_network, quick, tmp_path, class_folder):
    train(quick(out=tmp_path, name="a", data=class_folder, data_dir=tmp_path / "data"), log=silent)
    assert json.loads((tmp_path / "a/config.json").read_text())["out"] == str(tmp_path)


def test_the_kind_of_mixed_precision_is_written_as_it_came_out(small_network, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("fast_cifar.system.device.has_native_bf16", lambda device: True)
    train(quick(out=tmp_path, name="a", amp=True), log=silent)
    assert json.loads((tmp_path / "a/config.json").read_text())["amp_dtype"] == "bf16"


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 25},
        {"batch_size": 24, "epochs": 2},
        {"limit_train": 1},
        {"val_split": 23},
        {"device": "tpu"},
        {"amp": True, "amp_dtype": "fp16"},
        {"data": "cifar11"},
        {"epochs": 0},
    ],
)
def test_a_refused_run_leaves_no_folder(small_network, quick, tmp_path, bad):
    with pytest.raises(UserError):
        train(quick(out=str(tmp_path / "runs"), name="a", **bad), log=silent)
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_is_not_touched(run, quick):
    before = {path: path.read_bytes() for path in run[0].iterdir()}
    with pytest.raises(UserError, match="exists already"):
        train(quick(out=str(run[0].parent), name=run[0].name), log=silent)
    assert {path: path.read_bytes() for path in run[0].iterdir()} == before


def test_global_switches_and_randomness_are_left_alone(small_network, quick, tmp_path):
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    train(quick(out=str(tmp_path), name="a", epochs=1, deterministic=True, seed=3), log=silent)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.are_deterministic_algorithms_enabled() == before[1]


def test_each_of_several_runs_is_the_run_that_its_seed_gives_alone(small_network, quick, tmp_path):
    options = quick(out=str(tmp_path), dropout=0.2, deterministic=True, seed=3)
    train(options.replace(name="several", runs=3), log=silent)
    for k in (1, 2, 3):
        train(options.replace(name=f"alone-{k}", seed=2 + k), log=silent)
        alone, among = (
            torch.load(tmp_path / path / "last.pt", weights_only=True) for path in (f"alone-{k}", f"several/run-{k}")
        )
        for key, value in alone["model"].items():
            assert torch.equal(value, among["model"][key]), (k, key)


def test_several_runs_compile_once(small_network, quick, tmp_path):
    summaries = []
    train(quick(out=str(tmp_path), name="several", runs=3, compile=True, epochs=1), log=silent)
    for k in (1, 2, 3):
        summaries.append(json.loads((tmp_path / f"several/run-{k}/summary.json").read_text()))
    assert summaries[0]["compile_seconds"] > 0
    assert [summary["compile_seconds"] for summary in summaries[1:]] == [0.0, 0.0]


def test_out_of_memory_names_the_batch_size_and_leaves_no_folder(small_network, quick, tmp_path, monkeypatch):
    def train_epoch(*positional, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(engine, "train_epoch", train_epoch)
    with pytest.raises(UserError, match="out of memory with --batch-size 8"):
        train(quick(out=str(tmp_path), name="a"), log=silent)
    assert not (tmp_path / "a").exists()


def test_the_peak_memory_is_in_the_summary(run):
    assert run[1]["peak_memory_bytes"] > 10**7


def test_several_runs_go_on_after_one_that_diverged_and_report_it(small_network, quick, tmp_path, monkeypatch):
    def diverging(*positional, **keywords):
        metrics = train_epoch(*positional, **keywords)
        if next(epochs) == 1:  # the second epoch of the first run
            metrics.loss_sum.fill_(float("nan"))
        return metrics

    epochs, train_epoch = itertools.count(), engine.train_epoch
    monkeypatch.setattr(engine, "train_epoch", diverging)
    lines = []
    with pytest.raises(UserError, match=r"1 of 3 runs failed; seed 0: the loss diverged in epoch 2"):
        train(quick(out=str(tmp_path), name="several", runs=3), log=lines.append)
    summary = json.loads((tmp_path / "several/summary.json").read_text())
    assert summary["n"] == 2
    assert len(summary["failures"]) == 1
    assert any(line.startswith("run 1 failed") for line in lines)
    assert (tmp_path / "several/run-1/last.pt").exists()
    assert (tmp_path / "several/run-3/summary.json").exists()


def test_when_all_of_several_runs_diverge_there_is_no_summary(small_network, quick, tmp_path):
    with pytest.raises(UserError, match="all 2 runs failed; seed 0"):
        train(quick(out=str(tmp_path), name="several", runs=2, lr_max=1e6, weight_decay=1e6), log=silent)
    assert not (tmp_path / "several").exists()


def test_an_interruption_before_there_is_a_configuration_leaves_no_folder(small_network, quick, tmp_path, monkeypatch):
    def write_config(self, options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fast_cifar.trainer.RunFolder.write_config", write_config)
    with pytest.raises(KeyboardInterrupt):
        train(quick(out=str(tmp_path), name="a"), log=silent)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_works_where_gradients_were_switched_off(small_network, quick, tmp_path, mode):
    with mode():
        summary = train(quick(out=str(tmp_path), name="a"), log=silent)
        assert not torch.is_grad_enabled()
    assert summary["epochs"] == 2
