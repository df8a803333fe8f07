"""Run a planned experiment: trainings that take hours, one after another, resumed wherever they were cut off.

    python -m bench.experiment bench/results/ablations/width-32-factorial.json --data FOLDER
    python -m bench.experiment FILE --data FOLDER --checkout ../fast_cifar-at-that-commit
    python -m bench.experiment FILE                  # the tables again, and nothing trained

FILE is the plan and the record in one. It is written before the first training and says what will be trained; a result
is added to each run as soon as it is finished:

    question  what the experiment asks, in a sentence
    commit    at which every run is made; --checkout is a clone there
    base      options of run_train.py that all runs share
    factors   of a two-level design: name, and the options of its low and high level
    runs      name, seed, options of its own; `levels` of the factors (-1 or 1); `result` once it is there

What counts is the validation accuracy of the last epoch: the plan's base must have --no-test and --val-split. A run
that diverges counts as a blind guess. Each run is an ordinary `run_train.py` in its own process; when this script is
stopped, the same line goes on with the run's last checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fast_cifar.command_line import Parser
from fast_cifar.system.errors import UserError, run_script
from fast_cifar.system.files import atomic_write

PRIOR = 0.1  # percentage points: how large such an effect is expected to be (standard deviation)
DIVERGED = 2  # exit code of a run whose loss diverged, as of any other run that the user has to change


def main() -> None:
    options = command_line()
    plan = read(options.file)
    if options.data is not None:
        for run in plan["runs"]:
            if run.get("result") is None:
                run["result"] = trained(plan, run, options)
                write(options.file, plan)
    print("\n".join(run_table(plan["runs"])))
    done = [run for run in plan["runs"] if run.get("result") is not None]
    if plan.get("factors") and len(done) == len(plan["runs"]):
        print("\n".join(effect_table(plan)))


def command_line() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("file", type=Path, metavar="FILE", help="the plan, where the results go, too")
    parser.add_argument("--data", metavar="DATA", help="as run_train.py takes it; without it nothing is trained")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="decoded caches (default: data)")
    parser.add_argument("--out", default="runs", metavar="DIR", help="the folder of run folders (default: runs)")
    parser.add_argument("--checkout", type=Path, default=Path("."), metavar="DIR", help="where run_train.py is")
    return parser.parse_args()


def read(path: Path) -> dict[str, Any]:
    """The plan in a file.

    Raises:
        UserError: it cannot be read, or is no plan.
    """
    try:
        plan = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is no JSON") from error
    if not isinstance(plan, dict) or not {"base", "runs"} <= plan.keys():
        raise UserError(f"{path} is no plan of an experiment: it needs base and runs (--help)")
    if "--no-test" not in plan["base"]:
        raise UserError(f"{path}: base needs --no-test and --val-split N, so that no choice sees the test set")
    return plan


def write(path: Path, plan: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(plan, indent=1, ensure_ascii=False) + "\n").encode())


def trained(plan: Mapping[str, Any], run: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Trains one run to its end, from its last checkpoint where there is one, and returns its result.

    Raises:
        UserError: the training failed for another reason than a loss that diverged.
    """
    folder = (Path(options.out) / f"{options.file.stem}-{run['name']}").resolve()
    where = ["--data", str(Path(options.data).resolve()), "--data-dir", str(Path(options.data_dir).resolve())]
    if (folder / "config.json").exists():
        words = ["--resume", str(folder), *where]
    else:
        words = [*plan["base"], *run["options"], "--seed", str(run["seed"]), *where]
        words += ["--out", str(folder.parent), "--name", folder.name]
    print(f"{time.strftime('%H:%M:%S')} {run['name']}: run_train.py {' '.join(words)}", flush=True)
    process = subprocess.run(
        [sys.executable, "run_train.py", *words], cwd=options.checkout, stderr=subprocess.PIPE, text=True
    )
    if process.returncode == DIVERGED and "diverged" in process.stderr:
        return {"diverged": True, "date": time.strftime("%Y-%m-%d")}
    if process.returncode != 0:
        raise UserError(f"{run['name']} failed: {process.stderr.strip().splitlines()[-1:]}")
    summary = json.loads((folder / "summary.json").read_bytes())
    kept = ("val_accuracy", "train_accuracy", "train_loss", "seconds", "images_per_second", "device", "torch")
    return {name: summary[name] for name in kept} | {"date": time.strftime("%Y-%m-%d")}


def accuracy(run: Mapping[str, Any]) -> float:
    """In percent; a blind guess among ten classes for a run that diverged."""
    return 10.0 if run["result"].get("diverged") else 100 * run["result"]["val_accuracy"]


def run_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| run | seed | levels | options | validation accuracy | training accuracy |", "|---|--:|---|---|--:|--:|"]
    for run in runs:
        levels = "".join(name for name, level in run.get("levels", {}).items() if level > 0) or "-"
        result = run.get("result")
        answer = "| |" if result is None else "diverged | |" if result.get("diverged") else None
        answer = answer or f"{accuracy(run):.2f} % | {100 * result['train_accuracy']:.2f} % |"
        lines.append(f"| {run['name']} | {run['seed']} | {levels} | {' '.join(run['options'])} | {answer}")
    return lines


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
    others = {}
    for size in range(2, len(names) + 1):
        for group in itertools.combinations(names, size):
            column = tuple(math.prod(levels) for levels in zip(*(columns[name] for name in group), strict=True))
            if len(set(column)) == 2 and column not in mains:
                others.setdefault(max(column, tuple(-level for level in column)), group)
    contrast = {
        column: sum(level * accuracy(run) for level, run in zip(column, runs, strict=True)) / (len(runs) / 2)
        for column in [*columns.values(), *others]
    }
    error = math.sqrt(sum(contrast[column] ** 2 for column in others) / len(others))
    return {name: contrast[column] for name, column in columns.items()}, error


def effect_table(plan: Mapping[str, Any]) -> list[str]:
    found, error = effects(plan)
    shrinkage = PRIOR**2 / (PRIOR**2 + error**2)
    lines = ["", f"standard error of an effect {error:.3f} pp; counted: {shrinkage:.2f} of it", ""]
    lines += ["| factor | effect, pp | counted, pp |", "|---|--:|--:|"]
    for name, effect in found.items():
        lines.append(f"| {name}: {plan['factors'][name]['name']} | {effect:+.2f} | {effect * shrinkage:+.3f} |")
    return lines


if __name__ == "__main__":
    sys.exit(run_script(main))
