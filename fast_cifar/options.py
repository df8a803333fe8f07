"""The options of a run as dataclasses: each field has its default, its help, its range and its place in a run, once.

The defaults are the recipe. This module needs no torch, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from fast_cifar.system.errors import UserError

SIZE = 32  # pixels: height and width of the images that the network takes
HIGHEST_WIDTH = 1024
LOWEST_RATE, HIGHEST_RATE = 1e-12, 1e6

# The recipe's values that the loader, the range test and the benchmarks use, too.
PADDING, CUTOUT = 4, 8  # pixels
PAD_MODES = ("zeros", "reflect")
PAD_MODE = "reflect"
LR_MAX = 0.003
LR_MIN_DIVISOR = 100  # LRMAX over LRMIN
LR_START, LR_END, SWEEP_STEPS = 1e-6, 1.0, 118
MOST_STEPS = 100_000  # of a sweep
RATES = frozenset({"lr_max", "lr_min", "lr_from"})  # options that set the learning rates

PRESETS = {
    "speedrun": {"epochs": 15, "alternate_flips": True, "eval_every": 15},
    "assignment": {"weight_decay": 0.0, "label_smoothing": 0.0, "pad_mode": "zeros", "find_lr": True},
}

DEMO = {
    "data": "synthetic",
    "limit_train": 1600,
    "limit_test": 1000,
    "epochs": 5,
    "batch_size": 32,
    "lr_max": 0.003,
    "amp": True,
}


def option(
    group: str,
    default: Any,
    help: str,
    *,
    path: bool = False,
    resumable: bool = False,
    recorded: bool = True,
    **argparse_keywords: Any,
) -> Any:
    """A dataclass field that is a command-line option too.

    Args:
        group: the heading in `--help`.
        path: it is the name of a file or a folder.
        resumable: it may change when a run is resumed: it describes the machine, not the recipe.
        recorded: it belongs in a checkpoint and in a comparison of runs; False for where a run is kept.
        argparse_keywords: go to `add_argument`.
    """
    metadata = {"group": group, "help": help, "path": path, "resumable": resumable, "recorded": recorded}
    return field(default=default, metadata=metadata | {"keywords": argparse_keywords})


def flag_of(name: str, value: Any = None) -> str:
    """The option on the command line that sets the field `name`; for False, the one that switches it off."""
    words = name.replace("_", "-")
    return f"--no-{words}" if value is False else f"--{words}"


@dataclass(frozen=True)
class Options:
    """Fields made by `option`, and how they are checked, compared and written.

    `given` names the options that the user set. None stands for those that differ from their defaults: that is how
    a notebook sets them.
    """

    given: frozenset[str] | None = field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def explicit(self) -> frozenset[str]:
        """Names of the options the user set."""
        if self.given is not None:
            return self.given
        return frozenset(f.name for f in self.option_fields() if getattr(self, f.name) != f.default)

    @classmethod
    def option_fields(cls) -> list[Field]:
        return [f for f in fields(cls) if "help" in f.metadata]

    @classmethod
    def names(cls, **metadata: bool) -> frozenset[str]:
        """Names of the options whose metadata are as given: `names(resumable=True)`, `names(recorded=False)`."""
        return frozenset(f.name for f in cls.option_fields() if metadata.items() <= f.metadata.items())

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Every option by name, ready for JSON and for a checkpoint."""
        return {f.name: plain(getattr(self, f.name)) for f in self.option_fields()}

    def check_types(self) -> None:
        """Refuses values that have another type than their field, or are none of its choices.

        Raises:
            UserError: naming the option.
        """
        hints = get_type_hints(type(self))
        for f in self.option_fields():
            value, kinds = getattr(self, f.name), _kinds(hints[f.name], f)
            choices = f.metadata["keywords"].get("choices")
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise UserError(f"{flag_of(f.name)} {value!r} is of the wrong type")
            if isinstance(value, (tuple, list)) and not all(isinstance(one, str) for one in value):
                raise UserError(f"{flag_of(f.name)} {value!r} is of the wrong type")
            if f.metadata["path"] and value is not None and not _is_path(value):
                raise UserError(f"{flag_of(f.name)} {value!r} cannot be the name of a file or a folder")
            if choices and value is not None and value not in choices:
                raise UserError(f"{flag_of(f.name)} {value!r} must be one of {', '.join(choices)}")

    def check_count(self, name: str, least: int = 1, most: int = 10**9) -> None:
        """Refuses a number outside `least`..`most`; None is fine."""
        value = getattr(self, name)
        if value is not None and value < least:
            raise UserError(f"{flag_of(name)} {value} must be at least {least}")
        if value is not None and value > most:
            raise UserError(f"{flag_of(name)} {value} must be at most {most}")

    def check_rate(self, name: str) -> None:
        """Refuses what cannot be a learning rate; None is fine."""
        value = getattr(self, name)
        if value is not None and not LOWEST_RATE <= value <= HIGHEST_RATE:
            raise UserError(f"{flag_of(name)} {value} must be a positive number, {LOWEST_RATE:g} to {HIGHEST_RATE:g}")

    def check_share(self, name: str) -> None:
        """Refuses what lies outside [0, 1)."""
        value = getattr(self, name)
        if not 0 <= value < 1:
            raise UserError(f"{flag_of(name)} {value} must lie in [0, 1)")


