"""Which option of the recipe earns its place? One change at a time, against the same base, with the same seeds.

    python -m bench.ablation --base "--lr-max 0.003 --epochs 24 --limit-train 5000 --val-split 5000 --amp" \\
        --change "weight decay: --weight-decay 0.1" --change "no cutout: --cutout 0" --runs 5 --json PATH
    python -m bench.ablation --json PATH          # the table again, and nothing trained
    python -m bench.ablation --quick              # a smoke run

`--base` and `--change` are options of run_train.py, a change with its name and a colon before it; where both name an
option, the change has the last word. The base must hold images out (`--val-split`): what counts is the accuracy on
them after the last epoch, and the test images are not looked at. A training that diverges counts as a blind guess.

Each change trains the seeds that the base trains. The difference to the base is the mean over the seeds, with its 95 %
interval (Student's t on the differences). One in twenty changes that do nothing shows an interval without 0 in it.

With `--json`, each training is kept as soon as it is done: the same command goes on where it stopped, and more `--runs`
or another `--change` add to what is there. The commands in the table retrain on a split of the same images.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from bench.markdown import filled
from bench.measure import arguments, environment, header, portable, print_table, read, write_json
from bench.trials import RESULTS, judged, train_once
from fast_cifar.build import build_setup
from fast_cifar.command_line import parse
from fast_cifar.data.load import count_classes
from fast_cifar.options import TrainOptions, flag_of
from fast_cifar.system.device import resolve_device
from fast_cifar.system.errors import UserError, run_script

BASE = "base"
QUICK_BASE = "--data synthetic --limit-train 128 --val-split 100 --epochs 2 --batch-size 16"
QUICK_CHANGES = ["no cutout: --cutout 0"]
# What would make another question of it, and what would change the images that judge.
NOT_HERE = frozenset({"runs", "find_lr", "resume", "eval_only", "summary", "demo", "out", "name"})
ONLY_IN_THE_BASE = frozenset({"data", "data_dir", "mirror", "resize", "val_split", "seed", "device"})


@dataclass(frozen=True)
class Recipe:
    """The base, or a change of it: its name, its words on run_train.py's command line, and what they mean."""

    name: str
    words: list[str]
    options: TrainOptions


def main() -> None:
    options = command_line()
    contents = read_rows(options)
    if options.base is not None:
        recipes = parsed(options)
        rows = [row_of(recipe, contents["rows"]) for recipe in recipes]
        contents["environment"] = environment(resolve_device(recipes[0].options.device))
        for recipe, row in zip(recipes, rows, strict=True):
            fill(row, recipe, options.runs, lambda: save(options, contents))
        for row in contents["rows"]:
            row["command"] = shlex.join(["python", "run_train.py", *row["words"], "--runs", str(len(row["runs"]))])
        save(options, contents)
    columns, cells = filled(RESULTS, judged(contents["rows"]))
    print_table(header(contents["environment"]), [column.title for column in columns], cells)


def command_line() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--base", metavar="OPTIONS", help="of run_train.py, in quotes")
    parser.add_argument("--change", action="append", default=[], metavar="NAME: OPTIONS", help="repeat it for several")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="seeds of each recipe (default: 3)")
    options = parser.parse_args()
    if options.runs < 1:
        raise UserError(f"--runs {options.runs} must be at least 1")
    if options.quick:
        options.base, options.change = options.base or QUICK_BASE, options.change or QUICK_CHANGES
    if options.base is None and (options.change or options.json is None or not options.json.exists()):
        raise UserError("--base says what is changed: options of run_train.py, in quotes")
    return options


def parsed(options: argparse.Namespace) -> list[Recipe]:
    """The base and its changes, checked; the device of the benchmark is that of all.

    Raises:
        UserError: an option is not right, or has no place here.
    """
    base = split(options.base, "--base")
    named = [(BASE, [])] + [named_change(change) for change in options.change]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise UserError(f"--change: there are two called {max(names, key=names.count)!r}")
    recipes = []
    for name, words in named:
        refuse(name, words, NOT_HERE if name == BASE else NOT_HERE | ONLY_IN_THE_BASE)
        recipe = parse(TrainOptions, __doc__, [*base, *words])
        if options.device != "auto":
            recipe = recipe.replace(device=options.device)
        recipe.check()
        recipes.append(Recipe(name, [*base, *words], recipe))
    refuse(BASE, base, NOT_HERE)
    if recipes[0].options.val_split is None:
        raise UserError("--base needs --val-split N: the changes are judged by images held out")
    count_classes(recipes[0].options.data)
    return recipes


def named_change(change: str) -> tuple[str, list[str]]:
    """("no cutout", ["--cutout", "0"]) of "no cutout: --cutout 0"; without a name, the options are the name."""
    name, colon, words = change.partition(":")
    if not colon or name.lstrip().startswith("-"):
        name, words = change, change
    if not words.strip():
        raise UserError(f"--change {change!r} changes nothing: NAME: OPTIONS of run_train.py")
    return name.strip(), split(words, "--change")


def split(text: str, flag: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{flag} {text!r} is no command line ({error})") from error


def refuse(name: str, words: Sequence[str], refused: frozenset[str]) -> None:
    """Refuses a recipe's own words where they set what it must not set."""
    given = parse(TrainOptions, __doc__, words).given & refused
    if given:
        raise UserError(f"{name}: {flag_of(min(given))} has no place there")


def read_rows(options: argparse.Namespace) -> dict[str, Any]:
    """What an ablation has written; no rows where there is no such file.

    Raises:
        UserError: the file is not an ablation's.
    """
    if options.json is None or not options.json.exists():
        return {"rows": []}
    contents = read(options.json)
    needed = {"change", "words", "runs"}
    rows = contents.get("rows") if "environment" in contents else None
    if not (rows and isinstance(rows, list) and all(isinstance(row, dict) and needed <= row.keys() for row in rows)):
        raise UserError(f"{options.json} was not written by bench.ablation; choose another --json")
    return contents


def row_of(recipe: Recipe, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of this recipe, a new one where there is none.

    Raises:
        UserError: there is one of this name with other options.
    """
    words = portable(recipe.words)
    for row in rows:
        if row["change"] == recipe.name:
            if row["words"] != words:
                raise UserError(
                    f"--json holds {recipe.name!r} with {shlex.join(row['words'])}, not {shlex.join(words)}; "
                    "choose another file"
                )
            return row
    rows.append({"change": recipe.name, "words": words, "runs": []})
    return rows[-1]


def fill(row: dict[str, Any], recipe: Recipe, runs: int, save: Callable[[], None]) -> None:
    """Trains the seeds that are missing in `row`; `save` is called after each."""
    first = recipe.options.seed
    done = {run["seed"] for run in row["runs"]}
    seeds = [seed for seed in range(first, first + runs) if seed not in done]
    if not seeds:
        return
    torch.compiler.reset()  # torch stops compiling a function that it has seen with too many networks
    options = recipe.options.resolved()
    setup = build_setup(options)
    parts = setup.parts(options.lr_max, options.ema)
    for seed in seeds:
        run = {"seed": seed} | train_once(setup, parts, options.replace(seed=seed))
        row["runs"].append(run)
        save()
        how = "diverged" if run["diverged"] else f"{run['val_accuracy']:.2%}"
        tqdm.write(f"{recipe.name}: seed {seed}: {how}, {run['seconds']:.1f} s")


def save(options: argparse.Namespace, contents: dict[str, Any]) -> None:
    if options.json:
        write_json(options.json, contents)


if __name__ == "__main__":
    sys.exit(run_script(main))
