import json
import os
import resource
from pathlib import Path

import pytest

from streamlearn.deadletters import FileDeadLetters, Mark, append_mark, read_dead_letters, read_letters
from streamlearn.errors import SourceError
from streamlearn.records import Position, Record, Rejected
from streamlearn.source import DeadLetters


def rejected(offset: int, *, key: bytes | None = b"k\xff", value: bytes | None = b"\x00not json") -> Rejected:
    record = Record(key, value, Position("clips", "0", offset), (("caption", b"\xfe"), ("caption", b"")), 1234)
    return Rejected(record, "invalid_json", "validate", 'not JSON: "\u2028"\n')


def test_what_was_flushed_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "dead.jsonl"
    letters = [rejected(1), rejected(2, key=None), rejected(3, value=None), rejected(4, value=b"")]
    dead = FileDeadLetters(path)
    assert isinstance(dead, DeadLetters)
    for letter in letters:
        dead.write(letter)
    assert not path.exists()
    dead.flush()
    assert list(read_dead_letters(path)) == letters
    dead.close()
    dead.close()


def test_a_stream_without_dead_letters_leaves_no_file(tmp_path: Path) -> None:
    dead = FileDeadLetters(tmp_path / "dead.jsonl")
    dead.flush()
    dead.close()
    assert list(tmp_path.iterdir()) == []
    assert list(read_dead_letters(tmp_path / "dead.jsonl")) == []


def test_letters_of_earlier_runs_stay(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    for offset in (1, 2):
        dead = FileDeadLetters(path)
        dead.write(rejected(offset))
        dead.flush()
        dead.close()
    assert [letter.position.offset for letter in read_dead_letters(path)] == [1, 2]


@pytest.mark.parametrize("cut", [1, 30, 10_000])
def test_a_line_that_a_crash_cut_short_is_no_letter_and_spoils_none(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "dead.jsonl"
    dead = FileDeadLetters(path)
    for offset in (1, 2):
        dead.write(rejected(offset, value=bytes(100_000)))  # longer than one look backwards for its line
    dead.flush()
    dead.close()
    os.truncate(path, path.stat().st_size - cut)
    assert [letter.position.offset for letter in read_dead_letters(path)] == [1]
    again = FileDeadLetters(path)
    again.write(rejected(2))
    again.flush()
    again.close()
    assert [letter.position.offset for letter in read_dead_letters(path)] == [1, 2]


def test_a_file_of_nothing_but_a_torn_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    path.write_bytes(b'{"code":')
    dead = FileDeadLetters(path)
    dead.write(rejected(1))
    dead.flush()
    dead.close()
    assert [letter.position.offset for letter in read_dead_letters(path)] == [1]


def test_letters_that_cannot_be_written_are_kept_for_the_next_flush(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "dead.jsonl"
    (tmp_path / "folder").write_text("a file where the folder should be")
    dead = FileDeadLetters(path)
    dead.write(rejected(1))
    with pytest.raises(SourceError, match=r"dead\.jsonl"):
        dead.flush()
    (tmp_path / "folder").unlink()
    dead.write(rejected(2))
    dead.flush()
    dead.close()
    assert [letter.position.offset for letter in read_dead_letters(path)] == [1, 2]


def test_letters_beyond_what_may_wait_are_kept_and_say_so_where_they_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "dead.jsonl"
    (tmp_path / "folder").write_text("a file where the folder should be")
    dead = FileDeadLetters(path)
    for offset in range(3):
        dead.write(rejected(offset, value=bytes(6 * 2**20)))
    assert dead.full
    (tmp_path / "folder").unlink()
    dead.flush()
    assert not dead.full
    dead.close()
    assert [letter.position.offset for letter in read_dead_letters(path)] == [0, 1, 2]


def test_a_disk_that_fills_in_the_middle_of_a_flush_loses_no_letter(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    letters = [rejected(n, value=b"x" * 1000) for n in range(5)]
    dead = FileDeadLetters(path)
    for letter in letters:
        dead.write(letter)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))  # a write that passes it is short, the next one fails
    try:
        with pytest.raises(SourceError, match="cannot be written"):
            dead.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    dead.flush()
    dead.close()
    assert {letter.position.offset for letter in read_dead_letters(path)} == set(range(5))


def test_a_mark_is_read_as_it_was_written_and_looks_up_what_is_left_at_once() -> None:
    mark = Mark((), {"clips/0": 9}, {"clips/0": [5, 3]})
    again = Mark.from_json(json.loads(json.dumps(mark.to_json())))
    covered = [offset for offset in (2, 3, 5, 8, 9) if again.covers("unplayable", "clips/0", offset)]
    assert covered == [2, 8]
    assert isinstance(again.left["clips/0"], frozenset)  # a list would be gone through once a letter
    assert again.to_json() == {"replayed": [], "ends": {"clips/0": 9}, "left": {"clips/0": [3, 5]}}


def test_a_mark_after_a_torn_line_spoils_neither_itself_nor_the_letters(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    dead = FileDeadLetters(path)
    for offset in (1, 2):
        dead.write(rejected(offset))
    dead.flush()
    dead.close()
    os.truncate(path, path.stat().st_size - 5)
    mark = Mark(("invalid_json",), {"clips/0": 2})
    append_mark(path, mark)
    append_mark(path, mark)
    assert [entry for _, entry in read_letters(path)] == [rejected(1), mark, mark]
