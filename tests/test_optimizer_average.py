"""The running average of the weights is torch's own, and leaves the network as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fast_cifar.optimizer import WeightEMA
from fast_cifar.system.device import Precision
from fast_cifar.train_step import TrainStep


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))


def batches(count=5):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 6, 6, generator=generator), torch.randint(2, (8,), generator=generator))
        for _ in range(count)
    ]


def trained(decay, steps=5):
    """A network, its average by ours and by torch's, after some steps."""
    model = network()
    model(batches(1)[0][0])
    ours = WeightEMA(model, decay)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    theirs.n_averaged.fill_(1)  # it would take the first update whole
    step = TrainStep(model, torch.optim.Adam(model.parameters(), lr=0.01), Precision("cpu", torch.float32), ema=ours)
    for inputs, labels in batches(steps):
        step(inputs, labels)
        theirs.update_parameters(model)
    return model, ours, theirs


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_it_equals_torchs_average_of_weights_and_statistics(decay):
    model, ours, theirs = trained(decay)
    assert ours.state_dict().keys() == model.state_dict().keys()
    for name, tensor in theirs.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(ours.state_dict()[name], tensor)
            assert not torch.equal(tensor, model.state_dict()[name])


def test_the_batches_counted_are_the_networks_own():
    model, ours, _ = trained(0.9)
    assert ours.state_dict()["1.num_batches_tracked"] == model[1].num_batches_tracked == 6


def test_inside_the_block_the_network_answers_with_the_average_and_afterwards_as_before():
    model, ours, theirs = trained(0.9)
    images = batches(1)[0][0]
    model.eval(), theirs.eval()
    before, own = model(images), copy.deepcopy(model.state_dict())
    with ours.swapped_in():
        torch.testing.assert_close(model(images), theirs(images))
        assert not torch.allclose(model(images), before)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_the_network_gets_its_own_weights_back_after_an_error():
    model, ours, _ = trained(0.9)
    own = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), ours.swapped_in():
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_restarting_forgets_what_was_before():
    model, ours, _ = trained(0.9)
    ours.reset()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_warm_up_leaves_the_average_alone():
    model = network()
    model(batches(1)[0][0])
    ours = WeightEMA(model, 0.5)
    before = copy.deepcopy(ours.state_dict())
    step = TrainStep(model, torch.optim.Adam(model.parameters(), lr=0.1), Precision("cpu", torch.float32), ema=ours)
    step.warm_up(*batches(1)[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        WeightEMA(network(), decay)
