"""What holds for every figure: it is complete, leaves matplotlib as it was, and nothing needs matplotlib to start."""

from __future__ import annotations

import runpy
import sys

import pytest

from fast_cifar.plots import range_test, training
from tests.helpers.plots import CLASSES, SUGGESTION, assert_good, history, matrix, one_cycle, sweep

matplotlib = pytest.importorskip("matplotlib")


def test_nothing_reaches_out_of_a_figure(png, figures):
    lrs, losses = sweep()
    edge = {"lr_min": lrs[0], "lr_max": lrs[-1], "steepest": 1e-3, "valley": 1e-3, "minimum": lrs[-1]}
    range_test.range_test(png, lrs, losses, losses, edge)
    training.schedule(png, one_cycle(240, 238), 10)
    training.curves(png, [history(24, ("train", "test", "val"))], 24, "title")
    training.confusion(png, matrix(20), ["a rather long name"] * 20)
    for figure in figures:
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_a_figure_that_fails_leaves_no_file(png):
    with pytest.raises(ValueError, match="shape|dimension"):
        range_test.range_test(png, [1e-3, 1e-2], [1.0], [1.0], SUGGESTION)
    assert not list(png.parent.iterdir())


def test_settings_of_the_caller_are_neither_used_nor_changed(png):
    lrs = one_cycle(240, 49)
    training.schedule(png, lrs, 10)
    plain = png.read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        training.schedule(png, lrs, 10)
        assert dict(matplotlib.rcParams) == before
    assert png.read_bytes() == plain


def test_drawing_never_imports_pyplot(png, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    lrs, losses = sweep()
    training.schedule(png, one_cycle(240, 49), 10)
    training.curves(png, [history(3)], 3, "title")
    training.confusion(png, matrix(3), CLASSES[:3])
    range_test.range_test(png, lrs, losses, losses, SUGGESTION)
    assert_good(png)


def test_the_range_test_can_be_imported_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert runpy.run_path(range_test.__file__)["range_test"]
