"""Lines as people read them."""

import pytest

from fast_cifar.runs import console

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


def test_an_epochs_line_has_everything():
    line = console.epoch_line(ROW, 24, {"test": 10_000}, 245)
    for part in (
        "epoch  3/24",
        "lr 0.009120",
        "train 0.8123 71.01%",
        "test 0.7012 7674/10000 (76.74%)",
        "gap -5.73",
        "12,346 images/sec",
        "4.0 s",
        "4:05 left",
    ):
        assert part in line


def test_an_epoch_without_a_test_says_nothing_of_one():
    line = console.epoch_line(ROW | {"test_loss": None, "test_accuracy": None}, 24, {"test": 10_000}, 0)
    assert "test" not in line
    assert "gap" not in line


def test_a_glance_names_loss_and_accuracies():
    assert console.epoch_glance(ROW) == "loss 0.8123, train 71.01%, test 76.74%"
    assert console.epoch_glance(ROW | {"test_accuracy": None}) == "loss 0.8123, train 71.01%"


def test_a_held_out_split_is_shown():
    row = ROW | {"val_loss": 0.7, "val_accuracy": 0.5}
    assert "val 0.7000 50/100 (50.00%)" in console.epoch_line(row, 24, {"val": 100, "test": 10_000}, 0)


SUMMARY = {
    "peak_memory_bytes": None,
    "test_accuracy": 0.87,
    "best_test_accuracy": 0.88,
    "train_accuracy": 0.9,
    "seconds": 245.0,
    "images_per_second": 1234.5,
    "compile_seconds": 0.0,
}


def test_the_headline_is_the_last_epoch_and_the_best_stands_behind_it():
    first, second, third = console.closing_lines(SUMMARY, "runs/a")
    assert first.startswith("test accuracy 87.00%")
    assert "best 88.00%" in first
    assert "4:05" in second
    assert "warm up" not in second
    assert third.endswith("runs/a")


def test_warm_up_is_reported_apart_where_there_was_one():
    assert "37 s to warm up" in console.closing_lines(SUMMARY | {"compile_seconds": 37.2}, "runs/a")[1]


def test_the_peak_of_memory_is_said_where_it_is_known():
    assert "memory" not in console.closing_lines(SUMMARY, "runs/a")[1]
    known = console.closing_lines(SUMMARY | {"peak_memory_bytes": 3 * 2**29}, "runs/a")[1]
    assert known.endswith("at most 1.50 GiB of memory")


def test_several_runs_are_a_mean_with_its_interval():
    line = console.several_line({"n": 3, "mean": 0.92, "std": 0.01, "interval": [0.9, 0.94]})
    assert "92.00% ± 2.00" in line
    assert "n = 3" in line


def test_one_run_claims_no_interval():
    assert console.several_line({"n": 1, "mean": 0.92, "std": None, "interval": None}) == "test accuracy 92.00% (n = 1)"
