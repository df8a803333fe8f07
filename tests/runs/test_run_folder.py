"""The run folder's files."""

import json

import pytest

from fast_cifar.runs.run_folder import RunFolder, check_new, new_path
from fast_cifar.system.errors import UserError
from tests.helpers.pages import summary_of
from tests.helpers.plots import history


def row(epoch, **changes):
    """A valid row of the history."""
    names = ("lr", "train_loss", "train_accuracy", "images_per_second", "seconds", "evaluation_seconds")
    return {"epoch": epoch, **dict.fromkeys(names, 0.5), "test_loss": None, "test_accuracy": None} | changes


SUMMARY = summary_of(history(2))


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(str(tmp_path / "runs"), "a", "cifar10")


def test_an_existing_folder_is_refused(folder):
    with pytest.raises(UserError, match="File exists; choose another --name"):
        RunFolder.create(str(folder.path.parent), folder.path.name, "cifar10")


def test_a_name_that_is_too_long_is_one_error(tmp_path):
    with pytest.raises(UserError, match="--out"):
        RunFolder.create(str(tmp_path), "x" * 300, "cifar10")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path / ("x" * 300))


def test_a_folder_that_cannot_be_created_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path / 'file'} is not a folder; choose another folder with --out"):
        check_new(tmp_path / "file" / "runs" / "a")
    check_new(tmp_path / "not" / "yet" / "a")


def test_runs_without_a_name_get_different_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "now")
    names = []
    for _ in range(3):
        path = new_path(str(tmp_path), None, "cifar10")
        path.mkdir()
        names.append(path.name)
    assert names == ["cifar10-now", "cifar10-now-2", "cifar10-now-3"]


# Empty, cut short, not an object, not UTF-8, nested too deeply, and a number with too many digits.
JUNK = [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"epochs": ' + b"9" * 5000 + b"}"]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_a_damaged_file_is_named_with_a_remedy(folder, junk):
    for name in ("config.json", "summary.json", "lrfind.json"):
        (folder / name).write_bytes(junk)
    with pytest.raises(UserError, match=r"config\.json is damaged: it holds no JSON object; restore it, or start"):
        folder.config()
    with pytest.raises(UserError, match=r"summary\.json is damaged: it holds no JSON object; delete it"):
        folder.summary()
    with pytest.raises(UserError, match=r"lrfind\.json is damaged: it holds no JSON object; delete it"):
        folder.range_test()


@pytest.mark.parametrize("value", [None, "x", True, [], -1, float("nan"), float("inf"), 10**400])
def test_a_summary_without_an_accuracy_is_damaged(folder, value):
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"test_accuracy": value}))
    with pytest.raises(UserError, match=r"summary\.json is damaged: its test_accuracy is not a number; delete it"):
        folder.summary()


@pytest.mark.parametrize("end", [b'{"epoch": 2, "tra', b"\xff\xfe\n", b"\xef\xbb\xbf{}\n", b"[1]\n", bytes(50), *JUNK])
def test_a_damaged_line_ends_the_history(folder, end):
    folder.append_history(row(1))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(end)
    assert folder.history() == folder.cut_history(1) == [row(1)]
    folder.append_history(row(2))
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2]


NO_ROWS = [
    {},
    row(1),
    row(3),
    row(2, seconds=None),
    row(2, lr="fast"),
    row(2, train_loss=10**400),
    row(2, test_accuracy=[]),
    row(2, val_loss="x"),
    {name: value for name, value in row(2).items() if name != "test_accuracy"},
    {name: value for name, value in row(2).items() if name != "evaluation_seconds"},
]


@pytest.mark.parametrize("line", NO_ROWS, ids=range(len(NO_ROWS)))
def test_an_epoch_without_a_valid_row_is_named(folder, line):
    for each in (row(1), line, row(3)):
        folder.append_history(each)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: it has no line for epoch 2 of 3"):
        folder.cut_history(3)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert folder.cut_history(1) == [row(1)]


def test_a_row_of_the_history_is_flushed_to_the_disk(folder, monkeypatch):
    flushed = []
    monkeypatch.setattr("os.fsync", lambda file: flushed.append((folder / "metrics.jsonl").read_text()))
    folder.append_history({"epoch": 1})
    assert flushed == ['{"epoch": 1}\n']


def test_a_number_that_json_does_not_have_is_refused(folder):
    with pytest.raises(ValueError, match="JSON"):
        folder.append_history({"loss": float("nan")})


@pytest.mark.parametrize(
    ("data", "start"),
    [("cifar10", "cifar10-"), ("/x/pets", "pets-"), ("/x/cifar-10-python.tar.gz", "cifar-10-python-")],
)
def test_a_run_without_a_name_is_named_after_its_data(data, start):
    assert new_path("runs", None, data).name.startswith(start)
