"""What holds for every input: schedules, draws, augmentation, options, command lines and files."""

import dataclasses
import json
import math
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import OneCycleLR

from fast_cifar.augment import apply, draw
from fast_cifar.command_line import parse
from fast_cifar.options import RangeTestOptions, TrainOptions, flag_of
from fast_cifar.runs.run_folder import RunFolder
from fast_cifar.schedules import one_cycle, sweep_rates
from fast_cifar.system.errors import UserError, run_script
from fast_cifar.system.files import atomic_write
from tests.helpers.augmenting import MEAN, NAMES, STD, random_images, seeded, torchvision_reference


def refusal(action):
    """The message of the refusal; None where there is none. Any other exception passes."""
    try:
        action()
    except UserError as error:
        return str(error)
    return None


some = settings(derandomize=True, deadline=None, max_examples=60, database=None)
many = settings(some, max_examples=200)

rates = st.tuples(st.floats(1e-9, 1e-1), st.floats(1.001, 1e4)).map(lambda pair: (pair[0], pair[0] * pair[1]))
cycles = st.integers(3, 400).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total - 2)))


@some
@given(cycles, rates)
def test_a_cycle_climbs_to_its_peak_and_comes_down_and_never_leaves_its_range(cycle, pair):
    (total, peak), (low, high) = cycle, pair
    f = one_cycle(total, peak, low, high)
    values = [f(step) for step in range(total + 5)]
    assert all(a < b for a, b in zip(values[:peak], values[1 : peak + 1], strict=True))
    assert all(a > b for a, b in zip(values[peak : total - 1], values[peak + 1 : total], strict=True))
    assert values[peak] == 1
    assert values[0] == min(values) == low / high
    assert set(values[total - 1 :]) == {low / high}


@some
@given(cycles, rates)
def test_a_cycle_is_torchs_wherever_torch_has_the_same(cycle, pair):
    (total, peak), (low, high) = cycle, pair
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=high)
    share = (peak + 1) / total  # torch's peak is at step pct_start * total_steps - 1
    theirs = OneCycleLR(
        optimizer,
        high,
        total,
        pct_start=share,
        anneal_strategy="linear",
        div_factor=high / low,
        final_div_factor=1,
        cycle_momentum=False,
    )
    f = one_cycle(total, peak, low, high)
    for step in range(total):
        assert high * f(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            theirs.step()


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, -1.0, 1e-3, 0.1, 1.0])


@many
@given(st.integers(-3, 20), st.integers(-3, 20), numbers, numbers)
@example(3, 1, 0.1, 0.1)
@example(3, 1, 0.1, 1.0)
def test_a_cycle_is_refused_out_of_its_ranges_and_only_there(total, peak, low, high):
    if 0 < peak < total - 1 and 0 < low < high < math.inf:
        assert one_cycle(total, peak, low, high)(peak) == 1
    else:
        with pytest.raises(ValueError, match=r"peak_step|lr_min"):
            one_cycle(total, peak, low, high)


@some
@given(st.integers(2, 300), rates)
def test_a_sweep_rises_by_one_factor_from_its_first_rate_to_its_last(iters, pair):
    low, high = pair
    values = sweep_rates("exponential", iters, low, high)
    assert (len(values), values[0], values[-1]) == (iters, low, high)
    factor = (high / low) ** (1 / (iters - 1))
    assert [b / a for a, b in zip(values, values[1:], strict=False)] == pytest.approx([factor] * (iters - 1))


@many
@given(st.integers(-3, 20), numbers, numbers)
def test_a_sweep_is_refused_out_of_its_ranges_and_only_there(iters, low, high):
    if iters >= 2 and 0 < low < high < math.inf:
        assert sweep_rates("exponential", iters, low, high)[-1] == high
    else:
        with pytest.raises(ValueError, match=r"iters|lr_start"):
            sweep_rates("exponential", iters, low, high)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@st.composite
def augmentations(draw_value):
    """(size, padding, cutout) that fit each other."""
    size = draw_value(sizes)
    return size, draw_value(st.integers(0, 12)), draw_value(st.integers(0, min(size)))


@some
@given(augmentations(), st.integers(0, 50), st.booleans(), st.integers(0, 2**63 - 1))
def test_draws_stay_in_their_ranges_and_repeat(options, n, flip, seed):
    (height, width), padding, cutout = options
    keywords = {"padding": padding, "cutout": cutout, "size": (height, width), "flip": flip}
    draws, again = (draw(n, generator=seeded(seed), **keywords) for _ in range(2))
    most = {
        "crop_y": 2 * padding,
        "crop_x": 2 * padding,
        "flip": flip,
        "cut_y": height - cutout,
        "cut_x": width - cutout,
    }
    for name in NAMES:
        values = getattr(draws, name)
        assert values.shape == (n,)
        assert values.dtype == (torch.bool if name == "flip" else torch.int64)
        assert ((values >= 0) & (values <= most[name])).all()
        assert torch.equal(values, getattr(again, name))


@some
@given(augmentations(), st.integers(1, 50), st.integers(0, 2**63 - 1), st.sampled_from(["padding", "cutout", "flip"]))
def test_what_is_switched_off_leaves_the_other_choices_alone(options, n, seed, name):
    size, padding, cutout = options
    keywords = {"padding": padding, "cutout": cutout, "size": size}
    on = draw(n, generator=seeded(seed), **keywords)
    off = draw(n, generator=seeded(seed), **keywords | {name: 0})
    mine = {"padding": {"crop_y", "crop_x"}, "cutout": {"cut_y", "cut_x"}, "flip": {"flip"}}[name]
    for other in set(NAMES) - mine:
        assert torch.equal(getattr(on, other), getattr(off, other))


