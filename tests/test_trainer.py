"""One run: what it writes, what each option changes, and what a failure leaves behind."""

import dataclasses
import itertools
import os
import shutil
import signal
import time

import pytest
import torch
from PIL import Image

from fast_cifar import RangeTestOptions, TrainOptions, build, engine, find_lr, lr_finder, train, trainer
from fast_cifar.options import flag_of
from fast_cifar.runs import checkpoint
from fast_cifar.system.errors import UserError
from fast_cifar.train_step import TrainStep
from fast_cifar.trainer import cycle_steps
from tests.helpers.devices import needs_cuda
from tests.helpers.images import write_class_folder
from tests.helpers.runs import diverging_after, read_json, rows, rows_without_times, silent

FILES = ["config.json", "metrics.jsonl", "summary.json", "last.pt", "best.pt"]
IMAGES = ["samples.png", "augmented.png", "schedule.png", "curves.png", "confusion.png", "misclassified.png"]


def test_the_run_folder_holds_what_is_promised(run):
    assert {path.name for path in run[0].iterdir()} == {*FILES, *IMAGES}
    for name in IMAGES:
        with Image.open(run[0] / name) as image:
            assert image.width > 200
            image.load()


def test_the_summary_is_returned_and_written(run):
    folder, summary, _ = run
    assert read_json(folder / "summary.json") == summary
    promised = "best_test_accuracy seconds images_per_second compile_seconds dataset device torch parameters"
    assert set(promised.split()) <= summary.keys()
    assert summary["train_accuracy"] > 0.7  # the classes differ in colour
    assert 0 <= summary["test_accuracy"] <= summary["best_test_accuracy"] <= 1
    assert summary["peak_memory_bytes"] > 10**7
    assert summary["training_flops"] > 10**9


def test_each_epoch_has_a_row_of_metrics_and_a_line_on_the_screen(run):
    folder, summary, lines = run
    history = rows(folder)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    keys = "lr train_loss train_accuracy test_loss test_accuracy images_per_second seconds"
    assert all(set(keys.split()) <= row.keys() for row in history)
    assert history[0]["lr"] == pytest.approx(0.001)  # the peak is the last step of epoch 1
    assert history[-1]["lr"] == pytest.approx(1e-5)
    assert history[-1]["test_accuracy"] == summary["test_accuracy"]
    shown = [line for line in lines if line.startswith("epoch ")]
    assert len(shown) == 3
    assert all("images/sec" in line and "/24 (" in line for line in shown)


def test_a_long_run_says_once_how_long_it_will_take(options, monkeypatch):
    clock = itertools.count(0.0, 100.0)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(clock))
    lines = []
    train(options(epochs=3), log=lines.append)
    (line,) = [line for line in lines if "of training to go" in line]
    assert line == "about 40:00 of training to go for 3 epochs on this machine"  # 8 of 9 steps, the clock read 3 times


def test_the_checkpoints_within_an_epoch_count_as_saving_time_too(options, monkeypatch):
    saves = []

    def slow_save(self, files):
        saves.append(files)
        time.sleep(0.01)

    monkeypatch.setattr(checkpoint.Writer, "save", slow_save)
    summary = train(options(checkpoint_steps=1), log=silent)
    assert len(saves) == 6  # two within each of the two epochs, and one after it
    assert summary["save_seconds"] >= 6 * 0.01


def test_warming_up_the_evaluation_of_a_gpu_changes_nothing(options, folder, monkeypatch):
    train(options(val_split=8), log=silent)
    expected = rows_without_times(folder)
    shutil.rmtree(folder)
    monkeypatch.setattr(TrainStep, "needs_warm_up", True)
    monkeypatch.setattr(trainer, "works_asynchronously", lambda device: True)
    sizes = []

    def recorded(model, batches, precision):
        sizes.append([len(labels) for _, labels in batches])
        return engine.evaluate(model, batches, precision)

    monkeypatch.setattr(trainer, "evaluate", recorded)
    train(options(val_split=8), log=silent)
    assert sizes == [[8], [8]]  # one batch of the held-out images, and one of the test images
    assert rows_without_times(folder) == expected


