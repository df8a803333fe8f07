"""The report as a browser shows it, on a screen and on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# First the listener, to hear of every error; last the measurements, as an attribute that --dump-dom prints.
LISTENER = "<script>window.wrong = []; addEventListener('error', e => wrong.push(String(e.message)), true)</script>"


MEASUREMENTS = """<script>
addEventListener('load', () => {
  document.querySelectorAll('details').forEach(details => details.open = true)
  const texts = [...document.querySelectorAll('svg.chart')].flatMap(chart => {
    const frame = chart.getBoundingClientRect()
    return [...chart.querySelectorAll('text')].map(text => {
      const box = text.getBoundingClientRect()
      return {text: text.textContent, inside: box.left >= frame.left - 1 && box.right <= frame.right + 1
              && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1, height: box.height}
    })
  })
  parent.document.documentElement.setAttribute('data-measured', JSON.stringify({
    wide: document.documentElement.scrollWidth, window: innerWidth, wrong, texts,
    images: [...document.images].map(image => image.complete ? image.naturalWidth : 0),
  }))
})
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_a_page_as_wide_as_its_window_with_all_pictures_and_no_error(any_page, tmp_path, width):
    instrumented = any_page.replace("<head>", f"<head>{LISTENER}").replace("</body>", f"{MEASUREMENTS}</body>")
    # In a frame, because the window of a headless browser may be no narrower than 500 pixels.
    frame = f'<iframe srcdoc="{html.escape(instrumented)}" style="width: {width}px; height: 844px; border: 0"></iframe>'
    path = tmp_path / "frame.html"
    path.write_text(f"<!DOCTYPE html><html><body>{frame}</body></html>", "utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120)
    measured = json.loads(html.unescape(re.search(r'data-measured="([^"]*)"', shown.stdout)[1]))
    assert "CONSOLE" not in shown.stderr
    assert measured["wrong"] == []
    assert measured["window"] == width
    assert measured["wide"] <= width
    assert measured["images"] == [1300] * any_page.count("<img ")
    assert measured["texts"]
    assert [text for text in measured["texts"] if not text["inside"]] == []
    assert min(text["height"] for text in measured["texts"]) >= 12
