"""Eras that are read with the text encoder of a later one, through a linear map: so few encoders read many eras.

Encoders that only went on learning see the captions of an old era much as they did, but for a turn of the space: what
the era's own encoder said of a caption is nearly a linear function of what a later one says. The map is found from
captions of the era's learned clips, by ridge regression towards the identity; a second one, for queries by video, from
some of its clips. No vector changes, and the pair of the era can be dropped. docs/log.md has what it costs.

What it would cost is known beforehand, from held-out clips. Arrays in, decisions out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streamlearn.era_judges import blocks, merit
from streamlearn.era_view import QueryEncoder
from streamlearn.era_words import Words
from streamlearn.records import Frames, Vectors

_STAND_IN = 256  # captions of other eras, where one has none
_STAY = 1.0  # what staying as it is weighs in a direction; a caption or clip has weight 1


@dataclass(frozen=True)
class Mapped:
    """An era's own pair is gone, and another's reads for it.

    Attributes:
        reader: the number of the era whose pair that is.
        loss: of mean reciprocal rank, by the judges, of the decision that dropped the pair; negative: it helped.
        judges: how many there were.
    """

    reader: int
    loss: float
    judges: int


@dataclass(frozen=True)
class Captions:
    """Captions of clips learned in an era, and the era's held-out clips.

    Attributes:
        texts: m of them.
        vectors: of those texts by the era's own pair, (m, d).
        questions: n captions of held-out clips.
        clips: those clips' vectors, (n, d).
        learned: vectors of some learned clips, (l, d).
    """

    texts: Sequence[str]
    vectors: Vectors
    questions: Sequence[str]
    clips: Vectors
    learned: Vectors


@dataclass(frozen=True)
class Choice:
    """Which era's pair to drop, and how it and those that it read for are read from now on."""

    era: int
    mapped: Mapped
    maps: Mapping[int, Vectors]


class Sealed(Protocol):
    """What must be known of a sealed era."""

    @property
    def number(self) -> int:
        """It names the era."""

    @property
    def encoder(self) -> QueryEncoder | None:
        """How it is read."""

    @property
    def mapped(self) -> Mapped | None:
        """Where it has no pair of its own."""

    @property
    def words(self) -> Words:
        """That it was told."""


