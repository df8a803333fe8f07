"""The optimiser's state, made, emptied and loaded in place, and the EMA of the weights, against torch's own."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fast_cifar.optimizer import (
    WeightEMA,
    create_state,
    empty_state,
    is_capturable,
    load_state,
    make_optimizer,
    make_scheduler,
    set_rate,
)
from fast_cifar.schedules import one_cycle
from fast_cifar.train_step import TrainStep
from tests.helpers.devices import DEVICES
from tests.helpers.images import seeded
from tests.helpers.networks import FP32, batches, flat, network


def linear(device="cpu"):
    torch.manual_seed(0)
    return nn.Linear(4, 3).to(device)


def step(model, optimizer, seed=0):
    generator = seeded(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
    optimizer.step()


def capturable(model, lr=0.1):
    """What `make_optimizer` gives on CUDA; torch runs it on a CPU, too."""
    return torch.optim.Adam(model.parameters(), lr=torch.tensor(lr), fused=True, capturable=True)


NUMBER_OR_TENSOR = pytest.mark.parametrize("make", [make_optimizer, capturable], ids=["number", "tensor"])


def addresses(optimizer):
    return [value.data_ptr() for state in optimizer.state.values() for value in state.values()]


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_adam_or_with_decay_adamw_fused_and_on_cuda_capturable(device):
    optimizer = make_optimizer(linear(device), 0.01)
    assert type(optimizer) is torch.optim.Adam
    assert type(make_optimizer(linear(device), 0.01, 0.1)) is torch.optim.AdamW
    assert optimizer.param_groups[0]["fused"] is True
    assert is_capturable(optimizer) is (device == "cuda")


def test_a_rate_that_is_a_number_cannot_be_captured():
    assert not is_capturable(torch.optim.Adam(linear().parameters(), lr=0.1, fused=True, capturable=True))
    assert not is_capturable(torch.optim.Adam(linear().parameters(), lr=torch.tensor(0.1), fused=True))
    assert is_capturable(capturable(linear()))


@pytest.mark.parametrize("fused", [True, False])
def test_created_state_is_what_adam_would_have_created(fused):
    mine, theirs = linear(), linear()
    a, b = (torch.optim.Adam(model.parameters(), lr=0.1, fused=fused) for model in (mine, theirs))
    create_state(a)
    for seed in range(3):
        step(mine, a, seed)
        step(theirs, b, seed)
    assert flat(mine.state_dict()) == flat(theirs.state_dict())
    assert flat(a.state_dict()) == flat(b.state_dict())
    create_state(a)  # leaves alone what exists
    assert flat(a.state_dict()) == flat(b.state_dict())


def test_an_emptied_optimizer_steps_like_a_new_one_in_the_same_tensors():
    model, fresh = linear(), linear()
    weights = copy.deepcopy(model.state_dict())
    optimizer, other = make_optimizer(model, 0.1), make_optimizer(fresh, 0.1)
    step(model, optimizer, seed=1)
    before = addresses(optimizer)
    empty_state(optimizer)
    model.load_state_dict(weights)
    for a, b in ((model, optimizer), (fresh, other)):
        step(a, b, seed=2)
    assert flat(model.state_dict()) == flat(fresh.state_dict())
    assert addresses(optimizer) == before


@NUMBER_OR_TENSOR
@pytest.mark.parametrize("wrote", [make_optimizer, capturable], ids=["from number", "from tensor"])
def test_a_loaded_state_continues_as_if_never_saved_and_keeps_flags_and_tensors(wrote, make):
    first, second = linear(), linear()
    writer, reader = wrote(first, 0.1), make(second, 0.2)
    step(first, writer)
    second.load_state_dict(first.state_dict())
    create_state(reader)
    flags = {key: reader.param_groups[0][key] for key in ("fused", "capturable", "foreach")}
    rate, before = reader.param_groups[0]["lr"], addresses(reader)
    load_state(reader, copy.deepcopy(writer.state_dict()))
    assert float(reader.param_groups[0]["lr"]) == pytest.approx(0.1)
    assert make is make_optimizer or reader.param_groups[0]["lr"] is rate
    assert flags == {key: reader.param_groups[0][key] for key in flags}
    assert addresses(reader) == before
    step(first, writer, seed=1)
    step(second, reader, seed=1)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_state_of_another_network_is_refused():
    other = nn.Linear(5, 3)
    optimizer = make_optimizer(other, 0.1)
    step(other, optimizer)
    with pytest.raises(RuntimeError):
        load_state(make_optimizer(linear(), 0.1), optimizer.state_dict())


@NUMBER_OR_TENSOR
def test_the_scheduler_sets_what_torchs_own_would(make):
    f = one_cycle(20, 5, 0.001, 0.1)
    mine, theirs = make(linear(), 0.1), torch.optim.Adam(linear().parameters(), lr=0.1)
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
    optimizer = make_optimizer(linear(), 0.1)
    make_scheduler(optimizer, 0.1, lambda step: 0.5)
    make_scheduler(optimizer, 0.3, lambda step: 1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)


def test_a_rate_is_set_in_place_where_it_is_a_tensor():
    group = capturable(linear()).param_groups[0]
    rate = group["lr"]
    set_rate(group, 0.25)
    assert group["lr"] is rate
    assert rate.item() == 0.25


def trained_with_ema(decay=0.9):
    """A network after some steps, its EMA by ours and by torch's."""
    model = network()
    ours = WeightEMA(model, decay)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    theirs.n_averaged.fill_(1)  # it would take the first update whole
    step = TrainStep(model, torch.optim.Adam(model.parameters(), lr=0.01), FP32, ema=ours)
    for batch in batches():
        step(*batch)
        theirs.update_parameters(model)
    return model, ours, theirs


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_ema_equals_torchs_for_weights_and_statistics(decay):
    model, ours, theirs = trained_with_ema(decay)
    assert ours.state_dict().keys() == model.state_dict().keys()
    for name, tensor in theirs.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(ours.state_dict()[name], tensor)
            assert not torch.equal(tensor, model.state_dict()[name])
        else:  # the number of batches
            assert ours.state_dict()[name] == model.state_dict()[name] == 6


def test_inside_the_block_the_network_predicts_with_the_ema_and_afterwards_as_before():
    model, ours, theirs = trained_with_ema()
    images = batches(1)[0][0]
    model.eval(), theirs.eval()
    before, own = model(images), flat(model.state_dict())
    with ours.swapped_in():
        torch.testing.assert_close(model(images), theirs(images))
        assert not torch.allclose(model(images), before)
    assert flat(model.state_dict()) == own
    with pytest.raises(KeyboardInterrupt), ours.swapped_in():
        raise KeyboardInterrupt
    assert flat(model.state_dict()) == own


def test_resetting_the_ema_makes_it_the_networks_weights():
    model, ours, _ = trained_with_ema()
    ours.reset()
    assert flat(ours.state_dict()) == flat(model.state_dict())


def test_a_warm_up_leaves_the_ema_unchanged():
    model = network()
    ours = WeightEMA(model, 0.5)
    before = flat(ours.state_dict())
    TrainStep(model, torch.optim.Adam(model.parameters(), lr=0.1), FP32, ema=ours).warm_up(*batches(1)[0])
    assert flat(ours.state_dict()) == before


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        WeightEMA(network(), decay)
