"""Values of a run folder's JSON files as people read them; what is not known is `UNKNOWN`."""

from __future__ import annotations

import math
from typing import Any

from fast_cifar.report.page import UNKNOWN
from fast_cifar.report.records import number


def percent(value: Any) -> str:
    return _shown(value, "{:.2f} %", 100)


def count(value: Any) -> str:
    return _shown(value, "{:,.0f}")


def seconds(value: Any) -> str:
    return _shown(value, "{:,.1f} s")


def rate(value: Any) -> str:
    return _shown(value, "{:.3g}")


def loss(value: Any) -> str:
    return _shown(value, "{:.4f}")


def gibibytes(value: Any) -> str:
    return _shown(value, "{:.2f} GiB", 2**-30)


def text(value: Any) -> str:
    """Any value of a JSON file as a word or two."""
    if value is None or value == "" or value == [] or (isinstance(value, float) and not math.isfinite(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return str(value)


def _shown(value: Any, pattern: str, scale: float = 1) -> str:
    known = number(value)
    return UNKNOWN if known is None else pattern.format(scale * known)
