"""What a change of the recipe does to the accuracy, seed by seed, and the table of an ablation.

`train_once` is one training as `fast_cifar.train` does it, judged by the images held out: no run folder, no checkpoint,
no test. The same parts train one seed and learning rate after another, so that the step is compiled once.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from bench.markdown import Column, machine, markdown, percent, value
from fast_cifar.build import Setup, TrainingState
from fast_cifar.engine import evaluate, train_epoch
from fast_cifar.optimizer import make_scheduler
from fast_cifar.options import TrainOptions
from fast_cifar.runs.stats import t_quantile
from fast_cifar.schedules import one_cycle
from fast_cifar.system.device import explain_out_of_memory, gradients_enabled, seeded_run
from fast_cifar.trainer import cycle_steps

Row = Mapping[str, Any]


def train_once(setup: Setup, parts: TrainingState, options: TrainOptions) -> dict[str, Any]:
    """Trains from new weights to the last epoch and answers the images held out, once.

    Args:
        setup: with `val_split`; `parts` are its own.
        options: those of the setup but for seed and learning rates.

    Returns:
        `val_accuracy`, `val_loss` and `train_accuracy` of the last epoch, `seconds` of training, `diverged`: the loss
        became infinite or NaN. Then both accuracies are those of a blind guess, and there is no `val_loss`.

    Raises:
        UserError: the run is too short for a cycle, or the memory too small.
    """
    options = options.resolved()
    total, peak = cycle_steps(options, len(parts.loader))
    with (
        gradients_enabled(),
        seeded_run(options.seed, setup.device, deterministic=options.deterministic),
        explain_out_of_memory(options.batch_size),
    ):
        parts.reset(setup, options.seed)
        cycle = one_cycle(total, peak, options.lr_min, options.lr_max)
        scheduler = make_scheduler(parts.optimizer, options.lr_max, cycle)
        if parts.step.needs_warm_up:
            parts.step.warm_up(*next(iter(parts.loader)))
        started = time.perf_counter()
        for epoch in range(options.epochs):
            parts.loader.set_epoch(epoch)
            metrics = train_epoch(
                parts.step,
                parts.loader,
                scheduler,
                title=f"epoch {epoch + 1}/{options.epochs}",
                steps=len(parts.loader),
            )
            if not math.isfinite(metrics.loss):
                break
        seconds = time.perf_counter() - started
        with parts.answering():
            held_out = evaluate(parts.model, parts.eval_loaders["val"], setup.precision, tta=options.tta)
    if not (math.isfinite(metrics.loss) and math.isfinite(held_out.loss)):
        chance = 1 / len(setup.data.classes)
        return {"val_accuracy": chance, "train_accuracy": chance, "seconds": seconds, "diverged": True}
    return {
        "val_accuracy": held_out.accuracy,
        "val_loss": held_out.loss,
        "train_accuracy": metrics.accuracy,
        "seconds": seconds,
        "diverged": False,
    }


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and half of its 95 % interval (Student's t); None for one value."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), t_quantile(len(values) - 1) * stdev(values) / len(values) ** 0.5


def judged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows that have runs, with `n`, `mean` and `half` of their validation accuracy, the mean `train_accuracy`,
    and for a change also `difference` and `difference_half`: its accuracy minus the base's, over the seeds of both.

    Args:
        rows: the base, then the changes, each with its `runs`.
    """
    base = by_seed(rows[0])
    result = []
    for row in rows:
        if not row["runs"]:
            continue
        mine = by_seed(row)
        mean, half = mean_and_half(list(mine.values()))
        new = {"n": len(mine), "mean": mean, "half": half}
        new |= {"train_accuracy": fmean(run["train_accuracy"] for run in row["runs"])}
        differences = [accuracy - base[seed] for seed, accuracy in mine.items() if seed in base]
        if row is not rows[0] and differences:
            new["difference"], new["difference_half"] = mean_and_half(differences)
        result.append(dict(row) | new)
    return result


def by_seed(row: Row) -> dict[int, float]:
    return {run["seed"]: run["val_accuracy"] for run in row["runs"]}


def accuracy_text(row: Row) -> str:
    text = percent(row["mean"], digits=2)
    return text if row["half"] is None else f"{text} ± {100 * row['half']:.2f}"


def difference_text(row: Row) -> str:
    """Percentage points, better is positive, and the ends of the interval."""
    if "difference" not in row:
        return ""
    middle, half = row["difference"], row["difference_half"]
    text = f"{100 * middle:+.2f}"
    return text if half is None else f"{text} [{100 * (middle - half):+.2f} .. {100 * (middle + half):+.2f}]"


def count_text(row: Row) -> str:
    diverged = sum(run["diverged"] for run in row["runs"])
    return f"{row['n']}, {diverged} diverged" if diverged else str(row["n"])


RESULTS = [
    Column("change", value("change"), words=True),
    Column("validation accuracy", accuracy_text),
    Column("to the base, points [95 %]", difference_text),
    Column("n", count_text),
    Column("training accuracy", value("train_accuracy", lambda fraction: percent(fraction, digits=2))),
]


def ablation_block(contents: Row) -> str:
    """The Markdown of one file of results. A change's command is the base's with more words before `--runs`."""
    rows = contents["rows"]
    columns = [*RESULTS, Column("command", lambda row: command_text(row, rows[0]), words=True)]
    return " · ".join(machine(contents["environment"])) + "\n\n" + markdown(columns, judged(rows))


def command_text(row: Row, base: Row) -> str:
    common = len(base["words"])
    more = row["words"][common:]
    if more and row["words"][:common] == base["words"]:
        return f"`… {shlex.join(more)} …`"
    return f"`{row['command']}`"
