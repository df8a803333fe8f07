"""The mean of several seeds, its confidence interval, and Student's t."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def summarize(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of several runs of one recipe.

    Returns:
        The entries of one summary, measurements averaged over all runs, and of `peak_memory_bytes` the highest; `runs`,
        the `test_accuracy` of each run (`val_accuracy` with `--no-test`); and of those `n`, `mean`, `std` (n - 1; None
        for one run) and `interval`, the ends of the 95 % confidence interval of the mean (Student's t; None for one
        run).
    """
    result: dict[str, Any] = {}
    for name, value in summaries[0].items():
        values = [summary[name] for summary in summaries]
        measured = isinstance(value, float) and all(isinstance(other, float) for other in values)
        result[name] = statistics.fmean(values) if measured else value
    if peaks := [peak for one in summaries if (peak := one.get("peak_memory_bytes")) is not None]:
        result["peak_memory_bytes"] = max(peaks)
    headline = "val_accuracy" if summaries[0]["test_accuracy"] is None else "test_accuracy"
    accuracies = [summary[headline] for summary in summaries]
    mean, n = statistics.fmean(accuracies), len(accuracies)
    std = statistics.stdev(accuracies) if n > 1 else None
    half = None if std is None else t_quantile(n - 1) * std / n**0.5
    interval = None if half is None else [mean - half, mean + half]
    return result | {"runs": accuracies, "n": n, "mean": mean, "std": std, "interval": interval}


def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t with `freedom` >= 1 degrees of freedom: |t| is below it 95 % of the time.

    With t = sqrt(freedom) * tan(angle), the density becomes cos(angle) ** (freedom - 1), which is easy to integrate.
    """
    angles = np.linspace(0.0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    angle = np.interp(0.95, mass / mass[-1], angles)
    return float(np.sqrt(freedom) * np.tan(angle))