@dataclass(frozen=True)
class CommonOptions(Options):
    """What training and the range test have in common."""

    data: str = option(
        "data",
        "cifar10",
        "cifar10, cifar100, synthetic, a folder with train/<class>/*.png|jpg and test/<class>/*, "
        "or a copy of the official cifar-10-python.tar.gz (or -100)",
        path=True,
        resumable=True,
    )
    data_dir: str = option(
        "data", "data", "folder of downloads and decoded caches", path=True, resumable=True, metavar="DIR"
    )
    mirror: tuple[str, ...] = option(
        "data",
        (),
        "full URL of the archive, used instead of the official server, which is slow (README names a public copy); "
        "repeat it to try several in order",
        resumable=True,
        metavar="URL",
        action="append",
    )
    resize: bool = option("data", False, "crop the images of a folder that are not 32x32 to a square, and scale them")
    limit_train: int | None = option(
        "data", None, "train on N images, class-balanced, the same for every seed", metavar="N"
    )
    limit_test: int | None = option("data", None, "test on N images, class-balanced", metavar="N")
    val_split: int | None = option(
        "data",
        None,
        "hold out N training images, class-balanced; they choose best.pt, not the test images",
        metavar="N",
    )
    batch_size: int = option("data", 512, "images per optimiser step", metavar="N")
    padding: int = option(
        "augmentation", PADDING, "pixels added around an image before the random crop; 0: no crop", metavar="PIXELS"
    )
    pad_mode: str = option(
        "augmentation", PAD_MODE, "what these pixels show: black, or the image mirrored", choices=PAD_MODES
    )
    cutout: int = option("augmentation", CUTOUT, "side of the square that is cut out; 0: no cutout", metavar="PIXELS")
    flip: bool = option("augmentation", True, "random horizontal flip")
    alternate_flips: bool = option("augmentation", False, "flip each image in every other epoch instead of at random")
    weight_decay: float = option("recipe", 0.5, "decoupled weight decay (AdamW); 0 is plain Adam", metavar="RATE")
    label_smoothing: float = option(
        "recipe", 0.1, "share of the target spread over all classes, in [0, 1)", metavar="SHARE"
    )
    dropout: float = option(
        "recipe", 0.0, "probability of zeroing a feature before the last layer, in [0, 1)", metavar="P"
    )
    width: int = option(
        "recipe",
        64,
        "channels of the first layer; 64 is the recipe's network, 16 trains about ten times as fast on a CPU; the "
        "default LRMAX was chosen for 64, so a narrower network should use run_train.py --find-lr",
        metavar="N",
    )
    seed: int = option("recipe", 0, "seed of the initial weights and of every random choice", metavar="N")
    amp: bool = option("machine", False, "mixed precision: faster where the hardware has bf16 or fp16", resumable=True)
    amp_dtype: str = option(
        "machine",
        "auto",
        "auto takes bf16 where it is native, fp16 on other CUDA cards, and plain fp32 elsewhere",
        resumable=True,
        choices=("auto", "bf16", "fp16"),
    )
    compile: bool = option(
        "machine", False, "torch.compile network and augmentation (needs a C++ compiler)", resumable=True
    )
    device: str = option("machine", "auto", "auto, cpu, cuda, cuda:N or mps", resumable=True)
    channels_last: bool = option(
        "machine", True, "channels_last memory format, which is faster than NCHW", resumable=True
    )
    deterministic: bool = option("machine", False, "only algorithms that repeat bit for bit (slower)")
    out: str = option("output", "runs", "the folder of run folders", path=True, recorded=False, metavar="DIR")
    name: str | None = option(
        "output", None, "the run folder's name (default: the data and the time)", recorded=False, metavar="NAME"
    )

    def check(self) -> None:
        """Checks whatever depends on neither the data nor the machine.

        Raises:
            UserError: naming the option and its range.
        """
        self.check_types()
        for name in ("batch_size", "limit_train", "limit_test", "val_split"):
            self.check_count(name)
        self.check_count("width", most=HIGHEST_WIDTH)
        self.check_count("seed", 0, 2**62)
        self.check_count("padding", 0, SIZE - 1)
        if not 0 <= self.cutout <= SIZE:
            raise UserError(f"--cutout {self.cutout} must lie in 0..{SIZE}, the side of an image")
        for name in ("dropout", "label_smoothing"):
            self.check_share(name)
        if self.alternate_flips and not self.flip:
            raise UserError("--alternate-flips flips images and --no-flip does not; choose one")
        if not 0 <= self.weight_decay <= HIGHEST_RATE:
            raise UserError(f"--weight-decay {self.weight_decay} must lie in 0..{HIGHEST_RATE:g}")
        if self.name is not None and not _is_folder_name(self.name):
            raise UserError(f"--name {self.name!r} must be a plain folder name; --out says where it goes")


