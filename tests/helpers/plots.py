"""Made-up runs and range tests to be drawn, and what a test looks for in a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SUGGESTION = {"lr_min": 1e-4, "lr_max": 1e-2, "steepest": 1e-3, "valley": 5e-3, "minimum": 3e-2}


def assert_good(path: Path) -> None:
    """A whole PNG of a sane size that is not blank, alone in its folder."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    height, width, _ = pixels.shape
    assert 1200 <= width <= 2000
    assert 400 <= height <= 2000
    assert pixels.std() > 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def one_cycle(total: int, peak: int, low: float = 1e-3, high: float = 1e-2) -> list[float]:
    return np.interp(range(total), [0, peak, total - 1], [low, high, low]).tolist()


def history(epochs: int, splits: tuple[str, ...] = ("train", "test"), seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for epoch in range(1, epochs + 1):
        row: dict = {"epoch": epoch, "lr": float(rng.uniform(1e-4, 3e-3))}
        for split in splits:
            row |= {f"{split}_loss": float(rng.uniform(0.1, 3)), f"{split}_accuracy": float(rng.uniform(0.3, 1))}
        row |= {"images_per_second": float(rng.uniform(1e5, 2e5)), "seconds": 2.5, "evaluation_seconds": 0.5}
        rows.append(row)
    return rows


def matrix(classes: int, images: int = 100, correct: int = 90) -> torch.Tensor:
    wrong = torch.full((classes, classes), (images - correct) // (classes - 1))
    return wrong.fill_diagonal_(correct)


def sweep(steps: int = 118, diverges: bool = True) -> tuple[list[float], list[float]]:
    """Rates and a loss that falls from 2.3 to some 1.3, and explodes above 0.1 if it diverges."""
    lrs = np.geomspace(1e-6, 1, steps)
    losses = 2.3 - 1 / (1 + (1e-3 / lrs) ** 1.5) + diverges * (10 * lrs) ** 4
    return lrs.tolist(), losses.tolist()


def lines(axes) -> dict[str, tuple[list, list]]:
    """Label, up to its first space -> x, y"""
    return {line.get_label().split()[0]: (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]
