"""What eras are made and judged from: the stored frames and captions of their clips. Knows no era."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from streamlearn.catalog import Catalog, Rows
from streamlearn.era_merge import Judges
from streamlearn.era_view import QueryEncoder
from streamlearn.frames import FrameStore
from streamlearn.records import Frames, Vectors

_HELDOUT = 1000  # of a task, among which the judges of one of its eras are sought


class EraClips:
    """The clips of some rows, read from catalog and frame store."""

    def __init__(self, catalog: Catalog, frames: FrameStore) -> None:
        self._catalog, self._frames = catalog, frames
        self._readers = ThreadPoolExecutor(2, "frames")  # decoding a JPEG holds no lock

    def frames(self, rows: Sequence[int]) -> dict[int, Frames]:
        """Those that are still kept, in order."""
        frames = {row: recent for row in rows if (recent := self._frames.recent.get(row)) is not None}
        older = [row for row in rows if row not in frames]
        loaded = zip(older, self._readers.map(self._frames.get, older), strict=True)
        frames |= {row: stored for row, stored in loaded if stored is not None}
        return {row: frames[row] for row in rows if row in frames}

    def encode(self, rows: Sequence[int], encoder: QueryEncoder) -> dict[int, Vectors]:
        """Vectors of the rows whose frames are still kept."""
        frames = self.frames(rows)
        out: dict[int, Vectors] = {}
        for shape in {stored.shape for stored in frames.values()}:  # settings may have changed meanwhile
            same = [row for row, stored in frames.items() if stored.shape == shape]
            out |= dict(zip(same, encoder.clips(np.stack([frames[row] for row in same])), strict=True))
        return out

    def learned(self, rows: Rows, count: int) -> list[str]:
        """Captions of learned clips, spread over the rows: those of held-out ones are questions, and stay out."""
        spread = self._catalog.clips(rows[:: max(1, -(-len(rows) // count))].tolist()).values()
        return [clip.captions[0] for clip in spread if clip.split == "train"][:count]

    def judges(self, task: str, rows: Rows, count: int, captions: int) -> Judges:
        """Held-out clips among the rows, whose frames are kept and alike, and captions that were learned."""
        among = set(rows.tolist())
        held_out = [clip for clip in self._catalog.heldout(task, _HELDOUT) if clip.row in among]
        films = self.frames([clip.row for clip in held_out][:count])
        shape = next((frames.shape for frames in films.values()), None)
        films = {row: frames for row, frames in films.items() if frames.shape == shape}
        questions = [clip.asked for clip in held_out if clip.row in films]
        return Judges(questions, np.stack(list(films.values())) if films else None, self.learned(rows, captions))
