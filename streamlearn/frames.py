"""The sampled frames of clips, by row: for re-encoding, and as thumbnails.

A cache beside the catalog: a lost, evicted or damaged file is a None, never an error. One thread writes, any reads.

A clip is one JPEG, its frames one below the other, and what the encoder read of it raw, for as long as it is among
the latest (`recent`). The JPEG becomes an animated WebP only when somebody looks at it:
writing that for every clip would cost the pipeline 30 times more (docs/decisions.md).
"""

from __future__ import annotations

import heapq
import io
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from streamlearn.recent import RecentFrames
from streamlearn.records import Frames

_THUMBNAIL_FRAME_MS = 250
_ROWS_PER_FOLDER = 1000
_QUALITY = 90
_DAMAGE = (OSError, ValueError, KeyError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def pack(frames: Frames) -> bytes:
    """The frames as one JPEG. Shape: (T, H, W, 3) uint8 RGB; T at least 1, T * H and W at most 65,500."""
    encoded = io.BytesIO()
    # Full colour resolution: a frame's colours must not run into the next one's.
    _tall(frames).save(encoded, "JPEG", quality=_QUALITY, subsampling="4:4:4", comment=b"%d" % len(frames))
    return encoded.getvalue()


def scale(frames: Frames, size_px: int) -> Frames:
    """Smaller frames, scaled as `encoders` would; those that are small enough as they are.

    Shape: (T, H, H, 3) -> (T, size_px, size_px, 3) uint8.
    """
    count, height = frames.shape[:2]
    if height <= size_px:
        return frames
    if height % size_px == 0:  # the mean of each square of pixels, which is quick
        return np.asarray(_tall(frames).reduce(height // size_px)).reshape(count, size_px, size_px, 3)
    size = (size_px, size_px)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in frames])


def _tall(frames: Frames) -> Image.Image:
    count, height, width, _ = frames.shape
    return Image.fromarray(frames.reshape(count * height, width, 3))


def _pictures(folder: Path) -> Iterator[os.DirEntry[str]]:
    # Not by Path.glob, which takes four times as long: a start waits for this (docs/log.md).
    for place in os.scandir(folder):
        if place.is_dir():
            yield from (entry for entry in os.scandir(place.path) if ".jpg" in entry.name)


def animated(frames: Frames) -> bytes:
    """Frames (T, H, W, 3) as an animated WebP."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    encoded = io.BytesIO()
    first.save(
        encoded,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=_THUMBNAIL_FRAME_MS,
        loop=0,
        quality=80,
        method=0,
        kmin=0,
        kmax=0,  # no key frames within: nobody seeks in a thumbnail
    )
    return encoded.getvalue()


class FrameStore:
    """Frames below one folder, `000/000123.jpg`; the clips with the lowest rows leave when it is full.

    Args:
        folder: made where there is none; one scan at start counts what is there.
        max_bytes: of all JPEGs together.
        recent_max_bytes: of the file of raw frames.
    """

    def __init__(self, folder: Path, max_bytes: int, recent_max_bytes: int = 2**29) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.recent = RecentFrames(folder / "recent.bin", recent_max_bytes)
        self._sizes: dict[int, int] = {}
        self._folders: set[Path] = set()  # that are known to exist
        for entry in _pictures(folder):
            row, _, rest = entry.name.partition(".")
            if rest == "jpg" and row.isdecimal():  # others: from older versions, half written
                self._sizes[int(row)] = entry.stat().st_size
            else:
                os.unlink(entry.path)
        self._bytes = sum(self._sizes.values())
        self._oldest = sorted(self._sizes)  # a heap; rows that were deleted since are skipped

    @property
    def bytes_used(self) -> int:
        """Of all files together."""
        return self._bytes

    @property
    def oldest(self) -> int:
        """No frames are kept of lower rows."""
        while self._oldest and self._oldest[0] not in self._sizes:
            heapq.heappop(self._oldest)
        return self._oldest[0] if self._oldest else 2**62

    def put(self, row: int, packed: bytes) -> None:
        """Store what `pack` made, then evict the lowest rows while the store is too large.

        Args:
            row: the clip's number in the catalog.
            packed: of its frames.
        """
        path = self._path(row)
        if path.parent not in self._folders:
            path.parent.mkdir(exist_ok=True)
            self._folders.add(path.parent)
        path.write_bytes(packed)  # a torn one is found when it is read
        if row in self._sizes:
            self._bytes -= self._sizes[row]
        else:
            heapq.heappush(self._oldest, row)
        self._sizes[row] = len(packed)
        self._bytes += len(packed)
        while self._bytes > self._max_bytes:
            self._unlink(heapq.heappop(self._oldest))

    def get(self, row: int) -> Frames | None:
        """The (T, H, W, 3) frames; None where they are not kept (any more) or cannot be read. Safe in any thread."""
        try:
            with Image.open(self._path(row), formats=["JPEG"]) as tall:
                count = int(tall.info["comment"])
                pixels = np.asarray(tall.convert("RGB"))
            return pixels.reshape(count, len(pixels) // count, pixels.shape[1], 3)
        except (*_DAMAGE, ZeroDivisionError):
            return None

    def thumbnail(self, row: int) -> bytes | None:
        """The frames as an animated WebP, made anew each time; None as `get`."""
        frames = self.get(row)
        return None if frames is None else animated(frames)

    def delete(self, rows: Iterable[int]) -> None:
        """Forget rows; those that are not there are passed over."""
        for row in rows:
            self._unlink(row)
            self.recent.delete([row])

    def keep_only(self, rows: Collection[int]) -> int:
        """Forget every row that is not among these, as a crash can leave. Returns how many were."""
        kept = {int(row) for row in rows}
        orphans = [row for row in self._sizes if row not in kept]
        self.delete(orphans)
        self.recent.keep_only(kept)
        return len(orphans)

    def close(self) -> None:
        """Close what is open; idempotent."""
        self.recent.close()

    def _unlink(self, row: int) -> None:
        size = self._sizes.pop(row, None)
        if size is not None:
            self._bytes -= size
            self._path(row).unlink(missing_ok=True)

    def _path(self, row: int) -> Path:
        return self._folder / f"{row // _ROWS_PER_FOLDER:03d}" / f"{row:06d}.jpg"
