"""Measures everything on this machine, and writes the tables of README.md and docs/.

    python -m bench.report                        # every benchmark, bench/results/<device>.json, and the tables
    python -m bench.report --only training        # this one; the others keep what they had
    python -m bench.report --data FOLDER --runs 5 # what bench.end_to_end trains on, and how many seeds
    python -m bench.report --quick                # a smoke run of everything: prints, and writes nothing
    python -m bench.report --tables-only          # measures nothing: the tables from bench/results as it is
    python -m bench.report --add-run runs/NAME --name NAME --command "python run_train.py ..."

The benchmarks run in the order training, roofline, trace (on CUDA only), end_to_end, augmentation. Each is in its file
and in the tables before the next one begins, so that a report that is cut off keeps what is done. docs/gpu.md says how
long each should take on a GPU, where end_to_end trains three seeds; two CPU cores need about 20 minutes for all.

bench/results holds a file for each device, named after it: {"environment", "training", "roofline", ...}, each benchmark
with its rows, the conditions and the command that made them. A benchmark that fails does not stop the others; the exit
status is then 1.

bench/results/runs holds a file for each recipe that was trained: {"command", "title", "note", "when", "options",
"summaries"}; title and note are optional, the options are those of the recipe, and the summaries are those of its
seeds. `--add-run` makes one from a finished run folder, of one seed or of several (`--runs`); where the file is there
already, it adds the seeds to it.

README.md, docs/results.md and docs/recipe.md have the tables between two lines, and nothing outside them is touched:

    <!-- bench.report: training -->        or another benchmark, or accuracy
    <!-- bench.report: end -->

`<!-- bench.lr_sweep: NAME -->` stands for bench/results/lr_sweeps/NAME.json in the same way, and
`<!-- bench.experiment: NAME -->` for bench/results/ablations/NAME.json.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from bench.compare import RECIPE
from bench.experiment import experiment_block, read_plan
from bench.lr_sweep import read_sweep
from bench.markdown import accuracy_block, bench_block, with_blocks
from bench.measure import environment, python_command
from bench.regret import sweep_block
from fast_cifar.command_line import Parser
from fast_cifar.runs.run_folder import RunFolder
from fast_cifar.system.device import has_compiler, resolve_device
from fast_cifar.system.errors import UserError, run_script
from fast_cifar.system.files import atomic_write, read_json, write_json

BENCHES = ("training", "roofline", "trace", "end_to_end", "augmentation")  # what matters most first
GPU_SEEDS = 3  # that end_to_end trains on CUDA
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = ("README.md", "docs/results.md", "docs/recipe.md")


def main() -> None:
    options = parse()
    rewritten()  # a mistake in a document is found before minutes of measuring
    if options.add_run:
        add_run(options)
    elif options.tables_only:
        write_tables()
    elif not measure(options):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--only", metavar="BENCH,...", help=f"of {','.join(BENCHES)} (default: all for the device)")
    parser.add_argument("--name", help="of the file of results (default: the device)")
    parser.add_argument("--data", help="what bench.end_to_end trains on (default: its own)")
    parser.add_argument("--data-dir", metavar="DIR", help="where it keeps downloads and decoded caches (default: data)")
    parser.add_argument("--runs", type=int, metavar="N", help=f"seeds it trains (default: {GPU_SEEDS} on CUDA, else 1)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="rough numbers, printed and not kept")
    what.add_argument("--tables-only", action="store_true", help="measure nothing")
    what.add_argument(
        "--add-run", type=Path, metavar="RUN_FOLDER", help="measure nothing; record a finished run, or more seeds"
    )
    parser.add_argument("--command", help="the command of --add-run's run; one line each if there were several")
    parser.add_argument("--title", help="name of that run's data (default: as in its summary)")
    parser.add_argument("--note", help="a sentence about that run")
    options = parser.parse_args()
    for bench in options.only.split(",") if options.only else ():
        if bench not in BENCHES:
            raise UserError(f"--only: {bench!r} is not a benchmark; choose from {','.join(BENCHES)}")
    if options.name is not None and not slug(options.name):
        raise UserError(f"--name {options.name!r} needs a letter or a digit")
    if options.add_run and not (options.name and options.command):
        raise UserError("--add-run needs --name for the file to write, and the --command that made the run")
    return options


def measure(options: argparse.Namespace) -> bool:
    """Runs the benchmarks, saving each unless --quick; returns whether all of them succeeded."""
    device = resolve_device(options.device)
    where = environment(device)
    path = RESULTS / f"{slug(options.name or where['device'])}.json"
    contents = read_json(path) if path.exists() else {}
    complete = True
    for bench in options.only.split(",") if options.only else benches_for(device):
        section = run_bench(bench, arguments_for(bench, options, device))
        if section is None:
            complete = False
        elif not options.quick:
            contents |= {"environment": where, bench: section}
            write_json(path, contents)
            write_tables()
    return complete


def benches_for(device: torch.device) -> list[str]:
    """A trace of a CPU's step tells little that the roofline does not."""
    return [bench for bench in BENCHES if bench != "trace" or device.type == "cuda"]


def arguments_for(bench: str, options: argparse.Namespace, device: torch.device) -> list[str]:
    arguments = [] if options.device == "auto" else ["--device", options.device]
    arguments += ["--quick"] if options.quick else []
    on_gpu = device.type == "cuda"
    if bench == "training" and on_gpu:
        arguments.append("--no-tricks")  # Inductor may tune them for minutes
    if bench == "trace" and on_gpu and has_compiler():
        arguments.append("--compile")
    if bench == "end_to_end":
        runs = GPU_SEEDS if options.runs is None and on_gpu else options.runs
        for flag, given in (("--data", options.data), ("--data-dir", options.data_dir), ("--runs", runs)):
            arguments += [] if given is None else [flag, str(given)]
    return arguments


