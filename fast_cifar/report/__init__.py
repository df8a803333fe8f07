"""One HTML page about a run, or about several: curves, pictures and numbers are in it, and it needs nothing else.

`python -m fast_cifar.report --help` says how to make one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fast_cifar.report.comparison import comparison
from fast_cifar.report.one_run import content, facts
from fast_cifar.report.page import Markup, document, tag
from fast_cifar.report.records import Record, read


def report(folders: Sequence[str | Path]) -> str:
    """The page about one run folder, or about several: a comparison first, then each.

    Args:
        folders: at least one.

    Raises:
        UserError: one of them is no run folder, or damaged.
    """
    records = [read(folder) for folder in folders]
    names = labels(records)
    if len(records) == 1:
        (record,), (name,) = records, names
        kind = "Range test" if record.only_range_test else "Run"
        return document(f"{kind} {name}", tag("h1", f"{kind} {name}"), *facts(record), *content(record, "h2"))
    title = f"{len(records)} run folders"
    links = [tag("li", tag("a", name, href=f"#run-{index}")) for index, name in enumerate(names, start=1)]
    contents = tag("nav", tag("ol", *links), aria_label="contents")
    sections = [
        _section(record, name, index) for index, (record, name) in enumerate(zip(records, names, strict=True), 1)
    ]
    return document(title, tag("h1", title), contents, *comparison(records, names), *sections)


def labels(records: Sequence[Record]) -> list[str]:
    """The folders' names; where two have the same, their paths as given."""
    names = [record.name for record in records]
    return [
        name if names.count(name) == 1 else str(record.folder.path) for name, record in zip(names, records, strict=True)
    ]


def _section(record: Record, name: str, index: int) -> Markup:
    return tag("section", tag("h2", name), *facts(record), *content(record, "h3"), id=f"run-{index}")
