"""The sampled frames of clips, by row: for re-encoding, and as thumbnails.

A cache beside the catalog: a lost, evicted or damaged file is a None, never an error. One thread writes, any reads.

A clip is one JPEG, its frames one below the other, and becomes an animated WebP only when somebody looks at it:
writing that for every clip would cost the pipeline 30 times more (docs/decisions.md).
"""

from __future__ import annotations

import heapq
import io
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from streamlearn.records import Frames

_THUMBNAIL_FRAME_MS = 250
_ROWS_PER_FOLDER = 1000
_DAMAGE = (OSError, ValueError, KeyError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


class FrameStore:
    """Frames below one folder, `000/000123.jpg`; the clips with the lowest rows leave when it is full.

    Args:
        folder: made where there is none; one scan at start counts what is there.
        max_bytes: of all files together.
        quality: of the JPEGs, 1 to 95.
    """

    def __init__(self, folder: Path, max_bytes: int, quality: int = 90) -> None:
        self._folder, self._max_bytes, self._quality = folder, max_bytes, quality
        folder.mkdir(parents=True, exist_ok=True)
        self._sizes: dict[int, int] = {}
        for path in folder.glob("*/*.jpg*"):
            if path.suffix == ".jpg" and path.stem.isdecimal():
                self._sizes[int(path.stem)] = path.stat().st_size
            else:
                path.unlink()  # a write that did not end
        self._bytes = sum(self._sizes.values())
        self._oldest = sorted(self._sizes)  # a heap; rows that were deleted since are skipped

    @property
    def bytes_used(self) -> int:
        """Of all files together."""
        return self._bytes

    def put(self, row: int, frames: Frames) -> None:
        """Store frames, then evict the lowest rows while the store is too large.

        Args:
            row: the clip's number in the catalog.
            frames: (T, H, W, 3) uint8 RGB; T at least 1, T * H and W at most 65,500.
        """
        count, height, width, _ = frames.shape
        encoded = io.BytesIO()
        tall = Image.fromarray(frames.reshape(count * height, width, 3))
        # Full colour resolution: a frame's colours must not run into the next one's.
        tall.save(encoded, "JPEG", quality=self._quality, subsampling="4:4:4", comment=b"%d" % count)
        path = self._path(row)
        path.parent.mkdir(exist_ok=True)
        aside = path.with_suffix(".jpg.new")
        aside.write_bytes(encoded.getvalue())
        os.replace(aside, path)
        if row in self._sizes:
            self._bytes -= self._sizes[row]
        else:
            heapq.heappush(self._oldest, row)
        self._sizes[row] = encoded.tell()
        self._bytes += encoded.tell()
        while self._bytes > self._max_bytes:
            self.delete([heapq.heappop(self._oldest)])

    def get(self, row: int) -> Frames | None:
        """The (T, H, W, 3) frames; None where they are not kept (any more) or cannot be read."""
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
        if frames is None:
            return None
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

    def delete(self, rows: Iterable[int]) -> None:
        """Forget rows; those that are not there are passed over."""
        for row in rows:
            size = self._sizes.pop(row, None)
            if size is not None:
                self._bytes -= size
                self._path(row).unlink(missing_ok=True)

    def keep_only(self, rows: Collection[int]) -> int:
        """Forget every row that is not among these, as a crash can leave. Returns how many were."""
        kept = {int(row) for row in rows}
        orphans = [row for row in self._sizes if row not in kept]
        self.delete(orphans)
        return len(orphans)

    def _path(self, row: int) -> Path:
        return self._folder / f"{row // _ROWS_PER_FOLDER:03d}" / f"{row:06d}.jpg"
