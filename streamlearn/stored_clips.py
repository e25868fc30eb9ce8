"""What the daemon's reservoir replays: clips as the catalog has them now, frames as they were stored."""

from __future__ import annotations

from streamlearn.catalog import Catalog
from streamlearn.frames import FrameStore, scale
from streamlearn.reservoir import Replayed


class StoredClips:
    """A `ClipStore` that keeps nothing of its own.

    A clip that was deleted is not replayed, nor one that was replaced by a held-out one; a replaced clip is replayed
    as it is now, with today's captions. Frames come from the JPEGs, never from the raw recent ones: which of those
    are left differs after a crash, and what is learned must not.

    Args:
        size_px: height and width of the frames that the video tower reads.
    """

    def __init__(self, catalog: Catalog, frames: FrameStore, size_px: int) -> None:
        self._catalog, self._frames, self._size_px = catalog, frames, size_px

    def keep(self, clip: Replayed) -> None:
        """Nothing: the ledger has written it, if anything."""

    def drop(self, video_id: str) -> None:
        """Nothing: the clip stays in the index."""

    def get(self, video_id: str) -> Replayed | None:
        """The clip, if it was learned under this id and its frames are still kept."""
        clip = self._catalog.clip(video_id)
        if clip is None or clip.split != "train":
            return None
        frames = self._frames.get(clip.row)
        return None if frames is None else Replayed(video_id, scale(frames, self._size_px), clip.captions)
