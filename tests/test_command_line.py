"""The command line: what it gives to the options, and how it refuses."""

import dataclasses

import pytest

from fast_cifar.command_line import parse
from fast_cifar.options import RangeTestOptions, TrainOptions
from fast_cifar.system.errors import UserError

CONTRACT_TRAIN = [
    "--data",
    "--data-dir",
    "--mirror",
    "--resize",
    "--epochs",
    "--peak-epoch",
    "--batch-size",
    "--lr-max",
    "--lr-min",
    "--find-lr",
    "--weight-decay",
    "--label-smoothing",
    "--dropout",
    "--width",
    "--ema",
    "--preset",
    "--alternate-flips",
    "--padding",
    "--pad-mode",
    "--cutout",
    "--no-flip",
    "--amp",
    "--amp-dtype",
    "--compile",
    "--device",
    "--no-channels-last",
    "--deterministic",
    "--seed",
    "--runs",
    "--val-split",
    "--limit-train",
    "--limit-test",
    "--eval-every",
    "--tta",
    "--out",
    "--name",
    "--resume",
    "--eval-only",
    "--summary",
    "--demo",
]
CONTRACT_LRFIND = [
    "--data",
    "--batch-size",
    "--amp",
    "--device",
    "--weight-decay",
    "--out",
    "--name",
    "--lr-start",
    "--lr-end",
    "--iters",
    "--sweep",
    "--repeats",
    "--loss-on",
]


def test_no_arguments_give_the_defaults():
    assert parse(TrainOptions, "", []) == TrainOptions()
    assert parse(RangeTestOptions, "", []) == RangeTestOptions()


@pytest.mark.parametrize(("options", "names"), [(TrainOptions, CONTRACT_TRAIN), (RangeTestOptions, CONTRACT_LRFIND)])
def test_help_lists_every_option_of_the_contract(options, names, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(options, "", ["--help"])
    assert stop.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(names) <= set(words)


def test_every_option_has_help():
    assert all(len(f.metadata["help"]) > 10 for f in dataclasses.fields(TrainOptions) if f.name != "given")


def test_values_arrive_with_their_types():
    options = parse(TrainOptions, "", ["--epochs", "3", "--lr-max", "1e-3", "--name", "7", "--amp", "--no-flip"])
    assert (options.epochs, options.lr_max, options.name, options.amp, options.flip) == (3, 1e-3, "7", True, False)


def test_mirrors_keep_their_order():
    assert parse(TrainOptions, "", ["--mirror", "b", "--mirror", "a"]).mirror == ("b", "a")


def test_what_was_given_is_remembered_even_if_it_is_the_default():
    assert parse(TrainOptions, "", ["--epochs", "24", "--amp"]).explicit == {"epochs", "amp"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epoch", "3"],
        ["--batch", "64"],
        ["--colour"],
        ["--lr-max", "fast"],
        ["--epochs", "2.5"],
        ["--epochs"],
        ["x"],
        ["a\nb"],
    ],
)
def test_a_wrong_command_line_is_one_line(arguments):
    with pytest.raises(UserError) as caught:
        parse(TrainOptions, "", arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert "usage" not in str(caught.value)
