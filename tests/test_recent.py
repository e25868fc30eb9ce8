from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamlearn.recent import RecentFrames
from streamlearn.records import Frames

SHAPE = (2, 4, 4, 3)
CLIP_BYTES = int(np.prod(SHAPE))


def frames(*rows: int) -> Frames:
    return np.stack([np.random.default_rng(row).integers(0, 256, SHAPE, dtype=np.uint8) for row in rows])


def room_for(clips: int) -> int:
    return 64 + clips * (CLIP_BYTES + 16)


@pytest.fixture
def recent(tmp_path: Path) -> Iterator[RecentFrames]:
    opened = RecentFrames(tmp_path / "recent.bin", room_for(4))
    yield opened
    opened.close()


def same(recent: RecentFrames, *rows: int) -> bool:
    return all(np.array_equal(recent.get(row), frames(row)[0]) for row in rows)


def test_frames_come_back_bit_by_bit(recent: RecentFrames) -> None:
    recent.put([3, 9], frames(3, 9))
    assert same(recent, 3, 9)
    assert recent.get(4) is None


def test_newest_take_the_place_of_the_oldest_in_a_file_that_does_not_grow(recent: RecentFrames, tmp_path: Path) -> None:
    for row in range(1, 12):
        recent.put([row], frames(row))
        kept = range(max(1, row - 3), row + 1)
        assert same(recent, *kept)
        assert all(recent.get(older) is None for older in range(1, kept[0]))
    assert (tmp_path / "recent.bin").stat().st_size <= room_for(4)


def test_they_survive_a_restart_and_the_ring_goes_on_where_it_was(recent: RecentFrames, tmp_path: Path) -> None:
    recent.put([1, 2, 3, 4, 5], frames(1, 2, 3, 4, 5))
    recent.close()
    again = RecentFrames(tmp_path / "recent.bin", room_for(4))
    assert same(again, 2, 3, 4, 5)
    again.put([6], frames(6))
    assert same(again, 3, 4, 5, 6)
    assert again.get(2) is None
    again.close()


def test_smaller_limit_after_a_restart_is_kept(recent: RecentFrames, tmp_path: Path) -> None:
    recent.put([1, 2, 3, 4], frames(1, 2, 3, 4))
    recent.close()
    again = RecentFrames(tmp_path / "recent.bin", room_for(2))
    again.put([5, 6], frames(5, 6))
    assert same(again, 5, 6)
    assert (tmp_path / "recent.bin").stat().st_size <= room_for(2)
    again.close()


def test_deleted_rows_are_gone_from_the_file_too(recent: RecentFrames, tmp_path: Path) -> None:
    recent.put([1, 2], frames(1, 2))
    recent.delete([1, 7])
    assert recent.get(1) is None
    assert same(recent, 2)
    assert frames(1)[0].tobytes() not in (tmp_path / "recent.bin").read_bytes()


def test_rows_that_nobody_knows_are_forgotten(recent: RecentFrames) -> None:
    recent.put([1, 2, 3], frames(1, 2, 3))
    recent.keep_only([2])
    assert same(recent, 2)
    assert recent.get(1) is None
    assert recent.get(3) is None


@pytest.mark.parametrize("damage", ["torn", "flipped", "other row"])
def test_damaged_slot_is_none(recent: RecentFrames, tmp_path: Path, damage: str) -> None:
    recent.put([1, 2], frames(1, 2))
    path = tmp_path / "recent.bin"
    data = bytearray(path.read_bytes())
    if damage == "torn":
        data = data[:-5]
    elif damage == "flipped":
        data[-5] ^= 1
    else:
        data[-CLIP_BYTES - 12] ^= 4  # the lowest byte of the slot's row
    path.write_bytes(data)
    assert recent.get(2) is None
    assert same(recent, 1)


def test_frames_of_another_shape_begin_the_file_anew(recent: RecentFrames) -> None:
    recent.put([1], frames(1))
    recent.put([2], np.zeros((1, 3, 4, 4, 3), np.uint8))
    assert recent.get(1) is None
    assert np.array_equal(recent.get(2), np.zeros((3, 4, 4, 3), np.uint8))


@pytest.mark.parametrize("content", [b"", b"no such file", b"SLRECENT"])
def test_file_of_something_else_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recent.bin").write_bytes(content)
    opened = RecentFrames(tmp_path / "recent.bin", room_for(2))
    opened.put([1], frames(1))
    assert same(opened, 1)
    opened.close()


def test_no_room_for_a_clip_keeps_none(tmp_path: Path) -> None:
    opened = RecentFrames(tmp_path / "recent.bin", 50)
    opened.put([1], frames(1))
    assert opened.get(1) is None
    opened.close()
    RecentFrames(tmp_path / "recent.bin", 0).close()
