"""A planned experiment: the arithmetic of its effects, and which runs are trained, resumed and recorded."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench import experiment
from bench.experiment import effect_table, effects, experiment_block
from fast_cifar.system.errors import UserError, run_script

GENERATORS = {"E": "BCD", "F": "ACD", "G": "ABC", "H": "ABD"}

# Stands in for run_train.py: records its arguments, leaves a run folder, and fails as the seed says.
TRAIN = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(words) + "\\n")
resumed = "--resume" in words
value = lambda flag: words[words.index(flag) + 1]
folder = pathlib.Path(value("--resume") if resumed else value("--out") + "/" + value("--name"))
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text("{}")
seed = 0 if resumed else int(value("--seed"))

def save(number, frame):
    pathlib.Path("saved").touch()
    sys.exit(130)

if seed == 55:
    signal.signal(signal.SIGTERM, save)
    assert os.getsid(0) == os.getpid()  # a terminal's Ctrl-C does not reach it
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(600)
if seed == 13:
    print("error: the loss diverged", file=sys.stderr)
    sys.exit(2)
if seed == 99:
    print("error: the disk is full", file=sys.stderr)
    sys.exit(2)
if seed == 66:
    print("error: interrupted", file=sys.stderr)
    sys.exit(130)
summary = {"val_accuracy": 0.9, "train_accuracy": 0.95, "train_loss": 0.5, "seconds": 1.0, "images_per_second": 10.0}
(folder / "summary.json").write_text(json.dumps(summary | {"device": "abacus", "torch": "2", "parameters": 7}))
"""


def design(accuracy):
    """The 2^(8-4) design of resolution IV, each run with the accuracy of its levels."""
    runs = []
    for base in itertools.product((-1, 1), repeat=4):
        levels = dict(zip("ABCD", base, strict=True))
        levels |= {name: math.prod(levels[one] for one in words) for name, words in GENERATORS.items()}
        runs.append({"levels": levels, "result": {"val_accuracy": accuracy(levels), "train_accuracy": 0.95}})
    for k, run in enumerate(runs):
        run |= {"name": f"run-{k}", "seed": k, "options": []}
    return {"base": ["--no-test"], "factors": {name: {"name": name.lower()} for name in "ABCDEFGH"}, "runs": runs}


def test_known_effects_are_recovered_and_their_aliases_are_no_part_of_the_error():
    sizes = {name: k / 10 for k, name in enumerate("ABCDEFGH")}  # percentage points
    found, error = effects(design(lambda at: 0.9 + sum(sizes[name] * at[name] for name in sizes) / 200))
    assert found == pytest.approx(sizes)
    assert error == pytest.approx(0.0, abs=1e-9)


def test_the_standard_error_comes_from_the_seven_interaction_contrasts():
    # AB is aliased with CG, DH and EF: one contrast of 0.7 pp among seven.
    found, error = effects(design(lambda at: 0.9 + 0.7 * at["A"] * at["B"] / 200))
    assert found == pytest.approx(dict.fromkeys("ABCDEFGH", 0.0), abs=1e-9)
    assert error == pytest.approx(0.7 / 7**0.5)
    # ABC is aliased with G: an effect, and no part of the error.
    found, error = effects(design(lambda at: 0.9 + 0.7 * at["A"] * at["B"] * at["C"] / 200))
    assert (found["G"], error) == (pytest.approx(0.7), pytest.approx(0.0, abs=1e-9))


def test_an_effect_is_shrunk_by_its_standard_error():
    table = effect_table(design(lambda at: 0.9 + (0.5 * at["C"] + 0.1 * 7**0.5 * at["A"] * at["B"]) / 200))
    assert table.startswith("Standard error of an effect 0.100 pp; shrunk to 0.50 of it.")
    assert "| C: c | +0.50 | +0.250 |" in table


def test_a_design_without_a_contrast_for_the_error_is_refused():
    plan = {"factors": {"A": {}}, "runs": [{"levels": {"A": k}, "result": {"val_accuracy": 0.5}} for k in (-1, 1)]}
    with pytest.raises(UserError, match="more runs"):
        effects(plan)