def test_eval_every_leaves_test_fields_null_but_never_those_of_the_last_epoch(options, folder):
    train(options(epochs=3, eval_every=2), log=silent)
    assert [row["test_accuracy"] is None for row in rows(folder)] == [True, False, False]


@pytest.mark.parametrize(("interval", "expected"), [(0.0, [1, 2, 3, 4, 5, 6, 7, 8]), (5.0, [1, 4, 7, 8])])
def test_last_pt_keeps_its_distance_in_time_but_is_always_that_of_the_end(
    options, folder, monkeypatch, interval, expected
):
    def two_seconds_later(row):
        clock.append(clock[-1] + 2)

    def save(self, files):
        saved.extend((path.name, contents["epoch"]) for path, contents in files.items())
        original(self, files)

    clock, saved, original = [0.0], [], checkpoint.Writer.save
    monkeypatch.setattr(trainer, "checkpoint_interval", lambda device: interval)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: clock[-1])
    monkeypatch.setattr(checkpoint.Writer, "save", save)
    train(options(epochs=8), on_epoch=two_seconds_later, log=silent)
    accuracies = [-1.0, *(row["test_accuracy"] for row in rows(folder))]
    best = [epoch for epoch in range(1, 9) if accuracies[epoch] > max(accuracies[:epoch])]
    assert [epoch for name, epoch in saved if name == "last.pt"] == expected
    assert [epoch for name, epoch in saved if name == "best.pt"] == best


def test_checkpoints_describe_themselves(run):
    for name in ("last.pt", "best.pt"):
        contents = torch.load(run[0] / name, weights_only=True)
        assert (contents["network"], contents["classes"], contents["size"]) == ("CustomResNet", ["cat", "dog"], 32)
        assert len(contents["mean"]) == len(contents["std"]) == 3
        assert contents["options"]["batch_size"] == 8
        assert not any(key.startswith(("_orig_mod.", "module.")) for key in contents["model"])


@pytest.mark.parametrize(
    ("device", "compiled"),
    [("cpu", False), pytest.param("cuda", False, marks=needs_cuda), pytest.param("cuda", True, marks=needs_cuda)],
)
def test_the_same_seed_gives_the_same_metrics_and_the_same_bytes_of_a_checkpoint_whatever_the_name(
    options, tmp_path, device, compiled
):
    a, b = tmp_path / "a", tmp_path / "elsewhere/b"
    repeatable = options(dropout=0.3, deterministic=True, device=device, compile=compiled, amp=device == "cuda")
    for path in (a, b):
        train(repeatable.replace(out=str(path.parent), name=path.name), log=silent)
    assert rows_without_times(a) == rows_without_times(b)
    assert (a / "last.pt").read_bytes() == (b / "last.pt").read_bytes()


@pytest.mark.parametrize(("device", "numbered"), [("cpu", "cpu:0"), pytest.param("cuda", "cuda:0", marks=needs_cuda)])
def test_a_device_with_a_number_trains_as_the_one_without(options, tmp_path, device, numbered):
    for name, one in (("without", device), ("with", numbered)):
        train(options(name=name, device=one, compile=device == "cuda", deterministic=True), log=silent)
    assert rows_without_times(tmp_path / "with") == rows_without_times(tmp_path / "without")
    assert read_json(tmp_path / "with/config.json")["device"] == numbered


@pytest.mark.parametrize(
    "changed",
    [
        {"padding": 0},
        {"pad_mode": "zeros"},
        {"cutout": 0},
        {"flip": False},
        {"dropout": 0.5},
        {"width": 32},
        {"ema": 0.9},
        {"alternate_flips": True},
        {"label_smoothing": 0.3},
        {"weight_decay": 10.0},
        {"lr_max": 0.002},
        {"lr_min": 0.0005},
        {"peak_epoch": 2},
        {"seed": 1},
        {"amp": True, "amp_dtype": "bf16"},
        {"tta": True},
        {"limit_train": 16},
        {"limit_test": 10},
        {"val_split": 4},
    ],
    ids=str,
)
def test_every_option_of_the_recipe_changes_the_run(options, tmp_path, changed):
    for name, more in (("plain", {}), ("changed", changed)):
        train(options(name=name, epochs=3, deterministic=True, **more), log=silent)
    assert rows_without_times(tmp_path / "plain") != rows_without_times(tmp_path / "changed")


