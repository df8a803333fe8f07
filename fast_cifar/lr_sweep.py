"""The sweep itself: a training step at each of many learning rates, and the loss at each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from fast_cifar.engine import Batches
from fast_cifar.lr_curve import has_diverged
from fast_cifar.optimizer import set_rate
from fast_cifar.runtime import Precision
from fast_cifar.train_step import TrainStep, memory_format_of


def sweep_losses(
    step: TrainStep, loader: Batches, rates: Sequence[float], watched: Callable[[], float] | None, title: str = ""
) -> tuple[list[float], bool]:
    """One step at each of the rates, and its loss or, where one is given, what `watched` gives after it.

    Returns:
        The loss at each of them, as far as it is finite and has not diverged, and whether that ended the sweep.
    """
    device = next(step.model.parameters()).device
    losses: list[float] = []
    step.model.train()
    with _endless(loader) as batches:
        bar = tqdm(rates, desc=f"range test{title}", unit="step", leave=False, disable=None, dynamic_ncols=True)
        for lr in bar:
            inputs, labels = next(batches)
            for group in step.optimizer.param_groups:
                set_rate(group, lr)
            loss = float(step(inputs.to(device), labels.to(device))[0])
            if watched is not None and math.isfinite(loss):
                loss = watched()
            if not math.isfinite(loss):
                return losses, True
            losses.append(loss)
            if has_diverged(losses):
                return losses, True
    return losses, False


def held_out_loss(model: nn.Module, precision: Precision, batches: Batches) -> Callable[[], float]:
    """A function that gives the mean cross-entropy of all `batches`, and leaves the model as it is.

    Raises:
        ValueError: there are no batches.
    """
    device = next(model.parameters()).device
    memory_format = memory_format_of(model)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [
        (inputs.to(device).clone(memory_format=memory_format), labels.to(device).clone()) for inputs, labels in batches
    ]
    images = sum(len(labels) for _, labels in kept)
    if images == 0:
        raise ValueError("the held-out loader has no batches")

    def loss() -> float:
        flags = [(module, module.training) for module in model.modules()]
        tracking = [norm.track_running_stats for norm in norms]
        model.eval()
        for norm in norms:
            # The running statistics lag ten steps behind, which at high rates is another network's. So each batch is
            # normalised by its own, as in training, and they are not recorded.
            norm.training, norm.track_running_stats = True, False
        try:
            with torch.no_grad(), precision.autocast():
                sums = [F.cross_entropy(model(inputs).float(), labels, reduction="sum") for inputs, labels in kept]
        finally:
            for module, flag in flags:
                module.training = flag
            for norm, flag in zip(norms, tracking, strict=True):
                norm.track_running_stats = flag
        return float(sum(sums)) / images

    return loss


@contextmanager
def _endless(loader: Batches) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """The loader's batches, epoch after epoch; a loader that counts epochs is set back to its own afterwards."""
    epoch = getattr(loader, "epoch", None)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        taken = 0
        for more in itertools.count():
            if epoch is not None:
                loader.set_epoch(epoch + more)
            before = taken
            for batch in loader:
                taken += 1
                yield batch
            if taken == before:
                raise ValueError(f"the loader has no batches left after {taken}")

    try:
        yield batches()
    finally:
        if epoch is not None:
            loader.set_epoch(epoch)
