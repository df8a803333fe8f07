"""Run a planned experiment: trainings that take hours, one after another, resumed wherever they were cut off.

    python -m bench.experiment bench/results/ablations/width-32-factorial.json --data FOLDER
    python -m bench.experiment FILE --data FOLDER --checkout ../fast_cifar-at-that-commit
    python -m bench.experiment FILE                  # the tables again, and nothing trained

FILE is the plan and the record in one. It is written before the first training and says what will be trained; a result
is added to each run as soon as it is finished:

    question  what the experiment asks, in a sentence
    commit    at which every run is made; --checkout is a clone at that commit
    base      options of run_train.py that all runs share
    factors   of a two-level design: name, and the options of its low and high level
    runs      name, seed, options of its own; `levels` of the factors (-1 or 1); `result` once it is done

What counts is the validation accuracy of the last epoch: the plan's base must have --no-test and --val-split. A run
that diverges counts as a blind guess. Each run is an ordinary `run_train.py` in its own process; after an interruption
the same command resumes from the run's last checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.markdown import Column, markdown, value
from fast_cifar.command_line import Parser
from fast_cifar.system.errors import UserError, percent, run_script
from fast_cifar.system.files import read_json, write_json

Run = Mapping[str, Any]

PRIOR = 0.1  # percentage points: how large such an effect is expected to be (standard deviation)
DIVERGED = 2  # exit code of a run whose loss diverged, as of any other run that the user has to change


def main() -> None:
    options = command_line()
    plan = read_plan(options.file)
    if options.data is not None:
        check_commit(plan, options.checkout)
        while (due := next((run for run in plan["runs"] if run.get("result") is None), None)) is not None:
            result = train_one(plan, due, options)
            plan = read_plan(options.file)  # it may have been edited in the meantime
            if due not in plan["runs"]:
                raise UserError(f"{options.file}: {due['name']} was changed while it trained, so it has no result")
            plan["runs"][plan["runs"].index(due)]["result"] = result
            write_json(options.file, plan)
    print(experiment_block(plan))


def command_line() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the plan, which also receives the results")
    parser.add_argument("--data", metavar="DATA", help="as run_train.py takes it; without it nothing is trained")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="decoded caches (default: data)")
    parser.add_argument("--out", default="runs", metavar="DIR", help="the folder of run folders (default: runs)")
    parser.add_argument("--checkout", type=Path, default=Path("."), metavar="DIR", help="where run_train.py is")
    return parser.parse_args()


def read_plan(path: Path) -> dict[str, Any]:
    """The plan in a file.

    Raises:
        UserError: it cannot be read, or it is not a plan.
    """
    plan = read_json(path)
    if not {"base", "runs"} <= plan.keys():
        raise UserError(f"{path} is not the plan of an experiment: it needs base and runs (--help)")
    if "--no-test" not in plan["base"]:
        raise UserError(f"{path}: base needs --no-test and --val-split N, so that no choice sees the test set")
    return plan


def check_commit(plan: Mapping[str, Any], checkout: Path) -> None:
    """Refuses a checkout at another commit than the plan's.

    Raises:
        UserError: naming the commit.
    """
    if "commit" not in plan:
        return
    command = ["git", "-C", checkout, "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        commit = None
    if commit != plan["commit"]:
        raise UserError(
            f"{checkout} is not at commit {plan['commit'][:7]}, at which the plan's runs are made; "
            f"git worktree add ../that-commit {plan['commit'][:7]}, and --checkout ../that-commit"
        )


def train_one(plan: Mapping[str, Any], run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one run to its end, from its last checkpoint where there is one, and returns its result.

    Raises:
        UserError: the training failed for another reason than a loss that diverged.
    """
    folder = (Path(options.out) / f"{options.file.stem}-{run['name']}").resolve()
    data = Path(options.data).resolve() if Path(options.data).exists() else options.data
    started = (folder / "config.json").exists()
    words = ["--resume", str(folder)] if started else ["--out", str(folder.parent), "--name", folder.name]
    words += [*plan["base"], *run["options"], "--seed", str(run["seed"])]  # resumed only if these are still the same
    words += ["--data", str(data), "--data-dir", str(Path(options.data_dir).resolve())]
    print(f"{time.strftime('%H:%M:%S')} {run['name']}: run_train.py {' '.join(words)}", flush=True)
    # In a session of its own, which Ctrl-C does not reach: two signals would stop it before it has saved.
    with subprocess.Popen(
        [sys.executable, "run_train.py", *words],
        cwd=options.checkout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate()
        except KeyboardInterrupt:
            process.terminate()
            process.communicate()
            raise
    if process.returncode == DIVERGED and "diverged" in errors:
        return {"diverged": True, "date": time.strftime("%Y-%m-%d")}
    if process.returncode != 0:
        reason = (errors.strip().splitlines() or ["no error message"])[-1]
        raise UserError(f"{run['name']} failed: {reason.removeprefix('error: ')}")
    summary = read_json(folder / "summary.json")
    kept = ("val_accuracy", "train_accuracy", "train_loss", "seconds", "images_per_second", "device", "torch")
    return {name: summary[name] for name in kept} | {"date": time.strftime("%Y-%m-%d")}


def accuracy(run: Run) -> float:
    """In percent; a blind guess among ten classes for a run that diverged."""
    return 10.0 if run["result"].get("diverged") else 100 * run["result"]["val_accuracy"]


def result_text(key: str) -> Callable[[Run], str]:
    """The accuracy `key` of a run's result; empty before there is one."""

    def text(run: Run) -> str:
        result = run.get("result") or {}
        return "diverged" if result.get("diverged") else value(key, percent)(result)

    return text


RUNS = [
    Column("run", value("name"), words=True),
    Column("seed", value("seed")),
    Column("high levels", lambda run: "".join(name for name, sign in run.get("levels", {}).items() if sign > 0)),
    Column("options", lambda run: f"`{' '.join(run['options'])}`" if run["options"] else "", words=True),
    Column("validation accuracy", result_text("val_accuracy")),
    Column("training accuracy", result_text("train_accuracy")),
]


def experiment_block(plan: Mapping[str, Any]) -> str:
    """The Markdown of a plan: its runs and, when all of them are done, the effects of its factors."""
    about = [plan["data"]] if "data" in plan else []
    about += [f"commit {plan['commit'][:7]}"] if "commit" in plan else []
    block = " · ".join([*about, f"all runs: `{' '.join(plan['base'])}`"]) + "\n\n" + markdown(RUNS, plan["runs"])
    if plan.get("factors") and all(run.get("result") is not None for run in plan["runs"]):
        block += "\n\n" + effect_table(plan)
    return block


def effects(plan: Mapping[str, Any]) -> tuple[dict[str, float], float]:
    """Effects of a two-level design, and their common standard error, in percentage points.

    An effect is the mean of the runs with the factor less the mean of those without it. The variance comes from the
    contrasts of two and more factors that no main effect is aliased with: in a design of resolution IV they hold
    interactions and noise only.

    Source: Box, Hunter and Hunter, "Statistics for Experimenters", chapters 5 and 6.
    """
    runs, names = plan["runs"], list(plan["factors"])
    columns = {name: tuple(run["levels"][name] for run in runs) for name in names}
    mains = set(columns.values()) | {tuple(-level for level in column) for column in columns.values()}
    others = set()
    for size in range(2, len(names) + 1):
        for group in itertools.combinations(names, size):
            column = tuple(math.prod(levels) for levels in zip(*(columns[name] for name in group), strict=True))
            if len(set(column)) == 2 and column not in mains:
                others.add(max(column, tuple(-level for level in column)))
    if not others:
        raise UserError("the design leaves no contrast to estimate the error from; it needs more runs")
    contrast = {
        column: sum(level * accuracy(run) for level, run in zip(column, runs, strict=True)) / (len(runs) / 2)
        for column in [*columns.values(), *others]
    }
    error = math.sqrt(sum(contrast[column] ** 2 for column in others) / len(others))
    return {name: contrast[column] for name, column in columns.items()}, error


def effect_table(plan: Mapping[str, Any]) -> str:
    """Each effect, and what is left of it when it is shrunk towards 0 by how uncertain it is."""
    found, error = effects(plan)
    share = PRIOR**2 / (PRIOR**2 + error**2)
    rows = [{"factor": f"{name}: {plan['factors'][name]['name']}", "effect": effect} for name, effect in found.items()]
    columns = [
        Column("factor", value("factor"), words=True),
        Column("effect, pp", value("effect", "{:+.2f}".format)),
        Column("shrunk, pp", value("effect", lambda effect: f"{share * effect:+.3f}")),
    ]
    return f"Standard error of an effect {error:.3f} pp; shrunk to {share:.2f} of it.\n\n{markdown(columns, rows)}"


if __name__ == "__main__":
    sys.exit(run_script(main))
