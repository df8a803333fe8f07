"""Files that are written whole or not at all, and JSON files."""

import json
from pathlib import Path

import pytest

from fast_cifar.system.errors import UserError
from fast_cifar.system.files import atomic_write, read_json, require_writable, write_json

# What ends the writing of a file, and what comes of it.
FAILURES = pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (OSError("disk full"), UserError, "cannot write .*disk full"),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
    ],
    ids=["full disk", "interruption"],
)


def fail(failure, path, previous=None):
    with atomic_write(path, previous=previous) as file:
        file.write(b"half")
        raise failure


def test_the_file_appears_when_the_block_ends(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@FAILURES
def test_a_failure_creates_no_file(tmp_path, failure, error, message):
    with pytest.raises(error, match=message):
        fail(failure, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file/a", "a" * 300])
def test_what_cannot_even_be_opened_is_one_line(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"), atomic_write(tmp_path / name):
        pass


def test_the_previous_file_is_kept_under_another_name(tmp_path):
    for content in (b"first", b"second", b"third"):
        with atomic_write(tmp_path / "a", previous=tmp_path / "b") as file:
            file.write(content)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"third", "b": b"second"}


def test_the_previous_file_is_kept_on_file_systems_without_hard_links(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", link)
    test_the_previous_file_is_kept_under_another_name(tmp_path)


def test_nothing_is_left_where_both_names_are_the_same_file_already(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    with atomic_write(tmp_path / "a", previous=tmp_path / "b") as file:
        file.write(b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"old"}


@FAILURES
def test_a_failure_changes_neither_the_file_nor_the_previous_one(tmp_path, failure, error, message):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(error, match=message):
        fail(failure, tmp_path / "a", previous=tmp_path / "b")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"a", "b": b"b"}


@pytest.mark.parametrize("name", ["café 猫", "undecodable \udce9", "a\nb", "", "\\udce9"])
def test_json_comes_back_as_it_was_written_and_is_utf_8(tmp_path, name):
    path = tmp_path / "new folder" / "a.json"
    write_json(path, {"name": name, name: [1, 2.5, None, True]})
    assert read_json(path) == {"name": name, name: [1, 2.5, None, True]} == json.loads(path.read_text("utf-8"))


def test_json_is_readable_text(tmp_path):
    write_json(tmp_path / "a.json", {"spread": "± 0.1"})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "spread": "± 0.1"\n}\n'


def test_a_json_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"a\.json cannot be read \(No such file or directory\); make it"):
        read_json(tmp_path / "a.json", "make it")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match=r"a\.json is damaged: it holds no JSON object; fix it or delete it"):
        read_json(tmp_path / "a.json")


def test_a_json_file_whose_folder_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the folder"):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_drive_that_does_not_exist_cannot_be_written_to(monkeypatch):
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    with pytest.raises(UserError, match="is not a folder; choose another"):
        require_writable(Path("Z:/runs"), "choose another")
