"""Where progress bars are drawn, and what is left of them on the screen."""

import io
import subprocess
import sys
from itertools import zip_longest
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from fast_cifar.system.progress import in_notebook, progress_bar
from tests.helpers.scripts import ROOT


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shell(monkeypatch):
    """`shell(kernel=...)` makes this process one of IPython, with or without a kernel."""

    def be(**attributes):
        ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(**attributes))
        monkeypatch.setitem(sys.modules, "IPython", ipython)

    return be


def screen(text):
    """What a notebook shows of a line: each carriage return begins it again, over what is there."""
    line = ""
    for part in text.split("\r"):
        line = "".join(new or old for new, old in zip_longest(part, line))
    return line.rstrip()


def finish(bar):
    with bar:
        for _ in range(3):
            bar.update()


def test_a_pipe_and_a_log_file_get_no_bar(capsys):
    finish(progress_bar(total=3))
    assert list(progress_bar(range(3))) == [0, 1, 2]
    assert tuple(capsys.readouterr()) == ("", "")


@pytest.mark.parametrize("attributes", [None, {}], ids=["python", "ipython"])
def test_a_terminal_gets_a_bar_on_standard_error(monkeypatch, capsys, shell, attributes):
    if attributes is not None:
        shell(**attributes)
    monkeypatch.setattr(sys, "stderr", Terminal())
    finish(progress_bar(total=3, desc="epoch 1"))
    assert "epoch 1: 100%" in sys.stderr.getvalue()
    assert capsys.readouterr().out == ""


def test_a_notebook_gets_a_bar_on_standard_output_although_that_is_no_terminal(capsys, shell):
    assert not in_notebook()
    shell(kernel=object())
    assert in_notebook()
    finish(progress_bar(total=3, desc="epoch 1", leave=False))
    out, err = capsys.readouterr()
    assert "epoch 1:   0%" in out
    assert (screen(out), err) == ("", "")


def test_bars_in_a_notebook_share_a_line_and_cover_each_other(capsys, shell):
    shell(kernel=object())
    outer = progress_bar(total=2, desc="epochs", unit="epoch")
    outer.set_postfix_str("loss 2.6752, train 7.71%, test 12.50%")
    inner = progress_bar(total=3, desc="epoch 1", leave=False)
    shown = capsys.readouterr().out
    assert "test 12.50%" in shown
    assert not {"\n", "\x1b"} & set(shown)
    assert "12.50%" not in screen(shown)
    assert screen(shown).startswith("epoch 1:   0%")
    tqdm.write("epoch 1 is done")
    written, _, after = capsys.readouterr().out.partition("\n")
    assert screen(shown + written) == "epoch 1 is done"
    assert screen(after).startswith("epoch")
    finish(inner)
    outer.close()


def test_importing_what_trains_imports_neither_ipython_nor_widgets():
    code = "import sys, fast_cifar.trainer; print({'IPython', 'ipywidgets', 'tqdm.notebook'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("set()\n", "")
