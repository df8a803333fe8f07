"""The charts of a report: which series, which axes, which words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fast_cifar.plots.range_test import visible_losses
from fast_cifar.report.page import Markup, tag
from fast_cifar.report.records import Record, number
from fast_cifar.report.svg import COLOURS, DASHES, DOT, Axis, Band, Line, Marker, chart, legend, round_step

SPLITS = (
    ("train", "training", "blue", None),
    ("val", "validation", "green", "7 3 2 3"),
    ("test", "test", "vermillion", "7 4"),
)
POINTS = (("steepest", "purple"), ("valley", "green"), ("minimum", "orange"))

Points = list[tuple[float, float]]


def epoch_charts(record: Record) -> list[Markup]:
    """Loss, accuracy, learning rate and images/sec against the epochs, of all seeds; none before the first epoch."""
    if not any(single.history for single in record.singles):
        return []
    charts = [
        _split_chart(record, "loss", 1, "cross-entropy loss (nats)", "{:.4f}"),
        _split_chart(record, "accuracy", 100, "accuracy (%)", "{:.2f} %"),
        _schedule_chart(record),
        _speed_chart(record),
    ]
    return [tag("div", *charts, class_="charts")]


def comparison_chart(records: Sequence[Record], names: Sequence[str]) -> Markup | None:
    """Test accuracy against the epochs, a colour and dash for each record; None before the first test."""
    lines, entries = [], []
    for index, (record, name) in enumerate(zip(records, names, strict=True)):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        for single in record.singles:
            points = series(single, "test_accuracy", 100)
            whose = f"{name}, {single.name}" if record.several else name
            tips = [f"{whose}, epoch {epoch}: test {value:.2f} %" for epoch, value in points]
            lines += [Line(points, colour, dash, thin=record.several, tooltips=tips)] if points else []
        entries.append((name, colour, dash))
    if not lines:
        return None
    axis = _accuracy_axis([value for line in lines for _, value in line.points])
    x = _epoch_axis(max(record.epochs for record in records))
    return _figure(
        "Test accuracy", f"Test accuracy against the epochs, of {', '.join(names)}.", x, axis, lines, entries
    )


def range_test_chart(test: Mapping[str, Any], found: Mapping[str, Any]) -> Markup:
    """Losses against the learning rate on a logarithmic axis, LRMIN, LRMAX, and the points read off.

    Args:
        test: as `RunFolder.range_test` gives it; its `repeats`, if any, are drawn faintly.
        found: its suggestion.
    """
    lrs, losses, smoothed = test["lrs"], test["losses"], test["smoothed"]
    repeats = [line for repeat in _repeats(test) if (line := _curve(repeat.get("lrs"), repeat.get("smoothed")))]
    ends = [lr for name in ("lr_min", "lr_max") if (lr := _positive(found.get(name)))]
    every_lr = [*lrs, *ends, *(lr for line in repeats for lr, _ in line)]
    low, high = min(every_lr), max(every_lr)
    x = Axis("learning rate (log scale)", low, high if high > low else 10 * low, log=True)
    y = Axis("cross-entropy loss (nats)", *map(float, visible_losses(losses, smoothed)))
    lines = [Line(points, "faint", "2 3", thin=True) for points in repeats]
    lines += [
        Line(list(zip(lrs, losses, strict=True)), "faint", thin=True),
        Line(list(zip(lrs, smoothed, strict=True)), "blue"),
    ]
    entries = [("loss of each step", "faint", None), ("smoothed loss", "blue", None)]
    entries += [(f"smoothed loss of {len(repeats)} repeats", "faint", "2 3")] if repeats else []
    markers = []
    for name, colour in POINTS:
        lr = _positive(found.get(name))
        if lr is not None and low <= lr <= high:
            markers.append(Marker(lr, _at(lr, lrs, smoothed), colour, f"{name}: learning rate {lr:.3g}"))
            entries.append((f"{name} {lr:.3g}", colour, DOT))
    band = None
    if len(ends) == 2 and ends[0] <= ends[1]:
        band = Band(*ends, "green", (f"LRMIN {ends[0]:.3g}", f"LRMAX {ends[1]:.3g}"))
    words = f"Loss against a rising learning rate from {lrs[0]:.3g} to {lrs[-1]:.3g}."
    return tag("div", _figure("Range test", words, x, y, lines, entries, markers, band), class_="charts")


def series(record: Record, name: str, scale: float = 1) -> Points:
    """(epoch, scaled value) of the epochs where it is known."""
    known = ((row["epoch"], number(row.get(name))) for row in record.history)
    return [(epoch, scale * value) for epoch, value in known if value is not None]


def cycle(record: Record) -> Points:
    """The corners of the one cycle as (epochs done, learning rate); none where the run does not say them.

    A step is drawn at the number of epochs that are done after it, so the first one is a step away from 0.
    """
    lr_min, lr_max, epochs = (_positive(record.config.get(name)) for name in ("lr_min", "lr_max", "epochs"))
    steps = _steps_per_epoch(record)
    if lr_min is None or lr_max is None or epochs is None or steps is None:
        return []
    peak = _positive(record.config.get("peak_epoch"))
    if peak is None:  # a run of one epoch
        peak = (max(1, round(epochs * steps * 5 / 24) - 1) + 1) / steps
    return [(1 / steps, lr_min), (peak, lr_max), (epochs, lr_min)] if 1 / steps < peak < epochs else []


def _split_chart(record: Record, metric: str, scale: float, label: str, pattern: str) -> Markup:
    lines, entries, last = [], [], []
    for split, word, colour, dash in SPLITS:
        drawn = []
        for single in record.singles:
            points = series(single, f"{split}_{metric}", scale)
            whose = f"{single.name}, " if record.several else ""
            tips = [f"{whose}epoch {epoch}: {word} {pattern.format(value)}" for epoch, value in points]
            drawn += [Line(points, colour, dash, thin=len(record.singles) > 1, tooltips=tips)] if points else []
        if drawn:
            value = f" {pattern.format(drawn[0].points[-1][1])}" if not record.several else ""
            entries.append((word + value, colour, dash))
            last.append(word + value)
        lines += drawn
    values = [value for line in lines for _, value in line.points]
    y = _accuracy_axis(values) if metric == "accuracy" else _axis_from_zero(label, values)
    words = f"{metric.capitalize()} against the epochs. Last values: {', '.join(last)}."
    return _figure(metric.capitalize(), words, _epoch_axis(record.epochs), y, lines, entries)


def _schedule_chart(record: Record) -> Markup:
    """The one cycle as it was planned, and the rate of each epoch's last step as it was."""
    single = next(one for one in record.singles if one.history)
    points, corners = series(single, "lr"), cycle(single)
    tips = [f"epoch {epoch}: learning rate {lr:.3g} in its last step" for epoch, lr in points]
    lines = [Line(corners, "blue")] if corners else []
    radius = 4 if len(points) <= 40 else 1
    markers = [Marker(*point, "vermillion", tip, radius) for point, tip in zip(points, tips, strict=True)]
    entries = [("one cycle", "blue", None)] if corners else []
    entries.append(("last step of each epoch", "vermillion", DOT))
    y = _axis_from_zero("learning rate", [lr for _, lr in [*points, *corners]])
    words = f"Learning rate against the epochs: up to {y.high / 1.1:.3g} and down again."
    return _figure("One cycle", words, _epoch_axis(record.epochs), y, lines, entries, markers)


