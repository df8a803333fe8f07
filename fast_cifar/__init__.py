"""fast_cifar: a small, fast and honest CIFAR trainer.

from fast_cifar import TrainOptions, train
summary = train(TrainOptions(data="synthetic", epochs=5, limit_train=1600, batch_size=32, lr_max=0.004))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fast_cifar.options import RangeTestOptions, TrainOptions

if TYPE_CHECKING:
    from fast_cifar.lr_finder import find_lr
    from fast_cifar.trainer import train

__all__ = ["RangeTestOptions", "TrainOptions", "find_lr", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports torch only when something needs it: `--help` and a mistyped option then answer at once."""
    if name == "train":
        from fast_cifar.trainer import train

        return train
    if name == "find_lr":
        from fast_cifar.lr_finder import find_lr

        return find_lr
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
