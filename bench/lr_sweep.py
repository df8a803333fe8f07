"""Is the range test's suggestion any good? Validation accuracy at LRMAX around it, and what other rules would lose.

    python -m bench.lr_sweep --json sweep.json                                   # the recipe, 21 trainings: for a GPU
    python -m bench.lr_sweep --data synthetic,FOLDER --batch-size 64,512 --limit-train 5000 --json sweep.json
    python -m bench.lr_sweep --json sweep.json --no-training                     # today's rules on its curves
    python -m bench.lr_sweep --json sweep.json --no-training --plot sweep.png    # the same, drawn
    python -m bench.lr_sweep --quick                                             # a smoke run

A setting is a combination of data, batch size, weight decay, width and epochs; the other options of run_train.py hold
for all settings. In each of them the range test runs with some seeds, not compiled; then the network trains at the
suggestion (the geometric mean of the seeds') times each of `--factors`, LRMIN a hundredth of LRMAX. What counts is the
accuracy on the held-out images after the last epoch; the test images are not used. A diverged training counts as a
blind guess.

The regret of a rule is the validation accuracy lost against the best LR: the highest point of a curve through these
accuracies minus the curve at the rule's rate, in percentage points (see bench/regret.py). Its 95 % interval is a
bootstrap over the runs of each rate; it includes neither the range test's own noise nor the choice of held-out images.
">=" stands before a rate outside the grid. `steepest`, `valley` and `minimum` are those of `run_lrfind.py`.

With `--json`, each curve and each training is saved as soon as it is done; the same command resumes an interrupted
sweep, and more `--runs`, `--repeats` or `--factors` add to it. The grid stays around the first suggestion.
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

from bench.markdown import caption, print_rows
from bench.measure import arguments, check_counts, environment, python_command, save
from bench.regret import COLUMNS, OURS, RULES, accuracies, fitted, grid_of, read_curves, with_regret
from bench.trials import split_command_line, train_once, with_defaults
from fast_cifar.build import Setup, build_setup
from fast_cifar.data.load import count_classes
from fast_cifar.lr_finder import sweep
from fast_cifar.options import SWEEP_STEPS, RangeTestOptions, TrainOptions, flag_of, plain
from fast_cifar.plots.style import BLUE, GREEN, ORANGE, PURPLE, VERMILLION, figure, matplotlib_available
from fast_cifar.system.device import resolve_device
from fast_cifar.system.errors import UserError, counted, percent, run_script
from fast_cifar.system.files import read_json

FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
QUICK = {"limit_train": 128, "val_split": 100}
QUICK_SWEEP = {"runs": 1, "repeats": 1, "iters": 40, "factors": (0.25, 1.0, 4.0, 16.0)}
QUICK_SWEEP |= {"data": ["synthetic"], "batch_size": [16], "epochs": [2]}
LISTS = {"batch_size": int, "weight_decay": float, "width": int, "epochs": int}  # options with several values

# A row is a setting: its name, its recipe, the curves of its range tests, the center of its grid, and its trainings.
ROW = {"setting", "options", "curves", "center", "runs"}
RECIPE = TrainOptions.names(recorded=True, resumable=False) | {"amp"}  # what makes trainings comparable

# The plot: at most `ACROSS` panels in a row, `DEPTH` percentage points below the top, and the lines of the rules.
ACROSS, DEPTH = 3, 30
COLOURS = (VERMILLION, PURPLE, GREEN, ORANGE, "#56B4E9")
DASHES = ("-", ":", "-.", "--", (0, (1, 1)))


def main() -> None:
    options, recipe = command_line()
    contents = read_sweep(options.json) if options.json and options.json.exists() else {"rows": []}
    if not options.no_training:
        chosen = [(setting, row_of(setting, options.iters, contents["rows"])) for setting in settings(options, recipe)]
        contents["environment"] = continued_on(environment(resolve_device(options.device)), contents.get("environment"))
        contents["command"] = python_command("-m bench.lr_sweep", sys.argv[1:])
        for setting, row in chosen:
            fill(row, setting, options, lambda: save(options.json, contents))
    contents["rows"] = [with_regret(row) for row in contents["rows"]]
    save(options.json, contents)
    print_rows(caption(contents["environment"]), COLUMNS, contents["rows"])
    if options.plot:
        draw_rows(options.plot, contents["rows"])


def command_line() -> tuple[argparse.Namespace, TrainOptions]:
    """The options of the sweep, and the recipe that its settings share."""
    recipe = TrainOptions()
    parser = arguments(__doc__)
    parser.add_argument("--data", type=listed(str), default=[recipe.data], metavar="DATA,...", help="default: cifar10")
    for name, kind in LISTS.items():
        default = getattr(recipe, name)
        parser.add_argument(
            flag_of(name), type=listed(kind), default=[default], metavar="N,...", help=f"default: {default}"
        )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="seeds at each learning rate (default: 3)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="seeds of the range test (default: 3)")
    parser.add_argument("--iters", type=int, default=SWEEP_STEPS, metavar="N", help="steps of a range test")
    parser.add_argument("--factors", type=listed(float), default=FACTORS, metavar="F,...", help=f"default: {FACTORS}")
    parser.add_argument("--no-training", action="store_true", help="evaluate what --json holds with today's rules")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the accuracies and the rules' rates")
    if split_command_line(parser)[0].quick:
        parser.set_defaults(**QUICK_SWEEP)
    options, given = split_command_line(parser)
    check_counts(options, "runs", "repeats")
    if min(options.factors) <= 0:
        raise UserError("--factors must be positive numbers")
    if options.no_training and not (options.json and options.json.exists()):
        raise UserError("--no-training needs a --json that a sweep has written")
    if {"lr_max", "lr_min"} & given.given:
        raise UserError("--lr-max and --lr-min are what the sweep varies; use --factors")
    held_out = QUICK if options.quick else {"val_split": 5000}
    return options, with_defaults(given, resolve_device(options.device), **held_out)


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """The type of an option that takes several values with commas between them."""

    def values(text: str) -> list[Any]:
        try:
            return [kind(word) for word in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas between them") from error

    return values


def settings(options: argparse.Namespace, recipe: TrainOptions) -> list[TrainOptions]:
    """Each combination of the lists, checked."""
    RangeTestOptions(iters=options.iters).check()
    names = ("data", *LISTS)
    lists = [getattr(options, name) for name in names]
    chosen = [recipe.replace(**dict(zip(names, values, strict=True))) for values in itertools.product(*lists)]
    titles = [name_of(setting) for setting in chosen]
    if len(set(titles)) < len(titles):
        raise UserError(f"two settings are called {max(titles, key=titles.count)!r}; give each once, and its own name")
    for setting in chosen:
        setting.check()
        count_classes(setting.data)
    return chosen


def read_sweep(path: Path) -> dict[str, Any]:
    """What a sweep has written to `path`.

    Raises:
        UserError: it was not written by a sweep.
    """
    contents = read_json(path)
    rows = contents.get("rows") if "environment" in contents else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= ROW for row in rows):
        raise UserError(f"{path} was not written by bench.lr_sweep; choose another file")
    return contents


def continued_on(where: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The environment of a sweep that goes on here.

    Raises:
        UserError: it began on another device or with another torch.
    """
    for name in ("device", "torch"):
        if before is not None and before[name] != where[name]:
            raise UserError(f"--json holds runs with {name} {before[name]}, not {where[name]}; choose another file")
    return where


