"""The built-in data set: ten shapes in random colours, textures, sizes, places and rotations, 32x32.

Nothing is downloaded. All random choices are drawn first, as plain tensors (a `_Scene`); rendering is a pure function
of them. Every shape is its own mirror image, so a horizontal flip keeps the class; it is brighter than its background,
by an amount and in hues that do not depend on the class. A linear classifier on pixels reaches about 27 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fast_cifar.options import SIZE

CHUNK = 500  # images drawn and rendered at a time, which limits the memory
WAVES = 2  # plane waves in a texture
NOISE = 0.05  # standard deviation of the pixel noise on the 0..1 scale
LUMA = torch.tensor([0.299, 0.587, 0.114])  # the weights of red, green and blue in the brightness


def _points(count: int, valley: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A star with `count` tips at radius 1 and valleys at radius `valley`; cos(pi / count) makes a regular polygon."""
    half = math.pi / count
    edge_x, edge_y = valley * math.cos(half) - 1, valley * math.sin(half)
    length = math.hypot(edge_x, edge_y)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        radius, angle = torch.hypot(x, y), torch.atan2(y, x)
        folded = (torch.remainder(angle, 2 * half) - half).abs()
        return ((radius * folded.cos() - 1) * edge_y - radius * folded.sin() * edge_x) / length

    return distance


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.85


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.72).abs() - 0.2


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.minimum(x, y) - 0.27, torch.maximum(x, y) - 0.95)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.75 - torch.hypot(x - 0.5, y))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = x + 0.2, y + 0.2
    square = torch.maximum(x.abs(), y.abs()) - 0.55
    lobes = torch.minimum(torch.hypot(x - 0.55, y), torch.hypot(x, y - 0.55)) - 0.55
    return torch.minimum(square, lobes)


def _hourglass(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(y - 0.85, 0.8 * (x - 0.75 * y) - 0.06)


def _capsule(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot((x.abs() - 0.72).clamp(min=0), y) - 0.27


# Signed distance of the points x, y to each outline, negative inside, in units of the shape's radius.
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _points(3, math.cos(math.pi / 3)),
    "square": _points(4, math.cos(math.pi / 4)),
    "star": _points(5, 0.42),
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "hourglass": _hourglass,
    "capsule": _capsule,
}

CLASSES: tuple[str, ...] = tuple(_DISTANCES)


@dataclass
class _Scene:
    """All random choices of n images. Lengths in pixels, colours in 0..1; layer 0 is the background, 1 the shape."""

    radius: Tensor  # [n, 1, 1]
    centre_x: Tensor  # [n, 1, 1], from the middle of the image
    centre_y: Tensor  # [n, 1, 1]
    angle: Tensor  # [n, 1, 1]
    colours: Tensor  # [2, n, 3, 1, 1]
    tints: Tensor  # [2, n, 3, 1, 1], added to the colour at the crest of a wave
    wave_x: Tensor  # [2, WAVES, n, 1, 1], radians a pixel
    wave_y: Tensor  # [2, WAVES, n, 1, 1]
    wave_phase: Tensor  # [2, WAVES, n, 1, 1]
    noise: Tensor  # [n, 3, SIZE, SIZE]


def generate(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Generates `n` labelled images; equal arguments give equal images, and no global random state is used.

    Args:
        n: number of images, at least 0.
        seed: for `torch.Generator.manual_seed`. Different seeds give independent images.

    Returns:
        images uint8 [n, 32, 32, 3], labels int64 [n] (indices into `CLASSES`, balanced to within one and shuffled).

    Raises:
        ValueError: `n` is negative.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n)[torch.randperm(n, generator=generator)] % len(CLASSES)
    images = torch.empty(n, SIZE, SIZE, 3, dtype=torch.uint8)
    for part, part_labels in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        scene = _draw_scene(len(part), generator)
        part.copy_(_render(scene, part_labels).permute(0, 2, 3, 1))
    return images, labels


def _draw_scene(n: int, generator: torch.Generator) -> _Scene:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    radius = uniform(8, 13, n, 1, 1)
    room = SIZE / 2 - radius
    frequency = uniform(0.05, 1.2, 2, WAVES, n, 1, 1)
    direction = uniform(0, 2 * math.pi, 2, WAVES, n, 1, 1)
    return _Scene(
        radius=radius,
        centre_x=room * uniform(-1, 1, n, 1, 1),
        centre_y=room * uniform(-1, 1, n, 1, 1),
        angle=uniform(0, 2 * math.pi, n, 1, 1),
        colours=_contrasting_colours(n, generator),
        tints=uniform(-0.09, 0.09, 2, n, 3, 1, 1),
        wave_x=frequency * direction.cos(),
        wave_y=frequency * direction.sin(),
        wave_phase=uniform(0, 2 * math.pi, 2, WAVES, n, 1, 1),
        noise=NOISE * torch.randn(n, 3, SIZE, SIZE, generator=generator),
    )


def _contrasting_colours(n: int, generator: torch.Generator) -> Tensor:
    """Two colours per image, [2, n, 3, 1, 1], of any hue; the shape is brighter than the background by 0.25 or more."""
    shape = 0.5 + 0.4 * torch.rand(n, generator=generator)
    background = 0.1 + (shape - 0.35) * torch.rand(n, generator=generator)
    chroma = torch.rand(2, n, 3, generator=generator)
    chroma = 0.9 * (chroma - (chroma @ LUMA).unsqueeze(-1))
    return (torch.stack([background, shape]).unsqueeze(-1) + chroma)[..., None, None]


def _render(scene: _Scene, labels: Tensor) -> Tensor:
    """uint8 [n, 3, SIZE, SIZE]: the shape `CLASSES[labels[i]]` over its background, both textured."""
    background, shape = (_textured(scene, layer) for layer in range(2))
    image = torch.lerp(background, shape, _mask(scene, labels).unsqueeze(1)) + scene.noise
    return (image * 255).round_().clamp_(0, 255).to(torch.uint8)


def _textured(scene: _Scene, layer: int) -> Tensor:
    """float [n, 3, SIZE, SIZE]: one layer's colour plus plane waves, which look like gradients, stripes or blotches."""
    x, y = _pixel_grid()
    phases = scene.wave_x[layer] * x + scene.wave_y[layer] * y + scene.wave_phase[layer]
    waves = phases.sin_().sum(dim=0)
    return scene.colours[layer] + scene.tints[layer] * waves.unsqueeze(1)


def _mask(scene: _Scene, labels: Tensor) -> Tensor:
    """float [n, SIZE, SIZE]: 1 inside the shape, 0 outside, and a ramp one pixel wide between."""
    x, y = _pixel_grid()
    x, y = x - scene.centre_x, y - scene.centre_y
    cos, sin = scene.angle.cos() / scene.radius, scene.angle.sin() / scene.radius
    x, y = cos * x + sin * y, cos * y - sin * x
    mask = torch.empty_like(x)
    for label, distance in enumerate(_DISTANCES.values()):
        chosen = labels == label
        mask[chosen] = (0.5 - distance(x[chosen], y[chosen]) * scene.radius[chosen]).clamp_(0, 1)
    return mask


def _pixel_grid() -> tuple[Tensor, Tensor]:
    """x [1, SIZE] and y [SIZE, 1], from the middle of the image, in pixels."""
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    return axis.unsqueeze(0), axis.unsqueeze(1)
