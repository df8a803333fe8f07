"""Axes whose ticks are round numbers within them, and charts that nothing leaves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fast_cifar.report.svg import DASHES, HEIGHT, WIDTH, Axis, Line, chart, round_step

sizes = st.floats(1e-9, 1e9)


@given(sizes)
def test_a_step_is_the_next_of_one_two_and_five_times_a_power_of_ten(least):
    step = round_step(least)
    assert least * (1 - 1e-9) <= step <= least * 2.5 * (1 + 1e-9)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - known) for known in (1, 2, 5)) < 1e-6


@given(sizes, st.integers(4, 10))
def test_ticks_are_within_the_axis_and_not_too_many(high, most):
    ticks = Axis("x", 0, high).ticks(most)
    assert 2 <= len(ticks) <= most + 1
    assert all(-1e-9 * high <= value <= high * (1 + 1e-9) for value, _ in ticks)


@given(st.floats(1e-9, 1), st.floats(1.001, 1e9))
def test_ticks_of_a_logarithmic_axis_are_within_it(low, factor):
    ticks = Axis("x", low, low * factor, log=True).ticks(8)
    assert 2 <= len(ticks) <= 8
    assert all(low * (1 - 1e-6) <= value <= low * factor * (1 + 1e-6) for value, _ in ticks)


@given(sizes, st.integers(4, 10))
def test_a_tick_says_its_value(high, most):
    for value, text in Axis("x", 0, high).ticks(most):
        assert float(text.replace(",", "")) == pytest.approx(value, rel=6e-3)


@given(st.integers(1, 10_000))
def test_epochs_have_ticks_at_whole_numbers_only(epochs):
    ticks = Axis("epoch", 0, epochs, whole=True).ticks(8)
    assert len(ticks) >= 2
    assert all(value == round(value) and text == f"{value:,.0f}" for value, text in ticks)


def test_the_ends_of_the_axes_are_the_corners_of_the_frame():
    line = Line([(0, 0), (10, 5)], "blue", DASHES[1])
    markup = chart("title", "description", Axis("x", 0, 10), Axis("y", 0, 5), [line])
    points = markup.split('points="')[1].split('"')[0]
    (left, bottom), (right, top) = (map(float, point.split(",")) for point in points.split())
    assert 0 < left < right < WIDTH
    assert 0 < top < bottom < HEIGHT


def test_what_leaves_the_axes_has_its_dot_at_their_edge():
    outside, inside = (
        chart("title", "description", Axis("x", 0, 1), Axis("y", 0, 5), [Line(points, "blue", tooltips="ab")])
        for points in ([(0, -3), (1, 9)], [(0, 0), (1, 5)])
    )
    assert dots(outside) == dots(inside)


def dots(markup):
    return [part.split('"')[0] for part in markup.split(' cy="')[1:]]
