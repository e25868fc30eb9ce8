"""A domain that comes back: which encoders should its new clips be encoded with?

Three answers are compared at the end of the stream, in one pool with all other clips: learn the domain anew and encode
them with what that gives, in an era of their own; encode them with the pair that sealed the domain's first era, and
keep them there, as the daemon does where that pair knows the domain as well; or with the pair of the era before, which
is what the encoders were when they came.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamlearn.bench.corpus import TEST, Corpus, Ints
from streamlearn.bench.curve import Curve
from streamlearn.bench.gallery import summary
from streamlearn.bench.schedule import Schedule
from streamlearn.bench.sealed import SealedEra


def revisits(curve: Curve, corpus: Corpus, schedule: Schedule) -> list[dict[str, Any]]:
    """Recall, text to video over the pool, of each visit to a domain that was there before.

    Returns:
        Of each such visit "domain", "clips" that it brought to learn from, and by "anew", "old" and "before" the recall
        of the clips that "came" back, of those of the domain that came "earlier", and of "all" test clips.
    """
    spans = itertools.pairwise([*schedule.starts, len(schedule.rows)])
    out = []
    for number, ((start, end), domain) in enumerate(zip(spans, schedule.tasks, strict=True)):
        rows = corpus.rows(TEST, domain)
        earlier, came = rows[schedule.place[rows] < start], rows[_within(schedule.place[rows], start, end)]
        known = corpus.rows(TEST)
        before = known[_within(schedule.place[known], schedule.starts[number - 1], start)]  # a boundary may lie early
        if domain not in schedule.tasks[:number] or not (len(earlier) and len(came) and len(before)):
            continue
        ways = {
            "anew": curve.ranks_with(came[:0], 0),
            "old": curve.ranks_with(came, _holder(curve.eras, earlier)),
            "before": curve.ranks_with(came, _holder(curve.eras, before)),
        }
        found = {
            way: {
                "came": summary(np.asarray([rank[row] for row in came])),
                "earlier": summary(np.asarray([rank[row] for row in earlier])),
                "all": summary(np.asarray(list(rank.values()))),
            }
            for way, rank in ways.items()
        }
        out.append({"domain": corpus.domains[domain], "clips": end - start, **found})
    return out


def _within(places: Ints, start: int, end: int) -> np.ndarray:
    return (places >= start) & (places < end)


def _holder(eras: Sequence[SealedEra], rows: Ints) -> int:
    """The era that holds most of these clips."""
    return int(np.argmax([np.isin(rows, era.tests).sum() for era in eras]))
