"""The figure of a range test, drawn with matplotlib: ask `style.matplotlib_available` first."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from fast_cifar.plots import style
from fast_cifar.plots.grids import plain
from fast_cifar.plots.style import BLUE, DARK_GREEN, DARK_RED, FAINT, GREEN, ORANGE, PURPLE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The points of a range test, the largest first: those that coincide can all be seen.
POINTS = (("steepest", "v", 16, PURPLE), ("valley", "s", 11, GREEN), ("minimum", "o", 8, ORANGE))
LINES_UP_TO = 10  # seeds


def range_test(
    path: str | Path | IO[bytes],
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: Mapping[str, float],
    *,
    linear: bool = False,
    seeds: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    lr_max_range: tuple[float, float] | None = None,
    divergence: float | None = None,
    notes: Sequence[str] = (),
    title: str = "Range test",
) -> None:
    """Draws the loss of a range test against the learning rate, its points, and the interval it recommends.

    Args:
        path: the PNG to write, or a binary file.
        lrs: the rates, increasing and positive, at least one.
        losses, smoothed: as many losses, means where there are several seeds; infinite ones and NaN are left out.
        suggestion: `lr_min`, `lr_max`, `steepest`, `valley` and `minimum`, within the rates tested.
        linear: the axis of the rates, which is logarithmic otherwise.
        seeds: (lrs, smoothed) of each seed where there are several; a few are drawn as lines of their own.
        band: lowest and highest smoothed loss of the seeds at each of `lrs`.
        lr_max_range: the seeds' lowest and highest LRMAX.
        divergence: the rate from which on the loss diverged.
        notes: sentences for the foot of the figure.
        title: what was swept.
    """
    with style.figure(path, 12, 6) as figure:
        axes = figure.subplots()
        axes.set_xscale("linear" if linear else "log")
        whose = f" (mean of {len(seeds)} seeds)" if seeds else ""
        axes.plot(lrs, losses, color=FAINT, linewidth=1, label=f"loss of each step{whose}")
        if band is not None:
            axes.fill_between(lrs, *band, color=BLUE, alpha=0.15, linewidth=0, label="lowest to highest seed")
        for seed_lrs, seed_smoothed in seeds if len(seeds) <= LINES_UP_TO else ():
            axes.plot(seed_lrs, seed_smoothed, color=BLUE, linewidth=1, alpha=0.35, label="_one seed")
        axes.plot(lrs, smoothed, color=BLUE, label=f"smoothed loss{whose}")
        ranges = [_visible_losses(losses, smoothed), *(_visible_losses(one, one) for _, one in seeds)]
        limits = min(low for low, _ in ranges), max(high for _, high in ranges)
        axes.set_ylim(limits)
        for name, marker, size, colour in POINTS:
            lr = suggestion[name]
            loss = np.clip(np.interp(math.log(lr), np.log(lrs), smoothed), *limits)
            look = {"color": colour, "markersize": size, "markeredgecolor": "white"}
            axes.plot(lr, loss, marker, label=f"{name} {lr:.3g}", **look)
        if divergence is not None:
            axes.axvline(divergence, color=VERMILLION, linestyle=":", label=f"divergence {divergence:.3g}")
        _shade_interval(axes, suggestion["lr_min"], suggestion["lr_max"])
        if lr_max_range is not None:
            label = "LRMAX of the seeds {:.3g} to {:.3g}".format(*lr_max_range)
            axes.axvspan(
                *lr_max_range, facecolor="none", edgecolor=DARK_GREEN, hatch="//", linewidth=0, alpha=0.5, label=label
            )
        axes.set(xlabel=f"learning rate ({'linear' if linear else 'log'} scale)", ylabel="cross-entropy (nats)")
        axes.set_title(style.wrapped(title), pad=28, parse_math=False)  # clear of the texts above the interval
        axes.legend(loc="best")
        if notes:
            _write_foot(figure, notes)


def _visible_losses(losses: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float]:
    """Limits that show the descent and the turn: an early spike and the divergence leave the figure."""
    raw, smooth = np.array(losses, dtype=float), np.array(smoothed, dtype=float)
    finite = np.isfinite(raw) & np.isfinite(smooth)
    if not finite.any():
        return 0.0, 1.0
    raw, smooth = raw[finite], smooth[finite]
    # Not the highest loss of the descent: its top 15 % may be a spike.
    start = max(np.quantile(raw[: smooth.argmin() + 1], 0.85), smooth.min())
    room = max(0.4 * (start - smooth.min()), 0.1 * abs(smooth.min()), 1e-3)
    return min(raw.min(), smooth.min()) - room / 4, start + room


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