@some
@given(augmentations(), st.integers(1, 4), st.sampled_from(["zeros", "reflect"]), st.booleans(), st.integers(0, 2**31))
def test_apply_does_what_torchvision_does(options, n, pad_mode, flip, seed):
    (height, width), padding, cutout = options
    assume(pad_mode == "zeros" or padding < min(height, width))
    images = random_images(n, height, width, seed)
    draws = draw(n, padding=padding, cutout=cutout, size=(height, width), flip=flip, generator=seeded(seed))
    ours = apply(images, draws, mean=MEAN, std=STD, padding=padding, cutout=cutout, pad_mode=pad_mode)
    theirs = [torchvision_reference(image, draws[i], padding, cutout, pad_mode) for i, image in enumerate(images)]
    torch.testing.assert_close(ours, torch.stack(theirs))


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
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "given"}
    values = {name: plausible(field) | nonsense for name, field in fields.items()}
    few = st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=4)
    return few.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names}))


@many
@given(some_options(TrainOptions))
@example({"lr_min": 1e-300})
@example({"mirror": [1]})
@example({"data": "a\0b"})
def test_options_pass_or_are_refused_in_one_line_that_names_one(values):
    refuses_or_passes(TrainOptions(**values), values)


@many
@given(some_options(RangeTestOptions))
def test_options_of_the_range_test_pass_or_are_refused_in_one_line_that_names_one(values):
    refuses_or_passes(RangeTestOptions(**values), values)


def refuses_or_passes(options, values):
    message = refusal(options.check)
    if message is None:
        assert json.dumps(options.as_dict(), allow_nan=False)
    else:
        assert len(message.splitlines()) == 1
        assert any(flag_of(name) in message for name in values)


@some
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


@some
@given(st.sampled_from(sorted(set(TrainOptions().as_dict()) - TrainOptions.names(resumable=True) - {"resume"})))
def test_a_configuration_that_lacks_an_option_of_the_recipe_is_refused_by_name(name):
    saved = TrainOptions().resolved().as_dict()
    del saved[name]
    with pytest.raises(UserError, match=rf"config\.json .* its {name};"):
        TrainOptions(resume="runs/a").continued(saved)


flags = st.sampled_from([flag_of(name) for name in TrainOptions().as_dict()])
tokens = (
    flags | st.tuples(flags, odd_text).map("=".join) | odd_text | st.sampled_from(["--", "-1", "3", "0.1", "-h", "--x"])
)


@many
@given(st.lists(tokens, max_size=6), st.sampled_from([TrainOptions, RangeTestOptions]))
def test_a_command_line_is_understood_or_refused_in_one_line(arguments, kind):
    with suppress(SystemExit) if "-h" in arguments else nullcontext():
        message = refusal(lambda: parse(kind, "", arguments).check())
        assert message is None or len(message.splitlines()) == 1


def test_a_script_says_what_is_wrong_with_its_command_line_in_one_line(capsys):
    assert run_script(lambda: parse(TrainOptions, "", ["a\nb\u2028c"])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unrecognized arguments: a b c")
    assert len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@some
@given(st.lists(st.binary(max_size=5000), max_size=3), st.binary(max_size=100))
def test_a_file_is_replaced_as_a_whole_or_not_at_all(place, parts, before):
    path, previous = place / "a", place / "b"
    path.write_bytes(before)
    with suppress(ZeroDivisionError), atomic_write(path) as file:
        file.writelines(parts)
        raise ZeroDivisionError
    assert path.read_bytes() == before
    with atomic_write(path, previous=previous) as file:
        file.writelines(parts)
    assert path.read_bytes() == b"".join(parts)
    assert previous.read_bytes() == before
    assert sorted(place.iterdir()) == [path, previous]


ROW = {
    "lr": 0.1,
    "train_loss": 1.0,
    "train_accuracy": 0.5,
    "test_loss": None,
    "test_accuracy": None,
    "images_per_second": 9.0,
    "seconds": 1.0,
    "evaluation_seconds": 0.5,
}
lines = st.binary(max_size=60) | st.sampled_from(
    [b"[]", b"null", b"{}", b'{"epoch": NaN}', b"[" * 5000, b"9" * 5000, b"\xff", b"\xef\xbb\xbf{}"]
    + [json.dumps({"epoch": epoch} | ROW).encode() for epoch in (1, 2, 3)]
)


@many
@given(st.lists(lines, max_size=5).map(b"\n".join), st.integers(0, 3))
@example(b"\n".join(json.dumps({"epoch": epoch} | ROW).encode() for epoch in (1, 2, 3)), 3)
def test_any_bytes_are_a_history_or_refused_by_name(place, contents, epochs):
    folder = RunFolder(place / "run")
    folder.path.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_bytes(contents)
    assert all(isinstance(row, dict) for row in folder.history())
    message = refusal(lambda: folder.cut_history(epochs))
    if message is None:
        assert [row["epoch"] for row in folder.history()] == list(range(1, epochs + 1))
    else:
        assert str(folder / "metrics.jsonl") in message
        assert (folder / "metrics.jsonl").read_bytes() == contents
