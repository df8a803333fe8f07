"""Run folders to report on, and what a test looks for in a page: its elements and tables."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from fast_cifar.options import RangeTestOptions, TrainOptions
from fast_cifar.report import report
from fast_cifar.runs.stats import summarize
from tests.helpers.plots import SUGGESTION, sweep

IMAGES = ("samples.png", "augmented.png", "misclassified.png", "confusion.png")
VOID = ("meta", "img")  # elements without an end tag


class Element:
    def __init__(self, name: str, attributes: dict[str, str | None]) -> None:
        self.name, self.attributes = name, attributes
        self.children: list[Element | str] = []

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str, class_: str | None = None) -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                fits = child.name == name and (class_ is None or class_ in child.attributes.get("class", "").split())
                found += ([child] if fits else []) + child.all(name, class_)
        return found

    def one(self, name: str, class_: str | None = None) -> Element:
        (found,) = self.all(name, class_)
        return found


class Tree(HTMLParser):
    """Parses a page, and refuses one whose tags are not balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(page)
        self.close()
        assert self.open == [self.root], f"not closed: {[element.name for element in self.open[1:]]}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop().name == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(page: str) -> Element:
    return Tree(page).root


def summary_of(rows: list[dict], seed: int = 0) -> dict:
    return {
        "test_accuracy": rows[-1]["test_accuracy"],
        "best_test_accuracy": max((row["test_accuracy"] for row in rows if row["test_accuracy"]), default=None),
        "train_accuracy": rows[-1]["train_accuracy"],
        **({"val_accuracy": rows[-1]["val_accuracy"]} if "val_accuracy" in rows[-1] else {}),
        "epochs": len(rows),
        "seed": seed,
        "seconds": 1234.5,
        "images_per_second": 12345.6,
        "evaluation_seconds": 7.25,
        "save_seconds": 0.5,
        "compile_seconds": 31.5,
        "peak_memory_bytes": 3 * 2**30,
        "dataset": "CIFAR-10",
        "device": "abacus",
        "precision": "bf16",
        "torch": "2.15.0",
        "parameters": 6573120,
        "training_flops": 2.5e15,
    }


def write(path: Path, contents: object) -> None:
    path.write_text(json.dumps(contents))


def write_run(path: Path, rows: list[dict], *, finished: bool = True, images: bool = False, **changes) -> Path:
    """A run folder without its checkpoints."""
    path.mkdir(parents=True)
    options = TrainOptions(**{"epochs": len(rows), "name": path.name, "device": "cpu"} | changes)
    write(path / "config.json", options.resolved().as_dict())
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        write(path / "summary.json", summary_of(rows, options.seed))
    for index, name in enumerate(IMAGES if images else ()):
        write_image(path / name, index)
    return path


def write_image(path: Path, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (300, 1300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_seeds(path: Path, histories: list[list[dict]], *, finished: bool = True, **changes) -> Path:
    write_run(path, histories[0], finished=False, runs=len(histories), **changes)
    (path / "metrics.jsonl").unlink()
    for seed, rows in enumerate(histories):
        write_run(path / f"run-{seed + 1}", rows, seed=seed, images=seed == 0, **changes)
    if finished:
        summaries = [summary_of(rows, seed) for seed, rows in enumerate(histories)]
        write(path / "summary.json", summarize(summaries) | {"failures": []})
    return path


def lrfind() -> dict:
    """The contents of lrfind.json."""
    lrs, losses = sweep(60)
    return {"lrs": lrs, "losses": losses, "smoothed": [loss + 0.01 for loss in losses], "suggestion": SUGGESTION}


def write_range_test(path: Path, repeats: int = 1, **more) -> Path:
    path.mkdir()
    write(path / "config.json", RangeTestOptions(name=path.name, repeats=repeats).as_dict())
    write(path / "lrfind.json", lrfind() | more)
    write_image(path / "lrfind.png")
    return path


def page(*folders: Path) -> Element:
    return parse(report(folders))


def cells(table: Element) -> list[list[str]]:
    return [
        [cell.text for cell in row.children if isinstance(cell, Element)]
        for row in table.all("tr")
        if row.all("td") or row.all("th")
    ]


def region(root: Element, label: str) -> Element:
    (box,) = [box for box in root.all("div", "scroll") if box["aria-label"] == label]
    return box


def facts(root: Element) -> dict[str, str]:
    return {name.text: value.text for name, value in zip(root.all("dt"), root.all("dd"), strict=True)}
