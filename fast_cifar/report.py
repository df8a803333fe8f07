"""Show a run, or compare several, on one page to read, print or send.

    python -m fast_cifar.report runs/NAME                    # writes runs/NAME/report.html
    python -m fast_cifar.report runs/A runs/B runs/C         # compares them in report.html, here
    python -m fast_cifar.report runs/* --out comparison.html

The page is a single HTML file: curves, images and numbers are in it, and it loads nothing from the network. A
RUN_FOLDER is one of run_train.py, finished or not, with one seed or several (--runs), or one of run_lrfind.py.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fast_cifar.command_line import Parser
from fast_cifar.options import RangeTestOptions, TrainOptions
from fast_cifar.plots import style, training
from fast_cifar.plots.grids import plain
from fast_cifar.runs.run_folder import RunFolder, predicted_by
from fast_cifar.system.errors import UserError, percent, run_script
from fast_cifar.system.files import atomic_write, is_number

NAME = "report.html"
UNKNOWN = "–"
WORDS = {"train": "training", "val": "validation", "test": "test"}

# How the page writes names of the JSON files; and numbers, by the last word of their names.
LABELS = {
    "lr": "learning rate",
    "best_test_accuracy": "best test accuracy",
    **{f"{split}_{metric}": f"{word} {metric}" for split, word in WORDS.items() for metric in ("loss", "accuracy")},
    "images_per_second": "images/sec",
    "seconds": "training time",
    "evaluation_seconds": "evaluation time",
    "save_seconds": "saving time",
    "compile_seconds": "warm-up and compilation",
    "peak_memory_bytes": "peak memory",
    "training_flops": "arithmetic",
}
MEASURED = ("best_test_accuracy", "train_accuracy", *(name for name in LABELS if re.search("second|bytes|flops", name)))
FORMATS: dict[str, Callable[[float], str]] = {
    "accuracy": percent,
    "loss": "{:.4f}".format,
    "lr": "{:.3g}".format,
    "second": "{:,.0f}".format,
    "seconds": "{:,.1f} s".format,
    "parameters": "{:,.0f}".format,
    "bytes": lambda size: f"{size / 2**30:.2f} GiB",
    "flops": lambda count: f"{count / 1e15:.3g} PFLOP",
}

# File, caption and alternative text; {split} is the split whose accuracy is the result.
IMAGES = (
    ("samples.png", "Training images and their labels", "Grid of training images, each above the name of its class."),
    ("augmented.png", "Augmentation", "Rows of one training image each: the original, and how each epoch augments it."),
    (
        "misclassified.png",
        "Misclassified {split} images, the most confident mistakes first",
        "Grid of {split} images, each with its true class, the predicted class and the confidence.",
    ),
    (
        "confusion.png",
        "Confusion matrix: rows are true classes, columns predicted ones",
        "Heat map of how many {split} images of each class were predicted as which, and each class's accuracy.",
    ),
)

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --panel: #f4f6f8; --ink: #1b1f24; --quiet: #57606a; --rule: #d5dae0; --alarm: #9a3d00;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --panel: #1e2328; --ink: #e8eaed; --quiet: #a7b0ba; --rule: #3a424b; --alarm: #ffb27d; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1, h2, h3, p, li, dd { overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.375rem; margin: 2.5rem 0 0.75rem; padding-top: 0.5rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.125rem; margin: 1.75rem 0 0.5rem; }
a { color: inherit; }
.headline strong { font-size: 2rem; line-height: 1.2; white-space: nowrap; }
.quiet { color: var(--quiet); }
.alarm { color: var(--alarm); font-weight: 600; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.75rem 1.5rem; }
dt { color: var(--quiet); font-size: 0.875rem; }
dd { margin: 0; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figcaption { margin-bottom: 0.25rem; }
img { display: block; width: auto; height: auto; max-width: 100%; background: #fff; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; margin: 0.5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }
th { font-weight: 600; }
thead th { background: var(--panel); }
tbody th:has(a) { white-space: normal; overflow-wrap: anywhere; min-width: 11rem; }
.numbers td, .numbers th + th { text-align: right; }
.wrapped { font-size: 0.875rem; }
.wrapped th, .wrapped td { padding: 0.25rem 0.5rem; }
.wrapped thead th, .wrapped td:nth-child(4), .wrapped td:nth-last-child(-n+2) { white-space: normal; }
tr:has(.changed) { background: var(--panel); font-weight: 600; }
details { margin: 0.75rem 0; }
summary { cursor: pointer; padding: 0.25rem 0; }
code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 0.9375em; }
@media (max-width: 48rem) { img { max-width: none; width: 56rem; } }
@media print {
  :root { color-scheme: light; --paper: #fff; --panel: #eee; --ink: #000; --quiet: #444; --rule: #bbb; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  img { width: auto; max-width: 100%; }
  th, td { padding: 0.125rem 0.375rem; white-space: normal; }
}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return run_script(lambda: script(arguments))


def script(arguments: Sequence[str] | None) -> None:
    parser = Parser(__doc__, prog="python -m fast_cifar.report")
    folders_help = "of a run, of several seeds or of a range test"
    out_help = f"the page to write, replaced if it exists (default: {NAME} in the run folder; of several, here)"
    parser.add_argument("folders", metavar="RUN_FOLDER", nargs="+", help=folders_help)
    parser.add_argument("--out", metavar="PATH", type=Path, help=out_help)
    options = parser.parse_args(arguments)
    out = options.out or (Path(options.folders[0], NAME) if len(options.folders) == 1 else Path(NAME))
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} must end in .html: an existing file is replaced")
    page = report(options.folders).encode()
    with atomic_write(out) as file:
        file.write(page)
    print(f"{out} ({len(page) / 2**20:.1f} MiB)")


def report(folders: Sequence[str | Path]) -> str:
    """The page about one run folder, or about several: a comparison first, then each.

    Args:
        folders: at least one.

    Raises:
        UserError: one of them is not a run folder, or damaged.
    """
    runs = [read(folder) for folder in folders]
    if len(runs) == 1:
        title = f"{'Range test' if runs[0].only_range_test else 'Run'} {runs[0].name}"
        body = facts(runs[0]) + content(runs[0], "h2")
    else:
        title = f"{len(runs)} run folders"
        taken = [run.name for run in runs]
        names = [str(run.folder.path) if taken.count(run.name) > 1 else run.name for run in runs]
        links = [f'<a href="#run-{i}">{escape(name)}</a>' for i, name in enumerate(names, start=1)]
        body = f'<nav aria-label="contents"><ol>{"".join(f"<li>{link}</li>" for link in links)}</ol></nav>'
        body += comparison(list(zip(names, links, runs, strict=True)))
        for i, (name, run) in enumerate(zip(names, runs, strict=True), start=1):
            body += f'<section id="run-{i}"><h2>{escape(name)}</h2>{facts(run)}{content(run, "h3")}</section>'
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head>
<body><main><h1>{escape(title)}</h1>{body}</main></body></html>
"""


