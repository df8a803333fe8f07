"""The range test: what it sweeps, that it leaves no trace, and what it answers."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from fast_cifar.assembly import assemble
from fast_cifar.errors import UserError
from fast_cifar.loader import DeviceLoader
from fast_cifar.lr_finder import find_lr, next_command, range_test, sweep
from fast_cifar.lr_sweep import held_out_loss
from fast_cifar.optimizer import make_optimizer
from fast_cifar.options import RangeTestOptions
from fast_cifar.runtime import Precision
from fast_cifar.train_step import TrainStep
from tests.test_snapshot import flat


def network(dropout=0.1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


@pytest.fixture
def loader():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, 128))
    images = rng.integers(0, 100, (128, 32, 32, 3), dtype=np.uint8)
    images[..., 0] += (100 * labels.numpy().astype(np.uint8))[:, None, None]
    return DeviceLoader(torch.from_numpy(images), labels, 16, train=True, device="cpu")


@pytest.fixture
def pair():
    model = network()
    return model, make_optimizer(model, 0.01)


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


def test_the_loaders_epoch_is_as_before(pair, loader):
    loader.set_epoch(3)
    range_test(*pair, loader, iters=40)
    assert loader.epoch == 3


def test_it_sweeps_exponentially_from_start_to_end(pair, loader):
    result = range_test(*pair, loader, lr_start=1e-5, lr_end=1e-2, iters=30)
    assert result.lrs == pytest.approx(np.geomspace(1e-5, 1e-2, 30).tolist())
    assert len(result.losses) == len(result.smoothed) == 30


def plain_losses(model, loader, lrs):
    """The loss of each step of a plain loop with torch's Adam; the step is done when its loss is handed out."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    batches = [batch for epoch in range(3) for batch in (loader.set_epoch(epoch), list(loader))[1]]
    for lr, (inputs, labels) in zip(lrs, batches, strict=False):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        yield loss.item()


def test_its_losses_are_those_of_a_plain_loop(loader):
    model, other = network(dropout=0.0), network(dropout=0.0)
    result = range_test(model, make_optimizer(model, 0.01), loader, lr_start=1e-5, lr_end=1e-1, iters=20)
    assert result.losses == pytest.approx(list(plain_losses(other, loader, result.lrs)), rel=1e-3)


def test_the_same_start_gives_the_same_answer(loader):
    answers = []
    for _ in range(2):
        model = network()
        answers.append(range_test(model, make_optimizer(model, 0.01), loader, iters=40))
    assert answers[0] == answers[1]


def test_it_stops_when_the_loss_diverges(pair, loader):
    result = range_test(*pair, loader, lr_start=1e-4, lr_end=1e4, iters=200)
    assert len(result.lrs) < 200
    assert all(np.isfinite(result.losses))


def test_it_takes_batches_of_an_ordinary_data_loader(pair, loader):
    data = torch.utils.data.TensorDataset(*next(iter(loader)))
    assert len(range_test(*pair, torch.utils.data.DataLoader(data, batch_size=8), iters=30, lr_end=0.01).lrs) == 30


@pytest.mark.parametrize("batches", [0, 5])
def test_a_loader_that_runs_dry_is_refused(pair, loader, batches):
    few = iter(list(loader)[:batches])
    with pytest.raises(ValueError, match=f"no batches left after {batches}"):
        range_test(*pair, few, iters=20)


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
        for module in ("lr_finder", "assembly"):
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


def test_a_linear_sweep_has_evenly_spaced_rates(pair, loader):
    result = range_test(*pair, loader, lr_start=1e-5, lr_end=1e-2, iters=30, sweep="linear")
    assert result.lrs == pytest.approx(np.linspace(1e-5, 1e-2, 30).tolist())


def test_a_sweep_of_another_shape_is_refused(pair, loader):
    with pytest.raises(ValueError, match="exponential, linear"):
        range_test(*pair, loader, sweep="cosine")


def test_held_out_losses_are_those_of_a_plain_loop(loader):
    model, other = network(dropout=0.0), network(dropout=0.0)
    held_out = list(loader)[:3]
    result = range_test(model, make_optimizer(model, 0.01), loader, lr_end=1e-1, iters=20, held_out=held_out)
    losses = []
    for _ in plain_losses(other, loader, result.lrs):
        with torch.no_grad():
            judge = copy.deepcopy(other)  # in training mode: each batch is normalised by its own statistics
            losses.append(np.mean([nn.functional.cross_entropy(judge(x), y).item() for x, y in held_out]))
    assert result.losses == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_taking_the_held_out_loss_leaves_the_model_as_it_is_and_drops_nothing_out(loader, training):
    model = network(dropout=0.9).train(training)
    before, random_state = flat(model.state_dict()), torch.get_rng_state()
    loss = held_out_loss(model, Precision("cpu", torch.float32), loader)
    assert loss() == loss()
    assert flat(model.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training is training for module in model.modules())
    assert model[1].track_running_stats


def test_an_empty_held_out_loader_is_refused(pair, loader):
    with pytest.raises(ValueError, match="no batches"):
        range_test(*pair, loader, held_out=[])


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
    workspace = assemble(options)
    together = sweep(workspace, 3, options.replace(repeats=2))
    alone = [sweep(workspace, seed, options).repeats[0] for seed in (3, 4)]
    assert together.repeats == alone
    assert together.seeds == [3, 4]
    assert alone[0].losses != alone[1].losses


def test_one_seed_is_the_range_test_of_its_network(small_network, options):
    result = sweep(assemble(options), 3, options)
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
    result = sweep(assemble(options), 0, options.replace(iters=118, repeats=3))
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
        sweep(assemble(options), 0, options.replace(repeats=repeats))
        return counters["stats"]["unique_graphs"]

    options = options.replace(compile=True, iters=30, val_split=4, loss_on="val")
    assert graphs(3) == graphs(1) > 0