@dataclass(frozen=True)
class TrainOptions(CommonOptions):
    """The options of `train`: those of `run_train.py`, with underscores. `--no-flip` is `flip=False`."""

    epochs: int = option("recipe", 24, "passes over the training images", metavar="N")
    peak_epoch: int | None = option(
        "recipe", None, "the epoch that ends at LRMAX (default: epochs x 5/24, at least 1)", metavar="N"
    )
    lr_max: float | None = option(
        "recipe",
        None,
        f"LRMAX, the peak of the cycle (default: {LR_MAX}; run_lrfind.py measures it)",
        metavar="RATE",
    )
    lr_min: float | None = option(
        "recipe",
        None,
        f"LRMIN, where the cycle starts and ends (default: LRMAX / {LR_MIN_DIVISOR})",
        metavar="RATE",
    )
    ema: float = option(
        "recipe",
        0.0,
        "evaluate with an exponential moving average of the weights, DECAY per step, such as 0.99; 0: without",
        metavar="DECAY",
    )
    lr_from: str | None = option(
        "recipe", None, "take LRMAX and LRMIN from this run folder of run_lrfind.py", path=True, metavar="RUN_FOLDER"
    )
    find_lr: bool = option("recipe", False, "run the range test first and train at the rates it suggests")
    runs: int | None = option(
        "recipe", None, "train N times, with seeds SEED, SEED+1, ..., and report mean and spread", metavar="N"
    )
    eval_every: int = option("output", 1, "evaluate every N epochs, and after the last", metavar="N")
    checkpoint_steps: int | None = option(
        "output",
        None,
        "write last.pt every N steps as well, for long epochs",
        resumable=True,
        recorded=False,
        metavar="N",
    )
    test: bool = option("output", True, "load and test the test images; without them --val-split gives the result")
    tta: bool = option("output", False, "test-time augmentation: average the logits of an image and its mirror image")
    resume: str | None = option(
        "what to do", None, "continue an interrupted run", path=True, recorded=False, metavar="RUN_FOLDER"
    )
    eval_only: str | None = option("what to do", None, "test a checkpoint and stop", path=True, metavar="CHECKPOINT")
    summary: bool = option("what to do", False, "print the network layer by layer and stop")
    preset: str | None = option(
        "what to do",
        None,
        "speedrun: 15 epochs, alternating flips (not measured yet); assignment: plain Adam, no label smoothing, black "
        "padding, rates from a range test; options given beside it override it",
        choices=tuple(PRESETS),
    )
    demo: bool = option(
        "what to do",
        False,
        "a run of about a minute without a download: fewer epochs on fewer, synthetic images",
    )

    def check(self) -> None:
        super().check()
        for name in ("epochs", "peak_epoch", "runs", "eval_every"):
            self.check_count(name, most=10_000)
        self.check_count("checkpoint_steps")
        self.check_share("ema")
        for name in ("lr_max", "lr_min"):
            self.check_rate(name)
        if self.peak_epoch is not None and self.peak_epoch >= self.epochs:
            raise UserError(f"--peak-epoch {self.peak_epoch} must be below --epochs {self.epochs}")
        if not self.test and self.val_split is None:
            raise UserError("--no-test leaves nothing to evaluate; hold images out with --val-split N")
        if self.demo and self.preset:
            raise UserError(f"--demo and --preset {self.preset} are two recipes; choose one")
        given_rates = self.explicit & RATES
        if self.find_lr and given_rates:
            raise UserError(f"--find-lr measures LRMAX and LRMIN itself; leave {flag_of(min(given_rates))} out")
        if self.lr_from and given_rates - {"lr_from"}:
            raise UserError(f"--lr-from sets LRMAX and LRMIN; leave {flag_of(min(given_rates - {'lr_from'}))} out")
        lr_min, lr_max = self.rates()
        if lr_min >= lr_max:
            raise UserError(f"--lr-min {lr_min:g} must be below --lr-max {lr_max:g}")

    def rates(self) -> tuple[float, float]:
        """(LRMIN, LRMAX), defaults filled in."""
        lr_max = self.lr_max or LR_MAX
        return self.lr_min or lr_max / LR_MIN_DIVISOR, lr_max

    def resolved(self) -> Self:
        """These options with nothing left to default. `peak_epoch` stays None in a run of one epoch."""
        preset = DEMO if self.demo else PRESETS.get(self.preset, {})
        given = self.explicit | ({"find_lr"} if self.explicit & RATES else set())  # given rates need no range test
        options = self.replace(**{name: preset[name] for name in preset.keys() - given}, given=self.explicit)
        lr_min, lr_max = options.rates()
        peak_epoch = options.peak_epoch
        if peak_epoch is None and options.epochs > 1:
            peak_epoch = max(1, round(options.epochs * 5 / 24))
        return options.replace(lr_min=lr_min, lr_max=lr_max, peak_epoch=peak_epoch)

    def continued(self, saved: Mapping[str, Any]) -> Self:
        """The options for resuming a run that was started with `saved`, the contents of its `config.json`.

        Raises:
            UserError: an option of the recipe was given and differs from the run's, or `saved` lacks one.
        """
        resumable = self.names(resumable=True)
        recipe = self.names(resumable=False) - {"resume"}
        unresolved = {"lr_max", "lr_min"} | ({"peak_epoch"} if saved.get("epochs") != 1 else set())
        for name in sorted(recipe):
            if name not in saved or (name in unresolved and saved[name] is None):
                path = os.path.join(self.resume or "", "config.json")
                raise UserError(f"{path} is damaged: it does not say its {name}; restore it, or begin a new run")
        changed = self.explicit & resumable
        for name in sorted(self.explicit - changed - {"resume"}):
            mine, theirs = plain(getattr(self, name)), saved.get(name)
            if mine != theirs:
                theirs, mine = (f"{one:g}" if isinstance(one, float) else repr(one) for one in (theirs, mine))
                raise UserError(f"{flag_of(name)}: the run has {theirs}, not {mine}; leave it out to resume")
        kept = {f.name for f in self.option_fields()} - changed - {"resume"}
        values = {name: value for name, value in saved.items() if name in kept}
        if isinstance(values.get("mirror"), list):  # JSON knows no tuples
            values["mirror"] = tuple(values["mirror"])
        return self.replace(**values, given=self.explicit)


