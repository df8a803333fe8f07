"""Is the range test's suggestion any good? Accuracy against LRMAX around it, and what other rules would give away.

    python -m bench.lr_sweep --json sweep.json                                   # CIFAR-10, the recipe
    python -m bench.lr_sweep --data synthetic,FOLDER --batch-size 64,512 --limit-train 5000 --json sweep.json
    python -m bench.lr_sweep --json sweep.json --no-training                     # today's rules on its curves
    python -m bench.lr_sweep --json sweep.json --no-training --picture sweep.png # the same, drawn
    python -m bench.lr_sweep --quick                                             # a smoke run

A setting is a combination of data, batch size, weight decay and width. In each of them the range test runs with some
seeds, not compiled; then the network trains at the suggestion (the geometric mean of the seeds') times each of
`--factors`, LRMIN a hundredth of LRMAX, and answers the images held out after its last epoch. The test images are not
looked at. A training that diverges counts as a blind guess.

The regret of a rule is the highest point of a curve through these accuracies minus the curve at the rule's rate, in
percentage points: a parabola in log2 LR near the top, straight lines elsewhere (see bench/regret.py). Its 95 % interval
is a bootstrap over the runs of each rate; it does not know of the range test's own noise, nor of other held-out images.
">=" stands before a rate outside the grid. `steepest`, `valley` and `minimum` are those of `run_lrfind.py`.

With `--json`, each curve and each training is kept as soon as it is done; the same command goes on where it stopped,
and more `--runs`, `--repeats` or `--factors` add to what is there. The grid stays around the suggestion that it began
with.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench.markdown import filled
from bench.measure import arguments, environment, header, print_table, python_command, read, write_json
from bench.regret import COLUMNS, OURS, RULES, accuracies, fitted, judged, read_curves
from bench.trials import train_once
from fast_cifar.build import Setup, build_setup
from fast_cifar.data.load import count_classes
from fast_cifar.lr_finder import sweep
from fast_cifar.options import PAD_MODES, RangeTestOptions, TrainOptions
from fast_cifar.plots import style
from fast_cifar.plots.style import BLUE, GREEN, ORANGE, PURPLE, VERMILLION, matplotlib_available
from fast_cifar.system.device import has_compiler, resolve_device
from fast_cifar.system.errors import UserError, run_script

FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
QUICK = {"data": "synthetic", "epochs": 2, "limit_train": 128, "val_split": 100, "batch_size": "16"}
QUICK |= {"runs": 1, "repeats": 1, "iters": 40, "factors": (0.25, 1.0, 4.0, 16.0)}

# A row of a sweep is a setting, filled one range test and one training after another:
# {"setting", "options", "curves", "center", "runs"}: its name and what makes its numbers comparable, the raw curves of
# its range tests, the rate that its grid lies around, and the trainings. `judged` reads them.

# What makes two trainings of a setting, or two range tests, comparable; its name says the rest.
CONDITIONS = ("epochs", "limit_train", "val_split", "label_smoothing", "pad_mode", "amp")
IN_THE_NAME = ("batch_size", "weight_decay", "width")

# Accuracy against LRMAX, a small picture a setting: the runs, the fitted curve, and where each rule would train.
ACROSS, WIDE, HIGH = 3, 6.0, 4.5  # small pictures in a row; inches of each
NARROWEST = 12.0  # inches of the whole, for its legend
DEEP = 30  # percentage points below the top: what collapses runs out of the picture
COLOURS = dict(zip(RULES, (VERMILLION, PURPLE, GREEN, ORANGE, "#56B4E9"), strict=True))
DASHES = dict(zip(RULES, ("-", ":", "-.", "--", (0, (1, 1))), strict=True))


def main() -> None:
    options = parse()
    contents = read_rows(options.json)
    if not options.no_training:
        chosen = [(setting, row_of(setting, options.iters, contents["rows"])) for setting in settings(options)]
        contents["environment"] = environment(resolve_device(options.device))
        contents["command"] = python_command("-m bench.lr_sweep", sys.argv[1:])
        mark_tuned(contents["rows"], options.tuned_on)  # better refused now than after hours
        for setting, row in chosen:
            fill(row, setting, options, lambda: save(options, contents))
    contents["rows"] = [judged(row) for row in contents["rows"]]
    mark_tuned(contents["rows"], options.tuned_on)
    save(options, contents)
    title = f"{header(contents['environment'])}\nregrets in percentage points of validation accuracy"
    columns, cells = filled(COLUMNS, contents["rows"])
    print_table(title, [column.title for column in columns], cells)
    if options.picture:
        draw_rows(options.picture, contents["rows"])


def parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--data", metavar="DATA,...", help="as for run_train.py (default: cifar10)")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="downloads and decoded caches")
    parser.add_argument("--batch-size", metavar="N,...", help="default: 512")
    parser.add_argument("--weight-decay", metavar="RATE,...", help="default: the recipe's")
    parser.add_argument("--label-smoothing", type=float, metavar="SHARE", help="default: the recipe's")
    parser.add_argument("--pad-mode", choices=PAD_MODES, help="default: the recipe's")
    parser.add_argument("--width", metavar="N,...", help="channels of the first layer (default: the recipe's)")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: 24")
    parser.add_argument("--limit-train", type=int, metavar="N", help="train on N images (default: all)")
    parser.add_argument("--val-split", type=int, metavar="N", help="training images to hold out (default: 5000)")
    parser.add_argument("--runs", type=int, metavar="N", help="seeds at each learning rate (default: 3)")
    parser.add_argument("--repeats", type=int, metavar="N", help="seeds of the range test (default: 3)")
    parser.add_argument("--iters", type=int, metavar="N", help="steps of a range test (default: 118)")
    parser.add_argument("--factors", type=numbers, metavar="F,...", help=f"default: {','.join(map(str, FACTORS))}")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True, help="default: on")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="default: on CUDA, where there is a C++ compiler"
    )
    parser.add_argument("--no-training", action="store_true", help="judge what --json holds with today's rules")
    parser.add_argument("--tuned-on", metavar="SETTING,...", help="mark these, on which the rules were tuned")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="draw the accuracies and the rules' rates")
    options = parser.parse_args()
    defaults = {"data": "cifar10", "epochs": 24, "limit_train": None, "val_split": 5000, "batch_size": "512"}
    recipe = TrainOptions()
    defaults |= {"weight_decay": str(recipe.weight_decay), "label_smoothing": recipe.label_smoothing}
    defaults |= {"pad_mode": recipe.pad_mode}
    defaults |= {"runs": 3, "repeats": 3, "iters": RangeTestOptions().iters, "factors": FACTORS}
    for name, default in (defaults | (QUICK if options.quick else {})).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    if options.compile is None:
        options.compile = resolve_device(options.device).type == "cuda" and has_compiler()
    for name in ("runs", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} must be at least 1")
    if min(options.factors) <= 0:
        raise UserError("--factors must be positive numbers")
    if options.no_training and not (options.json and options.json.exists()):
        raise UserError("--no-training needs a --json that a sweep has written")
    return options


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def settings(options: argparse.Namespace) -> list[TrainOptions]:
    """Each combination of the lists, checked."""
    lists = {
        "data": options.data.split(","),
        "batch_size": listed(options.batch_size, int, "--batch-size"),
        "weight_decay": listed(options.weight_decay, float, "--weight-decay"),
    }
    if options.width is not None:
        lists["width"] = listed(options.width, int, "--width")
    names = ("data_dir", "epochs", "limit_train", "val_split", "amp", "label_smoothing", "pad_mode")
    common = {name: getattr(options, name) for name in names}
    common |= {"compile": options.compile, "device": options.device}
    chosen = [
        TrainOptions(**common, **dict(zip(lists, values, strict=True))) for values in itertools.product(*lists.values())
    ]
    RangeTestOptions(iters=options.iters).check()
    names = [name_of(setting) for setting in chosen]
    if len(set(names)) < len(names):
        raise UserError(
            f"two settings are called {max(names, key=names.count)!r}; give each once, and under its own name"
        )
    for setting in chosen:
        setting.check()
        count_classes(setting.data)
    return chosen


def listed(text: str, kind: Callable[[str], Any], flag: str) -> list[Any]:
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"{flag} {text!r} must be numbers with commas between them") from error


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
    setup = build_setup(setting)
    for seed in curves:
        row["curves"].append({"seed": seed} | curve(setup, seed, options.iters))
        save()
    if row["center"] is None:
        row["center"] = read_curves(row["curves"])["rates"].get(OURS)
    if row["center"] is None:
        tqdm.write(f"{row['setting']}: no suggestion; {row['curves'][0]['failed']}")
        return
    parts = setup.parts(row["center"])
    for count, (seed, factor) in enumerate(runs, start=1):
        one = setting.replace(seed=seed, lr_max=factor * row["center"])
        run = {"factor": factor, "seed": seed, "lr_max": one.lr_max} | train_once(setup, parts, one)
        row["runs"].append(run)
        save()
        how = "diverged" if run["diverged"] else f"{run['val_accuracy']:.2%}"
        tqdm.write(
            f"{row['setting']}: {count}/{len(runs)}, seed {seed}, LRMAX {one.lr_max:.3g} ({factor:g} x): {how}, "
            f"{run['seconds']:.1f} s"
        )


def curve(setup: Setup, seed: int, iters: int) -> dict[str, Any]:
    """`lrs` and `losses` of a range test, or why it `failed`."""
    eager = dataclasses.replace(setup, options=setup.options.replace(compile=False))
    try:
        result = sweep(eager, seed, RangeTestOptions(iters=iters))
    except UserError as error:
        return {"failed": str(error)}
    return {"lrs": list(result.lrs), "losses": list(result.losses)}


def draw_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the rows that have trainings.

    Raises:
        UserError: there are none, or matplotlib is not installed.
    """
    if not matplotlib_available():
        raise UserError("--picture needs matplotlib: pip install matplotlib")
    rows = [row for row in rows if row.get("regret")]
    if not rows:
        raise UserError("--picture: no setting has a suggestion and trainings yet")
    across = min(ACROSS, len(rows))
    down = math.ceil(len(rows) / across)
    path.parent.mkdir(parents=True, exist_ok=True)
    with style.figure(path, max(WIDE * across, NARROWEST), HIGH * down + 0.8) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, row in zip(panels, rows, strict=False):
            _draw(axes, row)
        for axes in panels[len(rows) :]:
            axes.axis("off")
        figure.supxlabel("LRMAX")
        figure.supylabel("validation accuracy, %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _draw(axes: Any, row: Mapping[str, Any]) -> None:
    runs = accuracies(row["runs"])
    rates = np.array(list(runs))
    low, middle, high = (100 * np.array([f(values) for values in runs.values()]) for f in (min, np.mean, max))
    fine = np.geomspace(rates[0], rates[-1], 400)
    axes.plot(fine, 100 * fitted(runs)(np.log2(fine)), color=BLUE, label="fit")
    axes.errorbar(
        rates, middle, yerr=(middle - low, high - middle), fmt="o", color=BLUE, capsize=3, label="runs: mean and range"
    )
    for rule in reversed(RULES):  # ours on top of the others
        width = 2.5 if rule == OURS else 1.5
        axes.axvline(row["rates"][rule], color=COLOURS[rule], ls=DASHES[rule], lw=width, label=rule)
    axes.set_ylim(bottom=max(low.min(), middle.max() - DEEP) - 1)
    axes.set_xscale("log", base=10)
    axes.set_title(row["setting"] + (" (tuned on)" if row.get("tuned_on") else ""))


def save(options: argparse.Namespace, contents: dict[str, Any]) -> None:
    if options.json:
        write_json(options.json, contents)


if __name__ == "__main__":
    sys.exit(run_script(main))
