"""The optimiser's state, made, emptied and loaded in place, against torch's own."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fast_cifar.optimizer import (
    create_state,
    empty_state,
    is_capturable,
    load_state,
    make_optimizer,
    make_scheduler,
    set_rate,
)
from fast_cifar.schedules import one_cycle
from tests.conftest import DEVICES


def network(device="cpu"):
    torch.manual_seed(0)
    return nn.Linear(4, 3).to(device)


def step(model, optimizer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
    optimizer.step()


def capturable(model, lr=0.1):
    """What `make_optimizer` gives on CUDA; torch runs it on a CPU, too."""
    return torch.optim.Adam(model.parameters(), lr=torch.tensor(lr), fused=True, capturable=True)


def test_no_decay_is_plain_adam():
    assert type(make_optimizer(network(), 0.01)) is torch.optim.Adam
    assert type(make_optimizer(network(), 0.01, 0.1)) is torch.optim.AdamW


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_fused_and_on_cuda_can_be_captured(device):
    optimizer = make_optimizer(network(device), 0.01)
    assert optimizer.param_groups[0]["fused"] is True
    assert is_capturable(optimizer) is (device == "cuda")


def test_a_rate_that_is_a_number_cannot_be_captured():
    assert not is_capturable(torch.optim.Adam(network().parameters(), lr=0.1, fused=True, capturable=True))
    assert not is_capturable(torch.optim.Adam(network().parameters(), lr=torch.tensor(0.1), fused=True))
    assert is_capturable(capturable(network()))


@pytest.mark.parametrize("fused", [True, False])
def test_made_state_is_what_adam_would_have_made(fused):
    mine, theirs = network(), network()
    a, b = (torch.optim.Adam(model.parameters(), lr=0.1, fused=fused) for model in (mine, theirs))
    create_state(a)
    for seed in range(3):
        step(mine, a, seed)
        step(theirs, b, seed)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
        assert a.state[p].keys() == b.state[q].keys()
        assert all(torch.equal(a.state[p][key], b.state[q][key]) for key in a.state[p])


def test_making_state_leaves_alone_what_there_is():
    model = network()
    optimizer = make_optimizer(model, 0.1)
    step(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    create_state(optimizer)
    for index, state in before["state"].items():
        assert all(torch.equal(value, optimizer.state_dict()["state"][index][key]) for key, value in state.items())


def test_an_emptied_optimizer_steps_like_a_new_one_in_the_same_tensors():
    model, fresh = network(), network()
    weights = copy.deepcopy(model.state_dict())
    optimizer, other = make_optimizer(model, 0.1), make_optimizer(fresh, 0.1)
    step(model, optimizer, seed=1)
    addresses = [value.data_ptr() for state in optimizer.state.values() for value in state.values()]
    empty_state(optimizer)
    model.load_state_dict(weights)
    for a, b in ((model, optimizer), (fresh, other)):
        step(a, b, seed=2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), fresh.parameters(), strict=True))
    assert addresses == [value.data_ptr() for state in optimizer.state.values() for value in state.values()]


@pytest.mark.parametrize("make", [make_optimizer, capturable], ids=["number", "tensor"])
@pytest.mark.parametrize("wrote", [make_optimizer, capturable], ids=["from number", "from tensor"])
def test_a_loaded_state_goes_on_as_if_never_saved_and_keeps_flags_and_tensors(wrote, make):
    first, second = network(), network()
    writer, reader = wrote(first, 0.1), make(second, 0.2)
    step(first, writer)
    second.load_state_dict(first.state_dict())
    create_state(reader)
    flags = {key: reader.param_groups[0][key] for key in ("fused", "capturable", "foreach")}
    rate = reader.param_groups[0]["lr"]
    addresses = [value.data_ptr() for state in reader.state.values() for value in state.values()]
    load_state(reader, copy.deepcopy(writer.state_dict()))
    assert float(reader.param_groups[0]["lr"]) == pytest.approx(0.1)
    assert make is make_optimizer or reader.param_groups[0]["lr"] is rate
    assert flags == {key: reader.param_groups[0][key] for key in flags}
    assert addresses == [value.data_ptr() for state in reader.state.values() for value in state.values()]
    step(first, writer, seed=1)
    step(second, reader, seed=1)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_state_of_another_network_is_refused():
    model, other = network(), nn.Linear(5, 3)
    optimizer = make_optimizer(other, 0.1)
    step(other, optimizer)
    with pytest.raises(RuntimeError):
        load_state(make_optimizer(model, 0.1), optimizer.state_dict())


@pytest.mark.parametrize("make", [make_optimizer, capturable], ids=["number", "tensor"])
def test_the_scheduler_sets_what_torchs_own_would(make):
    f = one_cycle(20, 5, 0.001, 0.1)
    mine, theirs = make(network(), 0.1), torch.optim.Adam(network().parameters(), lr=0.1)
    rate = mine.param_groups[0]["lr"]
    a, b = make_scheduler(mine, 0.1, f), LambdaLR(theirs, f)
    for _ in range(20):
        assert float(mine.param_groups[0]["lr"]) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6)
        mine.step()
        theirs.step()
        a.step()
        b.step()
    assert a.base_lrs == [0.1]
    assert make is make_optimizer or mine.param_groups[0]["lr"] is rate


def test_a_new_scheduler_on_a_used_optimizer_starts_from_its_own_rate():
    optimizer = make_optimizer(network(), 0.1)
    make_scheduler(optimizer, 0.1, lambda step: 0.5)
    make_scheduler(optimizer, 0.3, lambda step: 1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)


def test_a_rate_is_set_in_place_where_it_is_a_tensor():
    group = capturable(network()).param_groups[0]
    rate = group["lr"]
    set_rate(group, 0.25)
    assert group["lr"] is rate
    assert rate.item() == 0.25
