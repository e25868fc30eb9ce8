"""What the encoder read of the latest clips, raw, in one file that never grows past its size: a ring of equal slots.

Every clip of an era is encoded once more when the era ends, and decoding a JPEG for that costs more than encoding
(docs/decisions.md). Like the frame store a cache: what is damaged, overwritten or of another shape is a None. It
survives a restart; each slot says which row it holds, and a checksum finds a torn one. For one thread.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from streamlearn.records import Frames

_HEADER = struct.Struct("<8s4I")  # magic, shape of a clip's frames
_SLOT = struct.Struct("<qI")  # row, checksum of the row and the frames; (-1, 0) where there is none
_MAGIC = b"SLRECENT"


class RecentFrames:
    """Prepared frames by row; the newest take the place of the oldest.

    Args:
        path: of the file, made where there is none; one of something else is begun anew.
        max_bytes: of the file; less than a clip's frames: nothing is kept.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._shape: tuple[int, ...] = ()
        self._slots: dict[int, int] = {}  # row -> slot
        self._rows: list[int] = []  # slot -> row; -1 for an empty one
        self._next = 0
        self._open()

    def put(self, rows: Sequence[int], frames: Frames) -> None:
        """Keep the frames of rows. Shape: n rows, uint8 (n, T, H, W, 3)."""
        if frames.shape[1:] != self._shape:
            self._begin(frames.shape[1:])
        room = (self._max_bytes - _HEADER.size) // self._slot_bytes
        for row, clip in zip(rows, frames, strict=True):
            if room <= 0:
                return
            slot = self._next = self._next % room
            data = clip.tobytes()
            os.pwrite(self._file, _SLOT.pack(row, _checksum(row, data)) + data, self._at(slot))
            if slot == len(self._rows):
                self._rows.append(row)
            else:
                self._forget(slot)
                self._rows[slot] = row
            self._slots[row] = slot
            self._next += 1

    def get(self, row: int) -> Frames | None:
        """The (T, H, W, 3) frames; None where they are not kept (any more)."""
        slot = self._slots.get(row)
        if slot is None:
            return None
        slot_bytes = os.pread(self._file, self._slot_bytes, self._at(slot))
        data = memoryview(slot_bytes)[_SLOT.size :]
        whole = len(slot_bytes) == self._slot_bytes
        if not whole or _SLOT.unpack_from(slot_bytes) != (row, _checksum(row, data)):
            return None
        return np.frombuffer(data, np.uint8).reshape(self._shape)

    def delete(self, rows: Iterable[int]) -> None:
        """Forget rows, and overwrite what was kept of them."""
        for row in rows:
            slot = self._slots.get(int(row))
            if slot is not None:
                self._forget(slot)
                self._rows[slot] = -1
                os.pwrite(self._file, _SLOT.pack(-1, 0) + bytes(self._slot_bytes - _SLOT.size), self._at(slot))

    def keep_only(self, rows: Collection[int]) -> None:
        """Forget every row that is not among these, as a crash can leave."""
        kept = {int(row) for row in rows}
        self.delete([row for row in self._slots if row not in kept])

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _forget(self, slot: int) -> None:
        if self._slots.get(self._rows[slot]) == slot:
            del self._slots[self._rows[slot]]

    @property
    def _slot_bytes(self) -> int:
        return _SLOT.size + int(np.prod(self._shape))

    def _at(self, slot: int) -> int:
        return _HEADER.size + slot * self._slot_bytes

    def _open(self) -> None:
        header = os.pread(self._file, _HEADER.size, 0)
        if len(header) < _HEADER.size or _HEADER.unpack(header)[0] != _MAGIC:
            return
        self._shape = _HEADER.unpack(header)[1:]
        size = os.fstat(self._file).st_size
        for slot in range((min(size, self._max_bytes) - _HEADER.size) // self._slot_bytes):
            row, _ = _SLOT.unpack(os.pread(self._file, _SLOT.size, self._at(slot)))
            self._rows.append(row)
            if row >= 0:
                self._slots[row] = slot
        newest = max(self._slots, default=-1)
        self._next = self._slots[newest] + 1 if newest >= 0 else 0
        os.truncate(self._file, self._at(len(self._rows)))

    def _begin(self, shape: tuple[int, ...]) -> None:
        os.truncate(self._file, 0)
        os.pwrite(self._file, _HEADER.pack(_MAGIC, *shape), 0)
        self._shape, self._slots, self._rows, self._next = shape, {}, [], 0


def _checksum(row: int, data: bytes | memoryview) -> int:
    return zlib.crc32(data, row & 0xFFFFFFFF)
