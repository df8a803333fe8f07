"""Files that are whole or not there at all."""

import pytest

from fast_cifar.errors import UserError
from fast_cifar.files import atomic_write


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
