"""The run folder's files."""

import json

import pytest

from fast_cifar.errors import UserError
from fast_cifar.run_folder import RunFolder, check_new, new_path


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "a")


def test_an_existing_folder_is_refused_and_resume_offered(folder):
    with pytest.raises(UserError, match=r"exists already.*--resume"):
        RunFolder.create(folder.path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        RunFolder.create(tmp_path / "file" / "a")


def test_a_name_that_is_too_long_is_one_error(tmp_path):
    with pytest.raises(UserError, match="--out"):
        RunFolder.create(tmp_path / ("x" * 300))
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path / ("x" * 300))


def test_a_folder_that_cannot_be_made_is_known_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        check_new(tmp_path / "file" / "runs" / "a")
    check_new(tmp_path / "not" / "yet" / "a")


def test_two_runs_without_a_name_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "now")
    names = []
    for _ in range(3):
        path = new_path(str(tmp_path), None, "cifar10")
        path.mkdir()
        names.append(path.name)
    assert names == ["cifar10-now", "cifar10-now-2", "cifar10-now-3"]


def test_only_a_run_can_be_opened(tmp_path, folder):
    with pytest.raises(UserError, match=r"no config\.json"):
        RunFolder.open(tmp_path)
    folder.write_config({"epochs": 3})
    assert RunFolder.open(folder.path).config() == {"epochs": 3}


@pytest.mark.parametrize("junk", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_configuration_is_named(folder, junk):
    (folder / "config.json").write_bytes(junk)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        folder.config()


def test_history_comes_back_in_order(folder):
    for epoch in (1, 2, 3):
        folder.append_history({"epoch": epoch})
    assert [row["epoch"] for row in folder.history()] == [1, 2, 3]


def test_a_line_cut_short_by_a_kill_ends_the_history(folder):
    folder.append_history({"epoch": 1})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "tra')
    assert folder.cut_history(5) == [{"epoch": 1}]
    folder.append_history({"epoch": 2})
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_epochs_to_be_done_again_are_dropped(folder):
    for epoch in (1, 2, 3):
        folder.append_history({"epoch": epoch})
    assert folder.cut_history(2) == [{"epoch": 1}, {"epoch": 2}]
    assert len(folder.history()) == 2


def test_no_number_is_written_that_json_does_not_know(folder):
    with pytest.raises(ValueError, match="JSON"):
        folder.append_history({"loss": float("nan")})


def test_there_is_no_summary_before_the_end(folder):
    assert folder.summary() is None
    folder.write_summary({"n": 1})
    assert folder.summary() == {"n": 1}


@pytest.mark.parametrize(
    ("data", "start"),
    [("cifar10", "cifar10-"), ("/x/pets", "pets-"), ("/x/cifar-10-python.tar.gz", "cifar-10-python-")],
)
def test_a_run_without_a_name_is_called_after_its_data(data, start):
    assert new_path("runs", None, data).name.startswith(start)
