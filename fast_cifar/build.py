"""From options to what trains: `Setup` is device and data, `TrainingState` loaders, network, optimiser and step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim import Optimizer

from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.data.load import load_dataset
from fast_cifar.data.splits import Dataset, Split, balanced_subset, hold_out
from fast_cifar.engine import Evaluation, evaluate
from fast_cifar.loader import DeviceLoader
from fast_cifar.optimizer import WeightEMA, empty_state, make_optimizer
from fast_cifar.options import CommonOptions
from fast_cifar.system.device import (
    Precision,
    check_compiler,
    evaluation_batch_size,
    resolve_device,
    resolve_precision,
    supports_channels_last,
    supports_compile,
)
from fast_cifar.system.distributed import ALONE, DistributedContext, local_device
from fast_cifar.system.errors import UserError
from fast_cifar.train_step import TrainStep


@dataclass(frozen=True)
class Setup:
    """What every run with the same options shares: the machine and the images.

    Attributes:
        data: the splits after `--limit-train`, `--limit-test` and `--val-split`; no test split with `--no-test`.
        val: the images held out of the training split, or None.
        distributed: the processes that train together.
        notes: a line for the user on each option that this device does not support; `options` have it switched off.
    """

    options: CommonOptions
    device: torch.device
    precision: Precision
    data: Dataset
    val: Split | None
    distributed: DistributedContext = ALONE
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The split whose accuracy is the result of a run."""
        return "val" if self.data.test is None else "test"

    def split(self, name: str) -> Split:
        """The images of "val" or "test"."""
        return self.val if name == "val" else self.data.test

    def title(self, seed: int, seeds: int = 1) -> str:
        """What trains on what, for a figure: "CIFAR-10, width 64, batch 512, weight decay 0.5, label smoothing 0.1,
        seed 0". The seeds are `seed` and those after it."""
        options = self.options
        whose = f"seed {seed}" if seeds == 1 else f"seeds {seed} to {seed + seeds - 1}"
        return (
            f"{self.data.title}, width {options.width}, batch {options.batch_size}, "
            f"weight decay {options.weight_decay:g}, label smoothing {options.label_smoothing:g}, {whose}"
        )

    def resolved_machine(self) -> dict[str, Any]:
        """The machine options as this run has them; without mixed precision, its kind stays as it was asked for."""
        switches = {"compile": self.options.compile, "channels_last": self.options.channels_last}
        mixed = {"amp_dtype": self.precision.name} if self.precision.dtype != torch.float32 else {}
        return {"device": str(self.device)} | switches | mixed

    def network(self) -> CustomResNet:
        """A new network; its weights are drawn from torch's random state on the CPU, the same for every device."""
        options = self.options
        return to_device(CustomResNet(len(self.data.classes), options.dropout, options.width), options, self.device)

    def train_loader(self, seed: int) -> DeviceLoader:
        """Shuffled, augmented batches of this process's slice of the training split."""
        options = self.options
        return DeviceLoader(
            self.data.train.images,
            self.data.train.labels,
            options.batch_size,
            train=True,
            device=self.device,
            seed=seed,
            dtype=self.precision.dtype,
            compile=options.compile,
            padding=options.padding,
            cutout=options.cutout,
            flip=options.flip,
            alternate_flips=options.alternate_flips,
            pad_mode=options.pad_mode,
            shard=(self.distributed.rank, self.distributed.size),
        )

    def training_state(self, lr: float, ema: float = 0.0, *, graph: bool = True) -> TrainingState:
        """All that trains and evaluates, for a run with any seed; torch's random state is unchanged.

        Args:
            lr: of the optimiser.
            ema: decay of the exponential moving average of the weights; 0: without one.
            graph: with `--compile`, on one CUDA device: record the step as a CUDA graph.
        """
        options, distributed = self.options, self.distributed
        loader = self.train_loader(options.seed)
        eval_loaders = {}
        for name, split in (("val", self.val), ("test", self.data.test)):
            if split is not None:
                part = distributed.shard(len(split))
                own = Split(split.images[part], split.labels[part])
                eval_loaders[name] = eval_loader(
                    own, options.batch_size, self.device, self.precision, loader.mean, loader.std
                )
        with torch.random.fork_rng(devices=[]):
            model = self.network()
        optimizer = make_optimizer(model, lr, options.weight_decay)
        average = WeightEMA(model, ema) if ema else None
        step = TrainStep(
            model,
            optimizer,
            self.precision,
            criterion=partial(F.cross_entropy, label_smoothing=options.label_smoothing),
            compile=options.compile,
            network=distributed.wrap(model),
            ema=average,
            graph=graph and distributed.size == 1,
        )
        return TrainingState(self, loader, eval_loaders, model, optimizer, average, step, step.scaler.state_dict())


