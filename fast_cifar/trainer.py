"""Training as the options say: one run, several seeds of it, or going on with an interrupted one."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fast_cifar import console
from fast_cifar.aggregate import aggregate
from fast_cifar.assembly import Parts, Workspace, assemble
from fast_cifar.distributed import World, joined
from fast_cifar.errors import UserError
from fast_cifar.lr_finder import sweep, write_range_test
from fast_cifar.memory import enough_memory, reset_peak_memory
from fast_cifar.options import RangeTestOptions, TrainOptions
from fast_cifar.run import Diverged, Run, cycle_steps
from fast_cifar.run_folder import RunFolder, check_new, new_path
from fast_cifar.runtime import recording_gradients, reproducible

Log = Callable[[str], None]


def train(options: TrainOptions, *, log: Log = tqdm.write) -> dict[str, Any]:
    """Trains as `options` say and fills a run folder.

    Args:
        options: see `TrainOptions`; the defaults are the recipe.
        log: takes each line for the screen.

    Returns:
        The summary, as in the run folder's `summary.json`: accuracies in 0..1, times in seconds.

    Raises:
        UserError: the options, the data, the machine or a run folder do not allow it, or the loss diverged.
        KeyboardInterrupt: interrupted; the message says how to go on.
    """
    with recording_gradients(), joined() as world:
        begin = _start if options.resume is None else _resume
        return begin(options, world, log if world.is_main else _say_nothing)


def _say_nothing(line: str) -> None:
    pass


def _start(options: TrainOptions, world: World, log: Log) -> dict[str, Any]:
    options.check()
    options = options.resolved()
    options.check()
    if world.is_main:
        check_new(new_path(options.out, options.name, options.data))
    workspace = assemble(options, world)
    steps, _ = cycle_steps(options, len(workspace.data.train) // options.batch_size)
    found = None
    if options.find_lr:
        alone, test = dataclasses.replace(workspace, world=World()), RangeTestOptions()
        found = world.from_main(sweep(alone, options.seed, test) if world.is_main else None)
        options = options.replace(lr_min=found.suggestion.lr_min, lr_max=found.suggestion.lr_max)
        log(f"range test: LRMIN {options.lr_min:.3g}, LRMAX {options.lr_max:.3g}")
        for warning in found.warnings:
            log(f"warning: {warning}")
        if steps < test.iters:
            log(
                f"warning: a run of {steps} steps is shorter than the range test, and often wants a third of its LRMAX "
                "(docs/recipe.md); more --epochs or a smaller --batch-size make it longer"
            )
    folder = RunFolder.create_new(options.out, options.name, options.data) if world.is_main else None
    folder = world.from_main(folder)
    options = options.replace(name=folder.path.name, **workspace.resolved_machine())
    try:
        if world.is_main:
            folder.write_config(options.as_dict())
            if found is not None:
                write_range_test(folder, found)
        return _train(workspace, options, folder, log)
    except BaseException as end:
        # Nobody could go on with a folder that has no configuration, and nobody wants one of a run that cannot be.
        useless = not (folder / "config.json").exists() or (
            isinstance(end, UserError) and not any(folder.path.rglob("last.pt"))
        )
        if world.is_main and useless:
            shutil.rmtree(folder.path)
        raise


def _resume(options: TrainOptions, world: World, log: Log) -> dict[str, Any]:
    folder = RunFolder.open(Path(options.resume))
    if world.is_main:
        folder.tidy()
    options = options.continued(folder.config())
    options.check()
    finished = world.from_main(folder.summary())
    if finished is not None:
        judge = "val" if finished["test_accuracy"] is None else "test"
        log(f"{folder.path} is finished: {judge} accuracy {finished[f'{judge}_accuracy']:.2%}")
        return finished
    return _train(assemble(options, world), options, folder, log)


def _train(workspace: Workspace, options: TrainOptions, folder: RunFolder, log: Log) -> dict[str, Any]:
    train_some = _train_alone if options.runs is None else _train_several
    reset_peak_memory(workspace.device)
    try:
        with enough_memory(options.batch_size):
            return train_some(workspace, workspace.parts(options.lr_max, options.ema), options, folder, log)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; what is done is saved, to go on: python run_train.py --resume {folder.path}"
        ) from None


def _train_several(
    workspace: Workspace, parts: Parts, options: TrainOptions, folder: RunFolder, log: Log
) -> dict[str, Any]:
    world = workspace.world
    summaries, failures = [], []
    for k in range(1, options.runs + 1):
        one = options.replace(seed=options.seed + k - 1, runs=None, out=str(folder.path), name=f"run-{k}")
        log(f"run {k} of {options.runs}, seed {one.seed}")
        run = RunFolder(folder / one.name)
        if world.is_main:
            run.path.mkdir(exist_ok=True)
            if not (run / "config.json").exists():
                run.write_config(one.as_dict())
        try:
            summaries.append(world.from_main(run.summary()) or _train_alone(workspace, parts, one, run, log))
        except Diverged as error:
            failures.append(f"seed {one.seed}: {error}")
            log(f"run {k} failed: {error}")
    if not summaries:
        raise Diverged(f"all {options.runs} runs failed; {failures[0]}")
    summary = aggregate(summaries) | {"failures": failures}
    if world.is_main:
        folder.write_summary(summary)
    log(console.several_line(summary))
    if failures:
        raise Diverged(f"{len(failures)} of {options.runs} runs failed; {failures[0]}")
    return summary


def _train_alone(
    workspace: Workspace, parts: Parts, options: TrainOptions, folder: RunFolder, log: Log
) -> dict[str, Any]:
    with reproducible(options.seed, workspace.device, deterministic=options.deterministic):
        return Run(workspace, parts, options, folder, log).to_the_end()
