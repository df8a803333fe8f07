"""The page of a report: its text is escaped, it is self-contained, a browser shows it; and its command."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fast_cifar.report import main, report
from tests.helpers.pages import (
    cells,
    facts,
    lrfind,
    page,
    parse,
    write,
    write_range_test,
    write_run,
    write_seeds,
)
from tests.helpers.plots import history
from tests.helpers.runs import read_json
from tests.helpers.scripts import ROOT, refused

ATTACK = "<script>alert('x')</script>&amp;\""


@pytest.fixture(scope="module", params=["run", "seeds", "unfinished", "range test", "comparison"])
def any_page(request, tmp_path_factory):
    """A report of each kind."""
    root = tmp_path_factory.mktemp("runs")
    folders = {
        "run": write_run(root / "run", history(6, ("train", "val", "test")), images=True),
        "seeds": write_seeds(root / "seeds", [history(4, seed=seed) for seed in range(3)]),
        "unfinished": write_run(root / "unfinished", history(2), finished=False, epochs=9),
        "range test": write_range_test(root / "lr"),
    }
    return report(list(folders.values()) if request.param == "comparison" else [folders[request.param]])


@pytest.fixture
def refusal(run_here):
    """The line with which the command refuses these arguments; there is nothing on standard output."""

    def line(*arguments):
        code, output, errors = run_here(main, *arguments)
        assert output == ""
        return refused((code, output, errors))

    return line


def test_a_page_is_balanced_shows_no_missing_value_and_refers_to_nothing_outside_itself(any_page):
    root = parse(any_page)
    assert any_page.startswith("<!DOCTYPE html>\n")
    assert root.one("head").one("title").text == root.one("h1").text
    assert root.one("html")["lang"] == "en"
    assert not re.search(r"\b(None|null|nan|NaN|inf|undefined)\b", root.one("body").text)
    assert not [name for name in ("script", "link", "iframe", "object", "base", "form") if root.all(name)]
    for image in root.all("img"):
        assert image["src"].startswith("data:image/png;base64,")
        assert len(image["alt"]) > 20
    ids = {element["id"] for element in root.all("section")}
    assert {anchor["href"].removeprefix("#") for anchor in root.all("a")} <= ids
    assert not re.search(r"url\(|@import|https?:", any_page)


def test_the_contents_of_a_file_are_shown_as_text(tmp_path):
    folder = write_run(tmp_path / "<img src=x onerror=alert(1)>", history(2), data=ATTACK)
    summary = read_json(folder / "summary.json")
    write(folder / "summary.json", summary | {"dataset": ATTACK, "device": ATTACK, "torch": ATTACK})
    config = read_json(folder / "config.json") | {ATTACK: [ATTACK]}
    write(folder / "config.json", config)
    write(folder / "lrfind.json", lrfind() | {"warnings": [ATTACK]})
    other = write_run(tmp_path / "b", history(2))
    for root in (page(folder), page(folder, other)):
        assert not root.all("script")
        assert not [image for image in root.all("img") if not image["src"].startswith("data:")]
        assert facts(root)["device"] in (ATTACK, "abacus")
        assert root.all("p", "alarm")[0].text == ATTACK
        assert ATTACK in [code.text for code in root.all("code")]
        assert any("<img src=x onerror=alert(1)>" in heading.text for heading in root.all("h1") + root.all("h2"))


def test_a_folder_whose_name_cannot_be_decoded_can_be_shown(tmp_path):
    folder = write_run(tmp_path / "a", history(1))
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n"))
    try:
        folder.rename(strange)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert main([str(strange)]) == 0
    assert parse((strange / "report.html").read_text("utf-8")).one("h1").text == "Run ??"


def test_a_run_that_was_trained_can_be_shown(run):
    folder, summary, _ = run
    root = page(folder)
    assert root.one("p", "headline").text.startswith(f"{100 * summary['test_accuracy']:.2f} %")
    assert len(root.all("img")) >= 3
    assert len(cells(root.one("details"))) == 1 + 3


def test_the_page_goes_into_the_run_folder(run_folder, capsys):
    before = {path.name for path in run_folder.iterdir()}
    assert main([str(run_folder)]) == 0
    assert capsys.readouterr().out.startswith(str(run_folder / "report.html"))
    assert {path.name for path in run_folder.iterdir()} - before == {"report.html"}
    assert (run_folder / "report.html").read_text("utf-8") == report([run_folder])


def test_the_page_of_a_comparison_goes_into_the_current_folder_unless_out_names_another(tmp_path, monkeypatch):
    folders = [str(write_run(tmp_path / name, history(2))) for name in "ab"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(folders) == 0
    assert main([*folders, "--out", "other.html"]) == 0
    assert {path.name for path in Path().iterdir()} == {"report.html", "other.html"}


DAMAGE = {
    "config.json": [b"", b"{", b"[]", b'{"model": "bert"}', b"\xff"],
    "summary.json": [b"", b"[]", b'{"test_accuracy": "high"}'],
    "metrics.jsonl": [b"{\n", b'{"epoch": 2}\n', b'{"epoch": 1}\n{\n{"epoch": 2}\n', b'{"epoch": "<b>"}\n'],
    "lrfind.json": [
        b'{"lrs": [0], "losses": [1], "smoothed": [1]}',
        b"{}",
        b'{"lrs": [1], "losses": [1, 2], "smoothed": [1]}',
        b'{"lrs": 1, "losses": 1, "smoothed": 1}',
    ],
    "samples.png": [b"", b"not an image"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, some in DAMAGE.items() for content in some])
def test_damage_is_one_line_that_names_the_file_and_nothing_is_written(run_folder, run_here, refusal, name, content):
    run_here(main, run_folder)
    good = (run_folder / "report.html").read_bytes()
    (run_folder / name).write_bytes(content)
    before = sorted(path.name for path in run_folder.iterdir())
    line = refusal(run_folder)
    assert name in line
    assert str(run_folder) in line
    assert sorted(path.name for path in run_folder.iterdir()) == before
    assert (run_folder / "report.html").read_bytes() == good


def test_a_truncated_image_is_named(run_folder, refusal):
    path = run_folder / "confusion.png"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "confusion.png" in refusal(run_folder)


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_what_is_not_a_run_folder_is_one_line(run_folder, tmp_path, refusal, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert f"{tmp_path / name} is not a run folder" in refusal(run_folder, tmp_path / name, "--out", "out.html")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [[], ["a", "--what"], ["a", "--ou", "x.html"]])
def test_a_wrong_command_line_is_one_line(arguments, refusal):
    refusal(*arguments)


@pytest.mark.parametrize(("out", "error"), [("config.json", "must end in .html"), ("no/report.html", "no/report.html")])
def test_a_page_that_cannot_be_written_there_is_refused_in_one_line(run_folder, refusal, out, error):
    before = (run_folder / "config.json").read_bytes()
    assert error in refusal(run_folder, "--out", run_folder / out)
    assert (run_folder / "config.json").read_bytes() == before


def test_it_starts_without_torch_and_matplotlib(run_folder):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None\n"
        "from fast_cifar.report import main; sys.exit(main(sys.argv[1:]))"
    )
    subprocess.run([sys.executable, "-c", code, str(run_folder)], check=True, cwd=ROOT)
    assert (run_folder / "report.html").exists()


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# First the listener, to hear of every error; last the measurements, as an attribute that --dump-dom prints.
LISTENER = "<script>window.wrong = []; addEventListener('error', e => wrong.push(String(e.message)), true)</script>"
MEASUREMENTS = """<script>
addEventListener('load', () => {
  document.querySelectorAll('details').forEach(details => details.open = true)
  parent.document.documentElement.setAttribute('data-measured', JSON.stringify({
    wide: document.documentElement.scrollWidth, window: innerWidth, wrong,
    images: [...document.images].map(image => image.complete ? image.naturalWidth : 0),
  }))
})
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_a_page_as_wide_as_its_window_with_all_images_and_no_error(any_page, tmp_path, width):
    instrumented = any_page.replace("<head>", f"<head>{LISTENER}").replace("</body>", f"{MEASUREMENTS}</body>")
    # In a frame, because the window of a headless browser may be no narrower than 500 pixels.
    frame = f'<iframe srcdoc="{html.escape(instrumented)}" style="width: {width}px; height: 844px; border: 0"></iframe>'
    path = tmp_path / "frame.html"
    path.write_text(f"<!DOCTYPE html><html><body>{frame}</body></html>", "utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [
        "--enable-logging=stderr",
        "--log-level=0",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,900",
        "--dump-dom",
        path.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, check=True, text=True, timeout=600)
    measured = json.loads(html.unescape(re.search(r'data-measured="([^"]*)"', shown.stdout)[1]))
    assert "CONSOLE" not in shown.stderr
    assert measured["wrong"] == []
    assert measured["window"] == width
    assert measured["wide"] <= width
    assert [int(image["width"]) for image in parse(any_page).all("img")] == measured["images"]
