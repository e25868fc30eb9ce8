"""What eras are judged by: the held-out clips of all of them in one pool, scored as `search` does but for hubs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamlearn.era_scores import weighed
from streamlearn.era_view import QueryEncoder
from streamlearn.era_words import Words, familiarity
from streamlearn.evaluate import ranks
from streamlearn.records import Frames, Vectors


@dataclass(frozen=True)
class Judges:
    """What an era is judged by, at most some dozens of each.

    Attributes:
        questions: captions of held-out clips; n.
        vectors: of those clips, (n, d), whichever pair made them.
        films: what an encoder reads of those clips, (n, T, H, W, 3); None where nothing is encoded anew.
        learned: vectors of some clips that were learned, (l, d), which may stand beside them.
    """

    questions: Sequence[str]
    vectors: Vectors
    films: Frames | None
    learned: Vectors


@dataclass(frozen=True)
class Sealing:
    """Whose weights an era was sealed with.

    Attributes:
        pair: "served", the momentum pair unless `learner.serve` is `online`; "encoders", where held-out clips said that
            it still lagged behind them.
        merits: mean reciprocal rank by each of the two, by name; empty where too few clips were held out.
        judges: how many there were.
    """

    pair: str
    merits: Mapping[str, float]
    judges: int


def blocks(
    questions: Sequence[str],
    asked: Sequence[Vectors],
    vectors: Sequence[Vectors],
    words: Sequence[Words],
    familiarity_weight: float,
) -> list[Vectors]:
    """Scores of questions and each era's clips, as `Searcher.ask` weighs them, hubs left in.

    Args:
        questions: q texts.
        asked: these as each era sees them, (q, d).
        vectors: of each era, (n, d).
        words: that each era was told.
        familiarity_weight: as in search.

    Returns:
        (q, n) of each era.
    """
    cosines = [queries @ clips.T for queries, clips in zip(asked, vectors, strict=True)]
    return weighed(cosines, familiarity(questions, words), familiarity_weight)


def knows(encoder: QueryEncoder, texts: Sequence[str], films: Frames) -> float:
    """How well a pair alone tells clips apart: mean reciprocal rank of n texts, n films (n, T, H, W, 3)."""
    return merit([encoder.texts(texts) @ encoder.clips(films).T])


def merit(blocks: Iterable[Vectors]) -> float:
    """Mean reciprocal rank, of blocks of scores side by side: see `merits`."""
    return float(merits(blocks).mean())


def merits(blocks: Iterable[Vectors]) -> npt.NDArray[np.float64]:
    """Reciprocal rank of each question, (q,), of blocks of scores side by side: (q, n), whose diagonal is right."""
    scores = np.concatenate(list(blocks), axis=1)
    return 1 / ranks(scores, np.arange(len(scores)))
