"""Which generations are kept: by number, by age, by size. It decides, and removes nothing.

Knows what is told of each generation, not the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Kept:
    """A generation on disk.

    Attributes:
        cut: of the catalog, that goes with it.
        pinned: an operator wants it kept.
        files: bytes by inode; generations share the files that never change.
    """

    number: int
    cut: int
    created: datetime
    pinned: bool
    files: Mapping[int, int]

    @property
    def bytes_used(self) -> int:
        """Of all its files, those that it shares included."""
        return sum(self.files.values())


@dataclass(frozen=True)
class Retention:
    """What is kept: the newest in any case, pinned ones always, of the others those within every limit.

    Attributes:
        keep: generations at most.
        keep_age_s: seconds since they were written at most; None: any.
        keep_bytes: of all kept generations together at most, files that several share counted once; None: any.
    """

    keep: int
    keep_age_s: float | None = None
    keep_bytes: int | None = None

    def choose(self, generations: Sequence[Kept], now: datetime | None = None) -> set[int]:
        """The numbers of those kept.

        Args:
            generations: oldest first.
            now: for their age.
        """
        now = now or datetime.now(UTC)
        pinned = [generation for generation in generations if generation.pinned]
        files = {inode: size for generation in pinned for inode, size in generation.files.items()}
        kept: list[int] = []
        for generation in reversed([generation for generation in generations if not generation.pinned]):
            files |= generation.files
            newest = generation is generations[-1]
            age_s = (now - generation.created).total_seconds()
            if not newest and (
                len(kept) >= self.keep
                or (self.keep_age_s is not None and age_s > self.keep_age_s)
                or (self.keep_bytes is not None and sum(files.values()) > self.keep_bytes)
            ):
                break
            kept.append(generation.number)
        return {*kept, *(generation.number for generation in pinned)}
