"""Learner, catalog, frames, eras and search put together by hand: what a test of the middle layers stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from streamlearn.catalog import Catalog, ClipRow
from streamlearn.connectors.synthetic import render, sample
from streamlearn.encoders import Towers
from streamlearn.era_words import Words
from streamlearn.eras import Eras
from streamlearn.frames import FrameStore, pack
from streamlearn.learner import Learner
from streamlearn.metrics import Metrics
from streamlearn.schemas import Query, SearchAnswer, SearchRequest
from streamlearn.search import Searcher, Snapshot
from streamlearn.settings import LearnerSettings, SearchSettings

BLANK = ClipRow(
    row=0, video_id="", uri=None, start_s=None, end_s=None, captions=(), meta={}, time=None, split="train", task="",
    step=0, sha256=None, topic="list", partition="0", offset=0,
)  # fmt: skip


def same_words(one: Words, other: Words) -> bool:
    """Whether both count the same."""
    pairs = [dict(zip(words.words.tolist(), words.counts.tolist(), strict=True)) for words in (one, other)]
    return pairs[0] == pairs[1] and one.clips == other.clips


#: The batch of the learner of `Parts`, and how many clips it encodes in a step's work: four passes for each of a batch.
BATCH, STEP = 8, 32


class Parts:
    """The first task is "t1" in era 1.

    Attributes:
        rows: of every clip that was learned or held out, in order.
    """

    def __init__(self, folder: Path, *, towers: Towers | None = None, **search: Any) -> None:
        few = {"refresh_share": 0, "snapshot_interval_clips": 1, "merge_loss": 0.0}  # pairs here are much alike
        self.settings = SearchSettings(**{**few, **search})
        self.registry = CollectorRegistry()
        self.metrics = Metrics.create(self.registry)
        self.catalog = Catalog(folder / "catalog.db")
        self.frames = FrameStore(folder / "frames", 2**30)
        self.learner = Learner(
            towers or Towers(dim=16), LearnerSettings(batch_size=BATCH, queue_size=16, learning_rate=1e-3)
        )
        self.eras = Eras(self.learner, self.catalog, self.frames, self.settings)
        self.eras.current.task = "t1"
        self.searcher = Searcher(self.catalog, self.frames, self.settings, self.metrics)
        self.rows: list[int] = []
        self._rng = np.random.default_rng(5)

    def learn(
        self, n: int = 8, domain: str = "studio", *, said: str = "", split: str = "train", **facts: Any
    ) -> list[int]:
        """One step with n clips, named v0, v1 ... in the order of arrival; held-out ones are only indexed.

        With `said` the captions are those of other clips, of that domain.
        """
        scenes = sample(domain, n, self._rng)
        films = render(scenes, size_px=32, rng=self._rng)
        scenes = sample(said, n, self._rng) if said else scenes
        ids = [f"v{len(self.rows) + i}" for i in range(n)]
        if split == "train":
            stats = self.learner.step(films, [[scene.caption] for scene in scenes], ids)
            self.eras.note_pairs(stats.keys_text, stats.keys_video, [[scene.caption] for scene in scenes])
            keys = stats.keys_video
        else:
            keys = self.learner.encode_video(films)
        clip = replace(BLANK, task=self.eras.current.task, split=split, step=self.learner.steps, **facts)
        rows, _ = self.catalog.put(
            [replace(clip, video_id=name, captions=(scene.caption,)) for name, scene in zip(ids, scenes, strict=True)]
        )
        for row, film in zip(rows, films, strict=True):
            self.frames.put(row, pack(film))
        self.eras.upsert(rows, keys)
        self.eras.snapshots.remember()
        self.rows += rows
        return rows

    def words(self, rows: Sequence[int]) -> Words:
        """Of what these clips were told, those that are to be learned from."""
        clips = self.catalog.clips(list(rows)).values()
        return Words.of([clip.captions for clip in clips if clip.split == "train"])

    def boundary(self, task: str, *, since_step: int | None = None) -> None:
        """A task begins, after `since_step` or now."""
        self.eras.start(task, self.learner.steps if since_step is None else since_step)
        self.learner.start_task()

    def finish_reencoding(self) -> None:
        while self.eras.reencode():
            pass

    def publish(self) -> Snapshot:
        """Serve everything up to now."""
        snapshot = Snapshot(
            eras=self.eras.views(), generation=0, step=self.learner.steps, model_version="m", offsets={},
            time="2026-01-01T00:00:00Z", stale=self.eras.stale, staleness_ratio=None,
        )  # fmt: skip
        self.searcher.publish(snapshot)
        return snapshot

    def ask(self, query: str | Query, **request: Any) -> SearchAnswer:
        """A text, or a whole query."""
        query = Query(text=query) if isinstance(query, str) else query
        return self.searcher.search(SearchRequest(query=query, **request))

    def stored(self, rows: Sequence[int]) -> np.ndarray:
        """The frames as they were kept, (n, T, H, W, 3)."""
        films = [self.frames.get(row) for row in rows]
        return np.stack([film for film in films if film is not None])


def indexed(parts: Parts, number: int) -> dict[int, np.ndarray]:
    """Rows and vectors of an era, as readers see them."""
    for era in parts.eras.views():
        if era.number == number:
            rows = era.partition.rows
            return dict(zip(rows.tolist(), era.partition.vectors(rows), strict=True))
    return {}
