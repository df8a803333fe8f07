"""Nothing that happens inside `preserve_state` leaves a trace."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from fast_cifar.train_step import preserve_state
from tests.helpers.states import flat


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(2))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()


@pytest.fixture(params=["fresh", "used"])
def pair(request):
    model = network()
    model(torch.zeros(2, 3, 8, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    if request.param == "used":
        step(model, optimizer)
    return model, optimizer


def disturb(model, optimizer):
    model.eval()
    for _ in range(3):
        step(model, optimizer)
        model.train()
    optimizer.param_groups[0]["lr"] = 7.0
    optimizer.param_groups[0]["initial_lr"] = 3.0
    random.random()
    np.random.rand()  # noqa: NPY002


def test_weights_and_buffers_are_bit_identical(pair):
    model, optimizer = pair
    before = flat(model.state_dict())
    with preserve_state(model, optimizer):
        disturb(model, optimizer)
        assert flat(model.state_dict()) != before
    assert flat(model.state_dict()) == before


def test_the_optimizer_is_bit_identical(pair):
    model, optimizer = pair
    before = flat(optimizer.state_dict())
    with preserve_state(model, optimizer):
        disturb(model, optimizer)
    assert flat(optimizer.state_dict()) == before


def test_gradients_are_as_they_were(pair):
    model, optimizer = pair
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    with preserve_state(model, optimizer):
        disturb(model, optimizer)
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert (old is None and parameter.grad is None) or torch.equal(old, parameter.grad)


def test_every_random_state_is_as_it_was(pair):
    model, optimizer = pair
    with preserve_state(model, optimizer):
        disturb(model, optimizer)
        torch.rand(1)
        inside = torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    with preserve_state(model, optimizer):
        first = torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    with preserve_state(model, optimizer):
        second = torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]
    assert not torch.equal(inside[0], first[0])


def test_each_module_keeps_its_training_flag(pair):
    model, optimizer = pair
    model.train()
    model[1].eval()
    with preserve_state(model, optimizer):
        disturb(model, optimizer)
    assert [module.training for module in model] == [True, False, True, True, True]


def test_tensors_keep_their_identity(pair):
    model, optimizer = pair
    before = [id(p) for p in model.parameters()] + [p.data_ptr() for p in model.parameters()]
    before += [id(value) for state in optimizer.state.values() for value in state.values()]
    with preserve_state(model, optimizer):
        disturb(model, optimizer)
    after = [id(p) for p in model.parameters()] + [p.data_ptr() for p in model.parameters()]
    after += [id(value) for state in optimizer.state.values() for value in state.values()]
    assert after == before


def test_everything_is_put_back_after_an_error_too(pair):
    model, optimizer = pair
    before = flat(model.state_dict())

    def fail():
        with preserve_state(model, optimizer):
            disturb(model, optimizer)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert flat(model.state_dict()) == before


def test_a_learning_rate_that_is_a_tensor_is_restored_in_place(pair):
    model, _ = pair
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))
    rate = optimizer.param_groups[0]["lr"]
    with preserve_state(model, optimizer):
        rate.fill_(9.0)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.1)
