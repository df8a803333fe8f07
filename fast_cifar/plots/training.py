"""Curves and heat maps of a run, one PNG each, drawn with matplotlib: ask `style.matplotlib_available` first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from fast_cifar.plots import style
from fast_cifar.plots.grids import plain
from fast_cifar.plots.style import BLUE, FAINT, GREEN, ORANGE, PURPLE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

SPLITS = (("train", BLUE, "-", "o"), ("val", GREEN, "-.", "^"), ("test", VERMILLION, "--", "s"))
# Metric -> factor from the file to the axis, how a value is written, the axis' label.
METRICS = {"loss": (1, "{:.4f}", "cross-entropy (nats)"), "accuracy": (100, "{:.2f} %", "accuracy (%)")}
LEGEND_COLUMNS = 3
NUMBERS_UP_TO = 20  # classes: above it the cells are too small for numbers


def schedule(path: str | Path, lrs: Sequence[float], steps_per_epoch: int, title: str = "One cycle") -> None:
    """Draws the learning rate against the epochs, with LRMAX, its epoch, and LRMIN at both ends.

    A step is drawn at the number of epochs that are done after it: the last step of epoch 5 at 5.

    Args:
        path: the PNG to write; its folder exists.
        lrs: the rate of every step of the run, at least one.
        steps_per_epoch: at least 1.
    """
    epochs = [(step + 1) / steps_per_epoch for step in range(len(lrs))]
    peak = int(np.argmax(lrs))
    highest = f"LRMAX {lrs[peak]:.3g}, max at epoch {peak // steps_per_epoch + 1}"
    with style.figure(path, 12, 5) as figure:
        axes = figure.subplots()
        axes.plot(epochs, lrs, color=BLUE)
        _mark(axes, epochs[0], lrs[0], f"LRMIN {lrs[0]:.3g}", above=False, side="left")
        _mark(axes, epochs[peak], lrs[peak], highest, above=True, side="center")
        _mark(axes, epochs[-1], lrs[-1], f"LRMIN {lrs[-1]:.3g}", above=False, side="right")
        axes.set_title(style.wrapped(title), parse_math=False)
        axes.set(xlabel="epoch", ylabel="learning rate")
        axes.set_ylim(-0.1 * lrs[peak], 1.12 * lrs[peak])  # room for the texts
        _whole_epochs(axes)


def curves(
    path: str | Path | IO[bytes],
    histories: Sequence[Sequence[dict]],
    epochs: int,
    *titles: str,
    label_smoothing: float = 0.0,
) -> None:
    """Draws loss and accuracy of train, test and (if held out) validation against the epochs.

    Of one run, the legend has the last values, and the gap between the accuracies of train and test is shaded.

    Args:
        path: the PNG to write, or a binary file.
        histories: of each seed the rows of metrics.jsonl, at least one: `epoch`, and `SPLIT_loss` and `SPLIT_accuracy`
            (in [0, 1]) for the splits train, test and val. What is absent, null or not finite is left out.
        epochs: where the axis ends.
        titles: lines above both panels.
        label_smoothing: of the training loss; the other losses are without it, and so not comparable.
    """
    with style.figure(path, 12, 5) as figure:
        if titles:
            figure.suptitle(style.wrapped(*titles), parse_math=False)
        for axes, metric in zip(figure.subplots(1, 2), METRICS, strict=True):
            _draw_metric(axes, metric, histories)
            axes.set_xlim(0.5, epochs + 0.5)
            if metric == "loss" and label_smoothing:
                axes.set_title(f"Loss (train: with label smoothing {label_smoothing:g})")


def comparison(path: str | Path | IO[bytes], runs: Sequence[tuple[str, str, Sequence[Sequence[dict]]]]) -> None:
    """Draws the accuracies of several runs against the epochs; up to twenty differ in colour or dashes.

    Args:
        path: the PNG to write, or a binary file.
        runs: of each its name, the key of its accuracy in a row of metrics.jsonl, and the rows of each of its seeds.
    """
    looks = itertools.cycle(itertools.product(("-", "--", "-.", ":"), (BLUE, VERMILLION, GREEN, PURPLE, ORANGE)))
    rows = -(-len(runs) // LEGEND_COLUMNS)
    with style.figure(path, 12, 5 + 0.25 * rows) as figure:
        axes = figure.subplots()
        handles = []
        for (_, key, histories), (dashes, colour) in zip(runs, looks, strict=False):
            look = {"color": colour, "linestyle": dashes, "linewidth": 2 if len(histories) == 1 else 1, "ms": 4}
            handles += axes.plot([], [], **look)
            for history in histories:
                points = _points(history, key, 100)
                axes.plot(list(points), list(points.values()), marker="o", **look)
        axes.set(xlabel="epoch", ylabel="accuracy (%)")
        _whole_epochs(axes)
        legend = figure.legend(
            handles, [""] * len(runs), loc="outside lower center", ncols=min(len(runs), LEGEND_COLUMNS)
        )
        for text, (name, *_) in zip(legend.get_texts(), runs, strict=True):
            text.set(text=_ellipsis(name, 30), parse_math=False)  # as labels, names that begin with "_" are left out


def confusion(path: str | Path, matrix: Tensor, classes: Sequence[str], *titles: str) -> None:
    """Draws a confusion matrix as a heat map, and each class's accuracy beside it.

    Args:
        path: the PNG to write; its folder exists.
        matrix: int64 [C, C] on the CPU, rows the true class, columns the predicted one. A class without images is a row
            of zeros.
        classes: C names. Up to 20 classes the cells hold their counts.
        titles: lines above; how many images are correct follows in the last.
    """
    correct, total = int(matrix.trace()), int(matrix.sum())
    height = min(4 + 0.45 * len(classes), 16)
    with style.figure(path, max(height, 12), height) as figure:
        *first, last = titles or ("Confusion matrix",)
        figure.suptitle(style.wrapped(*first, f"{last}: {correct}/{total} correct"), parse_math=False)
        heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
        _draw_heat(heat, matrix, classes)
        _draw_class_accuracy(bars, matrix)


def _draw_metric(axes: Axes, metric: str, histories: Sequence[Sequence[dict]]) -> None:
    """One line for each split of each history; of a single one also the last values, and the gap between accuracies."""
    scale, number, unit = METRICS[metric]
    single = len(histories) == 1
    drawn: list[float] = []
    for split, colour, line, marker in SPLITS:
        known = [points for history in histories if (points := _points(history, f"{split}_{metric}", scale))]
        for index, points in enumerate(known):
            epoch, values = list(points), list(points.values())
            look = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
            label = f"{split} {number.format(values[-1])}" if single else "_" * (index > 0) + split
            axes.plot(epoch, values, label=label, linewidth=2 if single else 1, **look)
            drawn += values
    if single and metric == "accuracy":
        _shade_gap(axes, histories[0])
    if drawn:
        axes.legend(title="last values" if single else None, loc="best")
    axes.set(title=metric.capitalize(), xlabel="epoch", ylabel=unit)
    axes.set_ylim((0, 1.1 * max(drawn, default=1)) if metric == "loss" else (max(min(drawn, default=0) - 5, 0), 101))
    _whole_epochs(axes)


def _shade_gap(axes: Axes, history: Sequence[dict]) -> None:
    """Shades the area between the accuracies of train and test; their difference is in percentage points."""
    train, test = (_points(history, f"{split}_accuracy", 100) for split in ("train", "test"))
    if both := [epoch for epoch in train if epoch in test]:
        label = f"train − test {train[both[-1]] - test[both[-1]]:.2f} pp"
        lines = ([points[epoch] for epoch in both] for points in (train, test))
        axes.fill_between(both, *lines, color=FAINT, alpha=0.35, linewidth=0, label=label)


def _points(history: Sequence[dict], key: str, scale: float) -> dict[int, float]:
    """Epoch -> scaled value, of the epochs where the value is known and finite."""
    values = {row["epoch"]: row.get(key) for row in history}
    return {epoch: scale * value for epoch, value in values.items() if value is not None and math.isfinite(value)}


def _draw_heat(axes: Axes, matrix: Tensor, classes: Sequence[str]) -> None:
    """The heat map, coloured by percent of the row; the square root lets rare mistakes be seen beside the diagonal."""
    from matplotlib.colors import PowerNorm

    numbers = len(classes) <= NUMBERS_UP_TO
    percent = (100 * matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    heat = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto")
    scale = {"location": "bottom", "shrink": 0.6, "aspect": 40, "ticks": [0, 1, 5, 20, 50, 100]}
    axes.figure.colorbar(heat, ax=axes, label="share of the true class (%)", **scale)
    text = {"size": 11 if numbers else 6, "parse_math": False}
    names = [_ellipsis(name) for name in classes]
    slant = {"rotation": 45, "va": "top"} if numbers else {"rotation": 90, "va": "center"}
    axes.set_xticks(range(len(names)), names, ha="right", rotation_mode="anchor", **slant, **text)
    axes.set_yticks(range(len(names)), names, **text)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(visible=False)
    if numbers:
        for row, column in np.ndindex(*percent.shape):
            count, share = int(matrix[row, column]), percent[row, column]
            axes.text(column, row, count, color=_ink_on(share) if count else FAINT, ha="center", va="center")


def _ink_on(percent: float) -> str:
    """The colour that is legible in a cell of the heat map."""
    return "white" if percent > 50 else "black"


def _draw_class_accuracy(axes: Axes, matrix: Tensor) -> None:
    """One horizontal bar a class, level with its row of the heat map."""
    images = matrix.sum(1)
    percent = 100 * matrix.diagonal() / images.clamp(min=1)
    bars = axes.barh(range(len(matrix)), percent.tolist(), color=BLUE)
    if len(matrix) <= NUMBERS_UP_TO:
        pairs = zip(percent.tolist(), images.tolist(), strict=True)
        axes.bar_label(bars, [f"{value:.1f}" if known else "no images" for value, known in pairs], padding=3)
    axes.tick_params(left=False, labelleft=False)
    axes.grid(visible=False, axis="y")
    axes.set(title="Accuracy by class", xlabel="accuracy (%)", xlim=(0, 124), xticks=(0, 50, 100))


def _mark(axes: Axes, x: float, y: float, text: str, *, above: bool, side: str) -> None:
    """A dot with a text above or below it, aligned to that side."""
    axes.plot(x, y, "o", color=VERMILLION)
    place = {"textcoords": "offset points", "ha": side, "va": "bottom" if above else "top"}
    axes.annotate(text, (x, y), (0, 8 if above else -8), **place)


def _whole_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=13, integer=True, min_n_ticks=1))


def _ellipsis(name: str, longest: int = 18) -> str:
    name = plain(name)
    return name if len(name) <= longest else name[: longest - 1].rstrip() + "…"
