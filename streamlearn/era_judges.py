"""What eras are judged by: the held-out clips of all of them in one pool, asked and scored as `search` does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamlearn.era_view import QueryEncoder, familiarity
from streamlearn.evaluate import ranks
from streamlearn.records import Frames, Vectors


@dataclass(frozen=True)
class Judges:
    """What an era is judged by, at most some dozens of each.

    Attributes:
        questions: captions of held-out clips; n.
        vectors: of those clips, (n, d), whichever pair made them.
        films: what an encoder reads of those clips, (n, T, H, W, 3); None where nothing is encoded anew.
        learned: captions that the era knows itself by; m.
    """

    questions: Sequence[str]
    vectors: Vectors
    films: Frames | None
    learned: Sequence[str]


def block(asked: Vectors, vectors: Vectors, captions: Vectors, familiarity_weight: float) -> Vectors:
    """Scores of questions and an era's clips, as `Searcher.ask` weighs them.

    Shape: (q, d) the questions as the era sees them, (n, d), (m, d) captions that the era knows itself by -> (q, n).
    """
    share = np.float32(1 / (1 + familiarity_weight))  # of the clip's cosine
    out: Vectors = share * (asked @ vectors.T) + (1 - share) * familiarity(asked, captions)[:, None]
    return out


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
