"""Which two sealed eras to make one, judged by held-out clips: the cap on eras, and boundaries that were superfluous.

Merging keeps the pair of one era; the other's vectors stay, and are asked by its text encoder, or are encoded anew with
it. What that costs is known beforehand, from the vectors of held-out clips as the eras have them, or as the other pair
makes them. The measure is the mean reciprocal rank over the held-out clips of all sealed eras in one pool, scored as
`search` scores. Pairs are frozen, so what was encoded once is remembered.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import permutations, starmap
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamlearn.era_judges import Judges, blocks, merits
from streamlearn.era_maps import Sealed, fitted, through
from streamlearn.era_view import QueryEncoder
from streamlearn.era_words import Words
from streamlearn.records import Vectors

log = logging.getLogger(__name__)

_FEWEST_JUDGES, _SURE = 10, 2.0  # of either era, for a boundary to be called superfluous; standard errors


@dataclass(frozen=True)
class Merge:
    """A decision: `absorb`'s clips go to `keep`, whose pair answers for them, and the era is gone.

    Attributes:
        why: "cap", where there are too many eras; "agree", where one follows the other and nothing is lost by it;
            "returns", where the task of `absorb` was there before and the pair of `keep` knows it as well; "renewed",
            where the task of `absorb` came back and the pair of `keep`, the later one, knows the earlier clips as well.
        loss: of mean reciprocal rank, by the judges; negative where merging helps.
        judges: how many there were.
    """

    keep: int
    absorb: int
    why: str
    loss: float
    judges: int

    @property
    def of_one_task(self) -> bool:
        """Whether clips are encoded anew in any case, by the pair that knows them."""
        return self.why in ("returns", "renewed")


@dataclass(frozen=True)
class Refusal:
    """A merge that was thought of and not made.

    Attributes:
        why: for what it was thought of: as `Merge.why`.
        judges: how many there were; where they were too few, of the era that had fewer.
        loss: of mean reciprocal rank, by the judges, alone or with learned clips beside them, whichever said no more
            clearly; None where they were too few.
        at_most: the loss and two standard errors, where chance counted.
        tolerated: what may be lost; None where there is no loss.
        gone: clips whose frames were gone before they could be encoded anew, where it was given up for that.
    """

    why: str
    judges: int
    loss: float | None = None
    at_most: float | None = None
    tolerated: float | None = None
    gone: int | None = None


class _Test(NamedTuple):
    """What would be lost, of mean reciprocal rank, its standard error, and what is tolerated."""

    loss: float
    error: float
    tolerated: float

    @property
    def at_most(self) -> float:
        return self.loss + _SURE * self.error

    @property
    def excess(self) -> float:
        return self.at_most - self.tolerated


class Merger:
    """Chooses merges.

    Args:
        familiarity_weight: as in search.
        vectors: of the absorbed clips: "keep" or "encode", as `search.merge_vectors`.
    """

    def __init__(self, familiarity_weight: float, vectors: str) -> None:
        self._anew = vectors == "encode"
        self._familiarity_weight = familiarity_weight
        # Of an era, by the pair of another one: questions of its judges, and their vectors.
        self._films: dict[tuple[int, int], tuple[list[str], Vectors]] = {}

    def cheapest(self, eras: Sequence[Sealed], judges: Mapping[int, Judges]) -> Merge | None:
        """The merge of any two that costs least; None where no two can be merged.

        One that is kept has a pair of its own, and one that goes reads for no other.

        Args:
            eras: all sealed ones, oldest first.
            judges: of each, by its number.
        """
        readers = _readers(eras)
        possible = [(keep, absorb) for keep, absorb in permutations(eras, 2) if _may(keep, absorb, readers)]
        count = sum(len(judges[era.number].questions) for era in eras)
        asked = dict[int, Vectors]()
        now = self._merits(eras, judges, asked=asked) if count else np.zeros(1)

        def merged(keep: Sealed, absorb: Sealed) -> Merge:
            lost = now - self._merits(eras, judges, (keep, absorb), asked=asked) if count else now
            return Merge(keep.number, absorb.number, "cap", float(lost.mean()), count)

        return min(starmap(merged, possible), key=lambda merge: merge.loss, default=None)

    def superfluous(
        self,
        eras: Sequence[Sealed],
        judges: Mapping[int, Judges],
        orders: Sequence[tuple[Sealed, Sealed]],
        most_loss: float,
        *,
        read: Mapping[int, QueryEncoder] = MappingProxyType({}),
    ) -> Merge | Refusal:
        """Whether the boundary between two eras was superfluous, and whose pair then stays.

        A paired test of not being worse: what all held-out clips lose, and two standard errors more, must not exceed a
        share of what those of the two eras have above chance. So neither few clips nor eras that know next to nothing
        agree. It must be so among each other, and with learned clips beside them: of some dozens, even a pair that
        knows little of a domain finds most.

        Args:
            eras: all sealed ones, oldest first.
            judges: of each, by its number.
            orders: the same two eras, at least once, as (keep, absorb) each, with a pair of its own to be kept.
            most_loss: the share.
            read: how eras that are read by a pair that may go are read then, by number.

        Returns:
            The one that loses least. Where too much is lost, or there are too few judges, why not: of the order that
            is nearest to it.
        """
        both = {era.number for era in orders[0]}
        fewest = min(len(judges[number].questions) for number in both)
        if fewest < _FEWEST_JUDGES:
            return Refusal("agree", fewest)
        own = np.repeat([e.number in both for e in eras], [len(judges[e.number].questions) for e in eras])
        now = {beside: self._merits(eras, judges, beside=beside) for beside in (False, True)}
        merges, refused = list[Merge](), list[_Test]()
        for keep, absorb in orders:
            then, tests = read if absorb.number in _readers(eras) else {}, list[_Test]()
            for beside, before in now.items():
                lost = before - self._merits(eras, judges, (keep, absorb), then, beside=beside)
                most = most_loss * (before[own] - _chance(eras, judges, beside)).sum() / len(own)
                tests.append(_Test(float(lost.mean()), float(np.linalg.norm(lost)) / len(own), float(most)))
            log.info("era %d into %d: %s and %s", absorb.number, keep.number, *tests)
            worst = max(tests, key=lambda test: test.excess)
            if worst.excess > 0:
                refused.append(worst)
            else:
                merges.append(Merge(keep.number, absorb.number, "agree", tests[0].loss, len(own)))
        if not merges:
            nearest = min(refused, key=lambda test: test.excess)
            return Refusal("agree", len(own), nearest.loss, nearest.at_most, nearest.tolerated)
        return min(merges, key=lambda merge: merge.loss)

    def forget(self, number: int) -> None:
        """An era is gone, or its judges are others."""
        self._films = {pair: known for pair, known in self._films.items() if number not in pair}

    def _merits(
        self,
        eras: Sequence[Sealed],
        judges: Mapping[int, Judges],
        merged: tuple[Sealed, ...] = (),
        read: Mapping[int, QueryEncoder] = MappingProxyType({}),
        *,
        beside: bool = False,
        asked: dict[int, Vectors] | None = None,
    ) -> npt.NDArray[np.float64]:
        """Reciprocal rank of each question, (q,). Of `merged` eras the first one's pair answers, told all words.

        In `asked` the questions are kept as each era's own encoder reads them, for the next call.
        """
        known = {} if asked is None else asked
        questions = [text for era in eras for text in judges[era.number].questions]
        read_as, told = list[Vectors](), list[Words]()  # of each era
        pools: tuple[list[Vectors], list[Vectors]] = [], []  # judges, and what may stand beside them
        together = reduce(Words.plus, (era.words for era in merged), Words())
        for era in eras:
            of = judges[era.number]
            if not of.questions:
                continue
            by = merged[0] if era in merged else era
            if era.number not in read and by.number not in known:
                assert by.encoder is not None
                known[by.number] = by.encoder.texts(questions)
            read_as.append(read[era.number].texts(questions) if era.number in read else known[by.number])
            told.append(together if era in merged else era.words)
            anew = self._anew and by is not era
            vectors = self._encoded(by, era, of) if anew else of.vectors
            pools[0].append(vectors)
            pools[1].append(mapped(of.vectors, vectors, of.learned) if anew else of.learned)
        each = (blocks(questions, read_as, pool, told, self._familiarity_weight) for pool in pools[: 1 + beside])
        return merits(block for pool in each for block in pool)

    def _encoded(self, by: Sealed, of: Sealed, judges: Judges) -> Vectors:
        questions, found = self._films.get((by.number, of.number), (None, None))
        if found is None or questions != list(judges.questions):  # others, as some are deleted
            assert by.encoder is not None
            assert judges.films is not None
            found = by.encoder.clips(judges.films)
            self._films[by.number, of.number] = list(judges.questions), found
        return found


def _chance(eras: Sequence[Sealed], judges: Mapping[int, Judges], beside: bool) -> float:
    """The mean reciprocal rank of one who knows nothing."""
    of_each = (judges[era.number] for era in eras)
    count = sum(len(of.questions) + (len(of.learned) if beside and of.questions else 0) for of in of_each)
    return float((1 / np.arange(1, count + 1)).mean())


def _readers(eras: Sequence[Sealed]) -> set[int]:
    return {era.mapped.reader for era in eras if era.mapped is not None}


def _may(keep: Sealed, absorb: Sealed, readers: Collection[int]) -> bool:
    return keep.mapped is None and absorb.number not in readers


def mapped(old: Vectors, new: Vectors, others: Vectors) -> Vectors:
    """Vectors of another pair, guessed where there are no frames to encode: by the linear map that fits best.

    Ridge regression towards the identity: directions in which no clip lies stay as they are. Its gain was seen once,
    between eras that were nearly alike (docs/decisions.md); that is not decisive.

    Shape:
        old, new: (n, d), the same clips by either pair.
        others: (m, d) by the old one.

    Returns:
        (m, d) by the new one; the old where there is nothing to learn from.
    """
    return through(others, fitted(old, new)) if len(old) else others
