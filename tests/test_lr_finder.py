"""The range test: what it sweeps, that it leaves no trace, and what it answers."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from fast_cifar.errors import UserError
from fast_cifar.loader import DeviceLoader
from fast_cifar.lr_finder import find_lr, next_command, range_test
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


def test_its_losses_are_those_of_a_plain_loop(loader):
    model, other = network(dropout=0.0), network(dropout=0.0)
    result = range_test(model, make_optimizer(model, 0.01), loader, lr_start=1e-5, lr_end=1e-1, iters=20)
    plain = torch.optim.Adam(other.parameters(), lr=1.0)
    batches = [batch for epoch in range(3) for batch in (loader.set_epoch(epoch), list(loader))[1]]
    losses = []
    for lr, (inputs, labels) in zip(result.lrs, batches, strict=False):
        plain.param_groups[0]["lr"] = lr
        plain.zero_grad()
        loss = nn.functional.cross_entropy(other(inputs), labels)
        loss.backward()
        plain.step()
        losses.append(loss.item())
    assert result.losses == pytest.approx(losses, rel=1e-3)


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
    """A step whose loss is made up: the k-th one is `losses[k]`."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def __call__(self, inputs, labels):
        return torch.tensor(next(self.losses)), None, True


def test_a_loss_that_is_infinite_at_once_is_said_so(pair, loader, monkeypatch):
    monkeypatch.setattr("fast_cifar.lr_finder.TrainStep", lambda *_, **__: Answering([2.3, float("inf")]))
    with pytest.raises(UserError, match="--lr-start"):
        range_test(*pair, loader)


@pytest.mark.parametrize(
    ("losses", "said"),
    [([2.3] * 5 + [float("nan")], "diverged after 5 steps"), (np.linspace(2.3, 3.0, 118).tolist(), "never fell")],
)
def test_a_curve_that_says_nothing_ends_the_command_and_leaves_no_folder(
    small_network, options, tmp_path, monkeypatch, losses, said
):
    monkeypatch.setattr("fast_cifar.lr_finder.TrainStep", lambda *_, **__: Answering(losses))
    with pytest.raises(UserError, match=said):
        find_lr(options.replace(iters=118), log=print)
    assert not (tmp_path / "runs").exists()


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
    assert written.keys() == {"lrs", "losses", "smoothed", "suggestion"}
    assert written["suggestion"]["lr_max"] == result.suggestion.lr_max
    assert (tmp_path / "runs/test/lrfind.png").stat().st_size > 5000
    assert lines[-1].startswith("python run_train.py ")


def test_the_next_command_repeats_what_was_given(options, pair, loader):
    found = range_test(*pair, loader, iters=40).suggestion
    line = next_command(options.replace(flip=False, amp=True, mirror=("u", "v")), found)
    assert f"--data {options.data}" in line
    assert "--batch-size 8" in line
    assert "--no-flip" in line
    assert "--amp " in line
    assert "--mirror u --mirror v" in line
    assert "--iters" not in line
    assert "--name" not in line
    assert f"--lr-max {found.lr_max:.3g}" in line


def test_an_existing_run_folder_is_left_alone(options, tmp_path):
    (tmp_path / "runs/test").mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        find_lr(options, log=print)
