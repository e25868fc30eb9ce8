"""Clips that are found already and learned later: written with the encoders of now, while their batch fills.

Learning wants whole batches, whoever searches wants the clip now. What is here is in catalog and index, and the offsets
are past it; so it is learned before anything is checkpointed, or a restart would take it for learned.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamlearn.records import Clip


class Waiting:
    """Clips of the batch under way, in the stream's order, those alone that are to be learned."""

    def __init__(self) -> None:
        self.clips: list[Clip] = []
        self.rows: list[int] = []

    def __len__(self) -> int:
        return len(self.clips)

    def add(self, clips: Mapping[int, Clip], rows: Mapping[int, int]) -> None:
        """Clips that were written, and their rows of the catalog, by the same keys."""
        self.clips += clips.values()
        self.rows += [rows[i] for i in clips]

    def take(self) -> list[int]:
        """The rows, once they are learned; another batch begins."""
        rows, self.clips, self.rows = self.rows, [], []
        return rows
