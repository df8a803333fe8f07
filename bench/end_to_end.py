"""How many seconds does the whole recipe take, and how many until a given test accuracy?

    python -m bench.end_to_end                                # CUDA: the recipe; CPU: the demo, a minute or two
    python -m bench.end_to_end --runs 5 --target 0.93         # five seeds; seconds until 93 %
    python -m bench.end_to_end --data FOLDER --json out.json  # the recipe on these pictures, on any device
    python -m bench.end_to_end --quick                        # a smoke run

The recipe is 24 epochs of CIFAR-10 in mixed precision, compiled where there is a C++ compiler. A CPU takes two hours
for that, so without `--data` it runs what `run_train.py --demo` runs. The seeds 0, 1, 2, ... train one after the other
through `fast_cifar.train`, each into a temporary run folder that is removed afterwards.

- total: from the call of `train` to its return. The data are loaded once before, so that no download is in it.
- training, evaluation, saving, compiling: as the run itself counts them. What torch keeps of an earlier compilation on
  the disk makes the next one shorter.
- other: the rest of the total: data from the cache, the network, pictures.
- to the target: training and evaluation of all epochs up to the first whose test accuracy reaches `--target`, without
  compilation. Each epoch is tested.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from tqdm import tqdm

from bench.measure import arguments, environment, header, print_table, write_rows
from fast_cifar import TrainOptions, train
from fast_cifar.data.load import load_dataset
from fast_cifar.options import DEMO
from fast_cifar.runs.console import several_line
from fast_cifar.runs.run_folder import RunFolder
from fast_cifar.runs.stats import summarize
from fast_cifar.system.device import has_compiler, resolve_device
from fast_cifar.system.errors import UserError, run_script

QUICK = {"data": "synthetic", "limit_train": 128, "limit_test": 100, "epochs": 2, "batch_size": 32}
COLUMNS = {
    "test_accuracy": ("test accuracy", "{:.2%}"),
    "total_seconds": ("total, s", "{:.1f}"),
    "training_seconds": ("training", "{:.1f}"),
    "evaluation_seconds": ("evaluation", "{:.1f}"),
    "saving_seconds": ("saving", "{:.1f}"),
    "compile_seconds": ("compiling", "{:.1f}"),
    "other_seconds": ("other", "{:.1f}"),
    "seconds_to_target": ("to target, s", "{:.1f}"),
    "images_per_second": ("images/sec", "{:,.0f}"),
    "peak_memory_bytes": ("memory, GiB", "{:.2f}"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", help="what to train on, as for run_train.py (default: cifar10; on a CPU the demo's)")
    parser.add_argument("--data-dir", metavar="DIR", help="where downloads and decoded caches are kept (default: data)")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: 24; the demo's 5")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 512; the demo's 32")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, help="mixed precision (default: on)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="default: on CUDA, where there is a C++ compiler"
    )
    parser.add_argument("--target", type=float, default=0.9, metavar="ACCURACY", help="in 0..1 (default: 0.9)")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="seeds to train (default: 1)")
    options = parser.parse_args()
    if not 0 < options.target <= 1:
        raise UserError(f"--target {options.target} must lie in 0..1: it is a fraction, such as 0.9")
    if options.runs < 1:
        raise UserError(f"--runs {options.runs} must be at least 1")
    device = resolve_device(options.device)
    recipe = choose_recipe(options, device)
    recipe.check()

    if runs_the_demo(options, device):
        print(f"this is the demo: {device.type} would take hours for the recipe; --data cifar10 runs it all the same")
    images = training_images(recipe)
    rows = [measure(recipe.replace(seed=seed), options.target) | {"images": images} for seed in range(options.runs)]

    where = environment(device)
    title = (
        f"{header(where)}\nthe whole run, {rows[0]['precision']}{', compiled' if recipe.compile else ''}: "
        f"{recipe.epochs} epochs of {images:,} images of {rows[0]['dataset']}, batch {recipe.batch_size}; "
        f"target {options.target:.2%}"
    )
    print_table(title, *make_table(rows))
    if options.runs > 1:
        print(several_line(summarize(rows)))
    write_rows(options.json, where, rows)


def runs_the_demo(options: argparse.Namespace, device: torch.device) -> bool:
    return device.type != "cuda" and options.data is None and not options.quick


def choose_recipe(options: argparse.Namespace, device: torch.device) -> TrainOptions:
    """The recipe, the demo or the smoke run, with what the command line says otherwise."""
    compiled = device.type == "cuda" and has_compiler()
    preset = QUICK if options.quick else DEMO if runs_the_demo(options, device) else {}
    given = {name: getattr(options, name) for name in ("data", "data_dir", "epochs", "batch_size", "amp", "compile")}
    given = {name: value for name, value in given.items() if value is not None}
    return TrainOptions(**{"amp": True, "compile": compiled, "device": options.device} | preset | given)


def training_images(recipe: TrainOptions) -> int:
    """How many images an epoch is made of. They are loaded for it: what must be downloaded or decoded is, now."""
    images = len(load_dataset(recipe.data, recipe.data_dir).train)
    return min(images, recipe.limit_train or images)


def measure(recipe: TrainOptions, target: float) -> dict[str, Any]:
    """Trains one seed and says where the time went."""
    # As in a process of its own: nothing is compiled, and no memory held, by the seed before.
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as out:

        def log(line: str) -> None:
            if out not in line:  # nobody should look into a folder that is about to vanish
                tqdm.write(line)

        started = time.perf_counter()
        summary = train(recipe.replace(out=out, name="run"), log=log)
        seconds = time.perf_counter() - started
        history = RunFolder(Path(out) / "run").history()
    return {"batch_size": recipe.batch_size, "compiled": recipe.compile} | make_row(summary, history, seconds, target)


def make_row(
    summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], total_seconds: float, target: float
) -> dict[str, Any]:
    """The numbers of one run.

    Args:
        summary, history: the contents of its `summary.json` and `metrics.jsonl`.
        total_seconds: what it took by the clock on the wall.
        target: a test accuracy in 0..1.
    """
    parts = {
        "training_seconds": summary["seconds"],
        "evaluation_seconds": summary["evaluation_seconds"],
        "saving_seconds": summary["save_seconds"],
        "compile_seconds": summary["compile_seconds"],
    }
    kept = ("dataset", "epochs", "seed", "precision", "test_accuracy", "train_accuracy", "images_per_second")
    row = {name: summary[name] for name in kept} | {"total_seconds": total_seconds} | parts
    row["other_seconds"] = total_seconds - sum(parts.values())
    row |= {"target": target} | to_target(history, target)
    if summary.get("peak_memory_bytes") is not None:
        row["peak_memory_bytes"] = summary["peak_memory_bytes"]
    return row


def to_target(history: Sequence[Mapping[str, Any]], target: float) -> dict[str, Any]:
    """`epochs_to_target` and `seconds_to_target`, training and evaluation; None where it was never reached."""
    seconds = 0.0
    for row in history:
        seconds += row["seconds"] + row["evaluation_seconds"]
        if row["test_accuracy"] is not None and row["test_accuracy"] >= target:
            return {"epochs_to_target": row["epoch"], "seconds_to_target": seconds}
    return {"epochs_to_target": None, "seconds_to_target": None}


def make_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Titles and lines: a line a seed and, of several seeds, mean and standard deviation of what all of them have."""
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    lines = [[str(row["seed"]), *(cell(key, row[key]) for key in keys)] for row in rows]
    if len(rows) > 1:
        for name, statistic in (("mean", fmean), ("std", stdev)):
            values = ([row[key] for row in rows] for key in keys)
            lines.append(
                [name, *("" if None in v else cell(key, statistic(v)) for key, v in zip(keys, values, strict=True))]
            )
    return ["seed", *(COLUMNS[key][0] for key in keys)], lines


def cell(key: str, value: float | None) -> str:
    if value is None:
        return "never"
    return f"{value / 2**30:.2f}" if key == "peak_memory_bytes" else COLUMNS[key][1].format(value)


if __name__ == "__main__":
    sys.exit(run_script(main))
