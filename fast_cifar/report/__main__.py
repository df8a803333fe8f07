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
from fast_cifar.report import report
from fast_cifar.system.errors import UserError, run_script
from fast_cifar.system.files import atomic_write

NAME = "report.html"


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
