"""The network: a short ResNet that trains on CIFAR in 24 epochs.

`model_summary` is the table that people print before they train: what each layer makes of an image, and what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
        layers.append(nn.MaxPool2d(2))
    layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, trainable or not (buffers do not count)."""
    return sum(parameter.numel() for parameter in model.parameters())


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the classes, in float32: [n, classes] in, the same shape out, each row summing to 1."""
    return torch.softmax(logits.float(), dim=1)


@dataclass(frozen=True)
class LayerRow:
    """One layer: its place in the network, its kind, output shape, cost, and the input pixels that one output sees."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: int | None


def layer_rows(model: nn.Module, input_shape: tuple[int, int, int]) -> list[LayerRow]:
    """One row for each layer without children, in the order in which they run.

    The receptive field follows the longest path: right for a chain, and for a residual block, whose sum sees what its
    convolutions see. It is None once a layer sees the whole feature map.

    Args:
        input_shape: (channels, height, width) of one image.
    """
    rows: list[LayerRow] = []
    field, jump = 1, 1

    def record(name: str, module: nn.Module, output: Tensor) -> None:
        nonlocal field, jump
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            field += (_first(module.kernel_size) - 1) * jump
            jump *= _first(module.stride)
        sees_all = isinstance(module, nn.Linear)
        rows.append(
            LayerRow(
                name,
                type(module).__name__,
                tuple(output.shape[1:]),
                sum(p.numel() for p in module.parameters()),
                _multiply_adds(module, output),
                None if sees_all else field,
            )
        )

    hooks = [
        module.register_forward_hook(lambda m, _, out, name=name: record(name, m, out))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    was_training = model.training
    first = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return rows


def training_flops(model: nn.Module, images: int, input_shape: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Floating-point operations of training on so many images: three times those of the forward pass.

    A multiply-add is two operations, and only convolutions and fully connected layers count. The backward pass costs
    twice the forward pass, if the gradient of the images, which training does not need, is counted too.
    """
    return 3 * 2 * images * sum(row.multiply_adds for row in layer_rows(model, input_shape))


def model_summary(model: nn.Module, input_shape: tuple[int, int, int] = (3, 32, 32)) -> str:
    """The network as a table: layer, output shape, parameters, multiply-adds, receptive field, and the totals.

    Multiply-adds are those of convolutions and fully connected layers for one image; MB are 2**20 bytes of float32.
    """
    rows = layer_rows(model, input_shape)
    header = f"{'Layer':<26}{'Output shape':<18}{'Parameters':>12}{'Multiply-adds':>16}{'Receptive field':>18}"
    lines = [header, "-" * len(header)]
    for row in rows:
        shape = " x ".join(map(str, row.output_shape))
        field = "all" if row.receptive_field is None else f"{row.receptive_field} x {row.receptive_field}"
        title = f"{row.name} {row.kind}"
        lines.append(f"{title:<26}{shape:<18}{row.parameters:>12,}{row.multiply_adds:>16,}{field:>18}")
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    activations = sum(torch.Size(row.output_shape).numel() for row in rows)
    input_size, activation_size, parameter_size = (
        4 * count / 2**20 for count in (torch.Size(input_shape).numel(), activations, total)
    )
    return "\n".join(
        [
            *lines,
            "-" * len(header),
            f"Parameters            {total:>14,}",
            f"  trainable           {trainable:>14,}",
            f"  not trainable       {total - trainable:>14,}",
            f"Multiply-adds         {sum(row.multiply_adds for row in rows):>14,} an image, forward",
            f"Input size            {input_size:>14.2f} MB an image",
            f"Activations size      {activation_size:>14.2f} MB an image, forward",
            f"Parameters size       {parameter_size:>14.2f} MB",
            f"Estimated total size  {input_size + activation_size + parameter_size:>14.2f} MB for one image",
        ]
    )


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        return output[0].numel() * module.weight[0].numel()
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