@dataclass(frozen=True)
class Run:
    """What a run folder holds: of one seed, of several, or of a range test.

    Attributes:
        summary: empty before the run is finished.
        history: the numbers in each row of metrics.jsonl.
        range_test: contents of lrfind.json, if there was a range test.
        seeds: of a run of several seeds, each of those that have begun; otherwise none.
    """

    folder: RunFolder
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]
    range_test: Mapping[str, Any] | None
    seeds: tuple[Run, ...]

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name

    @property
    def several(self) -> bool:
        return is_number(self.config.get("runs"))

    @property
    def only_range_test(self) -> bool:
        """Whether this is a folder of `run_lrfind.py`."""
        return "epochs" not in self.config

    @property
    def singles(self) -> tuple[Run, ...]:
        """The runs of single seeds: this one, unless it has several."""
        return self.seeds if self.several else (self,)

    @property
    def split(self) -> str:
        """The split whose accuracy is the result: with --no-test, "val"."""
        return "val" if self.config.get("test") is False else "test"

    @property
    def state(self) -> str | None:
        """How far an unfinished run is; None of a finished one."""
        if self.only_range_test or self.summary:
            return None
        done, planned = (self.n, "runs") if self.several else (len(self.history), "epochs")
        word = ("seed" if self.several else "epoch") + ("s are" if self.config[planned] != 1 else " is")
        return f"not finished: {done} of {text(self.config[planned])} {word} done"

    @property
    def n(self) -> int:
        """How many seeds have a result."""
        return sum(bool(one.summary) for one in self.singles)

    @property
    def accuracy(self) -> str:
        """That of the last epoch, or the mean over seeds ± half its 95 % confidence interval."""
        if not self.several:
            return show("accuracy", self.measured(f"{self.split}_accuracy"))
        ends = self.summary.get("interval")
        known = isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))
        return show("accuracy", self.summary.get("mean")) + (f" ± {50 * (ends[1] - ends[0]):.2f}" if known else "")

    @property
    def known(self) -> dict[str, Any]:
        """What was trained, with what, and what was measured, by the names of the JSON files."""
        data, first = self.config.get("data"), self.config.get("seed")
        runs = self.config.get("repeats" if self.only_range_test else "runs")
        planned = ("epochs", "batch_size", "device", "precision", "torch", "parameters")
        named = [one.summary["dataset"] for one in (self, *self.seeds) if "dataset" in one.summary]
        known = {
            "data": named[0] if named else Path(text(data)).name or data,
            "seed": f"{first} to {first + runs - 1}" if is_number(first) and is_number(runs) and runs > 1 else first,
            **{name: self.summary.get(name, self.config.get(name)) for name in planned},
            **{name: self.measured(name) for name in MEASURED},
        }
        if self.state and not self.several:
            known["epochs"] = f"{len(self.history)} of {text(self.config['epochs'])}"
        return known

    def measured(self, name: str) -> Any:
        """A number of the summary; before there is one, that of the last epoch that has it, unless it is a time."""
        rows = [self.summary] if self.summary else [] if name.endswith("seconds") else self.history
        return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)


