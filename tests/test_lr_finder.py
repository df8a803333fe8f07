"""The range test: that it leaves no trace, what it answers, and the command around it."""

import json

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from fast_cifar.build import build_setup
from fast_cifar.lr_finder import find_lr, next_command, range_test, sweep
from fast_cifar.optimizer import make_optimizer
from fast_cifar.options import RangeTestOptions
from fast_cifar.system.device import Precision
from fast_cifar.system.errors import UserError
from fast_cifar.train_step import TrainStep
from tests.helpers.states import flat
from tests.helpers.sweeping import network


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_model_optimizer_and_random_state_are_bit_identical_afterwards(pair, loader, used, amp):
    model, optimizer = pair
    if used:
        TrainStep(model, optimizer, Precision("cpu", torch.float32))(*next(iter(loader)))
    before = flat(model.state_dict()), flat(optimizer.state_dict()), torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    range_test(model, optimizer, loader, iters=40, amp=amp)
    assert flat(model.state_dict()) == before[0]
    assert flat(optimizer.state_dict()) == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert (np.random.get_state()[1] == before[3]).all()  # noqa: NPY002
    assert all((p.grad is not None) is used for p in model.parameters())


def test_the_same_start_gives_the_same_answer(loader):
    answers = []
    for _ in range(2):
        model = network()
        answers.append(range_test(model, make_optimizer(model, 0.01), loader, iters=40))
    assert answers[0] == answers[1]


def test_a_sweep_of_one_step_is_refused(pair, loader):
    with pytest.raises(ValueError, match="iters"):
        range_test(*pair, loader, iters=1)


class Answering:
    """A step whose losses are made up: `curves[k][i]` is that of step i of the k-th sweep, which begins when the
    scaler is loaded."""

    def __init__(self, model, optimizer, curves):
        self.model, self.optimizer = model, optimizer
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.losses, self.curves = iter(curves[0]), iter(curves)

    def load_scaler(self, state):
        self.losses = iter(next(self.curves))

    def __call__(self, inputs, labels):
        return torch.tensor(next(self.losses)), None, True


@pytest.fixture
def answer(monkeypatch):
    """Makes the losses up, a list for each sweep: `answer([2.3, ...], ...)`."""

    def patch(*curves):
        for module in ("lr_finder", "build"):
            monkeypatch.setattr(
                f"fast_cifar.{module}.TrainStep",
                lambda model, optimizer, *_, **__: Answering(model, optimizer, curves),
            )

    return patch


def test_a_loss_that_is_infinite_at_once_is_said_so(pair, loader, answer):
    answer([2.3, float("inf")])
    with pytest.raises(UserError, match="--lr-start"):
        range_test(*pair, loader)


DIVERGES_AT_ONCE = [2.3] * 5 + [float("nan")]
NEVER_FALLS = np.linspace(2.3, 3.0, 118).tolist()
NEVER_DIVERGES = np.linspace(2.3, 1.0, 118).tolist()


def basin(lr=1e-3, noise=0.0, steps=118):
    """A loss that falls around a tenth of `lr` and diverges from ten times as much on, over the default sweep."""
    decades = np.log10(np.geomspace(1e-6, 1, steps) / lr)
    loss = 2.3 - 1.2 / (1 + np.exp(-4 * (decades + 1))) + np.exp(np.clip(6 * (decades - 1), -50, 3))
    return (loss + noise * np.random.default_rng(0).standard_normal(steps)).tolist()


@pytest.mark.parametrize(
    ("losses", "said"), [(DIVERGES_AT_ONCE, "diverged after 5 steps"), (NEVER_FALLS, "never fell")]
)
def test_a_curve_that_says_nothing_ends_the_command_and_leaves_no_folder(
    small_network, options, tmp_path, answer, losses, said
):
    answer(losses)
    with pytest.raises(UserError, match=said):
        find_lr(options.replace(iters=118), log=print)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("losses", "said"),
    [(DIVERGES_AT_ONCE, "diverged after 5 steps"), (NEVER_FALLS, "never fell"), (NEVER_DIVERGES, "did not diverge")],
)
def test_what_makes_a_curve_doubtful_is_among_its_warnings(pair, loader, answer, losses, said):
    answer(losses)
    assert any(said in warning for warning in range_test(*pair, loader).warnings)


