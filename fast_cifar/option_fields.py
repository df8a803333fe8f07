"""What makes a dataclass a set of options: fields that the command line knows, their types, and the way into JSON."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import Field, dataclass, field, fields
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from fast_cifar.errors import UserError

LOWEST_RATE, HIGHEST_RATE = 1e-12, 1e6
SWITCHED_OFF = frozenset({"flip", "channels_last", "test"})  # true unless the command line says --no-...


def option(group: str, default: Any, help: str, *, path: bool = False, **argparse_keywords: Any) -> Any:
    """A dataclass field that is a command-line option too.

    Args:
        group: the heading in `--help`.
        path: it is the name of a file or a folder.
        argparse_keywords: go to `add_argument`.
    """
    return field(default=default, metadata={"group": group, "help": help, "path": path, "keywords": argparse_keywords})


def flag_of(name: str) -> str:
    """The option on the command line that sets the field `name`."""
    words = name.replace("_", "-")
    return f"--no-{words}" if name in SWITCHED_OFF else f"--{words}"


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
            value, kinds, choices = (
                getattr(self, f.name),
                _kinds(hints[f.name], f),
                f.metadata["keywords"].get("choices"),
            )
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