def run_bench(bench: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Runs one benchmark in a process of its own, with its output on the screen.

    Returns:
        Its environment, its command and its rows; None if it failed.
    """
    command = python_command(f"-m bench.{bench}", arguments)
    print(f"\n$ {command}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        words = [sys.executable, "-m", f"bench.{bench}", *arguments, "--json", str(path)]
        start = time.perf_counter()
        status = subprocess.run(words, check=False).returncode
        print(f"bench.{bench}: {time.perf_counter() - start:.0f} s", flush=True)
        if status:
            print(f"bench.{bench} failed with exit status {status}", file=sys.stderr)
            return None
        measured = read_json(path)
    return {"environment": measured["environment"], "command": command, "rows": measured["rows"]}


def add_run(options: argparse.Namespace) -> None:
    """Records a finished run, or each of several seeds, with the command that made it.

    Raises:
        UserError: it is not the folder of a training, not finished or not tested; or the file has other runs than
            further seeds of this one.
    """
    run = RunFolder.open(options.add_run)
    config = run.config()
    if missing := RECIPE - config.keys():
        raise UserError(f"{run.path} is not the folder of a training: its config.json has no {min(missing)}")
    seeds = [run]
    if config["runs"] is not None:
        seeds = [RunFolder(run / f"run-{k}") for k in range(1, config["runs"] + 1)]
    summaries = [seed.summary() for seed in seeds]
    if None in summaries:
        raise UserError(
            f"{run.path} has a run that is not finished, or failed; resume it: python run_train.py --resume {run.path}"
        )
    if any(summary["test_accuracy"] is None for summary in summaries):
        raise UserError(f"{run.path} was not tested (--no-test), and the table is one of test accuracies")
    ended = datetime.fromtimestamp((seeds[-1] / "summary.json").stat().st_mtime).astimezone()
    path = RESULTS / "runs" / f"{slug(options.name)}.json"
    contents = {
        "command": options.command,
        "title": options.title,
        "note": options.note,
        "when": ended.isoformat(timespec="seconds"),
        "options": {name: config[name] for name in sorted(RECIPE)},
        "summaries": summaries,
    }
    if path.exists():
        earlier = read_runs(path)
        contents["summaries"] = joined(path, earlier, contents)
        contents |= {name: earlier.get(name) for name in ("title", "note") if contents[name] is None}
    write_json(path, contents)
    write_tables()


def joined(path: Path, earlier: Mapping[str, Any], later: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The summaries of the runs in a file and of further seeds of the same recipe.

    Raises:
        UserError: the recipe, the data or the network is another one, or a seed is there already.
    """

    def conditions(contents: Mapping[str, Any]) -> dict[str, Any]:
        shared = ("dataset", "device", "precision", "parameters")
        return contents["options"] | {name: contents["summaries"][0].get(name) for name in shared}

    before, now = conditions(earlier), conditions(later)
    for name in before.keys() & now.keys():  # an option may have been added since
        if before[name] != now[name]:
            raise UserError(f"{path} has runs with {name} {before[name]}, not {now[name]}; choose another --name")
    summaries = [*earlier["summaries"], *later["summaries"]]
    seeds = [summary["seed"] for summary in summaries]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path} has a run of the same seed already; delete the file to begin it anew")
    return summaries


def write_tables() -> None:
    for document, text in rewritten().items():
        with atomic_write(document) as file:
            file.write(text.encode())


def rewritten() -> dict[Path, str]:
    """The text of each document, with its tables made from the files of results.

    Raises:
        UserError: a document lacks a marker, or a file of results is missing or damaged.
    """
    made = set()

    def make(program: str, name: str) -> str:
        made.add((program, name))
        return make_block(program, name)

    texts = {ROOT / name: with_blocks(ROOT / name, make) for name in DOCUMENTS}
    for name in ("accuracy", *BENCHES):
        if ("report", name) not in made:
            raise UserError(f"no document has the line <!-- bench.report: {name} -->; add it to docs/results.md")
    return texts


def make_block(program: str, name: str) -> str:
    """The Markdown of `<!-- bench.PROGRAM: NAME -->`."""
    if program == "lr_sweep":
        return sweep_block(read_sweep(RESULTS / "lr_sweeps" / f"{name}.json"))
    if program == "experiment":
        return experiment_block(read_plan(RESULTS / "ablations" / f"{name}.json"))
    if name == "accuracy":
        return accuracy_block([read_runs(path) for path in sorted((RESULTS / "runs").glob("*.json"))])
    if name in BENCHES:
        return bench_block(name, [read_json(path) for path in sorted(RESULTS.glob("*.json"))])
    raise UserError(f"there is no table <!-- bench.{program}: {name} -->; correct the line or remove it")


def read_runs(path: Path) -> dict[str, Any]:
    contents = read_json(path)
    if not all(contents.get(name) for name in ("command", "options", "summaries")):
        raise UserError(f'{path} must hold "command", "options" and "summaries"; --add-run writes such a file')
    return contents


def slug(text: str) -> str:
    """`cpu-avx512-2-threads` of "cpu (AVX512, 2 threads)"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(run_script(main))