def name_of(setting: TrainOptions) -> str:
    """A setting in a few words, without commas and without a path of this machine."""
    recipe = TrainOptions()
    words = [Path(setting.data).name, f"b{setting.batch_size}"]
    if setting.weight_decay:
        words.append(f"wd{setting.weight_decay:g}")
    if setting.width != recipe.width:
        words.append(f"w{setting.width}")
    if setting.epochs != recipe.epochs:
        words.append(f"e{setting.epochs}")
    return " ".join(words)


def row_of(setting: TrainOptions, iters: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of this setting, a new one where there is none.

    Raises:
        UserError: its trainings had other options.
    """
    options = {name: plain(getattr(setting, name)) for name in sorted(RECIPE)} | {"iters": iters}
    title = name_of(setting)
    for row in rows:
        if row["setting"] == title:
            for name, value in row["options"].items():
                if name in options and options[name] != value:
                    raise UserError(
                        f"{title}: --json holds runs with {flag_of(name)} {value}, not {options[name]}; "
                        "choose another file"
                    )
            return row
    options |= {"data": Path(setting.data).name}
    rows.append({"setting": title, "options": options, "curves": [], "center": None, "runs": []})
    return rows[-1]


def fill(row: dict[str, Any], setting: TrainOptions, options: argparse.Namespace, save: Callable[[], None]) -> None:
    """Does what is missing in `row`; `save` is called after each part of it."""
    curves = [seed for seed in range(options.repeats) if seed not in {one["seed"] for one in row["curves"]}]
    done = {(run["factor"], run["seed"]) for run in row["runs"]}
    runs = [one for one in itertools.product(range(options.runs), options.factors) if one[::-1] not in done]
    if not curves and not runs:
        return
    torch.compiler.reset()  # torch stops compiling a function that it has seen with too many networks
    setup = build_setup(setting, test=False)
    for seed in curves:
        row["curves"].append({"seed": seed} | curve(setup, seed, options.iters))
        save()
    if row["center"] is None:
        row["center"] = read_curves(row["curves"])["rates"].get(OURS)
    if row["center"] is None:
        tqdm.write(f"{row['setting']}: no suggestion; {row['curves'][0]['failed']}")
        return
    training = setup.training_state(row["center"], setting.ema)
    for count, (seed, factor) in enumerate(runs, start=1):
        one = setting.replace(seed=seed, lr_max=factor * row["center"])
        run = {"factor": factor, "seed": seed, "lr_max": one.lr_max} | train_once(training, one)
        row["runs"].append(run)
        save()
        how = "diverged" if run["diverged"] else percent(run["val_accuracy"])
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
        raise UserError("--plot needs matplotlib: pip install matplotlib")
    rows = [row for row in rows if row.get("regret")]
    if not rows:
        raise UserError("--plot: no setting has a suggestion and trainings yet")
    across = min(ACROSS, len(rows))
    down = math.ceil(len(rows) / across)
    path.parent.mkdir(parents=True, exist_ok=True)
    with figure(path, max(6 * across, 12), 4.5 * down + 0.8) as drawing:
        panels = drawing.subplots(down, across, squeeze=False).ravel()
        for axes, row in zip(panels, rows, strict=False):
            _draw(axes, row)
        for axes in panels[len(rows) :]:
            axes.axis("off")
        drawing.supxlabel("LRMAX")
        drawing.supylabel("validation accuracy (%)")
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _draw(axes: Any, row: Mapping[str, Any]) -> None:
    runs = accuracies(row["runs"])
    rates = np.array(list(runs))
    low, middle, high = (100 * np.array([f(values) for values in runs.values()]) for f in (min, np.mean, max))
    fine = np.geomspace(rates[0], rates[-1], 400)
    axes.plot(fine, 100 * fitted(*grid_of(runs), np.log2(fine)), color=BLUE, label="fit")
    axes.errorbar(
        rates, middle, yerr=(middle - low, high - middle), fmt="o", color=BLUE, capsize=3, label="runs: mean and range"
    )
    for rule, color, dashes in reversed(list(zip(RULES, COLOURS, DASHES, strict=True))):  # the suggestion on top
        axes.axvline(row["rates"][rule], color=color, ls=dashes, lw=2.5 if rule == OURS else 1.5, label=rule)
    axes.set_ylim(bottom=max(low.min(), middle.max() - DEPTH) - 1)
    axes.set_xscale("log", base=10)
    axes.set_title(spelled_out(row["options"]), parse_math=False)


def spelled_out(options: Mapping[str, Any]) -> str:
    """What a row's trainings had, in two lines."""
    images = counted(options["limit_train"], "image") if options["limit_train"] else "all images"
    return (
        f"{options['data']}, {images}, batch {options['batch_size']}, {counted(options['epochs'], 'epoch')}\n"
        f"width {options['width']}, weight decay {options['weight_decay']:g}, "
        f"label smoothing {options['label_smoothing']:g}"
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
