"""What a report says about several run folders side by side."""

from __future__ import annotations

from collections.abc import Sequence

from fast_cifar.report.charts import comparison_chart
from fast_cifar.report.formats import count, percent, seconds, text
from fast_cifar.report.one_run import accuracy, state
from fast_cifar.report.page import UNKNOWN, Markup, table, tag
from fast_cifar.report.records import Record

WHERE = frozenset({"name", "out", "resume"})  # options that say where a run lies, not how it was trained
ABSENT = object()


def comparison(records: Sequence[Record], names: Sequence[str]) -> list[Markup]:
    """Results, curves, and the options in which the runs differ; range tests have no part in it.

    Returns:
        Nothing where there are not two runs to compare.
    """
    numbered = [(index, record, name) for index, (record, name) in enumerate(zip(records, names, strict=True), 1)]
    numbered = [item for item in numbered if not item[1].only_range_test]
    if len(numbered) < 2:
        return []
    _, trained, titles = zip(*numbered, strict=True)
    curves = comparison_chart(trained, titles)
    return [
        tag("h2", "Comparison"),
        *_results(numbered),
        *([tag("div", curves, class_="charts")] if curves else []),
        *_differences(trained, titles),
    ]


def differing(records: Sequence[Record]) -> list[str]:
    """The options that do not have the same value in every run, in the order of the configuration."""
    names = dict.fromkeys(name for record in records for name in record.config if name not in WHERE)
    first = records[0].config
    return [
        name for name in names if any(record.config.get(name, ABSENT) != first.get(name, ABSENT) for record in records)
    ]


def _results(numbered: Sequence[tuple[int, Record, str]]) -> list[Markup]:
    head = ["run", "test accuracy", "n", "epochs", "training accuracy", "images/sec", "training time", "data", "device"]
    rows = []
    for index, record, name in numbered:
        summary, planned = record.summary, text(record.config.get("epochs"))
        epochs = f"{len(record.history)} of {planned}" if summary is None and not record.several else planned
        rows.append(
            (
                tag("a", name, href=f"#run-{index}"),
                accuracy(record),
                str(len(record.accuracies) if record.several else 1),
                epochs,
                percent(record.measured("train_accuracy")),
                count(record.measured("images_per_second")),
                seconds((summary or {}).get("seconds")),
                text(record.data),
                text((summary or record.config).get("device")),
            )
        )
    unfinished = [f"{name} is {state(record)}." for _, record, name in numbered if state(record)]
    note = "Test accuracy of the last epoch; with n > 1 seeds the mean ± half its 95 % confidence interval."
    return [
        table(head, rows, "results of every run", words=(7, 8)),
        tag("p", note, class_="quiet"),
        *(tag("p", line, class_="alarm") for line in unfinished),
    ]


def _differences(records: Sequence[Record], names: Sequence[str]) -> list[Markup]:
    options = differing(records)
    if not options:
        return [tag("p", "All options are the same.")]
    rows = [
        [
            tag("code", option),
            *(text(record.config[option]) if option in record.config else UNKNOWN for record in records),
        ]
        for option in options
    ]
    title = "Options in which they differ"
    return [tag("h3", title), table(["option", *names], rows, title, words=range(len(names) + 1))]
