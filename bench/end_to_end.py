"""How many seconds does the whole recipe take, and how many until a given test accuracy?

    python -m bench.end_to_end                                # CUDA: the recipe; CPU: the demo, a minute or two
    python -m bench.end_to_end --runs 5 --target 0.93         # five seeds; seconds until 93 %
    python -m bench.end_to_end --data FOLDER --json out.json  # the recipe on these images, on any device
    python -m bench.end_to_end --quick                        # a smoke run

The recipe is 24 epochs of CIFAR-10 in mixed precision, compiled on CUDA where there is a C++ compiler; data,
augmentation, recipe and machine options are those of run_train.py. A CPU takes hours for that, so without `--data` it
runs what `run_train.py --demo` runs. The seeds 0, 1, 2, ... train one after the other through `fast_cifar.train`, each
into a temporary run folder that is removed afterwards.

- total: from the call of `train` to its return. The data are loaded once before, so that no download is in it.
- training, evaluation, saving, compiling: as the run itself counts them. What torch keeps of an earlier compilation on
  the disk makes the next one shorter.
- other: the rest of the total: data from the cache, the network, plots.
- to the target: training and evaluation of all epochs up to the first whose test accuracy reaches `--target`, without
  compilation. Each epoch is tested.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from bench.markdown import COLUMNS, all_seeds, caption, print_rows
from bench.measure import arguments, check_counts, environment, save_rows
from bench.trials import split_command_line, with_defaults
from fast_cifar import TrainOptions, train
from fast_cifar.data.load import load_dataset
from fast_cifar.options import DEMO
from fast_cifar.runs.console import several_line
from fast_cifar.runs.stats import summarize
from fast_cifar.system.device import resolve_device
from fast_cifar.system.errors import UserError, run_script

QUICK = {"data": "synthetic", "limit_train": 128, "limit_test": 100, "epochs": 2, "batch_size": 32}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--target", type=float, default=0.9, metavar="ACCURACY", help="in 0..1 (default: 0.9)")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="seeds to train (default: 1)")
    options, recipe = split_command_line(parser)
    check_counts(options, "runs")
    if not 0 < options.target <= 1:
        raise UserError(f"--target {options.target} must lie in 0..1: it is a fraction, such as 0.9")
    device = resolve_device(options.device)
    recipe = choose_recipe(recipe, device, quick=options.quick)
    recipe.check()
    images = training_images(recipe)
    rows = [measure(recipe.replace(seed=seed), options.target) | {"images": images} for seed in range(options.runs)]

    where = environment(device)
    shown = [all_seeds([row]) for row in rows] + ([all_seeds(rows)] if len(rows) > 1 else [])
    print_rows(caption(where), COLUMNS["end_to_end"], shown)
    if len(rows) > 1:
        print(several_line(summarize(rows)))
    save_rows(options.json, where, rows)


def choose_recipe(recipe: TrainOptions, device: torch.device, *, quick: bool) -> TrainOptions:
    """The recipe, the demo or the smoke run, with what the command line says otherwise."""
    if quick:
        return with_defaults(recipe, device, **QUICK)
    if device.type == "cuda" or "data" in recipe.given:
        return with_defaults(recipe, device)
    print(f"this is the demo: {device.type} would take hours for the recipe; --data cifar10 runs it all the same")
    return with_defaults(recipe, device, **DEMO)


def training_images(recipe: TrainOptions) -> int:
    """How many images an epoch has. Loading them here keeps the download and the decoding out of the measurement."""
    data = load_dataset(recipe.data, recipe.data_dir, mirrors=recipe.mirror, resize=recipe.resize)
    images = len(data.train) - (recipe.val_split or 0)
    return min(images, recipe.limit_train or images)


def measure(recipe: TrainOptions, target: float) -> dict[str, Any]:
    """Trains one seed and says where the time went."""
    # As in a process of its own: no compiled code and no memory from the seed before.
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as out:

        def log(line: str) -> None:
            if out not in line:  # the folder is about to vanish
                tqdm.write(line)

        history: list[dict[str, Any]] = []
        started = time.perf_counter()
        summary = train(recipe.replace(out=out, name="run"), on_epoch=history.append, log=log)
        seconds = time.perf_counter() - started
    return {"batch_size": recipe.batch_size, "compiled": recipe.compile} | make_row(summary, history, seconds, target)


def make_row(
    summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], total_seconds: float, target: float
) -> dict[str, Any]:
    """The numbers of one run: its summary, what its own clocks do not cover, and when it reached the target.

    Args:
        summary, history: what `train` returned, and each row that it gave `on_epoch`.
        total_seconds: wall-clock time of the whole run.
        target: a test accuracy in 0..1.
    """
    counted = sum(summary[name] for name in ("seconds", "evaluation_seconds", "save_seconds", "compile_seconds"))
    times = {"total_seconds": total_seconds, "other_seconds": total_seconds - counted}
    return dict(summary) | times | {"target": target} | to_target(history, target)


def to_target(history: Sequence[Mapping[str, Any]], target: float) -> dict[str, Any]:
    """`epochs_to_target` and `seconds_to_target`, training and evaluation; None where no epoch reached it."""
    seconds = 0.0
    for row in history:
        seconds += row["seconds"] + row["evaluation_seconds"]
        if row["test_accuracy"] is not None and row["test_accuracy"] >= target:
            return {"epochs_to_target": row["epoch"], "seconds_to_target": seconds}
    return {"epochs_to_target": None, "seconds_to_target": None}


if __name__ == "__main__":
    sys.exit(run_script(main))
