"""Tables between two lines of a Markdown document: `<!-- bench.PROGRAM: NAME -->` and `<!-- bench.PROGRAM: end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fast_cifar.errors import UserError

MARKER = re.compile(r"^<!-- bench\.(\w+): ([\w.-]+) -->[ \t]*\r?$", re.MULTILINE)


def marked(document: Path) -> list[tuple[str, str]]:
    """(program, name) of each table in the document, in order."""
    markers = MARKER.findall(document.read_bytes().decode())
    return [(program, name) for program, name in markers if name != "end"]


def with_blocks(document: Path, blocks: Mapping[tuple[str, str], str]) -> str:
    """The document's text with each of `blocks`, by (program, name), in its place; nothing else is touched.

    Raises:
        UserError: the document lacks a pair of markers.
    """
    text = document.read_bytes().decode()
    for (program, name), block in blocks.items():
        start, end = between_markers(text, name, document, program)
        text = text[:start] + (f"\n{block}\n\n" if block else "") + text[end:]
    return text


def between_markers(text: str, name: str, document: Path, program: str = "report") -> tuple[int, int]:
    """Where the block `name` starts and ends in `text`: after the line of its marker, before that of the end."""
    markers = list(MARKER.finditer(text))
    starts = [i for i, marker in enumerate(markers) if marker.groups() == (program, name)]
    begin, end = (f"<!-- bench.{program}: {word} -->" for word in (name, "end"))
    if len(starts) != 1:
        raise UserError(f"{document} must have one line {begin}, and a line {end} after it; it has {len(starts)}")
    start, *others = markers[starts[0] :]
    if not others or others[0].groups() != (program, "end"):
        raise UserError(f"{document} has no line {end} that belongs to its line {begin}; add it")
    return start.end() + 1, others[0].start()
