"""Accuracy against LRMAX, a small picture a setting: the runs, the fitted curve, and where each rule would train."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.rules import OURS, RULES, accuracies, fitted
from fast_cifar.errors import UserError
from fast_cifar.figures import BLUE, GREEN, ORANGE, PURPLE, VERMILLION, matplotlib_available, picture

ACROSS, WIDE, HIGH = 3, 6.0, 4.5  # small pictures in a row; inches of each
NARROWEST = 12.0  # inches of the whole, for its legend
DEEP = 30  # percentage points below the top: what collapses runs out of the picture
COLOURS = dict(zip(RULES, (VERMILLION, PURPLE, GREEN, ORANGE, "#56B4E9"), strict=True))
DASHES = dict(zip(RULES, ("-", ":", "-.", "--", (0, (1, 1))), strict=True))


def draw_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the rows that have trainings.

    Raises:
        UserError: there are none, or matplotlib is not installed.
    """
    if not matplotlib_available():
        raise UserError("--picture needs matplotlib: pip install matplotlib")
    rows = [row for row in rows if row.get("regret")]
    if not rows:
        raise UserError("--picture: no setting has a suggestion and trainings yet")
    across = min(ACROSS, len(rows))
    down = math.ceil(len(rows) / across)
    path.parent.mkdir(parents=True, exist_ok=True)
    with picture(path, max(WIDE * across, NARROWEST), HIGH * down + 0.8) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, row in zip(panels, rows, strict=False):
            _draw(axes, row)
        for axes in panels[len(rows) :]:
            axes.axis("off")
        figure.supxlabel("LRMAX")
        figure.supylabel("validation accuracy, %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _draw(axes: Any, row: Mapping[str, Any]) -> None:
    runs = accuracies(row["runs"])
    rates = np.array(list(runs))
    low, middle, high = (100 * np.array([f(values) for values in runs.values()]) for f in (min, np.mean, max))
    fine = np.geomspace(rates[0], rates[-1], 400)
    axes.plot(fine, 100 * fitted(runs)(np.log2(fine)), color=BLUE, label="fit")
    axes.errorbar(
        rates, middle, yerr=(middle - low, high - middle), fmt="o", color=BLUE, capsize=3, label="runs: mean and range"
    )
    for rule in reversed(RULES):  # ours on top of the others
        width = 2.5 if rule == OURS else 1.5
        axes.axvline(row["rates"][rule], color=COLOURS[rule], ls=DASHES[rule], lw=width, label=rule)
    axes.set_ylim(bottom=max(low.min(), middle.max() - DEEP) - 1)
    axes.set_xscale("log", base=10)
    axes.set_title(row["setting"] + (" (tuned on)" if row.get("tuned_on") else ""))
