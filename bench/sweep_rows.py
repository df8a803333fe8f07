"""The rows of a learning-rate sweep: a setting each, filled one range test and one training after another.

A row is {"setting", "options", "curves", "center", "runs"}: its name and what makes its numbers comparable, the raw
curves of its range tests, the rate that its grid lies around, and the trainings. `rules.judged` reads them.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.files import read
from bench.rules import OURS, read_curves
from bench.trial import train_once
from fast_cifar.assembly import Workspace, assemble
from fast_cifar.errors import UserError
from fast_cifar.lr_finder import sweep
from fast_cifar.options import RangeTestOptions, TrainOptions

# What makes two trainings of a setting, or two range tests, comparable; its name says the rest.
CONDITIONS = ("epochs", "limit_train", "val_split", "label_smoothing", "pad_mode", "amp")
IN_THE_NAME = ("batch_size", "weight_decay", "width")


def read_rows(path: Path | None) -> dict[str, Any]:
    """What a sweep has written to `path`; no rows where there is no such file.

    Raises:
        UserError: it is not a sweep's.
    """
    if path is None or not path.exists():
        return {"rows": []}
    contents = read(path)
    needed = {"setting", "options", "curves", "center", "runs"}
    rows = contents.get("rows") if "environment" in contents else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        raise UserError(f"{path} was not written by bench.lr_sweep; choose another --json")
    return contents


def name_of(setting: TrainOptions) -> str:
    """A setting in a word or three, without commas and without a path of this machine."""
    words = [Path(setting.data).name, f"b{setting.batch_size}"]
    if setting.weight_decay:
        words.append(f"wd{setting.weight_decay:g}")
    if "width" in setting.explicit:
        words.append(f"w{setting.width}")
    return " ".join(words)


def row_of(setting: TrainOptions, iters: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of this setting, a new one where there is none.

    Raises:
        UserError: there is one, of trainings that cannot be compared with these.
    """
    options = {name: getattr(setting, name) for name in CONDITIONS} | {"iters": iters}
    name = name_of(setting)
    for row in rows:
        if row["setting"] == name:
            for key, value in options.items():
                if row["options"].get(key) != value:
                    flag = "--" + key.replace("_", "-")
                    raise UserError(
                        f"{name}: --json holds runs with {flag} {row['options'].get(key)}, not {value}; "
                        "choose another file"
                    )
            return row
    options |= {"data": Path(setting.data).name}
    options |= {key: getattr(setting, key) for key in IN_THE_NAME}
    rows.append({"setting": name, "options": options, "curves": [], "center": None, "runs": []})
    return rows[-1]


def mark_tuned(rows: Sequence[dict[str, Any]], names: str | None) -> None:
    """Marks the rows that `names` lists, and only them; without `names` all stay as they are."""
    if names is None:
        return
    chosen = set(names.split(","))
    if unknown := chosen - {row["setting"] for row in rows}:
        there = ", ".join(row["setting"] for row in rows)
        raise UserError(f"--tuned-on: there is no setting {min(unknown)!r}; there are {there}")
    for row in rows:
        row["tuned_on"] = row["setting"] in chosen


def fill(row: dict[str, Any], setting: TrainOptions, options: argparse.Namespace, save: Callable[[], None]) -> None:
    """Does what is missing in `row`; `save` is called after each part of it."""
    curves = [seed for seed in range(options.repeats) if seed not in {one["seed"] for one in row["curves"]}]
    done = {(run["factor"], run["seed"]) for run in row["runs"]}
    runs = [one for one in itertools.product(range(options.runs), options.factors) if one[::-1] not in done]
    if not curves and not runs:
        return
    torch.compiler.reset()  # torch stops compiling a function that it has seen with too many networks
    workspace = assemble(setting)
    for seed in curves:
        row["curves"].append({"seed": seed} | curve(workspace, seed, options.iters))
        save()
    if row["center"] is None:
        row["center"] = read_curves(row["curves"])["rates"].get(OURS)
    if row["center"] is None:
        tqdm.write(f"{row['setting']}: no suggestion; {row['curves'][0]['failed']}")
        return
    parts = workspace.parts(row["center"])
    for count, (seed, factor) in enumerate(runs, start=1):
        one = setting.replace(seed=seed, lr_max=factor * row["center"])
        run = {"factor": factor, "seed": seed, "lr_max": one.lr_max} | train_once(workspace, parts, one)
        row["runs"].append(run)
        save()
        how = "diverged" if run["diverged"] else f"{run['val_accuracy']:.2%}"
        tqdm.write(
            f"{row['setting']}: {count}/{len(runs)}, seed {seed}, LRMAX {one.lr_max:.3g} ({factor:g} x): {how}, "
            f"{run['seconds']:.1f} s"
        )


def curve(workspace: Workspace, seed: int, iters: int) -> dict[str, Any]:
    """`lrs` and `losses` of a range test, or why it `failed`."""
    eager = dataclasses.replace(workspace, options=workspace.options.replace(compile=False))
    try:
        result = sweep(eager, seed, RangeTestOptions(iters=iters))
    except UserError as error:
        return {"failed": str(error)}
    return {"lrs": list(result.lrs), "losses": list(result.losses)}
