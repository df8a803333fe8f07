"""From options to the parts of a run: device, data, loaders, network, optimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from fast_cifar.custom_resnet import CustomResNet
from fast_cifar.data.load import Dataset, Split, balanced_subset, hold_out, load_dataset
from fast_cifar.loader import DeviceLoader
from fast_cifar.optimizer import WeightEMA, empty_state, make_optimizer
from fast_cifar.options import CommonOptions
from fast_cifar.system.device import Precision, check_compiler, resolve_device, resolve_precision
from fast_cifar.system.distributed import DistributedContext, local_device
from fast_cifar.system.errors import UserError
from fast_cifar.train_step import TrainStep


@dataclass(frozen=True)
class Setup:
    """What every run with the same options shares: the machine and the pictures.

    Attributes:
        data: the splits after `--limit-train`, `--limit-test` and `--val-split`.
        val: the images held out of the training split, or None.
        tests: whether the run may look at the test split.
        world: the processes that train together.
    """

    options: CommonOptions
    device: torch.device
    precision: Precision
    data: Dataset
    val: Split | None
    distributed: DistributedContext = DistributedContext()
    tests: bool = True

    @property
    def judge(self) -> str:
        """The split whose accuracy is the result of a run."""
        return "test" if self.tests else "val"

    def split(self, name: str) -> Split:
        """The images of "val" or "test"."""
        return self.val if name == "val" else self.data.test

    def resolved_machine(self) -> dict[str, str]:
        """The machine options as they came out: the device, and the kind of mixed precision if there is one."""
        mixed = {"amp_dtype": self.precision.name} if self.precision.dtype != torch.float32 else {}
        return {"device": str(self.device)} | mixed

    def train_loader(self, seed: int) -> DeviceLoader:
        """Shuffled, augmented batches of the training split."""
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
            share=(self.distributed.rank, self.distributed.size),
        )

    def eval_loader(self, split: Split, like: DeviceLoader) -> DeviceLoader:
        """Batches of this process's share of `split`, in order and as they are, normalised like the training images."""
        part = self.distributed.shard(len(split))
        split = Split(split.images[part], split.labels[part])
        return evaluation_loader(split, self.options.batch_size, self.device, self.precision, like.mean, like.std)

    def network(self) -> CustomResNet:
        """A new network; its weights are drawn from torch's random state on the CPU, alike for every device."""
        options = self.options
        return placed(CustomResNet(len(self.data.classes), options.dropout, options.width), options, self.device)

    def optimizer(self, model: CustomResNet, lr: float) -> Optimizer:
        return make_optimizer(model, lr, self.options.weight_decay)

    def parts(self, lr: float, ema: float = 0.0) -> TrainingState:
        """All that trains and tests, for a run with any seed; torch's random state is as before.

        Args:
            lr: of the optimiser.
            ema: decay of the running average of the weights; 0: without one.
        """
        options = self.options
        loader = self.train_loader(options.seed)
        eval_loaders = {}
        if self.val is not None:
            eval_loaders["val"] = self.eval_loader(self.val, loader)
        if self.tests:
            eval_loaders["test"] = self.eval_loader(self.data.test, loader)
        with torch.random.fork_rng(devices=[]):
            model = self.network()
        optimizer = self.optimizer(model, lr)
        average = WeightEMA(model, ema) if ema else None
        step = TrainStep(
            model,
            optimizer,
            self.precision,
            label_smoothing=options.label_smoothing,
            compile=options.compile,
            network=self.distributed.wrap(model),
            average=average,
            graph=self.distributed.size == 1,
        )
        return TrainingState(loader, eval_loaders, model, optimizer, average, step, step.scaler.state_dict())


@dataclass(frozen=True)
class TrainingState:
    """What trains and what tests it: made once, and used for one seed after another, so that the pictures are stored
    once and the step is compiled once.

    Attributes:
        eval_loaders: "val" where images are held out, then "test" unless the run leaves them alone.
        average: of the model's weights, with `--ema`.
    """

    loader: DeviceLoader
    eval_loaders: dict[str, DeviceLoader]
    model: CustomResNet
    optimizer: Optimizer
    average: WeightEMA | None
    step: TrainStep
    first_scale: dict[str, Any]

    def answering(self) -> AbstractContextManager[None]:
        """Inside, the network has the weights to answer with: their average, where there is one."""
        return nullcontext() if self.average is None else self.average.swapped_in()

    def reset(self, setup: Setup, seed: int) -> None:
        """New weights, from torch's random state as it is now, an empty optimiser, and the pictures in `seed`'s order.

        All is changed in place: compiled code and captured graphs go on working.
        """
        self.model.load_state_dict(setup.network().state_dict())
        if self.average is not None:
            self.average.reset()
        empty_state(self.optimizer)
        self.step.load_scaler(self.first_scale)
        self.loader.seed = seed


def build_setup(options: CommonOptions, distributed: DistributedContext = DistributedContext()) -> Setup:  # noqa: B008 - it is immutable
    """Finds the machine and loads the pictures: rank 0 first, which may download and decode them.

    Raises:
        UserError: the device, the precision, the compiler or the data cannot be had as asked.
    """
    device = resolve_device(local_device(options.device))
    precision = resolve_precision(device, options.amp, options.amp_dtype)
    if options.compile:
        check_compiler()
    if options.batch_size % distributed.size:
        raise UserError(f"--batch-size {options.batch_size} must be a multiple of the {distributed.size} processes")
    if not distributed.is_main:
        distributed.broadcast(None)
    data = load_dataset(options.data, options.data_dir, mirrors=options.mirror, resize=options.resize)
    if distributed.is_main:
        distributed.broadcast(None)
    train, val = data.train, None
    if options.val_split is not None:
        train, val = hold_out(train, options.val_split)
    train, test = limited(train, options.limit_train), limited(data.test, options.limit_test)
    if options.batch_size > len(train):
        raise UserError(f"--batch-size {options.batch_size} is more than the {len(train)} training images")
    if min(len(split) for split in (test, val) if split is not None) < distributed.size:
        raise UserError(f"{distributed.size} processes cannot share {len(test)} test images")
    return Setup(
        options,
        device,
        precision,
        dataclasses.replace(data, train=train, test=test),
        val,
        distributed,
        getattr(options, "test", True),
    )


def evaluation_loader(
    split: Split,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    mean: Sequence[float],
    std: Sequence[float],
) -> DeviceLoader:
    """Batches of at most `batch_size` images, in order and as they are, for a network that was trained with `mean` and
    `std`."""
    return DeviceLoader(
        split.images,
        split.labels,
        min(batch_size, len(split)),
        train=False,
        device=device,
        mean=mean,
        std=std,
        dtype=precision.dtype,
    )


def limited(split: Split, n: int | None) -> Split:
    """A class-balanced subset of `n` images; all of them where `n` is None."""
    return split if n is None else balanced_subset(split, n)


def placed(model: CustomResNet, options: CommonOptions, device: torch.device) -> CustomResNet:
    """The network on its device, in the memory order that `options` choose."""
    return model.to(device, memory_format=torch.channels_last if options.channels_last else torch.contiguous_format)
