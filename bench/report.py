"""Measures all there is to measure on this machine, and puts the numbers into the README.

    python -m bench.report                        # every benchmark, bench/results/<device>.json, README.md
    python -m bench.report --only training        # this one; the others keep what they had
    python -m bench.report --data FOLDER --runs 5 # what bench.end_to_end trains on, and how many seeds
    python -m bench.report --quick                # a smoke run of everything: prints, and writes nothing
    python -m bench.report --readme-only          # README.md from bench/results as it is
    python -m bench.report --add-run runs/NAME --name NAME --command "python run_train.py ..."

bench/results holds a file a device, named after it: {"environment", "augmentation", "training", "end_to_end"}, each
benchmark with its rows, the conditions and the command that made them. A benchmark that fails does not stop the others;
the exit status is then 1.

bench/results/runs holds a file for each recipe that was trained: {"command", "title", "note", "when", "summaries"};
title and note are optional, and the summaries those of its seeds. `--add-run` makes one of a finished run folder, of
one seed or of several (`--runs`).

In the README each of the tables stands between two lines of its own, and nothing outside them is touched:

    <!-- bench.report: training -->        or augmentation, end_to_end, accuracy
    <!-- bench.report: end -->

docs/recipe.md, where there is one, has tables of bench/results/ablations and bench/results/lr_sweeps in the same way: a
line `<!-- bench.ablation: NAME -->` or `<!-- bench.lr_sweep: NAME -->`, and one with `end` in the place of NAME.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.markdown import accuracy_block, bench_block, marked, with_blocks
from bench.measure import environment, python_command, read, write, write_json
from bench.regret import sweep_block
from bench.trials import ablation_block
from fast_cifar.command_line import Parser
from fast_cifar.runs.run_folder import RunFolder
from fast_cifar.system.device import resolve_device
from fast_cifar.system.errors import UserError, run_script

BENCHES = ("augmentation", "training", "end_to_end")
RESULTS = Path(__file__).resolve().parent / "results"
DOCS_TABLES = {  # which folder of results a table is made of, how, and what each of its rows must have
    "ablation": ("ablations", ablation_block, "words"),
    "lr_sweep": ("lr_sweeps", sweep_block, "curves"),
}
README = Path(__file__).resolve().parent.parent / "README.md"
DOCS = Path("docs") / "recipe.md"  # beside the README


def main() -> None:
    options = parse()
    results, readme = places(options)
    tables = {readme: rewritten} if readme else {}
    if readme and (docs := readme.parent / DOCS).is_file():
        tables[docs] = rewritten_docs
    for path, make in tables.items():
        make(path, results)  # better refused now than after minutes of measuring
    complete = True
    if options.add_run:
        add_run(options, results / "runs")
    elif not options.readme_only:
        complete = measure(options, results)
    for path, make in tables.items():
        write(path, make(path, results))
    if not complete:
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--only", metavar="BENCH,...", default=",".join(BENCHES), help="default: %(default)s")
    parser.add_argument("--name", help="of the file of results (default: the device)")
    parser.add_argument("--data", help="what bench.end_to_end trains on (default: its own)")
    parser.add_argument("--data-dir", metavar="DIR", help="where it keeps downloads and decoded caches (default: data)")
    parser.add_argument("--runs", type=int, metavar="N", help="how many seeds it trains (default: 1)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="rough numbers, printed and, with --results, kept there")
    what.add_argument("--readme-only", action="store_true", help="measure nothing")
    what.add_argument("--add-run", type=Path, metavar="RUN_FOLDER", help="measure nothing; record a finished run")
    parser.add_argument("--command", help="that made the run of --add-run; a line for each command")
    parser.add_argument("--title", help="what the data of that run are called (default: as in its summary)")
    parser.add_argument("--note", help="a sentence about that run")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="another place than bench/results; spares README.md"
    )
    parser.add_argument("--readme", type=Path, metavar="PATH", help="another file than README.md")
    options = parser.parse_args()
    options.only = options.only.split(",")
    for bench in options.only:
        if bench not in BENCHES:
            raise UserError(f"--only: there is no benchmark {bench!r}; choose from {','.join(BENCHES)}")
    if options.name is not None and not slug(options.name):
        raise UserError(f"--name {options.name!r} needs a letter or a digit")
    if options.add_run and not (options.name and options.command):
        raise UserError("--add-run needs --name, of the file to write, and --command, that made the run")
    return options


def places(options: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """The folder of results and the README that go with it; None for what is not to be touched."""
    results = options.results or (None if options.quick else RESULTS)
    own_results = results is not None and results.resolve() == RESULTS
    readme = options.readme or (README if own_results else None)
    if options.quick and (own_results or (readme and readme.resolve() == README)):
        raise UserError("--quick measures too roughly for bench/results and README.md; choose other places")
    if readme and results is None:
        raise UserError("--quick writes a --readme only together with --results")
    return results, readme


def measure(options: argparse.Namespace, results: Path | None) -> bool:
    """Runs the benchmarks and keeps what each has measured at once; returns whether all of them ended well."""
    where = environment(resolve_device(options.device))
    path = results / f"{slug(options.name or where['device'])}.json" if results else None
    contents = read(path) if path and path.exists() else {}
    complete = True
    for bench in options.only:
        section = run_bench(bench, arguments_for(bench, options))
        if section is None:
            complete = False
        elif path:
            contents |= {"environment": where, bench: section}
            write_json(path, contents)
    return complete


def arguments_for(bench: str, options: argparse.Namespace) -> list[str]:
    arguments = [] if options.device == "auto" else ["--device", options.device]
    if options.quick:
        arguments.append("--quick")
    if bench == "end_to_end":
        given = {"--data": options.data, "--data-dir": options.data_dir, "--runs": options.runs}
        arguments += [str(word) for flag, value in given.items() if value is not None for word in (flag, value)]
    return arguments


def run_bench(bench: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Runs one benchmark in a process of its own, its output in sight.

    Returns:
        Its environment, its command and its rows; None if it failed.
    """
    command = command_line(bench, arguments)
    print(f"\n$ {command}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        words = [sys.executable, "-m", f"bench.{bench}", *arguments, "--json", str(path)]
        status = subprocess.run(words, check=False).returncode
        if status:
            print(f"bench.{bench} failed with exit status {status}", file=sys.stderr)
            return None
        measured = read(path)
    return {"environment": measured["environment"], "command": command, "rows": measured["rows"]}


def command_line(bench: str, arguments: Sequence[str]) -> str:
    """What to type for the same measurement."""
    return python_command(f"-m bench.{bench}", arguments)


def add_run(options: argparse.Namespace, folder: Path) -> None:
    """Records a finished run, or each of several seeds, with the command that made it.

    Raises:
        UserError: it is not a run folder, or not finished.
    """
    run = RunFolder.open(options.add_run)
    config = run.config()
    seeds = [run]
    if config["runs"] is not None:
        seeds = [RunFolder(run / f"run-{k}") for k in range(1, config["runs"] + 1)]
    summaries = [seed.summary() for seed in seeds]
    if None in summaries:
        raise UserError(f"{run.path} is not finished; go on with it: python run_train.py --resume {run.path}")
    ended = datetime.fromtimestamp((seeds[-1] / "summary.json").stat().st_mtime).astimezone()
    contents = {
        "command": options.command,
        "title": options.title,
        "note": options.note,
        "when": ended.isoformat(timespec="seconds"),
        "summaries": [{"batch_size": config["batch_size"]} | summary for summary in summaries],
    }
    write_json(folder / f"{slug(options.name)}.json", contents)


def rewritten(readme: Path, results: Path) -> str:
    """The README with its tables made anew from all the files in `results`.

    Raises:
        UserError: the README is missing or lacks a pair of markers, or a file of results is damaged.
    """
    if not readme.is_file():
        raise UserError(f"{readme} is not there; --readme says where the tables go")
    devices = [read(path) for path in sorted(results.glob("*.json"))]
    blocks = {bench: bench_block(bench, devices) for bench in BENCHES}
    runs = {path: read(path) for path in sorted((results / "runs").glob("*.json"))}
    for path, contents in runs.items():
        if not (contents.get("command") and contents.get("summaries")):
            raise UserError(f'{path} must hold a "command" and its "summaries"; --add-run writes such a file')
    blocks["accuracy"] = accuracy_block(list(runs.values()))
    return with_blocks(readme, {("report", name): block for name, block in blocks.items()})


def rewritten_docs(document: Path, results: Path) -> str:
    """The document with a table for each marker that names a file in `results`.

    Raises:
        UserError: there is no such file, it is damaged, or a marker has no end.
    """
    blocks = {}
    for program, name in marked(document):
        if program in DOCS_TABLES:
            folder, block, key = DOCS_TABLES[program]
            path = results / folder / f"{name}.json"
            if not path.is_file():
                raise UserError(
                    f"{document} has a table of {path}, which is not there; python -m bench.{program} makes it"
                )
            contents = read(path)
            rows = contents.get("rows")
            if "environment" not in contents or not rows or not all(key in row for row in rows):
                raise UserError(f"{path} was not written by bench.{program}; make it anew or delete it")
            blocks[program, name] = block(contents)
    return with_blocks(document, blocks)


def slug(text: str) -> str:
    """`cpu-avx512-2-threads` of "cpu (AVX512, 2 threads)"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(run_script(main))
