"""Files that are whole or not there at all."""

import pytest

from fast_cifar.system.errors import UserError
from fast_cifar.system.files import atomic_write


def fail(path):
    with atomic_write(path) as file:
        file.write(b"half")
        raise OSError("disk full")


def test_the_file_appears_when_the_block_ends(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UserError, match="cannot write .*disk full"):
        fail(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_makes_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot write .*disk full"):
        fail(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_the_file_that_was_there_is_kept_under_another_name(tmp_path):
    for content in (b"first", b"second", b"third"):
        with atomic_write(tmp_path / "a", previous=tmp_path / "b") as file:
            file.write(content)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"third", "b": b"second"}


def test_it_is_kept_where_a_file_can_have_one_name_only_too(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", link)
    test_the_file_that_was_there_is_kept_under_another_name(tmp_path)


def test_a_failure_leaves_both_as_they_were(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())

    def write():
        with atomic_write(tmp_path / "a", previous=tmp_path / "b") as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(UserError):
        write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"a", "b": b"b"}
