"""Show a run, or compare several, on one page to read, print or send.

    python -m fast_cifar.report runs/NAME                    # writes runs/NAME/report.html
    python -m fast_cifar.report runs/A runs/B runs/C         # compares them in report.html, here
    python -m fast_cifar.report runs/* --out comparison.html

The page is a single HTML file: curves, pictures and numbers are in it, and it asks nothing of the network. A RUN_FOLDER
is one of run_train.py, finished or not, with one seed or several (--runs), or one of run_lrfind.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fast_cifar.command_line import Parser
from fast_cifar.errors import UserError, run_script
from fast_cifar.files import atomic_write
from fast_cifar.page import Markup, document, tag
from fast_cifar.records import Record, read
from fast_cifar.report_comparison import comparison
from fast_cifar.report_run import content, facts

NAME = "report.html"


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


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(lambda: script(arguments))


def script(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m fast_cifar.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", metavar="RUN_FOLDER", nargs="+", help="of a run, of several seeds or of a range test"
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        help=f"the page to write, replaced if it is there (default: {NAME} in the run folder; of several, here)",
    )
    options = parser.parse_args(arguments)
    default = Path(options.folders[0], NAME) if len(options.folders) == 1 else Path(NAME)
    out = default if options.out is None else Path(options.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} must end in .html: what is there is replaced")
    page = report(options.folders).encode()
    with atomic_write(out) as file:
        file.write(page)
    print(f"{out} ({len(page) / 2**20:.1f} MiB)")


if __name__ == "__main__":
    sys.exit(main())
