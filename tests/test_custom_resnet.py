"""The network is the one that the assignment describes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fast_cifar.custom_resnet import CustomResNet, MaxPool2, parameter_count, probabilities
from fast_cifar.optimizer import make_optimizer
from fast_cifar.system.device import Precision
from fast_cifar.train_step import TrainStep


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CustomResNet().eval()


def test_it_has_6573120_parameters_at_10_classes(model):
    assert parameter_count(model) == 6_573_120


def test_100_classes_cost_only_the_wider_last_layer():
    assert parameter_count(CustomResNet(100)) == 6_573_120 + 90 * 512


@pytest.mark.parametrize("width", [1, 16, 96])
def test_the_parameters_grow_with_the_square_of_the_width(width):
    """Counted by hand: inputs x outputs x 9 of each convolution, 2 numbers a channel, and the head."""
    convolutions = 9 * (1 * 2 + 2 * 2 * 2 + 2 * 4 + 4 * 8 + 2 * 8 * 8) * width**2 + 9 * 3 * width
    norms = 2 * (1 + 3 * 2 + 4 + 3 * 8) * width
    assert parameter_count(CustomResNet(width=width)) == convolutions + norms + 10 * 8 * width


def test_no_convolution_and_no_linear_layer_has_a_bias(model):
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_the_output_is_one_logit_a_class(model, images):
    assert model(images).shape == (4, 10)
    assert CustomResNet(7)(images).shape == (4, 7)


def test_the_output_is_not_a_softmax(model, images):
    sums = model(images).sum(dim=1)
    assert not torch.allclose(sums, torch.ones(4), atol=1e-2)


def test_forward_equals_the_description_written_with_functions(model, images):
    """The oracle: the assignment's text, line by line, on the same weights."""
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


def test_dropout_changes_nothing_when_predicting(images):
    torch.manual_seed(0)
    plain = CustomResNet().eval()
    dropped = CustomResNet(dropout=0.5).eval()
    dropped.load_state_dict(plain.state_dict())
    assert torch.equal(plain(images), dropped(images))


def test_dropout_zeroes_features_when_training(images):
    model = CustomResNet(dropout=0.5).train()
    features = model.head[:3](torch.ones(64, 512, 4, 4))
    assert (features == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_channels_last_computes_the_same(model, images):
    other = CustomResNet().eval().to(memory_format=torch.channels_last)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images.to(memory_format=torch.channels_last)), model(images), rtol=1e-4, atol=1e-4)


def test_every_parameter_gets_a_gradient(images):
    model = CustomResNet().train()
    F.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_probabilities_are_the_softmax_in_float32():
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(probabilities(logits), torch.softmax(torch.tensor([[1.0, 2.0, 3.0]]), 1))


@pytest.mark.parametrize("size", [(32, 32), (8, 6), (7, 5)])
def test_the_form_of_pooling_that_is_compiled_has_the_same_values_and_gradients(monkeypatch, size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 4, *size, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(3, 4, size[0] // 2, size[1] // 2, generator=generator)
    results = []
    for compiling in (False, True):
        monkeypatch.setattr("torch.compiler.is_compiling", lambda compiling=compiling: compiling)
        pooled = MaxPool2()(images)
        results.append((pooled, *torch.autograd.grad((pooled * weights).sum(), images)))
    assert torch.equal(results[0][0], F.max_pool2d(images, 2))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_equal_pixels_share_the_gradient_of_a_compiled_pooling(monkeypatch):
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    images = torch.zeros(1, 1, 2, 2, requires_grad=True)
    MaxPool2()(images).sum().backward()
    assert images.grad.flatten().tolist() == [0.25] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_step_of_the_whole_network_has_the_losses_of_the_eager_one(dtype):
    losses = {}
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(32, 3, 32, 32, generator=generator), torch.arange(32) % 10
    for compile in (False, True):
        torch.manual_seed(0)
        model = CustomResNet().to(memory_format=torch.channels_last).train()
        step = TrainStep(model, make_optimizer(model, 1e-4), Precision("cpu", dtype), compile=compile)
        losses[compile] = [step(inputs, labels)[0].item() for _ in range(4)]
    assert losses[True] == pytest.approx(losses[False], abs=1e-3 if dtype == torch.float32 else 3e-2)
    assert losses[True][-1] < losses[True][0]
