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
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.commands import python_command
from bench.files import write_json
from bench.measure import arguments, environment, header, print_table
from bench.rules import COLUMNS, judged
from bench.sweep_picture import draw_rows
from bench.sweep_rows import fill, mark_tuned, name_of, read_rows, row_of
from bench.tables import filled
from fast_cifar.augment import PAD_MODES
from fast_cifar.datasets import count_classes
from fast_cifar.errors import UserError, run_script
from fast_cifar.options import RangeTestOptions, TrainOptions
from fast_cifar.runtime import has_compiler, resolve_device

FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
QUICK = {"data": "synthetic", "epochs": 2, "limit_train": 128, "val_split": 100, "batch_size": "16"}
QUICK |= {"runs": 1, "repeats": 1, "iters": 40, "factors": (0.25, 1.0, 4.0, 16.0)}


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


def save(options: argparse.Namespace, contents: dict[str, Any]) -> None:
    if options.json:
        write_json(options.json, contents)


if __name__ == "__main__":
    sys.exit(run_script(main))
