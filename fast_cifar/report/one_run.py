"""What a report says about one run folder: result, curves, range test, pictures, configuration, environment."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from fast_cifar.options import RangeTestOptions, TrainOptions
from fast_cifar.report.charts import epoch_charts, range_test_chart
from fast_cifar.report.formats import count, gibibytes, loss, percent, rate, seconds, text
from fast_cifar.report.page import UNKNOWN, Markup, table, tag
from fast_cifar.report.records import Record, number
from fast_cifar.system.errors import UserError

# File, caption, what someone who does not see it is told.
PICTURES = (
    ("samples.png", "Training images and their labels", "Grid of training images, each above the name of its class."),
    (
        "augmented.png",
        "What augmentation makes of them",
        "Rows of one training image each: the original, then views of it cropped, mirrored and with a square cut out.",
    ),
    (
        "misclassified.png",
        "Test images that the network got wrong, the surest mistakes first",
        "Grid of test images, each with its true class, the predicted one and the confidence.",
    ),
    (
        "confusion.png",
        "Confusion matrix: rows are true classes, columns the predicted ones",
        "Heat map of how many test images of each class were taken for which, and each class's accuracy.",
    ),
)

# Filled in by the run itself: that they differ from the defaults says nothing about the recipe.
FILLED_IN = frozenset({"name", "device", "amp_dtype"})


def accuracy(record: Record) -> str:
    """The last epoch's test accuracy, or the mean over seeds with half its 95 % interval."""
    if record.several:
        if record.summary is None:
            return UNKNOWN
        half = record.half_interval
        return percent(record.summary.get("mean")) + ("" if half is None else f" ± {100 * half:.2f}")
    return percent(record.measured("test_accuracy"))


def state(record: Record) -> str | None:
    """That a run is not finished, and how far it is; None if it is."""
    if record.only_range_test or record.summary is not None:
        return None
    if record.several:
        done = sum(seed.summary is not None for seed in record.seeds)
        return f"not finished: {done} of {text(record.config.get('runs'))} seeds are done"
    return f"not finished: {len(record.history)} of {text(record.config.get('epochs'))} epochs are done"


def facts(record: Record) -> list[Markup]:
    """The headline, and below it what was trained."""
    config, summary = record.config, record.summary or {}
    trained = not record.only_range_test
    several = record.several
    known = {
        "data": text(record.data),
        "epochs": text(config.get("epochs")),
        "seed": _seeds(record),
        "batch size": text(config.get("batch_size")),
        "device": text(summary.get("device", config.get("device"))),
        "precision": text(summary.get("precision")),
        "torch": text(summary.get("torch")),
        "parameters": count(summary.get("parameters")),
        # Of several seeds, these are in the table.
        "best test accuracy of any epoch": UNKNOWN if several else percent(summary.get("best_test_accuracy")),
        "training accuracy of the last epoch": UNKNOWN if several else percent(record.measured("train_accuracy")),
    }
    pairs = [tag("div", tag("dt", name), tag("dd", value)) for name, value in known.items() if value != UNKNOWN]
    unfinished = state(record)
    alarms = [unfinished[0].upper() + unfinished[1:] + "."] if unfinished else []
    alarms += [f"Failed: {failure}" for failure in strings(summary, "failures")]
    return [
        *(tag("p", alarm, class_="alarm") for alarm in alarms),
        *([_headline(record)] if trained else []),
        tag("dl", *pairs),
        *([_seed_table(record)] if several and record.seeds else []),
    ]


def content(record: Record, heading: str) -> list[Markup]:
    """Everything below the facts; `heading` is the element that titles each part."""
    shown = record.singles[0] if record.singles else record
    whose = f" of {shown.name}" if record.several else ""
    parts = [
        ("Curves", epoch_charts(record) + [_epoch_table(one, record.several) for one in record.singles if one.history]),
        ("Range test", _range_test(record.range_test) if record.range_test else []),
        (f"Pictures{whose}", [part for name, *words in PICTURES for part in _picture(shown, name, *words)]),
        ("Configuration", _configuration(record)),
        ("Environment", _environment(record)),
    ]
    return [part for title, body in parts if body for part in (tag(heading, title), *body)]


def strings(contents: Mapping[str, Any], name: str) -> list[str]:
    """The texts in a list of a JSON object; none where there is no list."""
    values = contents.get(name)
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _headline(record: Record) -> Markup:
    if record.several:
        n = len(record.accuracies)
        meaning = f" mean test accuracy after the last epoch (n = {n}"
        meaning += ")" if record.half_interval is None else ", ± half the 95 % confidence interval of the mean)"
    elif record.summary is None:
        meaning = " test accuracy so far"
    else:
        meaning = f" test accuracy after the last of {text(record.config.get('epochs'))} epochs"
    value = accuracy(record)
    return (
        tag("p", tag("strong", value), meaning, class_="headline") if value != UNKNOWN else tag("p", "No result yet.")
    )


def _seeds(record: Record) -> str:
    first, runs = number(record.config.get("seed")), number(record.config.get("runs"))
    return text(first) if first is None or runs is None or runs < 2 else f"{first} to {first + runs - 1}"