@dataclass(frozen=True)
class TrainingState:
    """What trains and what evaluates it: made once and reset for one seed after another, so that the images are stored
    once and the step is compiled once.

    Attributes:
        eval_loaders: "val" where images are held out, then "test" unless the run has `--no-test`.
        ema: of the model's weights, with `--ema`.
        initial_scaler: state of the gradient scaler before the first step.
    """

    setup: Setup
    loader: DeviceLoader
    eval_loaders: dict[str, DeviceLoader]
    model: CustomResNet
    optimizer: Optimizer
    ema: WeightEMA | None
    step: TrainStep
    initial_scaler: dict[str, Any]

    def reset(self, seed: int) -> None:
        """New weights, drawn from torch's random state as it is now, an empty optimiser, and the loader of `seed`.

        Everything changes in place: compiled code and captured graphs stay valid.
        """
        self.model.load_state_dict(self.setup.network().state_dict())
        if self.ema is not None:
            self.ema.reset()
        empty_state(self.optimizer)
        self.step.load_scaler(self.initial_scaler)
        self.loader.seed = seed

    def evaluate(self, split: str, *, tta: bool = False, check: Callable[[], None] = lambda: None) -> Evaluation:
        """Evaluates "val" or "test", over all processes, with the EMA of the weights where there is one."""
        distributed = self.setup.distributed
        distributed.broadcast_buffers(self.model)
        with nullcontext() if self.ema is None else self.ema.swapped_in():
            distributed.broadcast_buffers(self.model)  # each process averages its own
            return evaluate(
                self.model,
                self.eval_loaders[split],
                self.setup.precision,
                tta=tta,
                check=check if distributed.size == 1 else lambda: None,  # shares may differ by a batch
                distributed=distributed,
                title=split,
            )


def build_setup(options: CommonOptions, distributed: DistributedContext = ALONE, *, test: bool = True) -> Setup:
    """Finds the machine and loads the images: rank 0 first, which may download and decode them.

    Args:
        test: False leaves the test images unloaded.

    Raises:
        UserError: the device, the precision, the compiler or the data are not available as asked.
    """
    device = resolve_device(local_device(options.device))
    precision = resolve_precision(device, options.amp, options.amp_dtype)
    notes = [precision.note] if precision.note else []
    if options.channels_last and not supports_channels_last(device):
        options = options.replace(channels_last=False)
        notes.append(f"channels_last trains wrongly on {device.type}, so this run uses NCHW")
    if options.compile and not supports_compile(device):
        options = options.replace(compile=False)
        notes.append(f"--compile does not work on {device.type}, so this run is not compiled")
    if options.compile:
        check_compiler(device)
        if device.type == "cpu":
            notes.append("--compile has not made a step faster on any CPU that was measured (docs/results.md)")
    if options.batch_size % distributed.size:
        raise UserError(f"--batch-size {options.batch_size} must be a multiple of the {distributed.size} processes")
    if not distributed.is_main:
        distributed.broadcast(None)
    data = load_dataset(options.data, options.data_dir, mirrors=options.mirror, resize=options.resize, test=test)
    if distributed.is_main:
        distributed.broadcast(None)
    train, val = data.train, None
    if options.val_split is not None:
        train, val = hold_out(train, options.val_split)
    train, test_split = limited(train, options.limit_train), limited(data.test, options.limit_test)
    if options.batch_size > len(train):
        raise UserError(f"--batch-size {options.batch_size} is more than the {len(train)} training images")
    evaluated = min(len(split) for split in (val, test_split, train) if split is not None)
    if evaluated < distributed.size:
        raise UserError(f"{distributed.size} processes cannot share {evaluated} images")
    data = dataclasses.replace(data, train=train, test=test_split)
    return Setup(options, device, precision, data, val, distributed, tuple(notes))


def eval_loader(
    split: Split,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    mean: Sequence[float],
    std: Sequence[float],
) -> DeviceLoader:
    """Batches of `batch_size` images, more on a GPU, in order, not augmented, normalised with `mean` and `std` of
    the training images."""
    return DeviceLoader(
        split.images,
        split.labels,
        min(evaluation_batch_size(device, batch_size), len(split)),
        train=False,
        device=device,
        mean=mean,
        std=std,
        dtype=precision.dtype,
    )


def limited(split: Split | None, n: int | None) -> Split | None:
    """A class-balanced subset of `n` images; all of them where `n` is None."""
    return split if split is None or n is None else balanced_subset(split, n)


def to_device(model: CustomResNet, options: CommonOptions, device: torch.device) -> CustomResNet:
    """The network on its device, in the memory format that `options` choose and the device supports."""
    channels_last = options.channels_last and supports_channels_last(device)
    return model.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