def test_a_held_out_split_chooses_the_best_checkpoint_and_on_epoch_receives_each_row(options, folder):
    seen = []
    train(options(val_split=8, epochs=3), on_epoch=seen.append, log=silent)
    assert seen == rows(folder)
    accuracies = [row["val_accuracy"] for row in rows(folder)]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["epoch"] == accuracies.index(max(accuracies)) + 1


def test_with_no_test_the_validation_accuracy_is_the_headline_and_nothing_else_changes(options, tmp_path, monkeypatch):
    evaluated, evaluate = [], engine.evaluate
    monkeypatch.setattr(
        build, "evaluate", lambda *args, **keywords: evaluated.append(keywords["title"]) or evaluate(*args, **keywords)
    )
    folder = tmp_path / "untested"
    summary = train(options(name="untested", val_split=8, test=False), log=silent)
    assert set(evaluated) == {"val"}
    assert all(row["test_accuracy"] is None and row["test_loss"] is None for row in rows(folder))
    assert (summary["test_accuracy"], summary["best_test_accuracy"]) == (None, None)
    assert summary["val_accuracy"] == rows(folder)[-1]["val_accuracy"]
    assert torch.load(folder / "best.pt", weights_only=True)["epoch"] >= 1
    assert train(TrainOptions(resume=str(folder)), log=silent) == summary
    tested = train(options(name="tested", val_split=8), log=silent)
    assert tested["val_accuracy"] == summary["val_accuracy"]


def test_the_mixed_precision_that_auto_chose_is_written(options, folder, monkeypatch):
    monkeypatch.setattr("fast_cifar.system.device.has_native_bf16", lambda device: True)
    assert train(options(amp=True), log=silent)["precision"] == "bf16"
    assert read_json(folder / "config.json")["amp_dtype"] == "bf16"


def test_what_mps_does_not_support_is_switched_off_with_a_note(options, monkeypatch):
    monkeypatch.setattr(build, "resolve_device", lambda name: torch.device("mps"))
    setup = build.build_setup(options(compile=True))
    assert setup.resolved_machine() == {"device": "mps", "channels_last": False, "compile": False}
    assert [note.split()[0] for note in setup.notes] == ["channels_last", "--compile"]


def test_lr_from_takes_the_rates_of_a_range_test_and_warns_of_another_recipe(options, folder, places, tmp_path):
    narrow = RangeTestOptions(**places, out=str(tmp_path), name="lr", batch_size=8, iters=30, width=8)
    found = find_lr(narrow, log=silent)
    lines = []
    train(options(lr_max=None, lr_from=str(tmp_path / "lr"), padding=2, limit_test=8), log=lines.append)
    config = read_json(folder / "config.json")
    assert (config["lr_min"], config["lr_max"]) == (found.suggestion.lr_min, found.suggestion.lr_max)
    assert sum("warning: the range test in" in line for line in lines) == 2
    assert any("had --padding 4, not 2" in line for line in lines)


def test_lr_from_warns_of_other_images(options, places, tmp_path):
    find_lr(RangeTestOptions(**places, out=str(tmp_path), name="lr", batch_size=8, iters=30), log=silent)
    lines = []
    other = write_class_folder(tmp_path / "others")
    train(options(lr_max=None, lr_from=str(tmp_path / "lr"), data=str(other)), log=lines.append)
    assert any(f"had --data {places['data']}, not {other}" in line for line in lines)
    lines.clear()
    train(options(lr_max=None, lr_from=str(tmp_path / "lr"), data=f"{places['data']}/", name="b"), log=lines.append)
    assert not any("had --data" in line for line in lines)


def test_lr_from_without_a_range_test_is_refused(run, options, folder, monkeypatch):
    monkeypatch.setattr(trainer, "build_setup", None)  # refused before data are loaded
    with pytest.raises(UserError, match="holds no range test; run_lrfind.py makes one"):
        train(options(lr_max=None, lr_from=str(run[0])), log=silent)
    with pytest.raises(UserError, match="--lr-from sets LRMAX and LRMIN; leave --lr-max out"):
        train(options(lr_from=str(run[0])), log=silent)
    assert not folder.exists()


