"""What the documents say about the code is true: names of files, options, README's example, and the order of layers."""

import ast
import graphlib
import re
import subprocess
import sys

import numpy as np
import pytest

from fast_cifar.options import TrainOptions, flag_of
from tests.helpers.scripts import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def modules():
    """Every module of the package and the two scripts, by its dotted name."""
    paths = [*ROOT.glob("run_*.py"), *(ROOT / "fast_cifar").rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths if path.stem != "__init__"}


def imports(path, names):
    """Those of `names` that the module imports, anywhere in its text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & names
        elif isinstance(node, ast.ImportFrom):
            yield from {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & names


def test_a_module_imports_only_from_the_layers_below_it():
    text = (ROOT / "docs" / "design.md").read_text()
    layers = re.search(r"^## Layers$.*?^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1].splitlines()
    names = {
        name: ("" if name.startswith("run_") else "fast_cifar.") + name.removesuffix(".py").replace("/", ".")
        for line in layers
        for name in line.split()
    }
    layer = {names[name]: number for number, line in enumerate(layers) for name in line.split()}
    assert layer.keys() == modules().keys()
    for name, path in modules().items():
        for other in imports(path, layer.keys()):
            assert layer[other] > layer[name], f"{name} imports {other}"


def test_the_benchmarks_import_each_other_in_no_circle():
    paths = {f"bench.{path.stem}": path for path in (ROOT / "bench").glob("*.py")}
    graphlib.TopologicalSorter({name: set(imports(path, paths.keys())) for name, path in paths.items()}).prepare()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_files_that_a_document_names_exist(document):
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / link).exists(), link
    for path in re.findall(r"`((?:tests|bench|fast_cifar|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_sections_that_a_document_links_to_exist(document):
    for link, section in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text()):
        text = (document.parent / link if link else document).read_text()
        titles = [
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
        ]
        assert section in titles, f"{link}#{section}"


def test_readmes_table_has_every_option_of_training_and_no_other():
    table = re.search(r"^\| to change \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[0]
    on_by_default = {f.name for f in TrainOptions.option_fields() if f.default is True}
    options = {flag_of(name, name not in on_by_default) for name in TrainOptions.names()}
    assert set(re.findall(r"`(--[\w-]+)`", table)) == options


def test_readmes_way_to_read_a_checkpoint_works_in_a_fresh_interpreter(run):
    (expression,) = re.findall(r"`(torch\.load\(.*?\])`", (ROOT / "README.md").read_text())
    code = f"""
import sys, torch
from fast_cifar import CustomResNet
path = sys.argv[1]
print(CustomResNet(2).load_state_dict({expression}))
"""
    arguments = [sys.executable, "-c", code, str(run[0] / "last.pt")]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "<All keys matched successfully>\n"


def test_readmes_own_model_trains(tmp_path, monkeypatch, capsys):
    """Six epochs of the README's example on random images."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (example,) = (block for block in blocks if "range_test" in block)
    assert len(example.splitlines()) < 20
    random = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", random.integers(0, 256, (160, 32, 32, 3), dtype=np.uint8))
    np.save("labels.npy", random.integers(0, 10, 160))
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"[\d.]+%\n", capsys.readouterr().out)