def read(path: str | Path) -> Run:
    """Reads a run folder, and of a run of several seeds the folders in it.

    Raises:
        UserError: `path` is not a run folder, or one of its files is damaged.
    """
    folder = RunFolder.open(Path(path))
    config = folder.config()
    if not {"data", "batch_size", "seed"} <= config.keys():
        raise UserError(f"{path} is not a run folder: its config.json does not hold the options of a run")
    seeds: list[RunFolder] = []
    if is_number(config.get("runs")):  # a seed's folder has no "runs": a link to `path` itself is left out
        found = [RunFolder(child) for child in folder.path.iterdir() if re.fullmatch(r"run-\d{1,5}", child.name)]
        begun = [one for one in found if (one / "config.json").is_file()]
        seeds = [one for one in begun if not is_number(one.config().get("runs"))]
        seeds.sort(key=lambda one: int(one.path.name.removeprefix("run-")))
    summary = folder.summary()
    history, metrics = folder.history(), folder / "metrics.jsonl"
    lines = len(metrics.read_bytes().splitlines()) if metrics.is_file() else 0
    cut_short = lines - len(history)  # a kill may have cut the last line of an unfinished run
    if cut_short > (summary is None) or any(row.get("epoch") != epoch for epoch, row in enumerate(history, 1)):
        raise UserError(f"{metrics} is damaged: not every line is that of its epoch; restore it, or leave the run out")
    history = [{name: value for name, value in row.items() if is_number(value)} for row in history]
    return Run(folder, config, summary or {}, history, folder.range_test(), tuple(read(one.path) for one in seeds))


def facts(run: Run) -> str:
    """The headline, and below it what was trained."""
    failures = text(run.summary.get("failures"))
    page = paragraph(f"{run.state.capitalize()}.", "alarm") if run.state else ""
    page += paragraph(f"Failed: {failures}", "alarm") if failures != UNKNOWN else ""
    page += "" if run.only_range_test else headline(run)
    pairs = [(label_of(name), show(name, value)) for name, value in run.known.items()]
    page += "<dl>"
    page += "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs if value != UNKNOWN)
    page += "</dl>"
    if run.seeds:
        page += results([(escape(one.name), one) for one in run.seeds], "every seed's result")
        page += paragraph("Above the table, what is measured is the mean over the seeds.", "quiet")
    return page


def headline(run: Run) -> str:
    if run.accuracy == UNKNOWN:
        return paragraph("No result yet.")
    meaning = f"{WORDS[run.split]} accuracy"
    if run.several:
        interval = ", ± half the 95 % confidence interval of the mean" if "±" in run.accuracy else ""
        meaning = f"mean {meaning} after the last epoch (n = {run.n}{interval})"
    elif run.state:
        meaning += " so far"
    else:
        epochs = run.config["epochs"]
        meaning += " after 1 epoch" if epochs == 1 else f" after the last of {text(epochs)} epochs"
    meaning += predicted_by(run.config)
    return f'<p class="headline"><strong>{run.accuracy}</strong> {escape(meaning)}</p>'


