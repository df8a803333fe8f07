"""The lines a run prints: accuracies as percentages, times in hours, minutes and seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fast_cifar.build import Setup
from fast_cifar.options import TrainOptions
from fast_cifar.runs.run_folder import predicted_by
from fast_cifar.system.errors import counted, percent


def opening_lines(setup: Setup, options: TrainOptions, device_name: str, steps_per_epoch: int) -> list[str]:
    """Data, machine and recipe of a run."""
    data = setup.data
    held_out = f", {len(setup.val):,} held out" if setup.val is not None else ""
    tested = "no" if data.test is None else f"{len(data.test):,}"
    layout = "channels_last" if setup.options.channels_last else "NCHW"
    compiled = ", compiled" if setup.options.compile else ""
    processes = f"{setup.distributed.size} processes, each on " if setup.distributed.size > 1 else ""
    peak = f"at epoch {options.peak_epoch}" if options.peak_epoch else "5/24 of the way"
    return [
        f"data      {data.name}: {len(data.train):,} training and {tested} test images{held_out}, "
        f"{len(data.classes)} classes",
        f"machine   {processes}{device_name}, {setup.precision.name}, {layout}{compiled}, torch {torch.__version__}",
        f"recipe    {counted(options.epochs, 'epoch')} x {counted(steps_per_epoch, 'step')} of "
        f"{counted(options.batch_size, 'image')}; one cycle "
        f"{options.lr_min:g} -> {options.lr_max:g} ({peak}) -> {options.lr_min:g}",
        *setup.notes,
    ]


def epoch_line(row: Mapping[str, Any], epochs: int, counts: Mapping[str, int], seconds_left: float) -> str:
    """One epoch: LR, loss and accuracy of each split, training minus test accuracy, throughput, and time left.

    Args:
        row: what `metrics.jsonl` holds.
        counts: images in each held-out split: "test", and "val" if there is one.
    """
    width = len(str(epochs))
    parts = [
        f"epoch {row['epoch']:>{width}}/{epochs}",
        f"lr {row['lr']:.6f}",
        f"train {row['train_loss']:.4f} {percent(row['train_accuracy'])}",
    ]
    for split, count in counts.items():
        accuracy = row[f"{split}_accuracy"]
        if accuracy is not None:
            correct = round(accuracy * count)
            parts.append(f"{split} {row[f'{split}_loss']:.4f} {correct}/{count} ({percent(accuracy)})")
    if row["test_accuracy"] is not None:
        parts.append(f"gap {100 * (row['train_accuracy'] - row['test_accuracy']):+.2f} pp")
    parts += [f"{row['images_per_second']:,.0f} images/sec", f"{row['seconds']:.1f} s", f"{clock(seconds_left)} left"]
    return " | ".join(parts)


def headline(summary: Mapping[str, Any]) -> str:
    """The accuracy that is the result of a run, and how the predictions were made."""
    if summary["test_accuracy"] is None:  # --no-test
        return f"validation accuracy {percent(summary['val_accuracy'])}{predicted_by(summary)}"
    return f"test accuracy {percent(summary['test_accuracy'])}{predicted_by(summary)}"


def closing_lines(summary: Mapping[str, Any], folder: str) -> list[str]:
    """The result of one run: the last epoch's accuracy is the headline."""
    peak = summary["peak_memory_bytes"]
    best = summary["best_test_accuracy"]
    best = "" if best is None else f"best {percent(best)}, "
    return [
        f"{headline(summary)} after the last epoch ({best}training {percent(summary['train_accuracy'])})",
        f"{clock(summary['seconds'])} of training at {summary['images_per_second']:,.0f} images/sec, "
        f"{summary['training_flops'] / 1e15:.3g} PFLOP"
        + (f", {summary['compile_seconds']:.0f} s to warm up and compile" if summary["compile_seconds"] else "")
        + (f", peak memory {peak / 2**30:.2f} GiB" if peak is not None else ""),
        f"everything is in {folder}",
    ]


def several_line(summary: Mapping[str, Any]) -> str:
    """The result of several runs: mean, 95 % interval of the mean, and spread."""
    split = "validation" if summary.get("test_accuracy", 0) is None else "test"
    if summary["n"] == 1:
        return f"{split} accuracy {percent(summary['mean'])} (n = 1){predicted_by(summary)}"
    half = (summary["interval"][1] - summary["interval"][0]) / 2
    return (
        f"{split} accuracy {percent(summary['mean'])} ± {100 * half:.2f} "
        f"(95 % interval of the mean, n = {summary['n']}, standard deviation {100 * summary['std']:.2f})"
        f"{predicted_by(summary)}"
    )


def clock(seconds: float) -> str:
    """Seconds as `7 s`, `4:05` or `1:04:05`."""
    total = round(seconds)
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
