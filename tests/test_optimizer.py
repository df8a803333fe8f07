"""The optimiser's state, made, emptied and loaded in place, and the EMA of the weights, against torch's own."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fast_cifar.optimizer import (
    WeightEMA,
    create_state,
    empty_state,
    is_capturable,
    load_state,
    make_optimizer,
    one_cycle_scheduler,
    set_rate,
)
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


def test_neither_a_rate_that_is_a_number_nor_state_of_another_kind_can_be_captured():
    assert not is_capturable(torch.optim.Adam(linear().parameters(), lr=0.1, fused=True, capturable=True))
    assert not is_capturable(torch.optim.Adam(linear().parameters(), lr=torch.tensor(0.1), fused=True))
    assert not is_capturable(torch.optim.SGD(linear().parameters(), lr=torch.tensor(0.1), fused=True))
    amsgrad = torch.optim.Adam(linear().parameters(), lr=torch.tensor(0.1), capturable=True, amsgrad=True)
    assert not is_capturable(amsgrad)
    # A graph would keep the number that a rate on the CPU has when it is captured.
    assert not is_capturable(torch.optim.Adam(linear("meta").parameters(), lr=torch.tensor(0.1), capturable=True))
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


def grouped(rates, *, tensors=False):
    """Adam with a parameter group for each rate."""
    kind = torch.tensor if tensors else float
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": kind(rate)} for rate in rates]
    return torch.optim.Adam(groups, fused=True, capturable=tensors)


def rates_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def advance(optimizer, scheduler, steps):
    """The rates of each group in so many steps."""
    seen = []
    for _ in range(steps):
        seen += rates_of(optimizer)
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("tensors", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize("rates", [[1e-3], [0.0], [7.0, 7.0], [2e-4, 2e-3, 5e-4], [0.0, 3.0]], ids=str)
def test_the_cycle_is_torchs_with_the_ratios_of_the_groups_and_lr_max_for_the_largest(rates, tensors):
    mine, theirs = grouped(rates, tensors=tensors), grouped(rates)
    kept = [group["lr"] for group in mine.param_groups]
    peaks = [0.1 * rate / max(rates) if any(rates) else 0.1 for rate in rates]
    a = one_cycle_scheduler(mine, 20, 5, 0.001, 0.1)
    b = OneCycleLR(
        theirs,
        max_lr=peaks,
        total_steps=20,
        pct_start=6 / 20,
        anneal_strategy="linear",
        div_factor=100,
        final_div_factor=1,
        cycle_momentum=False,
    )
    assert advance(mine, a, 19) == pytest.approx(advance(theirs, b, 19), rel=1e-6)
    assert all(type(base) is float for base in a.base_lrs)  # no arithmetic on the device
    assert not tensors or all(group["lr"] is lr for group, lr in zip(mine.param_groups, kept, strict=True))


def test_a_second_cycle_of_an_optimizer_begins_anew_with_the_same_ratios():
    optimizer = grouped([0.5, 1.0])
    advance(optimizer, one_cycle_scheduler(optimizer, 9, 3, 0.001, 0.1), 5)
    one_cycle_scheduler(optimizer, 9, 3, 0.01, 0.3)
    assert rates_of(optimizer) == pytest.approx([0.005, 0.01])


@pytest.mark.parametrize("tensors", [False, True], ids=["numbers", "tensors"])
def test_a_cycle_continues_from_its_state_and_that_of_the_optimizer(tensors):
    whole, first, second = (grouped([0.5, 1.0], tensors=tensors) for _ in range(3))
    expected = advance(whole, one_cycle_scheduler(whole, 20, 5, 0.001, 0.1), 15)
    scheduler = one_cycle_scheduler(first, 20, 5, 0.001, 0.1)
    seen = advance(first, scheduler, 8)
    resumed = one_cycle_scheduler(second, 20, 5, 0.001, 0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert seen + advance(second, resumed, 7) == expected


@pytest.mark.parametrize(
    ("rates", "cycle", "message"),
    [
        ([0.1, -0.1], (9, 3, 0.01, 0.1), "learning rates"),
        ([0.1, float("nan")], (9, 3, 0.01, 0.1), "learning rates"),
        ([float("inf")], (9, 3, 0.01, 0.1), "learning rates"),
        ([0.1], (9, 8, 0.01, 0.1), "peak_step"),
        ([0.1], (9, 3, 0.1, 0.01), "lr_min"),
    ],
    ids=str,
)
def test_a_cycle_that_cannot_be_is_refused_and_changes_nothing(rates, cycle, message):
    optimizer = grouped([1.0] * len(rates))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # torch refuses some of them sooner
    before = copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=message):
        one_cycle_scheduler(optimizer, *cycle)
    assert str(optimizer.state_dict()["param_groups"]) == str(before)


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


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        WeightEMA(network(), decay)
