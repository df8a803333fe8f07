"""The table that people print before they train: what each layer makes of an image, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
