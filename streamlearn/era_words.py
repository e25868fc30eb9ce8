"""Which words an era was told, and so how much a query is in its language.

Encoders place any sentence somewhere, and today's place even those of a past domain near its own. Words say it without
them: how often an era's captions have each word of the query, beside the era whose captions have it most, the mean over
the words, where rare ones weigh more (the inverse document frequency of TF-IDF; Sparck Jones 1972). docs/log.md has
what was tried.

Words are hashed, not looked up: a stream brings some that no vocabulary has. Arrays in and out.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from streamlearn.records import Vectors

Counts = npt.NDArray[np.int64]

#: Scripts that leave no blanks between words are read sign by sign, also beside others: Thai to Khmer, kana, Han.
_SIGN = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
#: Accents and vowels that are written onto letters, as in Hindi: they part no words, though `re` holds them for none.
_MARK = r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(rf"[{_SIGN}]|(?:[^\W_{_SIGN}]|[{_MARK}])+")
_MOST = 65_536  # words of an era; the rarest go
_FEW = 10  # clips that make a word's share a little less than it is, or an era of one clip would have the highest
_NEW = 32  # clips after which an era is believed as much as all others together


@dataclass(frozen=True)
class Words:
    """How many of an era's clips have each word in their captions; immutable.

    Attributes:
        words: (w,) ascending, by hash.
        counts: (w,) of each how many clips.
        clips: that were counted.
    """

    words: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    clips: int = 0

    @classmethod
    def of(cls, captions: Iterable[Sequence[str]]) -> Words:
        """Those of some clips, each with its captions."""
        each = [_hashed(" ".join(texts)) for texts in captions]
        return cls(*np.unique(np.concatenate([np.zeros(0, np.int64), *each]), return_counts=True), len(each))

    def plus(self, other: Words) -> Words:
        """Of both."""
        return self._summed(other, 1)

    def less(self, other: Words) -> Words:
        """Without those of clips that were counted and are no longer the era's."""
        return self._summed(other, -1)

    def _summed(self, other: Words, sign: int) -> Words:
        words, at = np.unique(np.concatenate([self.words, other.words]), return_inverse=True)
        counts = np.zeros(len(words), np.int64)
        np.add.at(counts, at, np.concatenate([self.counts, sign * other.counts]))
        kept = counts > 0
        if np.count_nonzero(kept) > _MOST:
            kept &= counts > np.partition(counts, len(counts) - _MOST - 1)[-_MOST - 1]
        return Words(words[kept], counts[kept], max(0, self.clips + sign * other.clips))

    def among(self, wanted: Counts) -> Counts:
        """How many clips have each of these words. Shape: (n,) -> (n,)."""
        if not len(self.words):
            return np.zeros(len(wanted), np.int64)
        at = np.minimum(np.searchsorted(self.words, wanted), len(self.words) - 1)
        return np.where(self.words[at] == wanted, self.counts[at], 0)


def familiarity(texts: Sequence[str], eras: Sequence[Words]) -> Vectors:
    """How much each text is in the words of each era, 0 to 1: 0 for all where no era has any of its words.

    An era of few clips is as others are on average, the more so the fewer they are.

    Shape: q -> (eras, q).
    """
    hashed = [_remembered(text) for text in texts]
    asked = np.concatenate([np.zeros(0, np.int64), *hashed])  # (n,) words of all texts, side by side
    counts = np.stack([era.among(asked) for era in eras])  # (eras, n)
    clips = np.array([era.clips for era in eras])[:, None]
    total, share = counts.sum(0), counts / (clips + _FEW)
    rare = np.where(total > 0, 1 + np.log(np.maximum(clips.sum(), 1) / np.maximum(total, 1)), 0.0)  # (n,)
    weighed = rare * np.sqrt(share / np.maximum(share.max(0), 1e-9))
    own = np.repeat(np.arange(len(texts)), [len(words) for words in hashed])
    whole = np.bincount(own, rare, len(texts))
    found = np.stack([np.bincount(own, line, len(texts)) for line in weighed]) / np.maximum(whole, 1e-9)
    mean = (found * (clips > 0)).sum(0) / max(1, np.count_nonzero(clips))
    out: Vectors = ((clips * found + _NEW * mean) / (clips + _NEW)).astype(np.float32)
    return out


@lru_cache(2048)
def _remembered(text: str) -> Counts:
    """As `_hashed`, not to be written to: held-out clips ask the same again and again."""
    return _hashed(text)


def _hashed(text: str) -> Counts:
    """Each word once, ascending."""
    found = {zlib.crc32(word.encode()) for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower())}
    return np.array(sorted(found), np.int64)