def _speed_chart(record: Record) -> Markup:
    lines = []
    for single in record.singles:
        points = series(single, "images_per_second")
        whose = f"{single.name}, " if record.several else ""
        tips = [f"{whose}epoch {epoch}: {value:,.0f} images/sec" for epoch, value in points]
        lines += [Line(points, "blue", thin=len(record.singles) > 1, tooltips=tips)] if points else []
    y = _axis_from_zero("training images/sec", [value for line in lines for _, value in line.points])
    words = "Training images per second in each epoch."
    return _figure("Speed", words, _epoch_axis(record.epochs), y, lines, [("training", "blue", None)])


def _figure(
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    entries: Sequence[tuple[str, str, str | None]],
    markers: Sequence[Marker] = (),
    band: Band | None = None,
) -> Markup:
    picture = chart(title, description, x, y, lines, markers, band)
    return tag("figure", tag("figcaption", tag("strong", title)), picture, legend(entries))


def _epoch_axis(epochs: int) -> Axis:
    return Axis("epoch", 0, epochs, whole=True)


def _axis_from_zero(label: str, values: Sequence[float]) -> Axis:
    highest = max(values, default=0.0)
    return Axis(label, 0, 1.1 * highest if highest > 0 else 1.0)


def _accuracy_axis(values: Sequence[float]) -> Axis:
    """From a round value below the lowest accuracy to 100 %."""
    lowest = min(max(0.0, min(values, default=0.0) - 2), 98.0)
    step = round_step((100 - lowest) / 5)
    return Axis("accuracy (%)", min(step * math.floor(lowest / step), 100 - step), 100)


def _steps_per_epoch(record: Record) -> int | None:
    """Optimiser steps in an epoch, from how many images went through the first one."""
    batch = _positive(record.config.get("batch_size"))
    speed, seconds = (_positive(record.history[0].get(name)) for name in ("images_per_second", "seconds"))
    if batch is None or speed is None or seconds is None:
        return None
    return max(1, round(speed * seconds / batch))


def _repeats(test: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    repeats = test.get("repeats")
    return [repeat for repeat in repeats if isinstance(repeat, dict)] if isinstance(repeats, list) else []


def _curve(lrs: Any, losses: Any) -> Points:
    """The pairs of two lists of numbers, without those that cannot stand on a logarithmic axis."""
    if not isinstance(lrs, list) or not isinstance(losses, list):
        return []
    pairs = ((_positive(lr), number(value)) for lr, value in zip(lrs, losses, strict=False))
    return [(lr, value) for lr, value in pairs if lr is not None and value is not None]


def _at(lr: float, lrs: Sequence[float], smoothed: Sequence[float]) -> float:
    """The smoothed loss at the tested rate nearest to `lr`."""
    return smoothed[min(range(len(lrs)), key=lambda index: abs(math.log(lrs[index] / lr)))]


def _positive(value: Any) -> float | None:
    known = number(value)
    return known if known is not None and known > 0 else None