@dataclass(frozen=True)
class RangeTestOptions(CommonOptions):
    """The options of `find_lr`: those of `run_lrfind.py`, with underscores."""

    lr_start: float = option("sweep", LR_START, "the first learning rate", metavar="RATE")
    lr_end: float = option(
        "sweep", LR_END, "the last learning rate; the sweep stops earlier if the loss diverges", metavar="RATE"
    )
    iters: int = option("sweep", SWEEP_STEPS, "optimiser steps from the first to the last, at least 10", metavar="N")
    sweep: str = option(
        "sweep",
        "exponential",
        "raise the rate by the same factor each step, or by the same amount",
        choices=("exponential", "linear"),
    )
    repeats: int = option(
        "sweep", 1, "sweep N times, with seeds SEED, SEED+1, ..., and report how far they agree", metavar="N"
    )
    loss_on: str = option(
        "sweep",
        "train",
        "which loss: that of the step's own batch, or, after the step, that of up to 500 images of --val-split",
        choices=("train", "val"),
    )

    def check(self) -> None:
        super().check()
        for name in ("lr_start", "lr_end"):
            self.check_rate(name)
        if self.lr_start >= self.lr_end:
            raise UserError(f"--lr-start {self.lr_start:g} must be below --lr-end {self.lr_end:g}")
        self.check_count("iters", 10, MOST_STEPS)
        self.check_count("repeats", most=100)
        if self.loss_on == "val" and self.val_split is None:
            raise UserError("--loss-on val needs images that are held out: --val-split N")


def plain(value: Any) -> Any:
    """A value of an option as JSON has it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _kinds(hint: Any, option_field: Field) -> tuple[type, ...]:
    """The types that a field may have: an int will do for a float, a path for its text, a list for a tuple."""
    text = (str, os.PathLike) if option_field.metadata["path"] else (str,)
    also = {float: (float, int), str: text, tuple: (tuple, list)}
    kinds = get_args(hint) if get_origin(hint) is UnionType else (get_origin(hint) or hint,)
    return tuple(kind for one in kinds for kind in also.get(one, (one,)))


def _is_path(value: str | os.PathLike) -> bool:
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _is_folder_name(name: str) -> bool:
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\") and len(name) <= 100
