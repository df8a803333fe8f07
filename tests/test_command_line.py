"""The command line: what it gives to the options, and how it refuses."""

import pytest

from fast_cifar.command_line import parse
from fast_cifar.options import RangeTestOptions, TrainOptions, flag_of
from fast_cifar.system.errors import UserError


@pytest.mark.parametrize("options", [TrainOptions, RangeTestOptions])
def test_help_lists_and_explains_every_option(options, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(options, "", ["--help"])
    assert stop.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    assert {flag_of(f.name, f.default is not True) for f in options.option_fields()} <= set(words)
    assert all(len(f.metadata["help"]) > 10 for f in options.option_fields())


def test_values_arrive_with_their_types():
    options = parse(TrainOptions, "", ["--epochs", "3", "--lr-max", "1e-3", "--name", "7", "--amp", "--no-flip"])
    assert (options.epochs, options.lr_max, options.name, options.amp, options.flip) == (3, 1e-3, "7", True, False)


def test_the_given_options_are_remembered_even_with_the_default_and_mirrors_in_order():
    options = parse(TrainOptions, "", ["--epochs", "24", "--mirror", "b", "--mirror", "a"])
    assert options.explicit == {"epochs", "mirror"}
    assert options.mirror == ("b", "a")


@pytest.mark.parametrize(
    "words", ["--epoch 3", "--batch 64", "--colour", "--lr-max fast", "--epochs 2.5", "--epochs", "x", "a\nb"]
)
def test_a_wrong_command_line_is_refused_in_one_line(words):
    with pytest.raises(UserError) as caught:
        parse(TrainOptions, "", words.split(" "))
    assert len(str(caught.value).splitlines()) == 1
    assert "usage" not in str(caught.value)
