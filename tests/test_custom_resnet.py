"""The network is the one that the assignment describes; the figures of its summary against torch and by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fast_cifar.custom_resnet import CustomResNet, layer_rows, model_summary, parameter_count, training_flops
from fast_cifar.optimizer import make_optimizer
from fast_cifar.system.device import Precision
from fast_cifar.train_step import TrainStep
from tests.helpers.images import seeded
from tests.helpers.networks import flat


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=seeded(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CustomResNet().eval()


@pytest.mark.parametrize("width", [1, 16, 96])
def test_the_parameters_grow_with_the_square_of_the_width(width):
    """Counted by hand: inputs x outputs x 9 of each convolution, 2 numbers a channel, and the head."""
    convolutions = 9 * (1 * 2 + 2 * 2 * 2 + 2 * 4 + 4 * 8 + 2 * 8 * 8) * width**2 + 9 * 3 * width
    norms = 2 * (1 + 3 * 2 + 4 + 3 * 8) * width
    assert parameter_count(CustomResNet(width=width)) == convolutions + norms + 10 * 8 * width


def test_forward_equals_the_description_written_with_functions_and_returns_logits(model, images):
    """The oracle: the assignment's text, line by line, on the same weights, without a bias."""
    weights = iter([m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)])

    def conv_bn_relu(x, pool=False):
        x = F.conv2d(x, next(weights).weight, padding=1)
        if pool:
            x = F.max_pool2d(x, 2)
        bn = next(weights)
        return F.relu(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps))

    x = conv_bn_relu(images)
    x = conv_bn_relu(x, pool=True)
    x = x + conv_bn_relu(conv_bn_relu(x))
    x = conv_bn_relu(x, pool=True)
    x = conv_bn_relu(x, pool=True)
    x = x + conv_bn_relu(conv_bn_relu(x))
    logits = F.max_pool2d(x, 4).flatten(1) @ next(weights).weight.T
    torch.testing.assert_close(model(images), logits)


def test_dropout_zeroes_features_in_training_and_changes_no_prediction(model, images):
    dropped = CustomResNet(dropout=0.5).eval()
    dropped.load_state_dict(model.state_dict())
    assert torch.equal(model(images), dropped(images))
    features = dropped.train().head[:3](torch.ones(64, 512, 4, 4))
    assert (features == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("dtype", "loss_tolerance", "count_tolerance"), [(torch.float32, 1e-3, 1), (torch.bfloat16, 3e-2, 3)]
)
def test_a_compiled_step_of_the_whole_network_has_the_losses_of_the_eager_one(dtype, loss_tolerance, count_tolerance):
    losses, correct = {False: [], True: []}, {False: [], True: []}
    inputs, labels = torch.randn(32, 3, 32, 32, generator=seeded(0)), torch.arange(32) % 10
    for compile in (False, True):
        torch.manual_seed(0)
        model = CustomResNet().to(memory_format=torch.channels_last).train()
        step = TrainStep(model, make_optimizer(model, 1e-4), Precision("cpu", dtype), compile=compile)
        for _ in range(4):
            loss, right, _ = step(inputs, labels)
            losses[compile].append(loss.item())
            correct[compile].append(int(right))
    assert losses[True] == pytest.approx(losses[False], abs=loss_tolerance)
    assert correct[True] == pytest.approx(correct[False], abs=count_tolerance)
    assert losses[True][-1] < losses[True][0]


def test_multiply_adds_and_parameters_add_up_to_torchs_counts(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    rows = layer_rows(model, (3, 32, 32))
    assert sum(row.multiply_adds for row in rows) == counter.get_total_flops() // 2
    assert sum(row.parameters for row in rows) == parameter_count(model)


def test_training_costs_what_torch_counts_and_the_gradient_of_the_images(model):
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(4, 3, 32, 32)).sum().backward()
    first = layer_rows(model, (3, 32, 32))[0]
    assert training_flops(model, 4) == counter.get_total_flops() + 4 * 2 * first.multiply_adds


def test_the_receptive_field_equals_the_pixels_that_change_one_output():
    model = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2)
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    averaging = nn.Sequential(*(nn.AvgPool2d(2) if isinstance(m, nn.MaxPool2d) else m for m in model))
    image = torch.randn(1, 1, 32, 32, requires_grad=True)
    averaging(image)[0, 0, 4, 4].backward()
    rows = image.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert layer_rows(model, (1, 32, 32))[-1].receptive_field == int(rows[-1] - rows[0]) + 1


def test_the_summary_names_every_total_and_leaves_the_model_as_it_was():
    model = CustomResNet().train()
    model.prep.requires_grad_(False)
    before = flat(model.state_dict())
    text = model_summary(model)
    for total in ("379,261,952", "6,573,120", "6,571,264", "1,856", "25.07 MB"):  # with those trainable, and those not
        assert total in text
    assert model.training
    assert flat(model.state_dict()) == before
    assert not any(module._forward_hooks for module in model.modules())
