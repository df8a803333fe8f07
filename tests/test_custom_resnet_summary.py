"""The summary's figures against torch's own and against pencil and paper."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fast_cifar.custom_resnet import CustomResNet, layer_rows, model_summary


def test_multiply_adds_equal_half_of_torchs_flop_count():
    model = CustomResNet().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert sum(row.multiply_adds for row in layer_rows(model, (3, 32, 32))) == counter.get_total_flops() // 2


def test_parameters_add_up_to_the_network():
    assert sum(row.parameters for row in layer_rows(CustomResNet(), (3, 32, 32))) == 6_573_120


def test_the_receptive_field_equals_the_pixels_that_move_one_output():
    model = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2)
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    field = layer_rows(model, (1, 32, 32))[-1].receptive_field
    averaging = nn.Sequential(*(nn.AvgPool2d(2) if isinstance(m, nn.MaxPool2d) else m for m in model))
    image = torch.randn(1, 1, 32, 32, requires_grad=True)
    averaging(image)[0, 0, 4, 4].backward()
    rows = image.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert field == int(rows[-1] - rows[0]) + 1


def test_the_model_is_left_as_it_was():
    model = CustomResNet().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layer_rows(model, (3, 32, 32))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_table_names_every_total():
    model = CustomResNet()
    model.prep.requires_grad_(False)
    text = model_summary(model)
    assert "379,261,952" in text
    assert "6,573,120" in text
    assert "6,571,264" in text  # trainable
    assert "1,856" in text  # not trainable
    assert "25.07 MB" in text
