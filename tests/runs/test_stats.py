"""Mean and confidence interval of several seeds, compared with printed tables."""

import pytest

from fast_cifar.runs.stats import summarize, t_quantile


def summary(accuracy, **more):
    return {"test_accuracy": accuracy, "seconds": 10.0, "dataset": "synthetic", "parameters": 5, "seed": 0} | more


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)]
)
def test_students_quantile_equals_the_printed_table(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=6e-4)


def test_mean_spread_and_interval_equal_those_done_by_hand():
    result = summarize([summary(0.90), summary(0.92), summary(0.94)])
    assert result["n"] == 3
    assert result["mean"] == pytest.approx(0.92)
    assert result["std"] == pytest.approx(0.02)
    half = 4.3027 * 0.02 / 3**0.5
    assert result["interval"] == pytest.approx([0.92 - half, 0.92 + half], abs=1e-5)
    assert result["runs"] == [0.90, 0.92, 0.94]


def test_measurements_are_averaged_and_descriptions_kept():
    result = summarize([summary(0.9, seconds=10.0), summary(0.8, seconds=20.0)])
    assert result["test_accuracy"] == pytest.approx(0.85)
    assert result["seconds"] == 15.0
    assert (result["dataset"], result["parameters"]) == ("synthetic", 5)


def test_the_peak_of_the_memory_is_the_highest():
    assert summarize([summary(0.9, peak_memory_bytes=n) for n in (2, 5, 3)])["peak_memory_bytes"] == 5
    assert summarize([summary(0.9, peak_memory_bytes=None)])["peak_memory_bytes"] is None
