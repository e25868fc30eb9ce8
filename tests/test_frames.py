from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamlearn.frames import FrameStore, pack
from streamlearn.records import Frames

ROOMY = 10**9


def colour(red: int, green: int, blue: int) -> Frames:
    return np.full((32, 48, 3), (red, green, blue), np.uint8)


RED, GREEN, BLUE = colour(220, 30, 30), colour(30, 220, 30), colour(30, 30, 220)


def noise(seed: int, count: int = 4) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "frames",
    [
        np.stack([RED]),
        np.stack([RED, RED, RED]),
        np.stack([RED, GREEN, BLUE]),
        np.stack([RED, RED, GREEN, GREEN, GREEN, RED, BLUE, BLUE]),
        np.stack([RED, GREEN, GREEN]),
    ],
    ids=["one", "still", "distinct", "runs", "run-at-the-end"],
)
def test_frames_come_back_in_number_and_order_also_where_some_are_equal(tmp_path: Path, frames: Frames) -> None:
    store = FrameStore(tmp_path, ROOMY)
    store.put(7, pack(frames))
    back = store.get(7)
    assert back is not None
    assert back.shape == frames.shape
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - frames).max() < 12  # JPEG is lossy; the colours are 190 apart


def test_real_pictures_survive_closely_enough_to_be_encoded_again(tmp_path: Path) -> None:
    y, x = np.mgrid[0:64, 0:64]
    moving = [np.stack([(x * 3 + 9 * t) % 256, y * 4 % 256, (x + y) * 2 % 256], axis=2) for t in range(8)]
    frames = np.stack(moving).astype(np.uint8)
    store = FrameStore(tmp_path, ROOMY)
    store.put(1, pack(frames))
    back = store.get(1)
    assert back is not None
    assert np.abs(back.astype(int) - frames).mean() < 12


def test_thumbnail_is_an_animated_webp(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, ROOMY)
    store.put(3, pack(np.stack([RED, GREEN, BLUE])))
    data = store.thumbnail(3)
    assert data is not None
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "WEBP"
        assert getattr(image, "n_frames", 1) == 3
        assert image.size == (48, 32)


def test_a_row_that_was_never_put_is_none(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, ROOMY)
    assert store.get(1) is None
    assert store.thumbnail(1) is None
    store.delete([1])


def file_of(folder: Path) -> Path:
    (path,) = folder.rglob("*.jpg")
    return path


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "noise", "other-format", "wrong-count", "no-count", "not-ours", "gone"]
)
def test_a_damaged_file_is_none(tmp_path: Path, damage: str) -> None:
    store = FrameStore(tmp_path, ROOMY)
    store.put(1, pack(noise(0)))
    path = file_of(tmp_path)
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "wrong-count":
        Image.fromarray(RED).save(path, "JPEG", comment=b"5")  # 32 lines are not 5 frames
    elif damage == "no-count":
        Image.fromarray(RED).save(path, "JPEG", comment=b"0")
    elif damage == "other-format":
        Image.fromarray(RED).save(path, "PNG")
    elif damage == "not-ours":
        Image.fromarray(RED).save(path, "JPEG")  # a fine picture without the number of frames
    else:
        path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "noise": bytes(range(256)) * 20}[damage])
    assert store.get(1) is None


def test_flipped_bytes_anywhere_never_raise(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, ROOMY)
    store.put(1, pack(noise(0, count=2)))
    path = file_of(tmp_path)
    data = path.read_bytes()
    outcomes = set()
    for at in range(0, len(data), 17):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        back = store.get(1)
        outcomes.add(back is None)
        assert back is None or back.dtype == np.uint8
    assert True in outcomes


def test_putting_a_row_again_replaces_it_and_is_counted_once(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, ROOMY)
    store.put(1, pack(noise(0)))
    store.put(1, pack(np.stack([RED, RED])))
    back = store.get(1)
    assert back is not None
    assert len(back) == 2
    assert store.bytes_used == file_of(tmp_path).stat().st_size


def test_the_lowest_rows_leave_when_the_store_is_full(tmp_path: Path) -> None:
    measure = FrameStore(tmp_path / "measure", ROOMY)
    for row in (2, 3, 4):
        measure.put(row, pack(noise(row)))

    store = FrameStore(tmp_path / "full", measure.bytes_used)
    for row in (3, 0, 4, 1, 2):
        store.put(row, pack(noise(row)))
        assert store.bytes_used <= measure.bytes_used
    assert [row for row in range(5) if store.get(row) is not None] == [2, 3, 4]


def test_a_store_smaller_than_a_clip_keeps_nothing_and_does_not_fail(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 10)
    store.put(1, pack(noise(1)))
    assert store.get(1) is None
    assert store.bytes_used == 0


def test_reopening_counts_what_is_there_and_removes_unfinished_writes(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, ROOMY)
    for row in (5, 1005, 2_000_005):
        store.put(row, pack(noise(row)))
    aside = file_of(tmp_path / "001").with_suffix(".jpg.new")
    aside.write_bytes(b"half")

    again = FrameStore(tmp_path, ROOMY)
    assert again.bytes_used == store.bytes_used
    assert not aside.exists()
    assert again.get(2_000_005) is not None

    smaller = FrameStore(tmp_path, store.bytes_used)
    smaller.put(3_000_000, noise(9))
    assert smaller.get(5) is None
    assert smaller.bytes_used <= store.bytes_used


def test_keep_only_removes_orphans(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, ROOMY)
    for row in range(4):
        store.put(row, pack(noise(row)))
    assert store.keep_only(np.array([1, 3, 99])) == 2
    assert [row for row in range(4) if store.get(row) is not None] == [1, 3]
    store.delete([1, 3])
    assert store.bytes_used == 0
    assert list(tmp_path.rglob("*.jpg")) == []
