"""The ground of every picture that matplotlib draws, which is optional: ask `matplotlib_available` first.

A picture is one PNG, 1,200 pixels wide or more. Nothing here touches pyplot, and the caller's rcParams are afterwards
as they were.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fast_cifar.plots.grids import write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def matplotlib_available() -> bool:
    """Whether pictures can be drawn with it."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def picture(path: str | Path, width: float, height: float) -> Iterator[Figure]:
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
