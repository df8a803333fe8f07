"""Welch's t-test against scipy, and what the comparison says about the files it is given."""

from __future__ import annotations

import json
from functools import partial

import pytest

from bench import compare
from bench.compare import Welch, runs_to_tell, t_probability, verdict, welch
from fast_cifar.system.errors import run_script
from tests.helpers.scripts import refused

COMPARE = partial(run_script, compare.main)
A, B = [0.9383, 0.9412, 0.9401], [0.9366, 0.9352, 0.9371, 0.9359]


@pytest.fixture
def run(run_here, tmp_path):
    """Writes each dictionary to a file, compares them, and returns the exit code, the output and the error."""

    def compared(*contents, options=()):
        paths = []
        for k, one in enumerate(contents):
            paths.append(tmp_path / f"{'ab'[k]}.json")
            paths[-1].write_text(json.dumps(one))
        return run_here(COMPARE, *paths, *options)

    return compared


def summary(runs, **changes):
    return {"test_accuracy": sum(runs) / len(runs), "runs": runs, "dataset": "cifar10", "epochs": 24} | changes


def test_welchs_test_equals_scipys():
    """scipy.stats.ttest_ind(A, B, equal_var=False), scipy 1.17."""
    result = welch(A, B)
    assert result.t == pytest.approx(3.8951782748809474)
    assert result.freedom == pytest.approx(2.9625607732394004)
    assert result.p == pytest.approx(0.030703105168041134, rel=1e-5)
    assert result.interval == pytest.approx((0.0006493876498771325, 0.006683945683456503), rel=1e-4)


def test_the_test_of_b_against_a_is_the_mirror_image():
    ab, ba = welch(A, B), welch(B, A)
    assert (ab.difference, ab.t, ab.p) == pytest.approx((-ba.difference, -ba.t, ba.p))
    assert ab.interval == pytest.approx((-ba.interval[1], -ba.interval[0]))


@pytest.mark.parametrize(("b", "p"), [([0.9, 0.9], 1.0), ([0.8, 0.8], 0.0)])
def test_runs_that_repeat_themselves_differ_surely_or_not_at_all(b, p):
    result = welch([0.9, 0.9, 0.9], b)
    assert result.p == p
    assert result.interval == (result.difference, result.difference)


def test_the_number_of_runs_is_the_textbooks():
    """For differences of so many standard deviations, 80 % at the 5 % level, as tables of t-tests have them."""
    one = [-1.0, 0.0, 1.0]
    assert [runs_to_tell(one, one, difference) for difference in (0.2, 0.5, 0.8, 1.0)] == [394, 64, 26, 17]
    assert runs_to_tell(one, one, 100.0) == 2


def test_the_verdict_names_the_better_one_with_its_interval():
    a = Welch(0.0031, (0.0005, 0.0057), 3.0, 4.0, 0.02)
    assert verdict(a, 9, 0.2) == "A is better by 0.31 pp [0.05 .. 0.57], p = 0.02"
    b = Welch(-0.0031, (-0.0057, -0.0005), -3.0, 4.0, 0.0002)
    assert verdict(b, 9, 0.2) == "B is better by 0.31 pp [0.05 .. 0.57], p < 0.001"


def test_without_a_difference_the_verdict_says_how_many_runs_would_tell():
    none = Welch(-0.0004, (-0.002, 0.0012), -0.5, 4.0, 0.6)
    text = verdict(none, 9, 0.2)
    assert text.startswith("no significant difference: A minus B is -0.04 pp [-0.20 .. +0.12], p = 0.6")
    assert text.endswith("about 9 runs of each would detect 0.2 pp")


def test_a_summary_and_a_file_of_results_are_compared(run, tmp_path):
    recorded = {"command": "x", "summaries": [{"test_accuracy": one, "dataset": "cifar10", "epochs": 24} for one in B]}
    path = tmp_path / "out.json"
    status, printed, _ = run(summary(A), recorded, options=("--json", str(path)))
    assert status == 0
    assert "A is better by 0.37 pp [0.06 .. 0.67], p = 0.031" in printed.splitlines()[-1]
    assert "warning" not in printed
    assert json.loads(path.read_text())["welch"]["p"] == pytest.approx(0.0307, abs=1e-4)


def test_run_folders_are_compared_with_what_their_configurations_say(run_here, tmp_path):
    for name, runs, limit in (("a", A, 100), ("b", B, 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary(runs)))
        (tmp_path / name / "config.json").write_text(json.dumps({"limit_test": limit, "runs": len(runs)}))
    status, printed, _ = run_here(COMPARE, tmp_path / "a", tmp_path / "b")
    assert status == 0
    assert "warning: they differ in limit_test: 100 and 200" in printed
    assert "A is better" in printed


def test_runs_without_test_images_are_compared_by_their_validation_accuracies_and_with_no_others(run):
    held_out = [summary(runs, test_accuracy=None) for runs in (A, B)]
    status, printed, _ = run(*held_out)
    assert status == 0
    assert "validation accuracy, last epoch" in printed
    assert "validation accuracies" in refused(run(summary(A), held_out[1]))


def test_the_options_of_recorded_runs_are_compared(run):
    recorded = {"options": {"weight_decay": 0.1}, "summaries": [{"test_accuracy": one} for one in B]}
    _, printed, _ = run(recorded | {"options": {"weight_decay": 0.5}}, recorded)
    assert "warning: they differ in weight_decay: 0.5 and 0.1" in printed


def test_other_data_other_epochs_and_failed_runs_are_warned_of(run):
    status, printed, _ = run(summary(A), summary(B, dataset="pets", epochs=8, failures=["seed 3: diverged"]))
    assert status == 0
    assert "warning: they differ in dataset: cifar10 and pets" in printed
    assert "warning: they differ in epochs: 24 and 8" in printed
    assert "not counted: 1 failed run of" in printed


@pytest.mark.parametrize(
    ("contents", "options", "named"),
    [
        ((summary(A), {"test_accuracy": 0.9}), (), "b.json has one run"),
        ((summary(A), {"test_accuracy": None, "val_accuracy": 0.9}), (), "b.json has one run"),
        ((summary(A[:1]), summary(B)), (), "a.json has one run"),
        ((summary(A), {"beads": 3}), (), "b.json holds no accuracies"),
        ((summary(A), {"runs": 5}), (), "b.json holds no accuracies"),
        ((summary(A), [1, 2]), (), "b.json is damaged"),
        ((summary(A),), ("nowhere.json",), "nowhere.json"),
        ((summary(A), summary(B)), ("--tell", "0"), "--tell 0"),
        ((summary(A),), (), "required"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_code_2(run, contents, options, named):
    assert named in refused(run(*contents, options=options))


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