def test_a_basin_that_ends_in_divergence_needs_no_warning(pair, loader, answer):
    answer(basin())
    result = range_test(*pair, loader)
    assert result.warnings == []
    assert result.diverged
    assert 3e-3 < result.divergence < 3e-2


def test_a_constant_loss_can_be_read_by_nobody(pair, loader, answer):
    answer([2.3] * 118)
    result = range_test(*pair, loader)
    assert not result.diverged
    assert "never fell" in result.warnings[0]


def test_a_sweep_of_another_shape_is_refused(pair, loader):
    with pytest.raises(ValueError, match="exponential, linear"):
        range_test(*pair, loader, sweep="cosine")


def test_the_suggestion_is_five_floats_in_order(pair, loader):
    found = range_test(*pair, loader, iters=60).suggestion
    assert all(isinstance(value, float) for value in vars(found).values())
    assert 0 < found.lr_min < found.lr_max


@pytest.fixture
def options(class_folder, tmp_path):
    return RangeTestOptions(
        data=str(class_folder),
        data_dir=str(tmp_path / "data"),
        out=str(tmp_path / "runs"),
        name="test",
        batch_size=8,
        iters=60,
        device="cpu",
    )


def test_the_whole_command_writes_a_run_folder_and_says_what_to_do_next(small_network, options, tmp_path):
    lines = []
    result = find_lr(options, log=lines.append)
    written = json.loads((tmp_path / "runs/test/lrfind.json").read_text())
    assert written["lrs"] == result.lrs
    assert written.keys() >= {"lrs", "losses", "smoothed", "suggestion"}
    assert written.keys() >= {"divergence", "warnings", "sweep", "repeats", "seeds", "lr_max_spread"}
    assert written["suggestion"]["lr_max"] == result.suggestion.lr_max
    assert (tmp_path / "runs/test/lrfind.png").stat().st_size > 5000
    assert lines[-1].startswith("python run_train.py ")


def test_the_next_command_repeats_what_was_given(options, pair, loader):
    found = range_test(*pair, loader, iters=40).suggestion
    unlike_training = {"repeats": 3, "sweep": "linear", "val_split": 2, "loss_on": "val"}
    line = next_command(options.replace(flip=False, amp=True, mirror=("u", "v"), **unlike_training), found)
    assert f"--data {options.data}" in line
    assert "--batch-size 8" in line
    assert "--no-flip" in line
    assert "--amp " in line
    assert "--mirror u --mirror v" in line
    assert "--iters" not in line
    assert "--repeats" not in line
    assert "--sweep" not in line
    assert "--loss-on" not in line
    assert "--val-split 2" in line
    assert "--name" not in line
    assert f"--lr-max {found.lr_max:.3g}" in line


def test_an_existing_run_folder_is_left_alone(options, tmp_path):
    (tmp_path / "runs/test").mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        find_lr(options, log=print)


def test_several_seeds_are_the_single_sweeps_of_each(small_network, options):
    setup = build_setup(options)
    together = sweep(setup, 3, options.replace(repeats=2))
    alone = [sweep(setup, seed, options).repeats[0] for seed in (3, 4)]
    assert together.repeats == alone
    assert together.seeds == [3, 4]
    assert alone[0].losses != alone[1].losses


def test_one_seed_is_the_range_test_of_its_network(small_network, options):
    result = sweep(build_setup(options), 3, options)
    assert (result.lrs, result.losses, result.suggestion) == (
        result.repeats[0].lrs,
        result.repeats[0].losses,
        result.repeats[0].suggestion,
    )
    assert result.lr_max_spread is None