def _seed_table(record: Record) -> Markup:
    head = ["run", "seed", "test accuracy", "best epoch", "training accuracy", "images/sec", "training time"]
    rows = []
    for seed in record.seeds:
        unfinished = state(seed)
        rows.append(
            (
                seed.name + (f" ({unfinished})" if unfinished else ""),
                text(seed.config.get("seed")),
                accuracy(seed),
                percent((seed.summary or {}).get("best_test_accuracy")),
                percent(seed.measured("train_accuracy")),
                count(seed.measured("images_per_second")),
                seconds(seed.summary and seed.summary.get("seconds")),
            )
        )
    return table(head, rows, "every seed's result")


def _epoch_table(record: Record, named: bool) -> Markup:
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {"lr": ("learning rate", rate)}
    for split, word in (("train", "training"), ("val", "validation"), ("test", "test")):
        columns |= {f"{split}_loss": (f"{word} loss", loss), f"{split}_accuracy": (f"{word} accuracy", percent)}
    columns |= {"images_per_second": ("images/sec", count), "seconds": ("training time", seconds)}
    known = [name for name in columns if any(number(row.get(name)) is not None for row in record.history)]
    head = ["epoch", *(columns[name][0] for name in known)]
    rows = [[text(row["epoch"]), *(columns[name][1](row.get(name)) for name in known)] for row in record.history]
    title = "The numbers of every epoch" + (f" of {record.name}" if named else "")
    return tag("details", tag("summary", title), table(head, rows, title))


def _range_test(test: Mapping[str, Any]) -> list[Markup]:
    found = test.get("suggestion")
    found = found if isinstance(found, dict) else {}
    low, high = rate(found.get("lr_min")), rate(found.get("lr_max"))
    advice = [
        "One cycle from LRMIN ", tag("strong", low), " up to LRMAX ", tag("strong", high), " is suggested: ",
        tag("code", f"--lr-min {low} --lr-max {high}"), ".",
    ]  # fmt: skip
    read_off = [f"{name} {rate(found.get(name))}" for name in ("steepest", "valley", "minimum") if name in found]
    rows = zip(map(rate, test["lrs"]), map(loss, test["losses"]), map(loss, test["smoothed"]), strict=True)
    title = "The numbers of every step"
    return [
        *(tag("p", warning, class_="alarm") for warning in strings(test, "warnings")),
        *([tag("p", *advice)] if UNKNOWN not in (low, high) else []),
        range_test_chart(test, found),
        *([tag("p", f"Read off the smoothed loss: {', '.join(read_off)}.", class_="quiet")] if read_off else []),
        tag("details", tag("summary", title), table(["learning rate", "loss", "smoothed loss"], rows, title)),
    ]


def _picture(record: Record, name: str, caption: str, alt: str) -> list[Markup]:
    """The picture, if there is one, with its own pixels in the page.

    Raises:
        UserError: it is no picture.
    """
    path = record.folder / name
    if not path.is_file():
        return []
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
        pixels = base64.b64encode(path.read_bytes()).decode()
    except Exception as error:  # Pillow raises almost anything
        raise UserError(f"{path} is no PNG that can be read; delete it, and the report does without it") from error
    width, height = picture.size
    image = tag("img", src=f"data:image/png;base64,{pixels}", alt=alt, width=width, height=height)
    box = tag("div", image, class_="scroll", role="region", aria_label=caption, tabindex=0)
    return [tag("figure", tag("figcaption", caption), box, class_="picture")]


def _configuration(record: Record) -> list[Markup]:
    config, defaults = record.config, default_config(record)
    rows = [[tag("code", name), text(value), text(defaults.get(name))] for name, value in config.items()]
    changed = [
        index
        for index, (name, value) in enumerate(config.items())
        if name not in FILLED_IN and (name not in defaults or value != defaults[name])
    ]
    note = tag("p", "Options that differ from their defaults stand out.", class_="quiet")
    return [note, table(["option", "value", "default"], rows, "configuration", words=(1, 2), changed=changed)]


def default_config(record: Record) -> dict[str, Any]:
    """The options as they would be resolved had nothing been set; those that depend on others, on this run's."""
    if record.only_range_test:
        return RangeTestOptions().as_dict()
    config = record.config
    plain = TrainOptions().resolved()
    epochs, lr_max = (number(config.get(name)) or getattr(plain, name) for name in ("epochs", "lr_max"))
    resolved = TrainOptions(epochs=int(epochs), lr_max=lr_max).resolved()
    return plain.as_dict() | {"peak_epoch": resolved.peak_epoch, "lr_min": resolved.lr_min}


def _environment(record: Record) -> list[Markup]:
    summary = record.summary
    if summary is None:
        return []
    known = {
        "device": text(summary.get("device")),
        "torch": text(summary.get("torch")),
        "precision": text(summary.get("precision")),
        "images/sec in training": count(summary.get("images_per_second")),
        "training": seconds(summary.get("seconds")),
        "evaluation": seconds(summary.get("evaluation_seconds")),
        "saving": seconds(summary.get("save_seconds")),
        "warm-up and compilation": seconds(summary.get("compile_seconds")),
        "peak memory": gibibytes(summary.get("peak_memory_bytes")),
    }
    mean = [tag("p", f"Times and images/sec are means over {len(record.accuracies)} seeds.", class_="quiet")]
    rows: Sequence[Sequence[str]] = list(known.items())
    return [*(mean if record.several else []), table(["what", "value"], rows, "environment", words=(1,))]
