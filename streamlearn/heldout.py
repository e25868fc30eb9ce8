"""The rules of held-out clips, by hashes alone: which they are, which of them are asked, with what, and their twins.

Knows no catalog and no stream. A hash is all that is kept of a clip that was learned and taken away again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]


def is_heldout(video_id: str, ratio: float) -> bool:
    """Whether a clip is held out, by its id alone: the same on every machine and after every restart.

    A larger ratio holds out more clips and all of those that a smaller one does.

    >>> [i for i in range(60) if is_heldout(f"clip-{i}", 0.05)]
    [44, 48, 54]
    """
    # A JSON string may hold half a surrogate pair; it is an id like any other.
    digest = hashlib.blake2b(video_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < int(ratio * 2**64)


def split_of(split: str, video_id: str, ratio: float) -> Split:
    """What a clip is for: as its message says, or by `is_heldout` where that says "auto".

    Raises:
        ValueError: `split` is none of "auto", "train" and "heldout".
    """
    if split not in ("auto", "train", "heldout"):
        raise ValueError(f'split = {split!r}: must be "auto", "train" or "heldout"')
    held_out = is_heldout(video_id, ratio) if split == "auto" else split == "heldout"
    return "heldout" if held_out else "train"


def fingerprint(text: str | None) -> int:
    """A stable number for a video id or a sha256, that fits SQLite; 0 for None."""
    return 0 if text is None else _hash(text, b"id")


def lot(video_id: str) -> int:
    """The lot that a held-out clip draws: a task is evaluated with those that drew the lowest.

    So however long the task, its set is a uniform sample of all its held-out clips, the same on every machine, in
    every order of arrival and after every restart; when one leaves, the next lot takes its place (bottom-k sampling:
    Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"). Independent of whether a clip is held out.
    """
    return _hash(video_id, b"lot")


def keep_back(captions: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The caption that a held-out clip is asked with, and those that are stored with it.

    The question is the first. It is stored with the clip only where there is no other; what may be searched by text
    is `ClipRow.searchable_captions`.

    >>> keep_back(["a red ball", "a ball", "a red ball"]), keep_back(["a ball"])
    (('a red ball', ('a ball',)), ('a ball', ('a ball',)))
    """
    question = captions[0]
    return question, tuple(caption for caption in captions if caption != question) or (question,)


@dataclass(frozen=True, slots=True)
class Footage:
    """What a clip shows: a stretch of a file. Two clips share footage where they share an instant of one file.

    Attributes:
        media: `fingerprint` of the file's sha256; 0 where that is unknown, which is like nothing else.
        start_s, end_s: of the stretch; 0 and infinity where the clip is the whole file.
    """

    media: int
    start_s: float
    end_s: float

    @classmethod
    def of(cls, sha256: str | None, start_s: float | None, end_s: float | None) -> Footage:
        """As a message or the catalog says it."""
        return cls(fingerprint(sha256), start_s or 0.0, math.inf if end_s is None else end_s)

    def shares(self, other: Footage) -> bool:
        """Whether both show some of the same."""
        same_file = self.media != 0 and self.media == other.media
        return same_file and self.start_s < other.end_s and other.start_s < self.end_s


def _hash(text: str, person: bytes) -> int:
    # A JSON string may hold half a surrogate pair; it is an id like any other.
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=person).digest(), "big", signed=True)