def test_a_figure_that_cannot_be_drawn_costs_no_result(options, folder, monkeypatch):
    def broken(*positional):
        raise ImportError("numpy.core.multiarray failed to import")

    monkeypatch.setattr(trainer.run_images, "draw_results", broken)
    lines = []
    summary = train(options(), log=lines.append)
    assert read_json(folder / "summary.json") == summary
    assert any(line.startswith("warning: not every figure could be drawn (ImportError") for line in lines)


def test_headline_and_titles_say_how_the_predictions_were_made(options, monkeypatch):
    lines, titles = [], []
    monkeypatch.setattr(trainer.run_images, "draw_results", lambda *shown: titles.extend(shown[-2:]))
    summary = train(options(epochs=1, tta=True, ema=0.9), log=lines.append)
    assert (summary["tta"], summary["ema"]) == (True, 0.9)
    assert any("(test-time augmentation, EMA 0.9) after the last epoch" in line for line in lines)
    accuracy = f"{100 * summary['test_accuracy']:.2f} %"
    assert titles[0].startswith(f"{summary['dataset']}, width 64, batch 8, weight decay ")
    assert titles[1] == f"test accuracy {accuracy} (test-time augmentation, EMA 0.9) after 1 epoch"


def test_paths_may_be_given_as_paths(options, folder, tmp_path, class_folder):
    train(options(out=tmp_path, data=class_folder, data_dir=tmp_path / "data"), log=silent)
    assert read_json(folder / "config.json")["out"] == str(tmp_path)


