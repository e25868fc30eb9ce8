"""The current task's stored clips, encoded by a pair that never moves: what the judge looks at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from streamlearn.catalog import Catalog
from streamlearn.encoders import Towers
from streamlearn.era_view import QueryEncoder
from streamlearn.eras import Eras
from streamlearn.frames import FrameStore
from streamlearn.index import Rows
from streamlearn.records import Vectors

_ENCODE_BATCH = 64


class FrozenClips:
    """A `judge.Clips` of the era being written.

    Frames come from the JPEGs, never from the raw recent ones: which of those are left differs after a crash, and
    where a task begins must not.

    Args:
        frozen: the pair; nobody else may train it.
    """

    def __init__(self, frozen: Towers, catalog: Catalog, frames: FrameStore, eras: Eras) -> None:
        self._encoder, self._catalog, self._frames, self._eras = QueryEncoder(frozen), catalog, frames, eras

    def rows(self) -> Rows:
        """Of the era's live clips, as they came."""
        return self._eras.current.partition.view().rows

    def steps(self, rows: Sequence[int]) -> dict[int, int]:
        """Of the catalog's clips."""
        return {row: clip.step for row, clip in self._catalog.clips(rows).items()}

    def vectors(self, rows: Sequence[int]) -> dict[int, Vectors]:
        """Of the rows whose frames are kept."""
        out: dict[int, Vectors] = {}
        for start in range(0, len(rows), _ENCODE_BATCH):
            clips = self._catalog.clips(rows[start : start + _ENCODE_BATCH])
            stored = {row: frames for row in clips if (frames := self._frames.get(row)) is not None}
            for shape in {frames.shape for frames in stored.values()}:  # settings may have changed meanwhile
                same = [row for row, frames in stored.items() if frames.shape == shape]
                video = self._encoder.clips(np.stack([stored[row] for row in same]))
                text = self._encoder.texts([clips[row].captions[0] for row in same])
                out |= dict(zip(same, np.concatenate([video, text], axis=1), strict=True))
        return {row: out[row] for row in rows if row in out}


def frame_of(towers: Towers) -> str:
    """A name of these very weights: statistics of other ones are worth nothing beside theirs."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in towers.state_dict().values():
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