def content(run: Run, heading: str) -> str:
    """Everything below the facts; `heading` is the element that titles each part."""
    shown = run.singles[0] if run.singles else run
    parts = {
        "Curves": curves(run),
        "Range test": range_test(run),
        f"Images of {shown.name}" if run.several else "Images": "".join(image(shown, *one) for one in IMAGES),
        "Configuration": configuration(run),
    }
    return "".join(f"<{heading}>{escape(title)}</{heading}>{part}" for title, part in parts.items() if part)


def comparison(named: Sequence[tuple[str, str, Run]]) -> str:
    """Results, curves, and the options that differ, of at least two runs; range tests are left out.

    Args:
        named: of each run its name, the link to its section, and the run.
    """
    named = [one for one in named if not one[-1].only_range_test]
    if len(named) < 2:
        return ""
    note = "Accuracy of the last epoch; with several seeds the mean ± half its 95 % confidence interval."
    page = "<h2>Comparison</h2>" + results([(link, run) for _, link, run in named], "results of every run")
    page += paragraph(note, "quiet")
    page += "".join(paragraph(f"{name} is {run.state}.", "alarm") for name, _, run in named if run.state)
    if any(one.history for *_, run in named for one in run.singles):
        drawn = [(name, f"{run.split}_accuracy", [one.history for one in run.singles]) for name, _, run in named]
        page += plot("Accuracy", "Accuracy of every run against the epochs.", training.comparison, drawn)
    configs = [run.config for *_, run in named]
    options = dict.fromkeys(name for config in configs for name in config)
    rows = [
        (code(name), *(text(config.get(name)) for config in configs))
        for name in options
        if name not in TrainOptions.names(recorded=False)
        and any(config.get(name, UNKNOWN) != configs[0].get(name, UNKNOWN) for config in configs)
    ]
    if not rows:
        return page + paragraph("All options are the same.")
    return page + "<h3>Options that differ</h3>" + table(["option", *(name for name, *_ in named)], rows, "differences")


def results(runs: Sequence[tuple[str, Run]], label: str) -> str:
    """A table with a row for each run, whose name is HTML."""
    names = ("best_test_accuracy", "train_accuracy", "epochs", "images_per_second", "seconds", "data", "device")
    head = ["run", "seed", "accuracy", "of", "n", *map(label_of, names)]
    rows = []
    for heading, run in runs:
        of = WORDS[run.split] + predicted_by(run.config)
        cells = [text(run.known["seed"]), run.accuracy, of, str(run.n if run.several else 1)]
        rows.append((heading, *cells, *(show(name, run.known[name]) for name in names)))
    return table(head, rows, label, kind="numbers wrapped")


def curves(run: Run) -> str:
    """Figures of all seeds, and every number of each."""
    begun = [one for one in run.singles if one.history]
    if not begun:
        return ""
    low, high, peak, epochs = (run.config.get(name) for name in ("lr_min", "lr_max", "peak_epoch", "epochs"))
    last = epochs if is_number(epochs) else len(begun[0].history)
    alt = "Two panels: loss and accuracy of each split against the epochs."
    smoothing = run.config.get("label_smoothing")
    draw = partial(training.curves, label_smoothing=smoothing if is_number(smoothing) else 0.0)
    page = plot("Loss and accuracy", alt, draw, [one.history for one in begun], last)
    if all(map(is_number, (low, high, peak, epochs))) and 0 < peak < epochs <= 10_000:
        steps = np.arange(1, 100 * epochs + 1)
        lrs = np.interp(steps, [1, 100 * peak, 100 * epochs], [low, high, low])
        page += plot("Learning rate", "The planned rate against the epochs.", training.schedule, lrs, 100)
    for one in begun:
        names = [name for name in LABELS if any(name in row for row in one.history)]
        rows = [[text(row["epoch"]), *(show(name, row.get(name)) for name in names)] for row in one.history]
        title = "The numbers of every epoch" + (f" of {one.name}" if run.several else "")
        page += details(title, ["epoch", *map(label_of, names)], rows)
    return page


