"""From a command line to an options dataclass."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from fast_cifar.options import CommonOptions, flag_of
from fast_cifar.system.errors import UserError

Options = TypeVar("Options", bound=CommonOptions)


class Parser(argparse.ArgumentParser):
    """Refuses abbreviations, keeps the line breaks of the description, and turns a wrong command line into a
    `UserError` instead of a usage dump."""

    def __init__(self, description: str, **keywords: Any) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **keywords,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{' '.join(message.splitlines())} (--help lists the options)")


def parse(options: type[Options], description: str, arguments: Sequence[str] | None = None) -> Options:
    """Reads `arguments` (the process's own by default) into `options`.

    Args:
        options: the dataclass to fill; its fields are the options.
        description: the text above the options in `--help`: the script's docstring.

    Raises:
        UserError: an unknown option or a value of the wrong type.
        SystemExit: after `--help`.
    """
    parser = Parser(description, usage="%(prog)s [options]", argument_default=argparse.SUPPRESS)
    hints = get_type_hints(options)
    groups: dict[str, Any] = {}
    for field in fields(options):
        if "help" in field.metadata:
            title = field.metadata["group"]
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            _add(groups[title], field.name, hints[field.name], field.default, field.metadata)
    given = vars(parser.parse_args(arguments))
    if "mirror" in given:
        given["mirror"] = tuple(given["mirror"])
    return options(**given, given=frozenset(given))


def _add(group: Any, name: str, hint: Any, default: Any, metadata: Any) -> None:
    keywords = dict(metadata["keywords"])
    text = metadata["help"].replace("%", "%%")
    if hint is bool and metadata["group"] == "what to do":
        keywords["action"] = "store_true"
    elif hint is bool:
        keywords["action"] = argparse.BooleanOptionalAction
        text += f" (default: {'on' if default else 'off'})"
    else:
        keywords["type"] = _scalar(hint)
        if default not in (None, ()):
            text += f" (default: {default})"
    group.add_argument(flag_of(name), dest=name, help=text, **keywords)


def _scalar(hint: Any) -> type:
    """int of `int | None`, str of `tuple[str, ...]`, and a plain type as it is."""
    return hint if hint in (int, float, str) else next(kind for kind in get_args(hint) if kind in (int, float, str))
