import errno
import os
from pathlib import Path

import pytest

from streamlearn.room import Room


def test_a_disk_with_enough_left_is_no_trouble(tmp_path: Path) -> None:
    assert Room(tmp_path, 1).trouble() is None


def test_a_disk_with_less_than_is_asked_for_is_named_with_the_setting(tmp_path: Path) -> None:
    said = str(Room(tmp_path, 2**62).trouble())
    assert str(tmp_path) in said
    assert "checkpoint.min_free_bytes" in said


def test_a_folder_that_is_read_only_or_gone_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be looked at" in str(Room(tmp_path / "gone", 1).trouble())

    def refuse(*_: object) -> None:  # as ext4 does after an error, when its flags still say that it can be written
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("os.utime", refuse)
    said = str(Room(tmp_path, 0).trouble())
    assert f"{tmp_path} cannot be written (Read-only file system)" in said
    assert "nothing is learned" in said
