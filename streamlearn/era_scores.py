"""How what eras answer is weighed: the one formula of searches, of what is decided about eras, and of the benchmark.

A score is the weighted mean of a clip's cosine and of how much the query is in the words of the clip's era
(`era_words`), less a share of how near the clip is to whatever is said: some clips are near to all captions, hubs
(Radovanović et al., 2010), and would else answer everything. Arrays in and out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamlearn.records import Vectors

#: So many of the best are told apart once more, less what makes hubs of them. A page deep below is as it was.
HEAD = 32
_AT_ONCE = 8_192  # clips
_FEWEST_HUB_CAPTIONS = 64  # of fewer, a learned clip's own weighs so much that it counts against it
_SHARPNESS = np.float32(15)  # about the inverse of the temperature that is learned with


def weighed(cosines: Sequence[Vectors], familiar: Vectors, familiarity_weight: float) -> list[Vectors]:
    """Cosines of each era's clips and how familiar the queries are to the era, in one.

    Args:
        cosines: (q, n) of each era.
        familiar: (eras, q), 0 to 1.
        familiarity_weight: beside a cosine's 1.

    Returns:
        (q, n) of each era.
    """
    share = np.float32(1 / (1 + familiarity_weight))
    return [share * cosine + (1 - share) * near[:, None] for cosine, near in zip(cosines, familiar, strict=True)]


def hubness(clips: Vectors, captions: Vectors) -> Vectors:
    """How near each clip is to what its era was told: log mean exp of its cosines, sharpened.

    Taken from a cosine in full it would be what inverted softmax does (Smith et al., 2017; querybank normalisation,
    Bogolin et al., 2022). Shape: (n, d), (m, d) -> (n,), NaN where m is below 64.
    """
    if len(captions) < _FEWEST_HUB_CAPTIONS:
        return np.full(len(clips), np.nan, np.float32)
    mean = np.empty(len(clips), np.float32)
    for start in range(0, len(clips), _AT_ONCE):
        cosines = captions @ clips[start : start + _AT_ONCE].T  # (m, n): for a few clips three times as quick as (n, m)
        mean[start : start + cosines.shape[1]] = np.exp(_SHARPNESS * cosines).mean(0)
    return (np.log(mean) / _SHARPNESS).astype(np.float32)


def less_hubness(scores: Vectors, near: Vectors, *, hub_weight: float, familiarity_weight: float) -> Vectors:
    """Scores, less what makes hubs of the clips; where the first alone are known, what follows stays below them.

    Args:
        scores: (q, n) as `weighed` gives them; descending where not all are known.
        near: (q, h) or (1, n): `hubness` of the first h clips of each query, or of all.
        hub_weight: of the cosine's.
        familiarity_weight: as above.

    Returns:
        (q, n), in the same order.
    """
    less = np.float32(hub_weight / (1 + familiarity_weight)) * _settled(near)
    known, out = less.shape[1], scores.copy()
    out[:, :known] -= less
    if known < out.shape[1]:
        out[:, known:] -= less.max(1, keepdims=True)
    return out


def _settled(values: Vectors) -> Vectors:
    """With the mean of a line's known ones for those that are NaN, 0 where all are. Shape: (a, b)."""
    unknown = np.isnan(values)
    if not unknown.any():
        return values
    count = np.maximum((~unknown).sum(1, keepdims=True), 1)
    mean = np.where(unknown, 0, values).sum(1, keepdims=True) / count
    return np.where(unknown, mean, values).astype(np.float32)
