"""What eras are made and judged from: the stored frames and captions of their clips. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from streamlearn.catalog import Catalog, Rows
from streamlearn.catalog_rows import ClipRow
from streamlearn.era import Era
from streamlearn.era_judges import Judges, merit
from streamlearn.era_maps import Captions
from streamlearn.era_view import QueryEncoder
from streamlearn.frames import FrameStore
from streamlearn.records import Frames, Vectors

_ASKED, _FEWEST_ASKED = 100, 10  # held-out clips of an era that decide which pair it is sealed with
_MAPPED, _SEEN = 256, 128  # captions and clips that another pair's map is found from
_JUDGES, _BESIDE = 64, 128  # held-out clips of an era, where merges are judged; and learned ones beside them


class EraClips:
    """The clips of some rows, read from catalog and frame store.

    Args:
        catalog, frames: where they are.
        anew: merged eras are encoded anew, by another pair: only clips whose frames are kept can judge a merge.
    """

    def __init__(self, catalog: Catalog, frames: FrameStore, *, anew: bool) -> None:
        self._catalog, self._frames, self._anew = catalog, frames, anew
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

    def learned(self, rows: Rows, count: int) -> dict[int, str]:
        """Captions of learned clips, spread over the rows: those of held-out ones are questions, and stay out."""
        spread = self._catalog.clips(rows[:: max(1, -(-len(rows) // count))].tolist())
        return dict([(row, clip.captions[0]) for row, clip in spread.items() if clip.split == "train"][:count])

    def asked(self, era: Era) -> tuple[list[str], Frames | None]:
        """What a pair is judged by that is to write an era: its own held-out clips, not an earlier visit's.

        Returns:
            n questions, and the frames (n, T, H, W, 3) of their clips; None where they are too few to tell.
        """
        clips, films = self._alike(self._catalog.heldout_of_era(era.number, _ASKED))
        return [clip.asked for clip in clips], films if len(clips) >= _FEWEST_ASKED else None

    def as_read(self, era: Era) -> tuple[list[str], Frames | None, float]:
        """What says whether another pair would read a sealed era better than it is read now.

        Returns:
            n questions, the frames of their clips, and the mean reciprocal rank as they are read now; None where they
            are too few to tell, or the frames of some are gone, as those of others then are.
        """
        all_clips = self._catalog.heldout_of_era(era.number, _ASKED)
        clips, films = self._alike(all_clips)
        texts = [clip.asked for clip in clips]
        if not _FEWEST_ASKED <= len(clips) == len(all_clips):
            return texts, None, 0.0
        assert era.encoder is not None
        return texts, films, merit([era.encoder.texts(texts) @ self._vectors(era, clips).T])

    def judges(self, era: Era) -> Judges:
        """What a sealed era is judged by before a merge: held-out clips of any task."""
        clips = self._catalog.heldout_of_era(era.number, _JUDGES)
        clips, films = self._alike(clips) if self._anew else (clips, None)
        view, some = era.partition.view(), era.caption_rows[:: max(1, -(-len(era.caption_rows) // _BESIDE))]
        learned = view.vectors(some[view.holds(some)])
        return Judges([clip.asked for clip in clips], self._vectors(era, clips), films, learned)

    def pairs(self, era: Era) -> tuple[Vectors, Vectors]:
        """Captions that a sealed era knows itself by, as its pair says them, and their clips, (m, d) each.

        Without those that were deleted, or moved on.
        """
        view = era.partition.view()
        there = np.flatnonzero(view.holds(era.caption_rows))
        return era.captions[there], view.vectors(era.caption_rows[there])

    def said(self, era: Era) -> Captions:
        """What says how another text encoder would read a sealed era, and what that would cost."""
        some = slice(None, None, max(1, -(-len(era.caption_rows) // _MAPPED)))
        texts = self._texts(rows := era.caption_rows[some])
        view = era.partition.view()
        clips = self._catalog.heldout_of_era(era.number, _JUDGES)
        there = view.holds([clip.row for clip in clips])
        clips = [clip for clip, holds in zip(clips, there, strict=True) if holds]
        return Captions(
            texts=list(texts.values()),
            vectors=era.known[some][np.flatnonzero(np.isin(rows, list(texts)))],
            questions=[clip.asked for clip in clips],
            clips=self._vectors(era, clips),
            learned=view.vectors(rows[view.holds(rows)]),
        )

    def seen(self, era: Era, other: QueryEncoder, eras: Sequence[Era]) -> tuple[Vectors, Vectors]:
        """Some clips as another pair sees them, and as an era does; (n, d) each, n at most 128.

        They are the era's own, or, for those whose frames are gone, the newest of `eras`.
        """
        assert era.encoder is not None
        view = era.partition.view()
        rows = view.rows[:: max(1, -(-len(view) // _SEEN))].tolist()
        found = self.encode(rows, other)
        there, here = list(found.values()), [*view.vectors(list(found))]
        if gone := len(rows) - len(found):
            newest = np.concatenate([one.partition.view().rows for one in eras])[-gone:].tolist()
            there += self.encode(newest, other).values()
            here += self.encode(newest, era.encoder).values()
        return _stacked(there, view.dim), _stacked(here, view.dim)

    def _texts(self, rows: Rows) -> dict[int, str]:
        """Of those that were not deleted since, in order."""
        clips = self._catalog.clips(rows.tolist())
        return {row: clips[row].captions[0] for row in rows.tolist() if row in clips}

    def _vectors(self, era: Era, clips: Sequence[ClipRow]) -> Vectors:
        """As the era has them, or will have them once it is encoded anew. Shape: n -> (n, d)."""
        assert era.encoder is not None
        rows = [clip.row for clip in clips]
        vectors = era.partition.view().vectors(rows)
        if era.pending:
            now = self.encode(rows, era.encoder)
            for i, row in enumerate(rows):
                vectors[i] = now.get(row, vectors[i])
        return vectors

    def _alike(self, clips: Sequence[ClipRow]) -> tuple[list[ClipRow], Frames | None]:
        """Those whose frames are kept and of one shape, as settings may have changed it meanwhile."""
        frames = self.frames([clip.row for clip in clips])
        shape = next((one.shape for one in frames.values()), None)
        alike = [clip for clip in clips if clip.row in frames and frames[clip.row].shape == shape]
        return alike, np.stack([frames[clip.row] for clip in alike]) if alike else None


def _stacked(vectors: Sequence[Vectors], dim: int) -> Vectors:
    return np.array(vectors, np.float32).reshape(len(vectors), dim)
