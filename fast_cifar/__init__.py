"""fast_cifar: a small, fast and honest CIFAR trainer.

from fast_cifar import TrainOptions, train
summary = train(TrainOptions(data="synthetic", epochs=5, limit_train=1600, batch_size=32))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fast_cifar.options import RangeTestOptions, TrainOptions

if TYPE_CHECKING:
    from fast_cifar.custom_resnet import CustomResNet
    from fast_cifar.data.load import load_dataset
    from fast_cifar.engine import evaluate, fit
    from fast_cifar.loader import DeviceLoader
    from fast_cifar.lr_finder import find_lr, range_test
    from fast_cifar.optimizer import one_cycle_scheduler
    from fast_cifar.schedules import one_cycle
    from fast_cifar.trainer import train

__all__ = [
    "CustomResNet",
    "DeviceLoader",
    "RangeTestOptions",
    "TrainOptions",
    "evaluate",
    "find_lr",
    "fit",
    "load_dataset",
    "one_cycle",
    "one_cycle_scheduler",
    "range_test",
    "train",
]
__version__ = "0.1.0"

_HOMES = {
    "CustomResNet": "custom_resnet",
    "DeviceLoader": "loader",
    "evaluate": "engine",
    "find_lr": "lr_finder",
    "fit": "engine",
    "load_dataset": "data.load",
    "one_cycle": "schedules",
    "one_cycle_scheduler": "optimizer",
    "range_test": "lr_finder",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:
    """Imports torch only when something needs it, so that `--help` and a mistyped option answer at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