def range_test(run: Run) -> str:
    """Warnings, suggestion, figure and numbers of a range test."""
    test = run.range_test
    if test is None:
        return ""
    found = test.get("suggestion")
    rates = {name: show("lr", value) for name, value in found.items()} if isinstance(found, dict) else {}
    low, high = (rates.get(name, UNKNOWN) for name in ("lr_min", "lr_max"))
    warnings = test.get("warnings")
    page = "".join(paragraph(text(one), "alarm") for one in warnings) if isinstance(warnings, list) else ""
    page += f"<p>Suggested: {code(f'--lr-min {low} --lr-max {high}')}</p>"
    page += image(
        run, "lrfind.png", "Loss against the learning rate", "Falling and rising loss; LRMIN and LRMAX marked."
    )
    read_off = ", ".join(f"{name} {rates.get(name, UNKNOWN)}" for name in ("steepest", "valley", "minimum"))
    page += paragraph(f"On the smoothed loss: {read_off}.", "quiet")
    numbers = zip(test["lrs"], test["losses"], test["smoothed"], strict=True)
    rows = [(show("lr", lr), show("loss", loss), show("loss", smoothed)) for lr, loss, smoothed in numbers]
    return page + details("The numbers of every step", ["learning rate", "loss", "smoothed loss"], rows)


def configuration(run: Run) -> str:
    """Every option beside its default; where that depends on other options, on this run's."""
    defaults = RangeTestOptions().as_dict()
    if not run.only_range_test:
        given = {name: run.config[name] for name in ("epochs", "lr_max") if is_number(run.config.get(name))}
        recipe = TrainOptions().resolved().as_dict()
        defaults = TrainOptions(**given).resolved().as_dict() | {name: recipe[name] for name in given}
    rows = []
    for name, value in run.config.items():
        default = defaults.get(name)
        # Where a run is kept is no setting, and a device or precision of "auto" was chosen by the run itself.
        same = (
            name in TrainOptions.names(recorded=False) or default == "auto" or (name in defaults and value == default)
        )
        rows.append((code(name, "" if same else "changed"), text(value), text(default)))
    note = paragraph("Options that differ from their defaults stand out.", "quiet")
    return note + table(["option", "value", "default"], rows, "configuration")


def image(run: Run, name: str, caption: str, alt: str) -> str:
    """A PNG of the run folder, byte for byte; nothing where there is none.

    Raises:
        UserError: it is damaged.
    """
    path, word = run.folder / name, WORDS[run.split]
    if not path.is_file():
        return ""
    try:
        return figure(path.read_bytes(), caption.format(split=word), alt.format(split=word))
    except Exception as error:  # Pillow raises almost anything
        raise UserError(f"{path} is not a PNG that can be read; delete it, and the report leaves it out") from error


def plot(caption: str, alt: str, draw: Callable[..., None], *shown: Any) -> str:
    """What `draw` draws with matplotlib; without it, a line that says what to install."""
    if not style.matplotlib_available():
        return paragraph(f"{caption}: {style.NO_MATPLOTLIB}.", "quiet")
    file = io.BytesIO()
    draw(file, *shown)
    return figure(file.getvalue(), caption, alt)


def figure(png: bytes, caption: str, alt: str) -> str:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        opened.load()
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    shown = f'<img src="{source}" alt="{escape(alt)}" width="{opened.width}" height="{opened.height}">'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{scrolling(shown, caption)}</figure>"


def details(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return f"<details><summary>{escape(title)}</summary>{table(head, rows, title, kind='numbers')}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = "words") -> str:
    """A table in a box that scrolls.

    Args:
        head: a title for each column.
        rows: as many cells each: the first is the row's heading as HTML, the others are texts.
        label: what the table is, read aloud.
        kind: "numbers" are aligned to the right.
    """
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join(
        f'<tr><th scope="row">{heading}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for heading, *cells in rows
    )
    whole = f'<table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>'
    return scrolling(whole, label)


def scrolling(content: str, label: str) -> str:
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">{content}</div>'


def paragraph(words: str, kind: str = "words") -> str:
    return f'<p class="{kind}">{escape(words)}</p>'


def code(words: str, kind: str = "words") -> str:
    return f'<code class="{kind}">{escape(words)}</code>'


def escape(words: str) -> str:
    """Text as HTML; control characters and undecodable bytes become "?"."""
    return html.escape(plain(words))


def label_of(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def show(name: str, value: Any) -> str:
    """A value of a JSON file, in the format of its name."""
    written = FORMATS.get(name.rpartition("_")[2])
    if written is None:
        return text(value)
    return written(value) if is_number(value) else UNKNOWN


def text(value: Any) -> str:
    """Any value of a JSON file as a word or two."""
    if value is None or value == "" or value == [] or (isinstance(value, float) and not math.isfinite(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(text, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
