"""Mean and confidence interval of several seeds, compared with printed tables and with scipy."""

import pytest

from fast_cifar.runs.stats import summarize, t_probability, t_quantile


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


def test_one_run_has_no_spread():
    result = summarize([summary(0.9)])
    assert (result["n"], result["mean"], result["std"], result["interval"]) == (1, 0.9, None, None)


def test_measurements_are_averaged_and_descriptions_kept():
    result = summarize([summary(0.9, seconds=10.0), summary(0.8, seconds=20.0)])
    assert result["test_accuracy"] == pytest.approx(0.85)
    assert result["seconds"] == 15.0
    assert (result["dataset"], result["parameters"]) == ("synthetic", 5)


@pytest.mark.parametrize(
    ("t", "freedom", "probability"),
    [
        (12.706204736, 1, 0.05),
        (2.776445105, 4, 0.05),
        (2.570581836, 5, 0.05),
        (3.169272673, 10, 0.01),
        (0.0, 3, 1.0),
        (2.5, 2.5, 0.1045699630781554),  # from here on: 2 * scipy.stats.t.sf(t, freedom), scipy 1.17
        (1.0, 1.2, 0.47680398804944585),
        (4.0, 7.3, 0.004762367164327108),
        (8.0, 30, 6.265822475700759e-09),
        (50.0, 3.7, 2.253359072898325e-06),
    ],
)
def test_students_probability_equals_the_printed_table_and_scipy(t, freedom, probability):
    assert t_probability(t, freedom) == pytest.approx(probability, rel=1e-5)
    assert t_probability(-t, freedom) == t_probability(t, freedom)


@pytest.mark.parametrize("freedom", [1, 1.5, 2.9625607732394004, 17.3, 400])
def test_quantile_and_probability_are_inverse(freedom):
    assert t_probability(t_quantile(freedom), freedom) == pytest.approx(0.05, rel=1e-4)
