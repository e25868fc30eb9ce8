"""Questions and answers: test captions against test clips, in galleries of one task and of all, both directions.

Arrays and frozen towers in, plain dictionaries of numbers out, ready for JSON. Recall is in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streamlearn.bench.corpus import TEST, Corpus, Ints
from streamlearn.encoders import Towers
from streamlearn.evaluate import Ranks, median_rank, ranks, recall_at
from streamlearn.records import Vectors

KS = (1, 5, 10)
DIRECTIONS = ("t2v", "v2t")
_ENCODED_AT_ONCE = 64
_DROPPED = 0.4  # of a thinned query's words

#: By "1", "5", "10" and "median".
Recalls = dict[str, float]


@torch.inference_mode()
def encode_clips(towers: Towers, corpus: Corpus, rows: Ints) -> Vectors:
    """Unit vectors of clips, (n, d)."""
    out = np.zeros((len(rows), towers.dim), np.float32)
    for start in range(0, len(rows), _ENCODED_AT_ONCE):
        some = rows[start : start + _ENCODED_AT_ONCE]
        frames = torch.from_numpy(np.ascontiguousarray(corpus.frames[some])).to(towers.device)
        out[start : start + len(some)] = towers.encode_video(frames).cpu().numpy()
    return out


@torch.inference_mode()
def encode_texts(towers: Towers, texts: Sequence[str]) -> Vectors:
    """Unit vectors of texts, (n, d)."""
    out = np.zeros((len(texts), towers.dim), np.float32)
    for start in range(0, len(texts), _ENCODED_AT_ONCE):
        some = texts[start : start + _ENCODED_AT_ONCE]
        out[start : start + len(some)] = towers.encode_text(some).cpu().numpy()
    return out


def questions(corpus: Corpus, rows: Ints) -> list[str]:
    """The first caption of each clip."""
    return [corpus.captions[row][0] for row in rows]


def thinned(texts: Iterable[str], seed: int) -> list[str]:
    """The same without four tenths of their words, as people ask; at least one word stays."""
    rng = np.random.default_rng((seed, 2))
    out = []
    for text in texts:
        words = text.split()
        kept = [word for word in words if rng.random() >= _DROPPED]
        out.append(" ".join(kept or words[:1]))
    return out


def summary(rank: Ranks) -> Recalls:
    """Recall in percent, and the median rank."""
    return {str(k): 100 * recall_at(rank, k) for k in KS} | {"median": median_rank(rank)}


def both_ways(scores: npt.NDArray[np.floating[Any]]) -> dict[str, Recalls]:
    """Text to video and back, of a square (captions, clips) whose diagonal is right."""
    own = np.arange(len(scores))
    return {"t2v": summary(ranks(scores, own)), "v2t": summary(ranks(scores.T, own))}


def ask_copy(towers: Towers, corpus: Corpus, domains: Sequence[int], *, pooled: bool = False) -> dict[str, Any]:
    """What a copy of the encoders knows now, everything encoded by it.

    Returns:
        By domain, direction and measure; with `pooled`, also under "pooled" for one gallery of all the domains.
    """
    rows = {d: corpus.rows(TEST, d) for d in domains}
    video = {d: encode_clips(towers, corpus, r) for d, r in rows.items()}
    text = {d: encode_texts(towers, questions(corpus, r)) for d, r in rows.items()}
    found: dict[str, Any] = {corpus.domains[d]: both_ways(text[d] @ video[d].T) for d in domains}
    if pooled:
        found["pooled"] = both_ways(np.concatenate(list(text.values())) @ np.concatenate(list(video.values())).T)
    return found


def mean_recalls(by_direction: Mapping[str, Recalls]) -> Recalls:
    """Mean over both directions."""
    return {key: float(np.mean([by_direction[d][key] for d in DIRECTIONS])) for key in by_direction["t2v"]}


def caption_search(corpus: Corpus, seed: int) -> dict[str, Any]:
    """The baseline without video: a query's words against the stored captions of the pooled test clips.

    TF-IDF and cosine. Asked in full it finds the query itself, since each clip's caption is the query: what it says is
    what a benchmark of captions cannot, so it is asked with four tenths of the words missing too.
    """
    rows = corpus.rows(TEST)
    stored = questions(corpus, rows)
    words = {word: i for i, word in enumerate(sorted({w for text in stored for w in text.lower().split()}))}

    def counts(texts: Sequence[str]) -> Vectors:
        out = np.zeros((len(texts), len(words)), np.float32)
        for i, text in enumerate(texts):
            for word in text.lower().split():
                out[i, words[word]] += 1
        return out

    have = counts(stored)
    weight = np.log(len(stored) / (have > 0).sum(0)) + 1
    have = _unit(have * weight)
    own = np.arange(len(rows))
    return {
        name: summary(ranks(_unit(counts(texts) * weight) @ have.T, own))
        for name, texts in (("full", stored), ("thinned", thinned(stored, seed)))
    }


def _unit(x: Vectors) -> Vectors:
    out: Vectors = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return out
