"""One training as `fast_cifar.train` does it, judged by the images held out: no run folder, no checkpoint, no test.

The same parts train one seed and learning rate after another, so that the step is compiled once.
"""

from __future__ import annotations

import math
import time
from typing import Any

from fast_cifar.assembly import Parts, Workspace
from fast_cifar.engine import evaluate, train_epoch
from fast_cifar.memory import enough_memory
from fast_cifar.optimizer import make_scheduler
from fast_cifar.options import TrainOptions
from fast_cifar.run import cycle_steps
from fast_cifar.runtime import recording_gradients, reproducible
from fast_cifar.schedules import one_cycle


def train_once(workspace: Workspace, parts: Parts, options: TrainOptions) -> dict[str, Any]:
    """Trains from new weights to the last epoch and answers the images held out, once.

    Args:
        workspace: with `val_split`; `parts` are its own.
        options: those of the workspace but for seed and learning rates.

    Returns:
        `val_accuracy`, `val_loss` and `train_accuracy` of the last epoch, `seconds` of training, `diverged`: the loss
        became infinite or NaN. Then both accuracies are those of a blind guess, and there is no `val_loss`.

    Raises:
        UserError: the run is too short for a cycle, or the memory too small.
    """
    options = options.resolved()
    total, peak = cycle_steps(options, len(parts.loader))
    with (
        recording_gradients(),
        reproducible(options.seed, workspace.device, deterministic=options.deterministic),
        enough_memory(options.batch_size),
    ):
        parts.start_over(workspace, options.seed)
        cycle = one_cycle(total, peak, options.lr_min, options.lr_max)
        scheduler = make_scheduler(parts.optimizer, options.lr_max, cycle)
        if parts.step.needs_warm_up:
            parts.step.warm_up(*next(iter(parts.loader)))
        started = time.perf_counter()
        for epoch in range(options.epochs):
            parts.loader.set_epoch(epoch)
            tally = train_epoch(
                parts.step,
                parts.loader,
                scheduler,
                title=f"epoch {epoch + 1}/{options.epochs}",
                steps=len(parts.loader),
            )
            if not math.isfinite(tally.loss):
                break
        seconds = time.perf_counter() - started
        with parts.answering():
            held_out = evaluate(parts.model, parts.eval_loaders["val"], workspace.precision, tta=options.tta)
    if not (math.isfinite(tally.loss) and math.isfinite(held_out.loss)):
        chance = 1 / len(workspace.data.classes)
        return {"val_accuracy": chance, "train_accuracy": chance, "seconds": seconds, "diverged": True}
    return {
        "val_accuracy": held_out.accuracy,
        "val_loss": held_out.loss,
        "train_accuracy": tally.accuracy,
        "seconds": seconds,
        "diverged": False,
    }
