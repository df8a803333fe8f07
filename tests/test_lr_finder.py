"""The range test: its losses against a plain loop, the state it restores, and the command around it."""

import copy
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

from fast_cifar.build import build_setup
from fast_cifar.loader import DeviceLoader
from fast_cifar.lr_finder import find_lr, held_out_loss, next_command, range_test, sweep
from fast_cifar.optimizer import make_optimizer
from fast_cifar.options import RangeTestOptions
from fast_cifar.system.errors import UserError
from fast_cifar.train_step import TrainStep
from tests.helpers.images import random_images
from tests.helpers.networks import FP32, flat, network
from tests.helpers.runs import read_json, silent


@pytest.fixture
def loader():
    """Batches of 16 images of two classes, one redder than the other, which are learned in a few steps."""
    labels = torch.randint(2, (128,), generator=torch.Generator().manual_seed(0))
    images = (
        random_images(128) // 3 + 100 * labels[:, None, None, None].to(torch.uint8) * torch.eye(3, dtype=torch.uint8)[0]
    )
    return DeviceLoader(images, labels, 16, train=True, device="cpu")


@pytest.fixture
def pair():
    """A network for these images, and its optimiser."""
    model = network(2, dropout=0.1)
    return model, make_optimizer(model, 0.01)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_model_optimizer_random_state_and_epoch_are_bit_identical_afterwards(pair, loader, used, amp):
    model, optimizer = pair
    if used:
        TrainStep(model, optimizer, FP32)(*next(iter(loader)))
    loader.set_epoch(3)

    def everything():
        states = flat(model.state_dict()), flat(optimizer.state_dict()), torch.get_rng_state().tolist()
        return *states, np.random.get_state()[1].tolist(), [p.grad is not None for p in model.parameters()]  # noqa: NPY002

    before = everything()
    range_test(model, optimizer, loader, iters=40, amp=amp)
    assert everything() == before
    assert loader.epoch == 3


