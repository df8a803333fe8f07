"""Options: the defaults of the recipe, what is refused, and what may change on resume."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from fast_cifar.options import PRESETS, RangeTestOptions, TrainOptions, flag_of
from fast_cifar.system.errors import UserError


def test_the_defaults_are_the_recipe():
    options = TrainOptions().resolved()
    recipe = (options.batch_size, options.epochs, options.peak_epoch, options.padding, options.cutout, options.flip)
    assert recipe == (512, 24, 5, 4, 8, True)
    assert (options.dropout, options.ema, options.alternate_flips) == (0, 0, False)
    # docs/recipe.md says why:
    assert (options.weight_decay, options.label_smoothing, options.pad_mode) == (0.5, 0.1, "reflect")
    assert 0 < options.lr_min < options.lr_max


@pytest.mark.parametrize(("epochs", "peak"), [(24, 5), (4, 1), (2, 1), (10, 2), (48, 10), (100, 21), (1, None)])
def test_the_peak_comes_after_5_24ths_of_the_epochs_and_one_epoch_has_none(epochs, peak):
    assert TrainOptions(epochs=epochs).resolved().peak_epoch == peak


OUT_OF_RANGE = {
    "amp_dtype": ["int8"],
    "batch_size": [0],
    "cutout": [33, -1],
    "dropout": [1.0, -0.1, math.nan],
    "ema": [1.0, -0.1, math.nan],
    "epochs": [0, 10**11],
    "eval_every": [0],
    "label_smoothing": [1.0, -0.1],
    "limit_train": [0],
    "limit_test": [-1],
    "lr_max": [0.0, -1.0, math.nan, math.inf, 5e-324, 1e308],
    "lr_min": [0.0, math.nan, 0.5],
    "name": ["../elsewhere", "", "..", "a" * 101, "a\nb"],
    "pad_mode": ["wrap"],
    "padding": [-1, 32],
    "peak_epoch": [0, 24],
    "preset": ["slow"],
    "runs": [0],
    "seed": [-1, 2**70],
    "val_split": [0],
    "weight_decay": [-1.0, math.nan, 1e300],
    "width": [0, 1025],
}


def each(options):
    return [{name: value} for name, values in options.items() for value in values]


@pytest.mark.parametrize(
    "bad",
    [
        *each(OUT_OF_RANGE),
        {"peak_epoch": 3, "epochs": 3},
        {"lr_min": 0.1, "lr_max": 0.1},
        {"lr_min": 0.2, "lr_max": 0.1},
        {"preset": "speedrun", "demo": True},
        {"find_lr": True, "lr_max": 0.1},
        {"alternate_flips": True, "flip": False},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_by_name_in_one_line(bad):
    with pytest.raises(UserError, match=flag_of(next(iter(bad)))) as caught:
        TrainOptions(**bad).check()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "bad",
    [
        *each({"iters": [9], "lr_end": [math.nan], "lr_start": [0.0, 2.0], "repeats": [0, 101], "sweep": ["cosine"]}),
        {"lr_start": 1.0, "lr_end": 1.0},
        {"loss_on": "test", "val_split": 10},
        {"val_split": None, "loss_on": "val"},
    ],
    ids=str,
)
def test_a_value_of_the_range_test_out_of_range_is_refused_by_name(bad):
    with pytest.raises(UserError, match=flag_of(next(iter(bad)))):
        RangeTestOptions(**bad).check()


@pytest.mark.parametrize(
    "fine",
    [
        TrainOptions(),
        TrainOptions(padding=0, cutout=0),
        TrainOptions(padding=31, cutout=32, dropout=0.99),
        TrainOptions(epochs=1),
        TrainOptions(lr_max=1, lr_min=None, data=Path("x"), mirror=["http://one"]),
        RangeTestOptions(repeats=100, sweep="linear", loss_on="val", val_split=10),
    ],
)
def test_the_ends_of_each_range_and_equivalent_types_are_allowed(fine):
    fine.check()


WRONG_TYPES = {
    "epochs": ["3", 3.0, None, True],
    "lr_max": ["fast"],
    "amp": [1],
    "data": [None],
    "mirror": ["http://one", [1]],
    "name": [7, Path("x")],
    "runs": [[1]],
    "device": [Path("cpu")],
}


@pytest.mark.parametrize("bad", each(WRONG_TYPES), ids=str)
def test_a_value_of_another_type_is_refused_by_name(bad):
    with pytest.raises(UserError, match=f"{flag_of(next(iter(bad)))} .* wrong type"):
        TrainOptions(**bad).check()


def test_the_demo_fills_in_only_what_was_not_given_and_is_checked_as_a_whole():
    options = TrainOptions(demo=True, epochs=3).resolved()
    assert (options.data, options.epochs) == ("synthetic", 3)
    assert options.limit_train is not None
    assert options.explicit == {"demo", "epochs"}
    with pytest.raises(UserError, match="--peak-epoch"):
        TrainOptions(demo=True, peak_epoch=10).resolved().check()


def test_the_speedrun_is_the_recipe_but_for_what_it_changes_and_what_was_given():
    plain = TrainOptions().resolved().as_dict()
    fast = TrainOptions(preset="speedrun", ema=0.5).resolved().as_dict()
    assert fast.pop("ema") == 0.5 != plain.pop("ema")
    assert fast["epochs"] < plain["epochs"]
    changed = {name for name in plain if fast[name] != plain[name]}
    assert changed == {"preset", "peak_epoch"} | PRESETS["speedrun"].keys()


def test_every_option_is_written_as_json():
    written = json.loads(json.dumps(TrainOptions(mirror=("a", "b"), data=Path("c")).as_dict()))
    assert (written["mirror"], written["data"]) == (["a", "b"], "c")
    assert written.keys() == {f.name for f in dataclasses.fields(TrainOptions)} - {"given"}


def saved(**options):
    return TrainOptions(**{"epochs": 10, "lr_max": 0.003} | options).resolved().as_dict()


def resumed(run, **options):
    """The options with which a run with the options `run` is resumed."""
    return TrainOptions(resume="runs/x", **options).continued(run)


def given(**options):
    return {**options, "given": frozenset({"resume", *options})}


def test_a_resumed_run_keeps_its_recipe_whether_or_not_it_is_given_again():
    for options in (resumed(saved(weight_decay=0.1)), resumed(saved(weight_decay=0.1), epochs=10)):
        assert (options.epochs, options.lr_max, options.weight_decay) == (10, 0.003, 0.1)


@pytest.mark.parametrize("other", [{"epochs": 12}, given(epochs=24)], ids=["another value", "the default"])
def test_resuming_with_another_recipe_is_refused_by_name(other):
    with pytest.raises(UserError, match="--epochs"):
        resumed(saved(), **other)


def test_a_measured_rate_is_refused_in_six_digits():
    with pytest.raises(UserError, match="--lr-max: the run has 0.0126638, not 0.01;"):
        resumed(saved(lr_max=0.012663801734674022), lr_max=0.01)


@pytest.mark.parametrize(
    "machine", [{"amp": True}, {"device": "cpu"}, {"data": "elsewhere"}, {"compile": True}, given(amp=False)]
)
def test_the_machine_may_change_on_resume(machine):
    options = resumed(saved(device="cuda", data="here", amp="given" in machine), **machine)
    assert {name: getattr(options, name) for name in machine} == machine


@pytest.mark.parametrize("path", ["a\0b", "\ud800", Path("a\0b")])
@pytest.mark.parametrize("name", ["data", "data_dir", "out", "resume", "eval_only"])
def test_what_cannot_be_a_path_is_refused_by_name(name, path):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} .* cannot be the name"):
        TrainOptions(**{name: path}).check()


@pytest.mark.parametrize("name", sorted(set(saved()) - TrainOptions.names(resumable=True) - {"resume"}))
def test_a_configuration_that_lacks_an_option_of_the_recipe_is_refused(name):
    lacking = saved()
    del lacking[name]
    with pytest.raises(UserError, match=rf"config\.json .* its {name};"):
        resumed(lacking)


@pytest.mark.parametrize("name", ["lr_max", "lr_min", "peak_epoch"])
def test_a_configuration_without_the_values_of_the_cycle_is_refused(name):
    with pytest.raises(UserError, match=rf"config\.json .* its {name};"):
        resumed(saved() | {name: None})
    resumed(saved(epochs=1))


def test_an_older_configuration_may_lack_a_newer_option_of_the_machine():
    older = saved()
    del older["checkpoint_steps"]
    resumed(older).check()


def test_the_options_of_a_resumed_run_pass_their_checks():
    resumed(saved(find_lr=False) | {"find_lr": True}).check()


def test_the_assignment_preset_is_plain_adam_with_black_padding_and_rates_of_its_own():
    options = TrainOptions(preset="assignment").resolved()
    assert (options.weight_decay, options.label_smoothing, options.pad_mode) == (0.0, 0.0, "zeros")
    assert options.find_lr
    given = TrainOptions(preset="assignment", lr_max=0.01, pad_mode="reflect", given=frozenset({"lr_max", "pad_mode"}))
    assert (given.resolved().find_lr, given.resolved().lr_max, given.resolved().pad_mode) == (False, 0.01, "reflect")
    given.resolved().check()


def test_only_the_machine_the_place_of_the_data_and_how_often_to_save_may_change_on_resume():
    machine = {"device", "compile", "amp", "amp_dtype", "channels_last"}
    assert TrainOptions.names(resumable=True) == machine | {"data", "data_dir", "mirror", "checkpoint_steps"}
