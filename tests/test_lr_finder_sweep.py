"""The sweep of a range test: its rates, and at each of them the loss of a plain loop."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fast_cifar.lr_finder import held_out_loss, range_test
from fast_cifar.optimizer import make_optimizer
from fast_cifar.system.device import Precision
from tests.helpers.states import flat
from tests.helpers.sweeping import network


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
    assert result.losses == pytest.approx(list(plain_losses(other, loader, result.lrs)), rel=1e-3)


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


def test_a_linear_sweep_has_evenly_spaced_rates(pair, loader):
    result = range_test(*pair, loader, lr_start=1e-5, lr_end=1e-2, iters=30, sweep="linear")
    assert result.lrs == pytest.approx(np.linspace(1e-5, 1e-2, 30).tolist())


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
