"""The network: a short ResNet that trains on CIFAR in 24 epochs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fast_cifar.runtime import pools_by_maximum


class CustomResNet(nn.Module):
    """A PrepLayer, three convolution layers, and residual blocks on the first and the third.

    | part      | what it does                                                                     | output      |
    |-----------|----------------------------------------------------------------------------------|-------------|
    | PrepLayer | conv 3x3 -> BN -> ReLU                                                           | 64 x 32x32  |
    | Layer1    | X = conv 3x3 -> MaxPool 2 -> BN -> ReLU; R1 = (conv 3x3 -> BN -> ReLU) x 2; X + R1 | 128 x 16x16 |
    | Layer2    | conv 3x3 -> MaxPool 2 -> BN -> ReLU                                              | 256 x 8x8   |
    | Layer3    | X = conv 3x3 -> MaxPool 2 -> BN -> ReLU; R2 = (conv 3x3 -> BN -> ReLU) x 2; X + R2 | 512 x 4x4   |
    | head      | MaxPool 4 -> dropout -> fully connected                                          | num_classes |

    No convolution and no linear layer has a bias; nothing follows an addition. With 10 classes and a width of 64 it has
    exactly 6,573,120 parameters.

    Args:
        num_classes: how many classes, at least 1.
        dropout: probability in [0, 1) of zeroing a feature before the fully connected layer.
        width: channels of the PrepLayer, at least 1, which double from layer to layer.

    Shape:
        input [n, 3, 32, 32], floating; output [n, num_classes], **logits**. The loss takes logits;
        apply `softmax(dim=1)` to them for probabilities.

    Source: the network is David Page's ("How to Train Your ResNet", 2018) in the widths of the assignment.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.0, width: int = 64) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = dropout
        self.width = width
        self.prep = conv_bn_relu(3, width)
        self.layer1 = ResidualLayer(width, 2 * width)
        self.layer2 = conv_bn_relu(2 * width, 4 * width, pool=True)
        self.layer3 = ResidualLayer(4 * width, 8 * width)
        self.head = nn.Sequential(
            nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * width, num_classes, bias=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer3(self.layer2(self.layer1(self.prep(images)))))


class ResidualLayer(nn.Module):
    """X + R(X), where X halves the resolution and R is two convolutions at that resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.x = conv_bn_relu(in_channels, out_channels, pool=True)
        self.r = nn.Sequential(conv_bn_relu(out_channels, out_channels), conv_bn_relu(out_channels, out_channels))

    def forward(self, images: Tensor) -> Tensor:
        x = self.x(images)
        return x + self.r(x)


def conv_bn_relu(in_channels: int, out_channels: int, *, pool: bool = False) -> nn.Sequential:
    """conv 3x3 (stride 1, padding 1) -> MaxPool 2, when asked for -> BN -> ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)]
    if pool:
        layers.append(MaxPool2())
    layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class MaxPool2(nn.MaxPool2d):
    """The largest of each 2x2 pixels: [n, c, h, w] to [n, c, h // 2, w // 2].

    Compiled on a CPU it takes another form, with the same values. Only the gradient of pixels that are exactly equal
    differs: they share it, and otherwise the first has it all.
    """

    def __init__(self) -> None:
        super().__init__(kernel_size=2)

    def forward(self, images: Tensor) -> Tensor:
        if not pools_by_maximum(images.device):
            return super().forward(images)
        height, width = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
        corners = [images[..., row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]
        return torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3]))


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, trainable or not (buffers do not count)."""
    return sum(parameter.numel() for parameter in model.parameters())


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the classes, in float32: [n, classes] in, the same shape out, each row summing to 1."""
    return torch.softmax(logits.float(), dim=1)
