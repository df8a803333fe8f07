"""Options: the recipe's defaults, what is refused, and what may change on resume."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from fast_cifar.options import SPEEDRUN, RangeTestOptions, TrainOptions
from fast_cifar.system.errors import UserError


def test_the_defaults_are_the_recipe():
    options = TrainOptions().resolved()
    recipe = (options.batch_size, options.epochs, options.peak_epoch, options.padding, options.cutout, options.flip)
    assert recipe == (512, 24, 5, 4, 8, True)
    assert (options.dropout, options.ema, options.alternate_flips) == (0, 0, False)
    # docs/recipe.md says why:
    assert (options.weight_decay, options.label_smoothing, options.pad_mode) == (0.5, 0.1, "reflect")
    assert 0 < options.lr_min < options.lr_max


@pytest.mark.parametrize(("epochs", "peak"), [(24, 5), (4, 1), (2, 1), (10, 2), (48, 10), (100, 21)])
def test_the_peak_comes_after_5_24ths_of_the_epochs(epochs, peak):
    assert TrainOptions(epochs=epochs).resolved().peak_epoch == peak


def test_a_run_of_one_epoch_is_allowed():
    options = TrainOptions(epochs=1)
    options.check()
    assert options.resolved().peak_epoch is None


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"batch_size": 0}, "--batch-size"),
        ({"limit_train": 0}, "--limit-train"),
        ({"limit_test": -1}, "--limit-test"),
        ({"val_split": 0}, "--val-split"),
        ({"epochs": 0}, "--epochs"),
        ({"peak_epoch": 24}, "--peak-epoch"),
        ({"peak_epoch": 0}, "--peak-epoch"),
        ({"epochs": 3, "peak_epoch": 3}, "--peak-epoch"),
        ({"lr_max": 0.0}, "--lr-max"),
        ({"lr_max": -1.0}, "--lr-max"),
        ({"lr_max": math.nan}, "--lr-max"),
        ({"lr_max": math.inf}, "--lr-max"),
        ({"lr_min": 0.0}, "--lr-min"),
        ({"lr_min": math.nan}, "--lr-min"),
        ({"lr_min": 0.1, "lr_max": 0.1}, "--lr-min"),
        ({"lr_min": 0.2, "lr_max": 0.1}, "--lr-min"),
        ({"lr_min": 0.5}, "--lr-min"),
        ({"preset": "slow"}, "--preset"),
        ({"preset": "speedrun", "demo": True}, "--preset"),
        ({"ema": 1.0}, "--ema"),
        ({"ema": -0.1}, "--ema"),
        ({"ema": math.nan}, "--ema"),
        ({"alternate_flips": True, "flip": False}, "--alternate-flips"),
        ({"width": 0}, "--width"),
        ({"width": 1025}, "--width"),
        ({"dropout": 1.0}, "--dropout"),
        ({"dropout": -0.1}, "--dropout"),
        ({"dropout": math.nan}, "--dropout"),
        ({"label_smoothing": 1.0}, "--label-smoothing"),
        ({"label_smoothing": -0.1}, "--label-smoothing"),
        ({"padding": -1}, "--padding"),
        ({"padding": 32}, "--padding"),
        ({"cutout": 33}, "--cutout"),
        ({"cutout": -1}, "--cutout"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"weight_decay": math.nan}, "--weight-decay"),
        ({"runs": 0}, "--runs"),
        ({"eval_every": 0}, "--eval-every"),
        ({"seed": -1}, "--seed"),
        ({"pad_mode": "wrap"}, "--pad-mode"),
        ({"amp_dtype": "int8"}, "--amp-dtype"),
        ({"name": "../elsewhere"}, "--name"),
        ({"name": ""}, "--name"),
        ({"name": ".."}, "--name"),
        ({"name": "a" * 101}, "--name"),
        ({"name": "a\nb"}, "--name"),
        ({"epochs": 10**11}, "--epochs"),
        ({"seed": 2**70}, "--seed"),
        ({"lr_max": 5e-324}, "--lr-max"),
        ({"lr_max": 1e308}, "--lr-max"),
        ({"weight_decay": 1e300}, "--weight-decay"),
        ({"find_lr": True, "lr_max": 0.1}, "--find-lr"),
    ],
)
def test_what_no_data_could_make_right_is_refused_by_name(bad, named):
    with pytest.raises(UserError, match=named):
        TrainOptions(**bad).check()


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"lr_start": 0.0}, "--lr-start"),
        ({"lr_start": 1.0, "lr_end": 1.0}, "--lr-start"),
        ({"lr_start": 2.0}, "--lr-start"),
        ({"lr_end": math.nan}, "--lr-end"),
        ({"iters": 9}, "--iters"),
        ({"repeats": 0}, "--repeats"),
        ({"repeats": 101}, "--repeats"),
        ({"sweep": "cosine"}, "--sweep"),
        ({"loss_on": "test", "val_split": 10}, "--loss-on"),
        ({"loss_on": "val"}, "--val-split"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_by_name(bad, named):
    with pytest.raises(UserError, match=named):
        RangeTestOptions(**bad).check()


@pytest.mark.parametrize("fine", [{"repeats": 100}, {"sweep": "linear"}, {"loss_on": "val", "val_split": 10}])
def test_a_sweep_that_can_work_is_allowed(fine):
    RangeTestOptions(**fine).check()


@pytest.mark.parametrize(
    "fine", [{}, {"padding": 0}, {"cutout": 0}, {"cutout": 32}, {"dropout": 0.99}, {"lr_max": 1e-3}, {"padding": 31}]
)
def test_the_ends_of_each_range_are_allowed(fine):
    TrainOptions(**fine).check()


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": "3"},
        {"epochs": 3.0},
        {"epochs": None},
        {"epochs": True},
        {"lr_max": "fast"},
        {"amp": 1},
        {"data": None},
        {"mirror": "http://one"},
        {"name": 7},
        {"runs": [1]},
        {"name": Path("x")},
        {"device": Path("cpu")},
        {"mirror": [1]},
    ],
)
def test_a_value_of_another_type_is_refused_by_name(bad):
    with pytest.raises(UserError, match=f"--{next(iter(bad)).replace('_', '-')} .* wrong type"):
        TrainOptions(**bad).check()


@pytest.mark.parametrize("fine", [{"lr_max": 1}, {"data": Path("x")}, {"mirror": ["http://one"]}, {"lr_max": None}])
def test_a_value_that_means_the_same_is_allowed(fine):
    TrainOptions(**fine).check()


def test_a_message_is_one_line():
    with pytest.raises(UserError) as caught:
        TrainOptions(batch_size=0).check()
    assert len(str(caught.value).splitlines()) == 1


def test_the_demo_fills_in_only_what_was_not_given():
    options = TrainOptions(demo=True, epochs=3).resolved()
    assert (options.data, options.epochs) == ("synthetic", 3)
    assert options.limit_train is not None


def test_the_speedrun_is_the_recipe_but_for_what_it_changes_and_what_was_given():
    plain = TrainOptions().resolved().as_dict()
    fast = TrainOptions(preset="speedrun", ema=0.5).resolved().as_dict()
    assert fast.pop("ema") == 0.5 != plain.pop("ema")
    assert fast["epochs"] < plain["epochs"]
    changed = {name for name in plain if fast[name] != plain[name]}
    assert changed == {"preset", "peak_epoch"} | SPEEDRUN.keys()


def test_every_option_is_written_as_json():
    written = json.loads(json.dumps(TrainOptions(mirror=("a", "b")).as_dict()))
    assert written["mirror"] == ["a", "b"]
    assert written.keys() == {f.name for f in dataclasses.fields(TrainOptions)} - {"given"}


def test_a_path_is_written_as_text():
    written = json.loads(json.dumps(TrainOptions(data=Path("a/b"), out=Path("c")).as_dict()))
    assert (written["data"], written["out"]) == (str(Path("a/b")), "c")


def test_the_demo_is_checked_as_what_it_comes_to():
    with pytest.raises(UserError, match="--peak-epoch"):
        TrainOptions(demo=True, peak_epoch=10).resolved().check()


def test_filling_in_defaults_gives_nothing_that_the_user_did_not_give():
    assert TrainOptions(demo=True, epochs=3).resolved().explicit == {"demo", "epochs"}


def saved(**options):
    return TrainOptions(**{"epochs": 10, "lr_max": 0.003} | options).resolved().as_dict()


def test_a_resumed_run_keeps_its_recipe():
    options = TrainOptions(resume="runs/x").continued(saved(weight_decay=0.1))
    assert (options.epochs, options.lr_max, options.weight_decay) == (10, 0.003, 0.1)


def test_resuming_with_another_recipe_is_refused_by_name():
    with pytest.raises(UserError, match="--epochs"):
        TrainOptions(resume="runs/x", epochs=12).continued(saved())


def test_resuming_with_the_default_is_refused_where_the_run_has_another_value():
    options = TrainOptions(resume="runs/x", epochs=24, given=frozenset({"resume", "epochs"}))
    with pytest.raises(UserError, match="--epochs"):
        options.continued(saved())


def test_naming_the_runs_own_value_again_is_allowed():
    assert TrainOptions(resume="runs/x", epochs=10).continued(saved()).epochs == 10


@pytest.mark.parametrize("machine", [{"amp": True}, {"device": "cpu"}, {"data": "elsewhere"}, {"compile": True}])
def test_the_machine_may_change_on_resume(machine):
    options = TrainOptions(resume="runs/x", **machine).continued(saved(device="cuda", data="here"))
    assert {name: getattr(options, name) for name in machine} == machine


def test_amp_may_be_switched_off_on_resume():
    options = TrainOptions(resume="runs/x", amp=False, given=frozenset({"resume", "amp"}))
    assert not options.continued(saved(amp=True)).amp


@pytest.mark.parametrize("path", ["a\0b", "\ud800", Path("a\0b")])
@pytest.mark.parametrize("name", ["data", "data_dir", "out", "resume", "eval_only"])
def test_what_cannot_be_a_path_is_refused_by_name(name, path):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} .* cannot be the name"):
        TrainOptions(**{name: path}).check()


@pytest.mark.parametrize("name", ["batch_size", "seed", "dropout", "val_split"])
def test_a_configuration_that_lacks_an_option_is_refused_and_no_default_takes_its_place(name):
    lacking = saved()
    del lacking[name]
    with pytest.raises(UserError, match=rf"config\.json .* its {name};"):
        TrainOptions(resume="runs/x").continued(lacking)


@pytest.mark.parametrize("name", ["lr_max", "lr_min", "peak_epoch"])
def test_a_configuration_that_leaves_the_cycle_open_is_refused(name):
    with pytest.raises(UserError, match=rf"config\.json .* its {name};"):
        TrainOptions(resume="runs/x").continued(saved() | {name: None})
    TrainOptions(resume="runs/x").continued(saved(epochs=1))


def test_a_configuration_of_before_an_option_of_the_machine_came_is_enough():
    older = saved()
    del older["checkpoint_steps"]
    TrainOptions(resume="runs/x").continued(older).check()


def test_a_resumed_run_passes_its_checks():
    TrainOptions(resume="runs/x").continued(saved(find_lr=False) | {"find_lr": True}).check()


def test_the_assignment_preset_is_plain_adam_with_black_padding_and_rates_of_its_own():
    options = TrainOptions(preset="assignment").resolved()
    assert (options.weight_decay, options.label_smoothing, options.pad_mode) == (0.0, 0.0, "zeros")
    assert options.find_lr
    given = TrainOptions(preset="assignment", lr_max=0.01, pad_mode="reflect", given=frozenset({"lr_max", "pad_mode"}))
    assert (given.resolved().find_lr, given.resolved().lr_max, given.resolved().pad_mode) == (False, 0.01, "reflect")
    given.resolved().check()
