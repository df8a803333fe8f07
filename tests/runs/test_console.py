"""Lines as people read them."""

import pytest

from fast_cifar.build import build_setup
from fast_cifar.runs import console
from tests.helpers.pages import summary_of
from tests.helpers.plots import history

ROW = {
    "epoch": 3,
    "lr": 0.00912,
    "train_loss": 0.8123,
    "train_accuracy": 0.7101,
    "test_loss": 0.7012,
    "test_accuracy": 0.7674,
    "images_per_second": 12345.6,
    "seconds": 4.05,
}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (7.4, "7 s"), (59.6, "1:00"), (245, "4:05"), (3599, "59:59"), (3845, "1:04:05")]
)
def test_times_read_as_people_write_them(seconds, text):
    assert console.clock(seconds) == text


def test_one_epoch_of_one_step_is_not_plural(quick):
    options = quick(epochs=1, batch_size=1).resolved()
    recipe = console.opening_lines(build_setup(options), options, "abacus", 1)[2]
    assert recipe.startswith("recipe    1 epoch x 1 step of 1 image; one cycle 1e-05 -> 0.001")


def test_the_line_of_an_epoch_has_every_number():
    row = ROW | {"val_loss": 0.7, "val_accuracy": 0.5}
    line = console.epoch_line(row, 24, {"val": 100, "test": 10_000}, 245)
    for part in (
        "epoch  3/24",
        "lr 0.009120",
        "train 0.8123 71.01 %",
        "val 0.7000 50/100 (50.00 %)",
        "test 0.7012 7674/10000 (76.74 %)",
        "gap -5.73",
        "12,346 images/sec",
        "4.0 s",
        "4:05 left",
    ):
        assert part in line


def test_without_a_test_the_lines_of_an_epoch_have_no_test_and_no_gap():
    row = ROW | {"test_loss": None, "test_accuracy": None}
    line = console.epoch_line(row, 24, {"test": 10_000}, 0)
    assert "test" not in line
    assert "gap" not in line


def test_the_closing_lines_have_the_last_accuracy_first_then_the_best():
    summary = summary_of(history(2)) | {"test_accuracy": 0.87, "best_test_accuracy": 0.88, "seconds": 245.0}
    summary |= {"training_flops": 2.726e15, "compile_seconds": 0.0, "peak_memory_bytes": None}
    first, second, third = console.closing_lines(summary, "runs/a")
    assert first.startswith("test accuracy 87.00 %")
    assert "best 88.00 %" in first
    assert "4:05" in second
    assert second.endswith("2.73 PFLOP")
    assert "warm up" not in second
    assert "memory" not in second
    assert third.endswith("runs/a")


def test_warm_up_and_peak_memory_are_reported_where_they_are_known():
    line = console.closing_lines(summary_of(history(2)) | {"compile_seconds": 37.2}, "runs/a")[1]
    assert "37 s to warm up" in line
    assert line.endswith("peak memory 3.00 GiB")


def test_several_runs_are_a_mean_with_its_interval_and_one_has_none():
    line = console.several_line({"n": 3, "mean": 0.92, "std": 0.01, "interval": [0.9, 0.94]})
    assert "92.00 % ± 2.00" in line
    assert "n = 3" in line
    one = {"n": 1, "mean": 0.92, "std": None, "interval": None}
    assert console.several_line(one) == "test accuracy 92.00 % (n = 1)"
