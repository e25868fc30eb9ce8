"""Eras as the daemon seals them, without its catalog: the pair from just before the next drift encodes an era's clips.

All that arrived in an era is encoded once, by both of the pair's candidates. `bench.curve` asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from streamlearn.bench.corpus import JUDGE, LEARN, TEST, Corpus, Ints
from streamlearn.bench.gallery import encode_clips, encode_texts, questions
from streamlearn.encoders import Towers
from streamlearn.era_words import Words
from streamlearn.evaluate import ranks
from streamlearn.learner import Learner
from streamlearn.records import Vectors
from streamlearn.settings import SearchSettings

_CAPTIONS = 1024  # that an era knows itself by, as in the daemon
_FEWEST_JUDGES = 10  # likewise


@dataclass
class SealedEra:
    """One era after its end.

    Attributes:
        rows: of the corpus, ascending: all that arrived in it.
        tests: test clips among them.
        judges: held-out clips, none of them a test clip.
        told: clips learned in it, spread evenly, in the order of their arrival; it knows itself by their captions.
        captions: theirs.
        words: of the captions of all clips learned in it.
        chosen: "local" or "online", whichever pair ranks its judges better.
        vectors, pairs: by pair, of `rows`, and the pair itself.
    """

    rows: Ints
    tests: Ints
    judges: Ints
    told: Ints
    captions: list[str]
    words: Words
    chosen: str = "local"
    vectors: dict[str, Vectors] = field(default_factory=dict)
    pairs: dict[str, Towers] = field(default_factory=dict)

    def of(self, rows: Ints, pair: str) -> Vectors:
        """Vectors of some of its clips. Shape: (n,) -> (n, d)."""
        return self.vectors[pair][np.searchsorted(self.rows, rows)]


class SealedEras:
    """Takes snapshots while a stream is learned, and seals eras at boundaries.

    Args:
        corpus: the clips.
        place: of every corpus row, how many clips had been learned when it arrived.
        settings: how often snapshots are taken, and how many are kept.
    """

    def __init__(self, corpus: Corpus, place: Ints, settings: SearchSettings) -> None:
        self._corpus, self._place, self._settings = corpus, place, settings
        self._snapshots: deque[tuple[int, int, dict[str, Mapping[str, Tensor]]]] = deque(maxlen=settings.snapshots)
        self._begin = 0  # in clips
        self.eras: list[SealedEra] = []

    def remember(self, learner: Learner, step: int, clips: int) -> None:
        """Call after each step."""
        if not self._snapshots or clips - self._snapshots[-1][1] >= self._settings.snapshot_interval_clips:
            self._snapshots.append((step, clips, _weights(learner)))

    def seal(self, learner: Learner, *, end: int, since_step: int | None) -> None:
        """The era ends after `end` clips. With `since_step`, later steps already belong to the next one.

        Where the end was known beforehand, now is before: `since_step` is None.
        """
        weights = _weights(learner)
        if since_step is not None and self._snapshots:
            before = [w for step, _, w in self._snapshots if step <= since_step]
            weights = before[-1] if before else self._snapshots[0][2]
        rows = np.flatnonzero((self._place >= self._begin) & (self._place < end))
        tests, judges, learned = (rows[self._corpus.part[rows] == part] for part in (TEST, JUDGE, LEARN))
        learned = learned[np.argsort(self._place[learned], kind="stable")]
        told = learned[:: max(1, -(-len(learned) // _CAPTIONS))][:_CAPTIONS]
        words = Words.of(self._corpus.captions[row] for row in learned)
        era = SealedEra(rows, tests, judges, told, questions(self._corpus, told), words)
        merit = {}
        for name, state in weights.items():
            pair = era.pairs[name] = learner.online.frozen_copy()
            pair.load_state_dict(state)
            era.vectors[name] = encode_clips(pair, self._corpus, rows)
            scores = encode_texts(pair, questions(self._corpus, judges)) @ era.of(judges, name).T
            merit[name] = float((1 / ranks(scores, np.arange(len(judges)))).mean()) if len(judges) else 0.0
        if len(judges) >= _FEWEST_JUDGES:
            era.chosen = max(merit, key=lambda name: merit[name])  # of equals the first: the momentum pair
        self.eras.append(era)
        self._begin = end
        self._snapshots.clear()


def _weights(learner: Learner) -> dict[str, Mapping[str, Tensor]]:
    """Half-precision weights of the served momentum pair and of the encoders, as the daemon keeps them."""
    return {
        name: {key: tensor.detach().half() if tensor.is_floating_point() else tensor.clone()
               for key, tensor in towers.state_dict().items()}
        for name, towers in (("local", learner.local), ("online", learner.online))
    }  # fmt: skip