class MappedEncoder(QueryEncoder):
    """An era's queries, as a pair says them and maps turn them.

    Args:
        reader: the pair: the era's own, or another era's.
        of_texts: as `fitted` returns it, from the space of its text encoder to where the era's clips lie.
        of_clips: likewise from the space of its video encoder, where the pair is another era's; the two towers do not
            move alike. None: it is the era's own.
    """

    def __init__(self, reader: QueryEncoder, of_texts: Vectors, of_clips: Vectors | None = None) -> None:
        super().__init__(reader.towers)
        self._reader, self.of_texts, self.of_clips = reader, of_texts, of_clips

    @property
    def reader(self) -> QueryEncoder:
        """The encoder that does the work."""
        return self._reader

    @property
    def borrowed(self) -> bool:
        """Whether another era's pair reads."""
        return self.of_clips is not None

    @property
    def nbytes(self) -> int:
        """Memory of the maps, and of the weights where they are the era's own."""
        return self.of_texts.nbytes + (self._reader.nbytes if self.of_clips is None else self.of_clips.nbytes)

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Shape: n -> (n, d) unit rows."""
        return through(self._reader.texts(texts), self.of_texts)

    def clips(self, frames: Frames) -> Vectors:
        """Shape: uint8 (n, T, H, W, 3) -> (n, d) unit rows."""
        return self.from_reader(self._reader.clips(frames))

    def from_reader(self, vectors: Vectors) -> Vectors:
        """What the reader says of clips, as the era would. Shape: (n, d) -> (n, d)."""
        return vectors if self.of_clips is None else through(vectors, self.of_clips)


def through(vectors: Vectors, mapping: Vectors) -> Vectors:
    """Shape: (n, d), (d + 1, d) as `fitted` returns it -> (n, d) unit rows."""
    out: Vectors = vectors @ mapping[:-1] + mapping[-1]
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


def affine(mapping: Vectors) -> Vectors:
    """A map as `through` takes it, of one that may be a matrix alone. Shape: (d, d) or (d + 1, d) -> (d + 1, d)."""
    dim = mapping.shape[1]
    return mapping if len(mapping) > dim else np.concatenate([mapping, np.zeros((1, dim), mapping.dtype)])


def fitted(source: Vectors, target: Vectors) -> Vectors:
    """The affine map that fits best, by ridge regression towards the identity: with nothing to go by, it stays so.

    Shape: (m, d), (m, d) the same things in two spaces -> (d + 1, d): a matrix, to be multiplied from the right, and
    below it a row to be added.
    """
    dim = source.shape[1]
    if not len(source):
        return np.eye(dim + 1, dim, dtype=np.float32)
    middle, centre = source.mean(0), target.mean(0)
    x, y, stay = source - middle, target - centre, _STAY * np.eye(dim, dtype=np.float32)
    matrix = np.linalg.solve(x.T @ x + stay, x.T @ y + stay)
    return np.concatenate([matrix, (centre - middle @ matrix)[None]]).astype(np.float32)


def stand_in(said: Iterable[Captions]) -> list[str]:
    """Captions of all eras, for one that has none."""
    learned = [text for one in said for text in one.texts]
    return learned[:: max(1, len(learned) // _STAND_IN)]


def text_map(era: Sealed, said: Captions, others: Sequence[str], reader: QueryEncoder) -> Vectors:
    """Through which a pair reads the captions of an era as the era does now: `fitted`.

    Args:
        era: a sealed one.
        said: its captions.
        others: captions that stand in where it has none: its own were all held out, or are deleted.
        reader: the pair.
    """
    texts, vectors = said.texts, said.vectors
    if not texts and others:
        assert era.encoder is not None
        texts, vectors = others, era.encoder.texts(others)
    return fitted(reader.texts(texts) if texts else vectors, vectors)


def choose(
    eras: Sequence[Sealed], said: Mapping[int, Captions], free: Collection[int], most: int, familiarity_weight: float
) -> Choice | None:
    """The pair whose loss is least, read by the newest one from then on; None where there are not too many pairs.

    Args:
        eras: all sealed ones, oldest first.
        said: of each, by its number.
        free: numbers of eras that can do without their pair now.
        most: pairs to be kept.
        familiarity_weight: as in search.
    """
    own = [era for era in eras if era.mapped is None]
    candidates = [era for era in own[:-1] if era.number in free]
    if len(own) <= most or not candidates:
        return None
    assert own[-1].encoder is not None
    newest = own[-1].encoder.reader  # before any map of its own era
    questions = [text for era in eras for text in said[era.number].questions]
    others = stand_in(said.values())
    maps, now, then = dict[int, Vectors](), dict[int, Vectors](), dict[int, Vectors]()  # the questions, as each is read
    for era in eras:
        n, encoder = era.number, era.encoder
        assert encoder is not None
        maps[n] = text_map(era, said[n], others, newest)
        if questions:
            now[n], then[n] = encoder.texts(questions), through(newest.texts(questions), maps[n])

    def found(asked: Mapping[int, Vectors]) -> float:
        each = [asked[era.number] for era in eras]
        clips, words = [said[era.number].clips for era in eras], [era.words for era in eras]
        return merit(blocks(questions, each, clips, words, familiarity_weight))

    best: Choice | None = None
    before = found(now) if questions else 0.0
    for era in candidates:
        moved = {era.number, *(e.number for e in eras if e.mapped is not None and e.mapped.reader == era.number)}
        loss = before - found(now | {n: then[n] for n in moved}) if questions else 0.0
        if best is None or loss < best.mapped.loss:
            mapped = Mapped(own[-1].number, loss, len(questions))
            best = Choice(era.number, mapped, {n: maps[n] for n in moved})
    return best
