"""Curves and heat maps of a run, drawn with matplotlib, which is optional: ask `matplotlib_available` first.

Each public function writes one PNG, 1,200 pixels wide or more. Nothing here touches pyplot, and the caller's rcParams
are afterwards as they were.
"""

from __future__ import annotations

import importlib.util
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fast_cifar.grids import plain, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from fast_cifar.lr_curve import Suggestion
    from fast_cifar.lr_repeats import Spread

# Okabe and Ito's palette, made for colour-blind eyes.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
DARK_GREEN, DARK_RED = "#00694D", "#A34700"  # for text
FAINT = "#AAAAAA"

STYLE = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E6E6E6",
    "font.size": 11,
    "axes.titlesize": 12,
    "figure.titlesize": 14,
    "lines.linewidth": 2,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
}

SPLITS = (("train", BLUE, "-", "o"), ("val", GREEN, "-.", "^"), ("test", VERMILLION, "--", "s"))
# The points of a range test, the largest first: those that coincide can all be seen.
POINTS = (("steepest", "v", 16, PURPLE), ("valley", "s", 11, GREEN), ("minimum", "o", 8, ORANGE))
LINES_UP_TO = 10  # seeds
NUMBERS_UP_TO = 20  # classes: above it the cells are too small for numbers


def matplotlib_available() -> bool:
    """Whether the functions of this module can draw."""
    return importlib.util.find_spec("matplotlib") is not None


def schedule(path: str | Path, lrs: Sequence[float], steps_per_epoch: int) -> None:
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
    with _picture(path, 12, 5) as figure:
        axes = figure.subplots()
        axes.plot(epochs, lrs, color=BLUE)
        _mark(axes, epochs[0], lrs[0], f"LRMIN {lrs[0]:.3g}", above=False, side="left")
        _mark(axes, epochs[peak], lrs[peak], highest, above=True, side="center")
        _mark(axes, epochs[-1], lrs[-1], f"LRMIN {lrs[-1]:.3g}", above=False, side="right")
        axes.set(title="One cycle", xlabel="epoch", ylabel="learning rate")
        axes.set_ylim(-0.1 * lrs[peak], 1.12 * lrs[peak])  # room for the texts
        _whole_epochs(axes)


def curves(path: str | Path, history: Sequence[dict], title: str) -> None:
    """Draws loss and accuracy of train, test and (if held out) validation against the epochs, and the gap between them.

    Args:
        path: the PNG to write; its folder exists.
        history: rows of metrics.jsonl, at least one: `epoch`, and `SPLIT_loss` and `SPLIT_accuracy` (in [0, 1]) for the
            splits train, test and val. What is absent, null or not finite is left out.
        title: stands above both panels.
    """
    with _picture(path, 12, 5) as figure:
        figure.suptitle(plain(title), parse_math=False)
        loss, accuracy = figure.subplots(1, 2)
        values = _draw_metric(loss, history, "loss", 1, "{:.4f}")
        loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, 1.1 * max(values, default=1)))
        values = _draw_metric(accuracy, history, "accuracy", 100, "{:.2f} %")
        accuracy.set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
        accuracy.set_ylim(max(min(values, default=0) - 5, 0), 101)


def confusion(path: str | Path, matrix: Tensor, classes: Sequence[str]) -> None:
    """Draws a confusion matrix as a heat map, and each class's accuracy beside it.

    Args:
        path: the PNG to write; its folder exists.
        matrix: int64 [C, C] on the CPU, rows the true class, columns the predicted one. A class without images is a row
            of zeros.
        classes: C names. Up to 20 classes the cells hold their counts.
    """
    correct, total = int(matrix.trace()), int(matrix.sum())
    height = min(4 + 0.45 * len(classes), 16)
    with _picture(path, max(height, 12), height) as figure:
        figure.suptitle(f"Confusion matrix: {correct}/{total} correct ({100 * correct / max(total, 1):.2f} %)")
        heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
        _draw_heat(heat, matrix, classes)
        _draw_class_accuracy(bars, matrix)