def test_the_effects_wait_for_the_last_run():
    plan = design(lambda at: 0.9)
    assert "Standard error" in experiment_block(plan)
    plan["runs"][3]["result"] = None
    assert "Standard error" not in experiment_block(plan)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout with a fake run_train.py, and a plan; `place.run()` runs the experiment."""
    checkout, file = tmp_path / "checkout", tmp_path / "plan.json"
    checkout.mkdir()
    (checkout / "run_train.py").write_text(TRAIN)

    def plan(*seeds, base=("--no-test", "--val-split", "8"), **more):
        runs = [{"name": f"run-{seed}", "seed": seed, "options": ["--cutout", "0"]} for seed in seeds]
        file.write_text(json.dumps({"question": "Ä?", "base": list(base), "runs": runs} | more))

    def run(*options):
        words = ["--data", "synthetic", "--checkout", str(checkout), "--out", str(tmp_path / "runs"), *options]
        monkeypatch.setattr(sys, "argv", ["bench.experiment", str(file), *words])
        return run_script(experiment.main)

    def calls():
        path = checkout / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def results():
        return [run.get("result") for run in json.loads(file.read_text())["runs"]]

    return SimpleNamespace(
        file=file, plan=plan, run=run, calls=calls, results=results, runs=tmp_path / "runs", checkout=checkout
    )


def test_each_run_is_trained_with_the_plans_options_and_recorded(place, capsys):
    place.plan(1, 2)
    assert place.run() == 0
    first, second = place.calls()
    assert first[4:11] == ["--no-test", "--val-split", "8", "--cutout", "0", "--seed", "1"]
    assert first[first.index("--data") + 1] == "synthetic"
    assert second[second.index("--name") + 1] == "plan-run-2"
    assert place.results()[0].pop("date")
    assert {"val_accuracy": 0.9, "device": "abacus"}.items() <= place.results()[1].items()
    assert "parameters" not in place.results()[1]
    assert "| run-2 | 2 | `--cutout 0` | 90.00 % | 95.00 % |" in capsys.readouterr().out


def test_a_finished_run_is_not_trained_again(place):
    place.plan(1, 2)
    place.run()
    before = place.file.read_text()
    assert place.run() == 0
    assert len(place.calls()) == 2
    assert place.file.read_text() == before


def test_a_run_that_was_cut_off_is_resumed(place, capsys):
    place.plan(1, 66)
    assert place.run() == 2
    assert "run-66 failed: interrupted" in capsys.readouterr().err
    assert place.results()[1] is None
    assert place.run() == 0
    assert len(place.calls()) == 3
    assert place.calls()[-1][:2] == ["--resume", str(place.runs / "plan-run-66")]
    assert place.calls()[-1][2:7] == ["--no-test", "--val-split", "8", "--cutout", "0"]  # refused if they have changed
    assert place.results()[1]["val_accuracy"] == 0.9


@pytest.mark.skipif(os.name == "nt", reason="sends signals as Unix does")
def test_ctrl_c_lets_the_training_save(place, capsys):
    place.plan(55)
    assert place.run() == 130
    assert (place.checkout / "saved").exists()
    assert place.results() == [None]


def test_what_is_added_to_the_plan_while_a_run_trains_is_kept(place, monkeypatch):
    def edit(plan, run, options):
        if run["seed"] == 1:
            place.plan(1, 2, question="Why?")
        return {"val_accuracy": 0.8, "train_accuracy": 0.9}

    place.plan(1)
    monkeypatch.setattr(experiment, "train_one", edit)
    assert place.run() == 0
    assert json.loads(place.file.read_text())["question"] == "Why?"
    assert [result["val_accuracy"] for result in place.results()] == [0.8, 0.8]


def test_a_run_whose_options_are_edited_while_it_trains_gets_no_result(place, monkeypatch, capsys):
    def edit(plan, run, options):
        place.file.write_text(place.file.read_text().replace("--cutout", "--padding"))
        return {"val_accuracy": 0.8}

    place.plan(1)
    monkeypatch.setattr(experiment, "train_one", edit)
    assert place.run() == 2
    assert "run-1 was changed while it trained" in capsys.readouterr().err
    assert place.results() == [None]


def test_runs_are_made_at_the_plans_commit_only(place, capsys):
    git = ["git", "-C", str(place.checkout), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    place.plan(1, commit="0" * 40)
    assert place.run() == 2
    assert "is not at commit 0000000" in capsys.readouterr().err
    assert not place.calls()
    place.plan(1, commit=commit)
    assert place.run() == 0


def test_a_run_that_diverged_is_recorded_and_counts_as_a_blind_guess(place, capsys):
    place.plan(13, 1)
    assert place.run() == 0
    assert place.results()[0]["diverged"] is True
    assert experiment.accuracy({"result": place.results()[0]}) == 10.0
    assert "| run-13 | 13 | `--cutout 0` | diverged | diverged |" in capsys.readouterr().out


def test_another_failure_stops_the_experiment_with_its_reason(place, capsys):
    place.plan(1, 99, 2)
    assert place.run() == 2
    assert capsys.readouterr().err == "error: run-99 failed: the disk is full\n"
    assert [result is None for result in place.results()] == [False, True, True]


@pytest.mark.parametrize(
    ("contents", "named"),
    [
        ({"base": ["--val-split", "8"], "runs": []}, "--no-test"),
        ({"runs": []}, "not the plan of an experiment"),
        ([1], "damaged"),
    ],
)
def test_what_is_not_a_plan_is_refused(place, capsys, contents, named):
    place.file.write_text(json.dumps(contents))
    assert place.run() == 2
    assert named in capsys.readouterr().err
    assert not place.calls()
