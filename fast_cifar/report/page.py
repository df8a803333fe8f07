"""HTML by the element: all but `Markup` is escaped. One style sheet for screens, phones and paper."""

from __future__ import annotations

import html
from collections.abc import Container, Iterable, Sequence

from fast_cifar.plots import style
from fast_cifar.plots.grids import plain

VOID = frozenset({"img", "meta"})  # elements that have no end tag
UNKNOWN = "–"

STYLE = f"""
:root {{
  color-scheme: light dark;
  --paper: #fff; --panel: #f4f6f8; --ink: #1b1f24; --quiet: #57606a; --rule: #d5dae0; --alarm: #9a3d00;
  --blue: {style.BLUE}; --vermillion: {style.VERMILLION}; --green: {style.GREEN}; --purple: {style.PURPLE};
  --orange: {style.ORANGE};
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #14171a; --panel: #1e2328; --ink: #e8eaed; --quiet: #a7b0ba; --rule: #3a424b; --alarm: #ffb27d;
    --blue: #2b95d6;
  }}
}}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}
body {{
  margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}}
h1, h2, h3, p, li, dd {{ overflow-wrap: anywhere; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; margin: 0.5rem 0; }}
h2 {{ font-size: 1.375rem; margin: 2.5rem 0 0.75rem; padding-top: 0.5rem; border-top: 1px solid var(--rule); }}
h3 {{ font-size: 1.125rem; margin: 1.75rem 0 0.5rem; }}
a {{ color: inherit; }}
.headline strong {{ font-size: 2rem; line-height: 1.2; white-space: nowrap; }}
.quiet {{ color: var(--quiet); }}
.alarm {{ color: var(--alarm); font-weight: 600; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.75rem 1.5rem; }}
dt {{ color: var(--quiet); font-size: 0.875rem; }}
dd {{ margin: 0; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; min-width: 0; break-inside: avoid; }}
.charts figure {{ max-width: 40rem; }}
figcaption {{ margin-bottom: 0.25rem; }}
.chart {{ display: block; width: 100%; height: auto; }}
.chart text {{ fill: var(--ink); font-size: 13px; }}
.chart .grid {{ stroke: var(--rule); stroke-width: 1; }}
.chart .axis {{ stroke: var(--quiet); stroke-width: 1; }}
.chart polyline, .key line {{ fill: none; stroke-width: 2; stroke-linejoin: round; }}
.chart .thin {{ stroke-width: 1; }}
.chart .band {{ opacity: 0.15; stroke: none; }}
.chart circle {{ stroke: transparent; stroke-width: 8; pointer-events: all; }}
.blue {{ stroke: var(--blue); fill: var(--blue); }}
.vermillion {{ stroke: var(--vermillion); fill: var(--vermillion); }}
.green {{ stroke: var(--green); fill: var(--green); }}
.purple {{ stroke: var(--purple); fill: var(--purple); }}
.orange {{ stroke: var(--orange); fill: var(--orange); }}
.faint {{ stroke: var(--quiet); fill: var(--quiet); opacity: 0.6; }}
.legend {{
  list-style: none; display: flex; flex-wrap: wrap; gap: 0.125rem 1.25rem; margin: 0.25rem 0; padding: 0;
  font-size: 0.9375rem;
}}
.key {{ width: 2rem; height: 0.75rem; margin-right: 0.375rem; vertical-align: middle; }}
.scroll {{ overflow-x: auto; max-width: 100%; }}
table {{ border-collapse: collapse; margin: 0.5rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.25rem 0.75rem; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }}
th {{ font-weight: 600; }}
tbody th:has(a) {{ white-space: normal; overflow-wrap: anywhere; min-width: 11rem; }}
thead th {{ background: var(--panel); }}
td.number, th.number {{ text-align: right; }}
tr.changed {{ background: var(--panel); font-weight: 600; }}
details {{ margin: 0.75rem 0; }}
summary {{ cursor: pointer; padding: 0.25rem 0; }}
.picture {{ margin: 1.5rem 0; }}
.picture img {{ display: block; width: auto; height: auto; max-width: 100%; background: #fff; }}
code {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 0.9375em; }}
@media (max-width: 48rem) {{
  .picture img {{ max-width: none; width: 56rem; }}
  .chart text {{ font-size: 15px; }}
}}
@media print {{
  :root {{ color-scheme: light; --paper: #fff; --panel: #eee; --ink: #000; --quiet: #444; --rule: #bbb; }}
  html {{ font-size: 10pt; }}
  body {{ max-width: none; padding: 0; }}
  h2, h3 {{ break-after: avoid; }}
  tr {{ break-inside: avoid; }}
  .charts {{ grid-template-columns: 1fr 1fr; }}
  .scroll {{ overflow: visible; }}
  .picture img {{ width: auto; max-width: 100%; }}
  th, td {{ padding: 0.125rem 0.375rem; white-space: normal; }}
}}
"""


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: str | None, **attributes: str | float | bool | None) -> Markup:
    """One element.

    Args:
        children: text, which is escaped, or `Markup`, which is not; None is left out.
        attributes: `class_` is class and `text_anchor` text-anchor; True stands alone, False and None are left out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Markup(start) if name in VOID else Markup(f"{start}{join(children)}</{name}>")


def join(parts: Iterable[str | None]) -> Markup:
    """Text and markup one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts if part is not None))


def escape(text: str) -> Markup:
    """Text that means itself in HTML; control characters and undecodable bytes become "?"."""
    return Markup(html.escape(plain(text)))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    label: str,
    *,
    words: Container[int] = (),
    changed: Container[int] = (),
) -> Markup:
    """A table that scrolls inside a box of its own.

    Args:
        head: one text a column.
        rows: as many cells each; the first is the row's heading.
        label: what the table is, read aloud.
        words: indices of the columns, besides the first, that hold no numbers and are aligned to the left.
        changed: indices of the rows to emphasise.
    """
    kinds = [None if column == 0 or column in words else "number" for column in range(len(head))]
    titles = [tag("th", text, scope="col", class_=kind) for text, kind in zip(head, kinds, strict=True)]
    body = []
    for index, (first, *rest) in enumerate(rows):
        cells = [tag("td", cell, class_=kind) for cell, kind in zip(rest, kinds[1:], strict=True)]
        body.append(tag("tr", tag("th", first, scope="row"), *cells, class_="changed" if index in changed else None))
    whole = tag("table", tag("thead", tag("tr", *titles)), tag("tbody", *body))
    return tag("div", whole, class_="scroll", role="region", aria_label=label, tabindex=0)


def document(title: str, *body: Markup) -> str:
    """The whole page, which refers to nothing outside itself."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *body)), lang="en") + "\n"
