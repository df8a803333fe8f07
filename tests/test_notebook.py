"""docs/assignment.ipynb: it runs, on synthetic images, and what is committed of a longer run shows no other machine."""

import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.helpers.scripts import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = ROOT / "docs" / "assignment.ipynb"
# Comes after the cell with the settings.
SMALL = """
data, width, epochs = "synthetic", 8, 2
options |= {"data": data, "width": width, "limit_train": 960, "batch_size": 32}
"""

PATIENT = {"startup_timeout": 600, "iopub_timeout": 60, "timeout": 600}  # seconds: the machine may be busy


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell):
    """Every output of a cell that is text."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (data for kind, data in output.get("data", {}).items() if kind.startswith("text/"))


def copy_checkout(folder):
    """What the notebook needs of this checkout."""
    shutil.copytree(ROOT / "fast_cifar", folder / "fast_cifar", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_train.py", folder)


def test_it_runs_from_a_checkout_and_shows_bars_lines_and_figures(notebook, tmp_path):
    copy_checkout(tmp_path)
    (tmp_path / "docs").mkdir()
    (settings,) = (i for i, cell in enumerate(notebook.cells) if "epochs, width =" in cell.source)
    notebook.cells.insert(settings + 1, nbformat.v4.new_code_cell(SMALL))
    resources = {"metadata": {"path": tmp_path / "docs"}}
    client = nbclient.NotebookClient(notebook, kernel_name="python3", resources=resources, **PATIENT)
    client.execute()  # raises on an error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "fast_cifar", "run_train.py", "runs"]
    (training,) = ("".join(texts(cell)) for cell in code_cells(notebook) if "train(TrainOptions" in cell.source)
    assert "\repoch 1/2:   0%" in training  # the bar
    assert re.findall(r"epoch \d/2 \|", training) == ["epoch 1/2 |", "epoch 2/2 |"]  # a line each
    assert not [output for cell in code_cells(notebook) for output in cell.outputs if output.get("name") == "stderr"]


def first_cell(notebook, folder):
    """Runs the first cell in `folder`, and says where the package then comes from. No installed package is in sight."""
    source = code_cells(notebook)[0].source + "\nimport fast_cifar; print(fast_cifar.__file__)"
    return subprocess.run([sys.executable, "-I", "-S", "-c", source], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("inside", [".", "docs", "docs/more"])
def test_it_finds_the_checkout_that_it_is_in(notebook, tmp_path, inside):
    copy_checkout(tmp_path)
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    result = first_cell(notebook, tmp_path / inside)
    assert (result.stdout.strip(), result.stderr) == (str(tmp_path / "fast_cifar" / "__init__.py"), "")


def test_it_unpacks_an_archive_that_was_uploaded_beside_it(notebook, tmp_path):
    copy_checkout(tmp_path / "made" / "here")
    with zipfile.ZipFile(tmp_path / "fast_cifar.zip", "w") as archive:
        for path in (tmp_path / "made" / "here").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "made" / "here"))
    for _ in range(2):  # the second time, the archive has been unpacked already
        result = first_cell(notebook, tmp_path)
        unpacked = tmp_path / "fast_cifar" / "fast_cifar" / "__init__.py"
        assert (result.stdout.strip(), result.stderr) == (str(unpacked), "")


def test_without_the_project_one_line_says_what_to_do(notebook, tmp_path):
    result = first_cell(notebook, tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(r"fast_cifar is not here: .*fast_cifar\.zip.*\n", result.stderr)


def test_it_is_committed_with_the_outputs_of_one_run_from_top_to_bottom(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 8
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = "".join(text for cell in cells for text in texts(cell))
    assert re.search(r"^test accuracy \d\d\.\d\d %", text, re.MULTILINE)
    assert not re.search(r"[\r\x1b]|\d(it|batch|step|epoch)/s", text)  # of progress bars
    assert NOTEBOOK.stat().st_size < 1.5e6


def test_it_names_no_path_of_the_machine_it_ran_on_and_no_address_to_be_filled_in(notebook):
    for cell in notebook.cells:
        cell.outputs = [text for text in texts(cell) if text] if cell.cell_type == "code" else []
        for text in (cell.source, *cell.outputs):
            assert not re.search(r"(?<![\w.>*:/])(/[\w.~-]+){2}|\b[A-Z]:\\|file:", text)
            assert not re.search(r"git clone|github\.com|(?i:<owner|<user)", text)
    assert "/home" not in str(notebook.metadata)


def test_the_grad_cam_takes_at_most_40_lines(notebook):
    (source,) = (cell.source for cell in code_cells(notebook) if "def grad_cam" in cell.source)
    assert len(source.splitlines()) <= 40