def plain_losses(model, loader, lrs, criterion=cross_entropy):
    """The loss of each step of a plain loop with torch's Adam, yielded after the step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    batches = [batch for epoch in range(3) for batch in (loader.set_epoch(epoch), list(loader))[1]]
    for lr, (inputs, labels) in zip(lrs, batches, strict=False):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        yield loss.item()


SMOOTHED = partial(cross_entropy, label_smoothing=0.3)


@pytest.mark.parametrize("held_out", [False, True], ids=["of the batch", "held out"])
@pytest.mark.parametrize("criterion", [None, SMOOTHED], ids=["default", "criterion"])
def test_the_losses_are_those_of_a_plain_loop(loader, criterion, held_out):
    model, other = network(2), network(2)
    batches = list(islice(loader, 3)) if held_out else None
    keywords = {"criterion": criterion, "lr_start": 1e-5, "lr_end": 1e-1, "iters": 20, "held_out": batches}
    result = range_test(model, make_optimizer(model, 0.01), loader, **keywords)
    criterion = criterion or cross_entropy
    losses = []
    for loss in plain_losses(other, loader, result.lrs, criterion):
        if held_out:
            with torch.no_grad():
                evaluated = copy.deepcopy(other)  # in training mode: each batch is normalised by its own statistics
                loss = np.mean([criterion(evaluated(x), y).item() for x, y in batches])
        losses.append(loss)
    assert result.losses == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_the_held_out_loss_changes_nothing_and_applies_no_dropout(loader, training):
    model = network(2, dropout=0.9).train(training)
    loader.set_epoch(3)
    before, random_state = flat(model.state_dict()), torch.get_rng_state()
    loss = held_out_loss(model, FP32, loader)
    assert loss() == loss()
    assert flat(model.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training is training for module in model.modules())
    assert loader.epoch == 3


@pytest.mark.parametrize(("kind", "spaced"), [("exponential", np.geomspace), ("linear", np.linspace)])
def test_the_rates_rise_from_start_to_end(pair, loader, kind, spaced):
    result = range_test(*pair, loader, lr_start=1e-5, lr_end=1e-2, iters=30, sweep=kind)
    assert result.lrs == pytest.approx(spaced(1e-5, 1e-2, 30).tolist())
    assert len(result.losses) == len(result.smoothed) == 30


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_the_highest_group_gets_the_rates_and_the_others_keep_their_ratio(loader, share):
    model, other = network(2), network(2)
    last = model.layers[-1]
    groups = [{"params": model.layers[0].parameters(), "lr": share * 3}, {"params": last.parameters(), "lr": 3.0}]
    result = range_test(model, torch.optim.SGD(groups), loader, lr_start=1e-3, lr_end=1.0, iters=20)
    losses = []
    for lr, (inputs, labels) in zip(result.lrs, [*loader, *loader, *loader], strict=False):
        loss = cross_entropy(other(inputs), labels)
        other.zero_grad()
        loss.backward()
        with torch.no_grad():
            for layer, rate in ((other.layers[0], lr * share), (other.layers[-1], lr)):
                for parameter in layer.parameters():
                    parameter -= rate * parameter.grad
        losses.append(loss.item())
    assert result.losses == pytest.approx(losses, rel=1e-3)


def test_it_stops_when_the_loss_diverges(pair, loader):
    result = range_test(*pair, loader, lr_start=1e-4, lr_end=1e4, iters=200)
    assert len(result.lrs) < 200
    assert all(np.isfinite(result.losses))


def test_batches_may_come_from_torchs_data_loader_and_must_be_enough(pair, loader):
    data = torch.utils.data.TensorDataset(*next(iter(loader)))
    assert len(range_test(*pair, torch.utils.data.DataLoader(data, batch_size=8), iters=30, lr_end=0.01).lrs) == 30
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"no batches left after {count}"):
            range_test(*pair, islice(loader, count), iters=20)


def test_a_loader_may_count_its_epochs_in_a_way_of_its_own(pair, loader):
    class Counting(list):
        epoch = 0

    assert len(range_test(*pair, Counting(loader), iters=20, lr_end=0.01).lrs) == 20


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"sweep": "cosine"}, "exponential, linear"),
        ({"held_out": []}, "no batches"),
    ],
)
def test_an_argument_out_of_range_is_refused(pair, loader, keywords, named):
    with pytest.raises(ValueError, match=named):
        range_test(*pair, loader, **keywords)


class FakeStep:
    """A step whose losses are given: `curves[k][i]` is that of step i of the k-th sweep, which begins when the scaler
    is loaded."""

    def __init__(self, model, optimizer, curves):
        self.model, self.optimizer = model, optimizer
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.losses, self.curves = iter(curves[0]), iter(curves)

    def load_scaler(self, state):
        self.losses = iter(next(self.curves))

    def __call__(self, inputs, labels):
        return torch.tensor(next(self.losses)), None, True


@pytest.fixture
def fake_losses(monkeypatch):
    """Replaces the losses, by a list for each sweep: `fake_losses([2.3, ...], ...)`."""

    def patch(*curves):
        for module in ("lr_finder", "build"):
            monkeypatch.setattr(
                f"fast_cifar.{module}.TrainStep",
                lambda model, optimizer, *_, **__: FakeStep(model, optimizer, curves),
            )

    return patch


DIVERGES_AT_ONCE = [2.3] * 5 + [float("nan")]
NEVER_FALLS = np.linspace(2.3, 3.0, 118).tolist()
NEVER_DIVERGES = np.linspace(2.3, 1.0, 118).tolist()


def basin(lr=1e-3):
    """A loss that falls around a tenth of `lr` and diverges from ten times `lr` on, over the default sweep."""
    decades = np.log10(np.geomspace(1e-6, 1, 118) / lr)
    loss = 2.3 - 1.2 / (1 + np.exp(-4 * (decades + 1))) + np.exp(np.clip(6 * (decades - 1), -50, 3))
    return loss.tolist()


def test_a_loss_that_is_infinite_at_once_is_an_error(pair, loader, fake_losses):
    fake_losses([2.3, float("inf")])
    with pytest.raises(UserError, match="--lr-start"):
        range_test(*pair, loader)


@pytest.mark.parametrize(
    ("losses", "warning"),
    [
        (DIVERGES_AT_ONCE, "diverged after 5 steps"),
        (NEVER_FALLS, "never fell"),
        (NEVER_DIVERGES, "still at its lowest"),
        (basin(), None),
    ],
)
def test_a_doubtful_curve_has_a_warning(pair, loader, fake_losses, losses, warning):
    fake_losses(losses)
    result = range_test(*pair, loader)
    if warning is None:
        assert result.warnings == []
        assert 3e-3 < result.divergence < 3e-2
    else:
        assert warning in result.warnings[0]


def test_a_result_is_five_floats_in_one_line_and_a_plot(pair, loader, tmp_path):
    pytest.importorskip("matplotlib")
    result = range_test(*pair, loader, iters=40)
    assert all(isinstance(value, float) for value in vars(result.suggestion).values())
    assert repr(result).startswith(f"RangeTest(LRMIN {result.suggestion.lr_min:.3g}, LRMAX ")
    assert "\n" not in repr(result)
    result.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_plot_is_refused_and_the_command_says_what_to_install(small_network, options, monkeypatch):
    monkeypatch.setattr("fast_cifar.plots.style.matplotlib_available", lambda: False)
    lines = []
    result = find_lr(options, log=lines.append)
    assert sum("pip install matplotlib" in line for line in lines) == 1
    with pytest.raises(UserError, match="pip install matplotlib"):
        result.plot("plot.png")


@pytest.fixture
def options(places, tmp_path):
    return RangeTestOptions(**places, out=str(tmp_path / "runs"), name="test", batch_size=8, iters=60)


def test_the_command_writes_a_run_folder_and_says_what_to_do_next(small_network, options, tmp_path, figures):
    lines = []
    result = find_lr(options, log=lines.append)
    written = read_json(tmp_path / "runs/test/lrfind.json")
    assert written["lrs"] == result.lrs
    keys = "losses smoothed suggestion divergence warnings sweep repeats seeds lr_max_spread"
    assert written.keys() >= set(keys.split())
    assert written["suggestion"]["lr_max"] == result.suggestion.lr_max
    assert (tmp_path / "runs/test/lrfind.png").stat().st_size > 5000
    swept = f"{Path(options.data).name}, width 64, batch 8, weight decay 0.5, label smoothing 0.1, seed 0"
    assert figures[0].axes[0].get_title() == f"Range test: {swept}"
    assert any("--repeats 3" in line for line in lines)
    assert lines[-1].startswith("python run_train.py ")


@pytest.mark.parametrize(
    ("losses", "error"), [(DIVERGES_AT_ONCE, "diverged after 5 steps"), (NEVER_FALLS, "never fell")]
)
def test_a_curve_that_cannot_be_read_ends_the_command_and_leaves_no_folder(
    small_network, options, tmp_path, fake_losses, losses, error
):
    fake_losses(losses, NEVER_FALLS)
    with pytest.raises(UserError, match=error):
        find_lr(options.replace(iters=118, repeats=2), log=silent)
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_folder_is_left_alone(options, tmp_path):
    (tmp_path / "runs/test").mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        find_lr(options, log=silent)


def test_the_next_command_repeats_what_was_given(options, pair, loader):
    found = range_test(*pair, loader, iters=40).suggestion
    unlike_training = {"repeats": 3, "sweep": "linear", "val_split": 2, "loss_on": "val"}
    line = next_command(options.replace(flip=False, amp=True, mirror=("u", "v"), **unlike_training), found)
    given = (
        f"--data {options.data}",
        "--batch-size 8",
        "--no-flip",
        "--amp ",
        "--mirror u --mirror v",
        "--val-split 2",
    )
    assert all(words in line for words in given)
    assert not any(flag in line for flag in ("--iters", "--repeats", "--sweep", "--loss-on", "--name", "--out"))
    assert line.endswith(f"--lr-min {found.lr_min:.3g} --lr-max {found.lr_max:.3g}")


def test_several_seeds_are_the_single_sweeps_of_each(small_network, options):
    setup = build_setup(options)
    together = sweep(setup, 3, options.replace(repeats=2))
    alone = [sweep(setup, seed, options) for seed in (3, 4)]
    assert together.repeats == [one.repeats[0] for one in alone]
    assert together.seeds == [3, 4]
    assert alone[0].losses == alone[0].repeats[0].losses != alone[1].losses
    assert alone[0].suggestion == alone[0].repeats[0].suggestion
    assert alone[0].divergence == alone[0].repeats[0].divergence
    assert alone[0].lr_max_spread is None


def test_several_seeds_write_each_curve_and_how_far_they_agree(small_network, options, tmp_path, fake_losses):
    fake_losses(basin(1e-3), basin(2e-3), basin(5e-3))
    lines = []
    result = find_lr(options.replace(iters=118, repeats=3), log=lines.append)
    written = read_json(tmp_path / "runs/test/lrfind.json")
    assert [one["losses"] for one in written["repeats"]] == [one.losses for one in result.repeats]
    assert "disagree" in written["warnings"][0]
    assert any(line.startswith("warning: the seeds' LRMAX disagree by a factor of ") for line in lines)
    assert written["repeats"][0]["losses"] == pytest.approx(basin(1e-3)[: len(result.repeats[0].lrs)])
    assert written["lr_max_spread"]["highest"] == pytest.approx(5 * written["lr_max_spread"]["lowest"], rel=0.15)
    assert sum(line.startswith("seed ") for line in lines) == 3
    assert any("95 % interval" in line for line in lines)
    assert not any("one seed" in line for line in lines)


@pytest.mark.parametrize("bad", [DIVERGES_AT_ONCE, NEVER_FALLS, [float("inf")]])
def test_a_seed_whose_curve_cannot_be_read_is_left_out_and_named(small_network, options, fake_losses, bad):
    fake_losses(basin(), bad, basin())
    result = sweep(build_setup(options), 0, options.replace(iters=118, repeats=3))
    assert result.seeds == [0, 2]
    assert result.suggestion.lr_max == pytest.approx(result.repeats[0].suggestion.lr_max)
    assert result.warnings[0].startswith("seed 1 is left out: ")


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
def test_every_kind_of_training_gets_a_suggestion(small_network, options, tmp_path, changes):
    result = find_lr(options.replace(**changes), log=silent)
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
