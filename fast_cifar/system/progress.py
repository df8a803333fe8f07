"""Progress bars where somebody watches: on a terminal and in a notebook, but not in a log file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable | None = None, **keywords: Any) -> tqdm:
    """A bar of tqdm with these keywords, disabled where nobody watches.

    In a notebook, bars are text that shares one line: a widget, as of `tqdm.auto`, would stay behind for every epoch.
    """
    if in_notebook():
        # Standard output, because standard error is red there. One width, so that a bar covers the one before it.
        return tqdm(iterable, file=sys.stdout, position=0, ncols=100, **keywords)
    return tqdm(iterable, disable=None, dynamic_ncols=True, **keywords)


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook, whose output is shown without being a terminal."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