def range_test(
    path: str | Path,
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: Suggestion,
    *,
    linear: bool = False,
    seeds: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    lr_max_spread: Spread | None = None,
    divergence: float | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Draws the loss of a range test against the learning rate, its points, and the interval it recommends.

    Args:
        path: the PNG to write; its folder exists.
        lrs: the rates, increasing and positive, at least one.
        losses, smoothed: as many losses, means where there are several seeds; infinite ones and NaN are left out.
        suggestion: rates within those tested.
        linear: the axis of the rates, which is logarithmic otherwise.
        seeds: (lrs, smoothed) of each seed where there are several; a few are drawn as lines of their own.
        band: lowest and highest smoothed loss of the seeds at each of `lrs`.
        lr_max_spread: of the seeds' LRMAX.
        divergence: the rate from which on the loss diverged.
        notes: sentences for the foot of the picture.
    """
    with _picture(path, 12, 6) as figure:
        axes = figure.subplots()
        axes.set_xscale("linear" if linear else "log")
        whose = f" (mean of {len(seeds)} seeds)" if seeds else ""
        axes.plot(lrs, losses, color=FAINT, linewidth=1, label=f"loss of each step{whose}")
        if band is not None:
            axes.fill_between(lrs, *band, color=BLUE, alpha=0.15, linewidth=0, label="lowest to highest seed")
        for seed_lrs, seed_smoothed in seeds if len(seeds) <= LINES_UP_TO else ():
            axes.plot(seed_lrs, seed_smoothed, color=BLUE, linewidth=1, alpha=0.35, label="_one seed")
        axes.plot(lrs, smoothed, color=BLUE, label=f"smoothed loss{whose}")
        ranges = [visible_losses(losses, smoothed), *(visible_losses(one, one) for _, one in seeds)]
        limits = min(low for low, _ in ranges), max(high for _, high in ranges)
        axes.set_ylim(limits)
        for name, marker, size, colour in POINTS:
            lr = getattr(suggestion, name)
            loss = np.clip(np.interp(math.log(lr), np.log(lrs), smoothed), *limits)
            look = {"color": colour, "markersize": size, "markeredgecolor": "white"}
            axes.plot(lr, loss, marker, label=f"{name} {lr:.3g}", **look)
        if divergence is not None:
            axes.axvline(divergence, color=VERMILLION, linestyle=":", label=f"divergence {divergence:.3g}")
        _shade_interval(axes, suggestion.lr_min, suggestion.lr_max)
        if lr_max_spread is not None:
            ends = lr_max_spread.lowest, lr_max_spread.highest
            label = "LRMAX of the seeds {:.3g} to {:.3g}".format(*ends)
            axes.axvspan(*ends, facecolor="none", edgecolor=DARK_GREEN, hatch="//", linewidth=0, alpha=0.5, label=label)
        axes.set(xlabel=f"learning rate ({'linear' if linear else 'log'} scale)", ylabel="cross-entropy (nats)")
        axes.set_title("Range test", pad=28)  # clear of the texts above the interval
        axes.legend(loc="best")
        if notes:
            _write_foot(figure, notes)


def _draw_metric(axes: Axes, history: Sequence[dict], metric: str, scale: float, number: str) -> list[float]:
    """One line a split, its last value in the legend, and the gap between train and test shaded.

    Returns:
        Every value drawn.
    """
    known = {split: _points(history, f"{split}_{metric}", scale) for split, *_ in SPLITS}
    for split, colour, line, marker in SPLITS:
        if points := known[split]:
            epochs, values = list(points), list(points.values())
            look = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
            axes.plot(epochs, values, label=f"{split} {number.format(values[-1])}", **look)
    if both := [epoch for epoch in known["train"] if epoch in known["test"]]:
        train, test = ([known[split][epoch] for epoch in both] for split in ("train", "test"))
        gap = f"train − test {number.format(train[-1] - test[-1])}"
        axes.fill_between(both, train, test, color=FAINT, alpha=0.35, linewidth=0, label=gap)
    if any(known.values()):
        axes.legend(title="last values", loc="best")
    axes.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    _whole_epochs(axes)
    return [value for points in known.values() for value in points.values()]


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


def _shade_interval(axes: Axes, lr_min: float, lr_max: float) -> None:
    """Shades LRMIN to LRMAX; the texts stand above the axes and lean away from each other, so that they never meet."""
    axes.axvspan(lr_min, lr_max, color=GREEN, alpha=0.15, linewidth=0, label="recommended")
    for lr, name, side in ((lr_min, "LRMIN", "right"), (lr_max, "LRMAX", "left")):
        axes.axvline(lr, color=GREEN, linewidth=1.5)
        text = {"color": DARK_GREEN, "va": "bottom", "transform": axes.get_xaxis_transform()}
        axes.text(lr, 1.015, f"{name} {lr:.3g}", ha=side, **text)


def _write_foot(figure: Figure, notes: Sequence[str]) -> None:
    """Sentences below the axes, at their left, in lines that fit."""
    lines = [line for note in notes for line in textwrap.wrap(plain(note), 150, subsequent_indent="    ")]
    look = {"size": 10, "color": DARK_RED, "ha": "left", "parse_math": False}
    figure.supxlabel("\n".join(lines), x=0.02, **look)


def visible_losses(losses: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float]:
    """Limits that show the descent and the turn: an early spike and the divergence run out of the picture."""
    raw, smooth = np.array(losses, dtype=float), np.array(smoothed, dtype=float)
    finite = np.isfinite(raw) & np.isfinite(smooth)
    if not finite.any():
        return 0.0, 1.0
    raw, smooth = raw[finite], smooth[finite]
    # Not the highest loss of the descent: its top 15 % may be a spike.
    start = max(np.quantile(raw[: smooth.argmin() + 1], 0.85), smooth.min())
    room = max(0.4 * (start - smooth.min()), 0.1 * abs(smooth.min()), 1e-3)
    return min(raw.min(), smooth.min()) - room / 4, start + room


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


@contextmanager
def _picture(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure in our style, so many inches large at 100 pixels an inch; written to `path` when the block is done."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        canvas = FigureCanvasAgg(figure)
        yield figure
        with warnings.catch_warnings():
            # A class name in letters that the font lacks is drawn as boxes: no reason to alarm anyone.
            warnings.filterwarnings("ignore", "Glyph")
            canvas.draw()
        write_png(path, Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
