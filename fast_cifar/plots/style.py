"""What all figures drawn with matplotlib share. It is optional: ask `matplotlib_available` first.

A figure is written as one PNG. Nothing here touches pyplot or the caller's rcParams.
"""

from __future__ import annotations

import importlib.util
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image

from fast_cifar.plots.grids import plain, write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_MATPLOTLIB = "no curves without matplotlib; to have them: pip install matplotlib"

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
    """Whether figures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def wrapped(*texts: str) -> str:
    """A title of any texts, each on its own line or on several that fit a figure of 12 inches; it may hold "$", so draw
    it with parse_math=False."""
    return "\n".join(line for text in texts for line in textwrap.wrap(plain(text), 112))


@contextmanager
def figure(path: str | Path | IO[bytes], width: float, height: float, dpi: int = 100) -> Iterator[Figure]:
    """A figure in our style, written when the block ends without an error.

    Args:
        path: the PNG to write, or a binary file to write it to.
        width, height: in inches.
        dpi: pixels per inch.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        drawn = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        drawn.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        canvas = FigureCanvasAgg(drawn)
        yield drawn
        with warnings.catch_warnings():
            # Letters that the font lacks, in a class name say, are drawn as boxes: not worth a warning.
            warnings.filterwarnings("ignore", "Glyph")
            canvas.draw()
        write_png(path, Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
