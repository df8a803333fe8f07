"""Any options or command line is accepted, or refused in one line that names what is wrong."""

import json
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fast_cifar.command_line import parse
from fast_cifar.options import RangeTestOptions, TrainOptions, flag_of
from fast_cifar.system.errors import UserError


def refusal(action):
    """The message of the refusal; None where there is none. Any other exception passes."""
    try:
        action()
    except UserError as error:
        return str(error)
    return None


odd_text = st.text(max_size=8) | st.sampled_from(["a\0b", "\ud800", "a\nb", "..", "x" * 300, "zeros", "bf16", "cpu"])
nonsense = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 31, 32, 10**400, -(10**400)])
    | st.floats()
    | odd_text
    | st.binary(max_size=4)
    | st.lists(odd_text | st.integers(), max_size=2)
    | st.sampled_from([{}, Path("a"), Path("a\0b")])
)


def plausible(field):
    """Values of the field's own type: some right, some out of range."""
    kind = str(field.type)
    if "bool" in kind:
        return st.booleans()
    if "int" in kind:
        return st.integers(-2, 40)
    if "float" in kind:
        return st.floats(-0.5, 2)
    if "tuple" in kind:
        return st.lists(st.text(max_size=5), max_size=3).map(tuple)
    choices = field.metadata["keywords"].get("choices")
    return st.sampled_from(choices) if choices else st.text("abc-", min_size=1, max_size=8)


def some_options(kind):
    values = {field.name: plausible(field) | nonsense for field in kind.option_fields()}
    few = st.lists(st.sampled_from(sorted(values)), unique=True, max_size=4)
    return few.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names}))


@pytest.mark.parametrize("kind", [TrainOptions, RangeTestOptions])
@given(st.data())
def test_options_pass_or_are_refused_in_one_line_that_names_one(kind, data):
    values = data.draw(some_options(kind))
    options = kind(**values)
    message = refusal(options.check)
    if message is None:
        assert json.dumps(options.as_dict(), allow_nan=False)
    else:
        assert len(message.splitlines()) == 1
        assert any(flag in message for name, value in values.items() for flag in (flag_of(name), flag_of(name, value)))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(3, 10_000),
            "peak_epoch": st.integers(1, 2),
            "batch_size": st.integers(1, 10**9),
            "lr_max": st.floats(1e-3, 1e3),
            "lr_min": st.floats(1e-9, 1e-4),
            "dropout": st.floats(0, 1, exclude_max=True),
            "width": st.integers(1, 1024),
            "ema": st.floats(0, 1, exclude_max=True),
            "weight_decay": st.floats(0, 1e6),
            "padding": st.integers(0, 31),
            "pad_mode": st.sampled_from(["zeros", "reflect"]),
            "flip": st.booleans(),
            "seed": st.integers(0, 2**62),
            "limit_train": st.none() | st.integers(1, 10**9),
            "mirror": st.lists(st.text(), max_size=3).map(tuple),
            "data": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
            "amp": st.booleans(),
        },
    )
)
def test_options_come_back_from_their_json(values):
    options = TrainOptions(**values)
    options.check()
    options = options.resolved()
    saved = json.loads(json.dumps(options.as_dict()))
    back = TrainOptions(resume="runs/a").continued(saved)
    back.check()
    assert back == options.replace(resume="runs/a")
    assert json.loads(json.dumps(back.as_dict())) == saved | {"resume": "runs/a"}


flags = st.sampled_from([flag_of(name) for name in TrainOptions().as_dict()])
tokens = (
    flags | st.tuples(flags, odd_text).map("=".join) | odd_text | st.sampled_from(["--", "-1", "3", "0.1", "-h", "--x"])
)


@given(st.lists(tokens, max_size=6), st.sampled_from([TrainOptions, RangeTestOptions]))
def test_a_command_line_is_understood_or_refused_in_one_line(arguments, kind):
    with suppress(SystemExit) if "-h" in arguments else nullcontext():
        message = refusal(lambda: parse(kind, "", arguments).check())
        assert message is None or len(message.splitlines()) == 1