def test_without_matplotlib_a_run_says_so_and_draws_the_image_grids(options, folder, monkeypatch):
    monkeypatch.setattr("fast_cifar.plots.style.matplotlib_available", lambda: False)
    lines = []
    train(options(epochs=1), log=lines.append)
    assert sum("pip install matplotlib" in line for line in lines) == 1
    assert (folder / "samples.png").exists()
    assert not (folder / "curves.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="sends signals as Unix does")
def test_a_signal_after_the_last_step_interrupts_too_and_what_is_left_is_done_on_resume(options, folder):
    def stop_at_the_end(row):
        if row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(options(), on_epoch=stop_at_the_end, log=silent)
    assert not (folder / "summary.json").exists()
    resumed = train(TrainOptions(resume=str(folder)), log=silent)
    assert resumed["epochs"] == len(rows(folder)) == 2


def test_find_lr_trains_at_the_rates_it_found(options, folder, monkeypatch):
    def warned(*arguments):
        return dataclasses.replace(lr_finder.sweep(*arguments), warnings=["of something"])

    monkeypatch.setattr(trainer, "sweep", warned)
    lines = []
    train(options(lr_max=None, find_lr=True, epochs=1), log=lines.append)
    config, found = read_json(folder / "config.json"), read_json(folder / "lrfind.json")
    assert (config["lr_min"], config["lr_max"]) == (found["suggestion"]["lr_min"], found["suggestion"]["lr_max"])
    assert (folder / "lrfind.png").exists()
    assert found["warnings"] == ["of something"]
    assert "warning: of something; then use --lr-from with its run folder instead of --find-lr" in lines


@pytest.mark.parametrize(("epochs", "warned"), [(2, True), (40, False)])
@pytest.mark.parametrize("source", ["find_lr", "lr_from"])
def test_a_run_that_is_shorter_than_the_range_test_of_its_rates_has_a_warning(
    options, places, monkeypatch, tmp_path, epochs, warned, source
):
    monkeypatch.setattr(trainer, "_train_seeds", lambda *_: {})
    if source == "lr_from":
        find_lr(RangeTestOptions(**places, out=str(tmp_path), name="lr", batch_size=8), log=silent)
    lines = []
    value = True if source == "find_lr" else str(tmp_path / "lr")
    train(options(lr_max=None, epochs=epochs, **{source: value}), log=lines.append)
    instead = f"instead of {flag_of(source)}"
    assert any("steps are few for the LRMAX of a range test" in line and instead in line for line in lines) == warned


def test_a_run_at_measured_rates_that_diverges_says_how_to_lower_them(options, monkeypatch):
    diverging_after(0, monkeypatch)
    with pytest.raises(UserError, match=r"try --lr-max \S+ instead of --find-lr"):
        train(options(lr_max=None, find_lr=True), log=silent)


def test_the_lower_rates_that_are_advised_are_accepted(options, monkeypatch):
    diverging_after(0, monkeypatch)
    with pytest.raises(UserError, match=r"try --lr-max 0\.001 --lr-min 0\.0005$"):
        train(options(lr_max=0.004, lr_min=0.002), log=silent)


@pytest.mark.parametrize(
    ("epochs", "peak_epoch", "steps", "expected"),
    [(24, 5, 97, (2328, 484)), (1, None, 97, (97, 19)), (1, None, 3, (3, 1)), (5, 1, 50, (250, 49))],
)
def test_the_peak_is_the_last_step_of_its_epoch(epochs, peak_epoch, steps, expected):
    assert cycle_steps(TrainOptions(epochs=epochs, peak_epoch=peak_epoch), steps) == expected


@pytest.mark.parametrize(("epochs", "peak_epoch", "steps"), [(1, None, 2), (2, 1, 1), (3, 2, 0)])
def test_too_few_steps_for_a_cycle_are_refused(epochs, peak_epoch, steps):
    with pytest.raises(UserError, match="too few steps"):
        cycle_steps(TrainOptions(epochs=epochs, peak_epoch=peak_epoch), steps)


def test_an_existing_run_is_not_touched(run, quick):
    before = {path: path.read_bytes() for path in run[0].iterdir()}
    with pytest.raises(UserError, match="exists already.*--resume"):
        train(quick(out=str(run[0].parent), name=run[0].name), log=silent)
    assert {path: path.read_bytes() for path in run[0].iterdir()} == before


def test_a_finished_run_says_so_and_trains_no_more(run, monkeypatch):
    monkeypatch.setattr(trainer, "fit", None)
    lines = []
    assert train(TrainOptions(resume=str(run[0])), log=lines.append) == run[1]
    assert "is finished" in lines[0]


def test_a_diverged_run_names_epoch_and_rate_and_keeps_the_checkpoint_before(options, folder, monkeypatch):
    diverging_after(1, monkeypatch)
    with pytest.raises(UserError, match=r"diverged in epoch 2.*0\.001"):
        train(options(epochs=3), log=silent)
    assert checkpoint.load(folder / "last.pt")["epoch"] == 1
    assert len(rows(folder)) == 1


def test_a_loss_that_diverges_inside_an_epoch_never_reaches_a_checkpoint(options, folder, monkeypatch):
    def diverging(self, inputs, labels):
        loss, correct, updated = step(self, inputs, labels)
        return loss.fill_(float("nan")) if next(calls) == 4 else loss, correct, updated

    calls, step = itertools.count(1), TrainStep.__call__  # an epoch has 3 steps
    monkeypatch.setattr(TrainStep, "__call__", diverging)
    with pytest.raises(UserError, match="diverged in epoch 2"):
        train(options(checkpoint_steps=1), log=silent)
    contents = checkpoint.load_training(folder / "last.pt")
    assert (contents["epoch"], contents["metrics"]["steps"]) == (1, 0)


def run_out_of_memory(*positional, **keywords):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_names_the_batch_size_and_leaves_no_folder(options, folder, monkeypatch):
    monkeypatch.setattr(engine, "train_epoch", run_out_of_memory)
    with pytest.raises(UserError, match="out of memory with --batch-size 8"):
        train(options(), log=silent)
    assert not folder.exists()


def test_a_run_that_diverges_at_once_leaves_no_folder(options, folder):
    with pytest.raises(UserError, match="diverged in epoch 1"):
        train(options(lr_max=1e6, weight_decay=1e6), log=silent)
    assert not folder.exists()


def test_an_interruption_before_there_is_a_configuration_leaves_no_folder(options, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.RunFolder, "write_config", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(options(), log=silent)
    assert not folder.exists()


def test_global_switches_and_random_states_are_unchanged_afterwards(options):
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    train(options(epochs=1, deterministic=True, seed=3), log=silent)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.are_deterministic_algorithms_enabled() == before[1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_works_where_gradients_were_switched_off(options, mode):
    with mode():
        assert train(options(), log=silent)["epochs"] == 2
        assert not torch.is_grad_enabled()