def test_several_seeds_write_each_curve_and_say_how_sure_they_are(small_network, options, tmp_path, answer):
    answer(basin(1e-3), basin(1.5e-3), basin(2e-3))
    lines = []
    result = find_lr(options.replace(iters=118, repeats=3), log=lines.append)
    written = json.loads((tmp_path / "runs/test/lrfind.json").read_text())
    assert [one["losses"] for one in written["repeats"]] == [one.losses for one in result.repeats]
    assert written["repeats"][0]["losses"] == pytest.approx(basin(1e-3)[: len(result.repeats[0].lrs)])
    assert written["lr_max_spread"]["highest"] == pytest.approx(2 * written["lr_max_spread"]["lowest"], rel=0.15)
    assert written["suggestion"]["lr_max"] == pytest.approx(
        np.prod([one.suggestion.lr_max for one in result.repeats]) ** (1 / 3)
    )
    assert sum(line.startswith("seed ") for line in lines) == 3
    assert any("95 % interval" in line for line in lines)
    assert not any("one seed" in line for line in lines)


def test_seeds_that_disagree_are_said_so(small_network, options, tmp_path, answer):
    answer(basin(1e-3), basin(5e-3))
    lines = []
    find_lr(options.replace(iters=118, repeats=2), log=lines.append)
    assert any(line.startswith("warning: the seeds' LRMAX disagree by a factor of ") for line in lines)
    assert "disagree" in json.loads((tmp_path / "runs/test/lrfind.json").read_text())["warnings"][0]


@pytest.mark.parametrize("bad", [DIVERGES_AT_ONCE, NEVER_FALLS, [float("inf")]])
def test_a_seed_whose_curve_says_nothing_is_left_out_and_named(small_network, options, answer, bad):
    answer(basin(), bad, basin())
    result = sweep(build_setup(options), 0, options.replace(iters=118, repeats=3))
    assert result.seeds == [0, 2]
    assert result.suggestion.lr_max == pytest.approx(result.repeats[0].suggestion.lr_max)
    assert result.warnings[0].startswith("seed 1 is left out: ")


def test_seeds_that_all_say_nothing_end_the_command(small_network, options, answer):
    answer(DIVERGES_AT_ONCE, NEVER_FALLS)
    with pytest.raises(UserError, match="diverged after 5 steps"):
        find_lr(options.replace(iters=118, repeats=2), log=print)


def test_one_seed_says_how_to_be_surer(small_network, options):
    lines = []
    find_lr(options, log=lines.append)
    assert any("--repeats 3" in line for line in lines)


@pytest.mark.parametrize(
    "changes",
    [
        {"amp": True},
        {"weight_decay": 0.1, "label_smoothing": 0.1, "dropout": 0.2},
        {"batch_size": 1},
        {"batch_size": 24},
        {"sweep": "linear", "lr_end": 0.1},
        {"val_split": 4, "loss_on": "val", "amp": True},
        {"val_split": 12, "loss_on": "val", "batch_size": 12, "repeats": 2, "sweep": "linear"},
    ],
    ids=str,
)
def test_it_answers_however_it_trains(small_network, options, tmp_path, changes):
    result = find_lr(options.replace(**changes), log=print)
    assert 0 < result.suggestion.lr_min < result.suggestion.lr_max <= options.lr_end
    assert (tmp_path / "runs/test/lrfind.png").exists()


def test_several_seeds_compile_once(small_network, options):
    def graphs(repeats):
        torch._dynamo.reset()
        counters["stats"].clear()
        sweep(build_setup(options), 0, options.replace(repeats=repeats))
        return counters["stats"]["unique_graphs"]

    options = options.replace(compile=True, iters=30, val_split=4, loss_on="val")
    assert graphs(3) == graphs(1) > 0
