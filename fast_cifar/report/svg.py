"""Line charts as inline SVG, by a few lines of our own: they scale with the page and take its light or dark colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fast_cifar.report.page import Markup, tag

WIDTH, HEIGHT = 420, 270  # units, of which a text is 13 high: still legible on a phone
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 30, 44
ROW = 17  # units: one row of texts above the axes
MANY = 200  # points of a line, above which they have no dots: the table has their values

# Names of the style sheet's colours, and dashes: together they tell twenty lines apart.
COLOURS = ("blue", "vermillion", "green", "purple", "orange")
DASHES = (None, "7 4", "7 3 2 3", "2 3")
DOT = "dot"  # in a legend, instead of a dash


@dataclass(frozen=True)
class Axis:
    """From values to a share of the axis, and its ticks.

    Attributes:
        label: what is measured, with its unit.
        low, high: the ends, low < high; both positive where `log` is set.
        whole: ticks at whole numbers only.
    """

    label: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def share(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Some `most` round values within the axis, each with its text."""
        if self.log:
            return _decades(self.low, self.high)
        step = round_step((self.high - self.low) / most)
        if self.whole:
            step = max(1.0, step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [index * step for index in range(first, last + 1)]
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(value, f"{value:,.{decimals}f}" if decimals < 5 else f"{value:.3g}") for value in values]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        points: (x, y) within the axes, finite, x rising.
        colour: one of COLOURS, or "faint".
        dash: one of DASHES.
        tooltips: one for each point, which then has a dot; or none.
    """

    points: Sequence[tuple[float, float]]
    colour: str
    dash: str | None = None
    thin: bool = False
    tooltips: Sequence[str] = ()


@dataclass(frozen=True)
class Marker:
    """A single point with a dot."""

    x: float
    y: float
    colour: str
    tooltip: str
    radius: int = 5


@dataclass(frozen=True)
class Band:
    """An interval of the x axis, shaded; its ends are named in rows of their own above the axes."""

    low: float
    high: float
    colour: str
    names: tuple[str, str]


def chart(
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    markers: Sequence[Marker] = (),
    band: Band | None = None,
) -> Markup:
    """An SVG element; what reaches out of the y axis is cut off at the frame.

    Args:
        title, description: read aloud in place of the picture.
    """
    top = TOP + (2 * ROW if band else 0)
    frame = _Frame(x, y, top)
    parts = [tag("title", title), tag("desc", description), *_grid(frame), *(_band(frame, band) if band else [])]
    curves = [_polyline(frame, line) for line in lines]
    box = {"x": LEFT, "y": top, "width": frame.width, "height": frame.height}
    # An SVG element within another cuts off what leaves it: no clip path, which would need a name of its own.
    window = f"{LEFT} {top} {frame.width} {frame.height}"
    parts.append(tag("svg", *curves, viewBox=window, **box))
    dots = [dot for line in lines for dot in _dots(frame, line)]
    points = [_dot(frame, (marker.x, marker.y), marker.colour, marker.radius, marker.tooltip) for marker in markers]
    return tag("svg", *parts, *dots, *points, class_="chart", role="img", viewBox=f"0 0 {WIDTH} {HEIGHT}")


def legend(entries: Sequence[tuple[str, str, str | None]]) -> Markup:
    """What the lines are: (text, colour, dash or DOT) of each. It wraps, so that texts of any length never overlap."""
    return tag("ul", *(tag("li", _key(colour, dash), text) for text, colour, dash in entries), class_="legend")


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is `least` > 0 or more."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


@dataclass(frozen=True)
class _Frame:
    """Where values are in the picture."""

    x_axis: Axis
    y_axis: Axis
    top: int

    @property
    def width(self) -> int:
        return WIDTH - LEFT - RIGHT

    @property
    def height(self) -> int:
        return HEIGHT - self.top - BOTTOM

    def x(self, value: float) -> float:
        return round(LEFT + self.width * self.x_axis.share(value), 2)

    def y(self, value: float) -> float:
        return round(self.top + self.height * (1 - self.y_axis.share(value)), 2)


def _grid(frame: _Frame) -> list[Markup]:
    """Grid lines, their values, and the names of the axes."""
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value, text in frame.y_axis.ticks(5):
        y = frame.y(value)
        parts.append(tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(tag("text", text, class_="y-tick", x=left - 6, y=round(y + 4.5, 2), text_anchor="end"))
    for value, text in frame.x_axis.ticks(8):
        x = frame.x(value)
        parts.append(tag("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4))
        parts.append(tag("text", text, class_="x-tick", x=x, y=bottom + 18, text_anchor="middle"))
    parts.append(tag("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    parts.append(tag("text", frame.x_axis.label, x=(left + right) / 2, y=HEIGHT - 6, text_anchor="middle"))
    parts.append(tag("text", frame.y_axis.label, x=4, y=14))
    return parts


def _band(frame: _Frame, band: Band) -> list[Markup]:
    low, high = frame.x(band.low), frame.x(band.high)
    shade = {"x": low, "y": frame.top, "width": round(high - low, 2), "height": frame.height}
    parts = [tag("rect", class_=f"{band.colour} band", **shade)]
    for row, (x, name) in enumerate(zip((low, high), band.names, strict=True)):
        y = TOP + ROW * row + 8
        side, shift = ("start", 4) if x < WIDTH / 2 else ("end", -4)
        parts.append(tag("line", class_=band.colour, x1=x, x2=x, y1=y - 8, y2=HEIGHT - BOTTOM))
        parts.append(tag("text", name, x=x + shift, y=y + 4, text_anchor=side))
    return parts


def _polyline(frame: _Frame, line: Line) -> Markup:
    points = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in line.points)
    return tag(
        "polyline", points=points, class_=f"{line.colour}{' thin' if line.thin else ''}", stroke_dasharray=line.dash
    )


def _dots(frame: _Frame, line: Line) -> list[Markup]:
    if len(line.points) > MANY:
        return []
    radius = 3 if len(line.points) <= 40 and not line.thin else 2
    return [
        _dot(frame, point, line.colour, radius, text) for point, text in zip(line.points, line.tooltips, strict=False)
    ]


def _dot(frame: _Frame, point: tuple[float, float], colour: str, radius: int, tooltip: str) -> Markup:
    x, y = frame.x(point[0]), frame.y(min(max(point[1], frame.y_axis.low), frame.y_axis.high))
    return tag("circle", tag("title", tooltip), cx=x, cy=y, r=radius, class_=colour)


def _key(colour: str, dash: str | None) -> Markup:
    if dash == DOT:
        shape = tag("circle", cx=16, cy=6, r=5, class_=colour)
    else:
        shape = tag("line", x1=1, x2=31, y1=6, y2=6, class_=colour, stroke_dasharray=dash)
    return tag("svg", shape, class_="key", viewBox="0 0 32 12", aria_hidden="true")


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """1e-6, 1e-5, ...; where fewer than three of them fit, multiples of these, too; at last the ends themselves."""
    powers = range(math.floor(math.log10(low) - 1e-9), math.ceil(math.log10(high) + 1e-9) + 1)
    for factors in ((1,), (1, 2, 5), range(1, 10)):
        values = [(float(f"{factor}e{power}"), f"{factor}e{power}") for power in powers for factor in factors]
        inside = [(value, text) for value, text in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            break
    if len(inside) < 2:
        return [(low, f"{low:.3g}"), (high, f"{high:.3g}")]
    every = -(-len(inside) // 8)
    return inside[::every]
