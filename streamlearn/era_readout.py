"""Where an era's words lie among its clips: a linear readout between the two towers, solved instead of learned.

Stochastic gradients leave the towers short of what their last layer could do with the pairs that were seen: the least
squares map from the vectors of learned captions to those of their clips finds clips that it was not fitted to, too
(docs/log.md has how much). It is fitted once an era's vectors are final. Where the towers agree on little it fits
noise, so held-out clips decide; for all eras at once, as one that is read so and one that is not mix badly. Arrays in,
decisions out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamlearn.encoders import Towers
from streamlearn.era_judges import blocks, merits
from streamlearn.era_maps import Captions, MappedEncoder, Sealed, fitted, through
from streamlearn.era_view import QueryEncoder
from streamlearn.evaluate import ranks
from streamlearn.records import Vectors

_FEWEST_JUDGES = 10
_FEWEST_PAIRS, _NEWEST = 64, 0.25  # of an open era that is the first; and how many of these judge


@dataclass(frozen=True)
class Readout:
    """What held-out clips say of readouts.

    Attributes:
        gain: of mean reciprocal rank, of the held-out clips of all sealed eras in one pool with some learned clips, as
            in a gallery of some dozens it can hardly be told what is better.
        judges: how many there were.
    """

    gain: float
    judges: int

    @property
    def helps(self) -> bool:
        """Whether they are used."""
        return self.gain >= 0


def through_readout(plain: QueryEncoder, captions: Vectors, clips: Vectors) -> QueryEncoder:
    """An era as it is read through its readout.

    Args:
        plain: the era's pair.
        captions: of clips that the era has learned, as the pair says them, (m, d).
        clips: the vectors of these clips, (m, d).
    """
    return MappedEncoder(plain, fitted(captions, clips))


def judged(
    eras: Sequence[Sealed],
    said: Mapping[int, Captions],
    plain: Mapping[int, QueryEncoder],
    read_out: Mapping[int, QueryEncoder],
    familiarity_weight: float,
) -> Readout | None:
    """What is gained by reading some eras through their readouts; None where too little is known to judge it.

    Args:
        eras: all sealed ones.
        said: of each, by its number.
        plain: of those, by number: how the era is read without.
        read_out: likewise, through its readout.
        familiarity_weight: as in search.
    """
    questions = [text for era in eras for text in said[era.number].questions]
    if len(questions) < _FEWEST_JUDGES:
        return None
    facts, words, found = [said[era.number] for era in eras], [era.words for era in eras], []
    pools = ([fact.clips for fact in facts], [fact.learned for fact in facts])
    for readings in (plain, read_out):
        asked = []
        for era in eras:
            encoder = readings.get(era.number, era.encoder)
            assert encoder is not None
            asked.append(encoder.texts(questions))
        each = [b for clips in pools for b in blocks(questions, asked, clips, words, familiarity_weight)]
        found.append(merits(each).mean())
    return Readout(float(found[1] - found[0]), len(questions))


def read_open(towers: Towers, texts: Vectors, clips: Vectors, use: bool | None) -> tuple[QueryEncoder, Vectors]:
    """How an era that is still open is read, and its latest captions so.

    Args:
        towers: today's, of their own.
        texts: see `recent_readout`.
        clips: likewise.
        use: likewise.
    """
    plain, readout = QueryEncoder(towers), recent_readout(texts, clips, use)
    return (plain, texts) if readout is None else (MappedEncoder(plain, readout), through(texts, readout))


def recent_readout(texts: Vectors, clips: Vectors, use: bool | None) -> Vectors | None:
    """The readout of an era that is still open, from its latest pairs; None where it is read without.

    Args:
        texts: captions as the text tower saw them when they were learned, (m, d), in the order of their arrival.
        clips: their clips, (m, d).
        use: whether to have one, as sealed eras do or do not. None: the older pairs' is tried on the newest.
    """
    if use is not None:
        return fitted(texts, clips) if use and len(texts) else None
    if len(texts) < _FEWEST_PAIRS:
        return None
    older = len(texts) - int(len(texts) * _NEWEST)
    asked, films, own = texts[older:], clips[older:], np.arange(len(texts) - older)
    tried = through(asked, fitted(texts[:older], clips[:older]))
    plain, so = ((1 / ranks(queries @ films.T, own)).mean() for queries in (asked, tried))
    return fitted(texts, clips) if so > plain else None
