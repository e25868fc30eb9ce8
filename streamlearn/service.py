"""What the HTTP API serves, from the daemon's parts. Reads only; safe from any thread."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

from streamlearn import __version__
from streamlearn.catalog_rows import ClipRow
from streamlearn.era_decisions import decisions
from streamlearn.feed import Feed
from streamlearn.frames import animated
from streamlearn.metrics import KS
from streamlearn.schemas import SearchAnswer, SearchRequest
from streamlearn.search import Searcher, nested
from streamlearn.service_evaluation import EvaluationService
from streamlearn.state import State

_EXAMPLES = 5
_VIEWS = ("served", "single", "learner")  # with each task


class DaemonService(EvaluationService):
    """An `api.Service` over the running daemon."""

    def __init__(self, state: State, searcher: Searcher, feed: Feed, *, source: str, heldout_max: int) -> None:
        super().__init__(state)
        self._state, self._searcher, self._feed, self._source = state, searcher, feed, source
        self._heldout_max = heldout_max
        self._catalog, self._frames = state.catalog, state.frames
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()

    def search(self, request: SearchRequest) -> SearchAnswer:
        """Answer from the published snapshot."""
        return self._state.cutover.read(lambda: self._searcher.search(request))

    def clip(self, video_id: str) -> dict[str, Any] | None:
        """All that is known about a clip."""
        clip = self._clip(video_id)
        return None if clip is None else dataclasses.asdict(clip)

    def thumbnail(self, video_id: str) -> bytes | None:
        """The clip's sampled frames as an animated WebP; where they are no longer kept, read from its uri once more.

        Raises:
            SearchError: that cannot be done now.
        """
        clip = self._clip(video_id)
        if clip is None:
            return None
        if (image := self._frames.thumbnail(clip.row)) is not None:
            return image
        frames = self._searcher.queries.picture(clip)
        return None if frames is None else animated(frames)

    def tasks(self) -> list[dict[str, Any]]:
        """The task log with each task's recall and forgetting, and what was decided about its era."""
        book, counts, pairs = self._state.book, self._catalog.counts_by_task(), self._catalog.matrix.pairs()
        out, eras = [], [era.facts() for era in list(self._state.eras.eras)]
        for task in self._state.tasks.tasks:
            facts = dataclasses.asdict(task)
            facts["clips"] = counts.get(task.name, 0)
            facts["held_out"] = len(self._catalog.heldout(task.name, self._heldout_max))
            facts["pairs"] = pairs.get(task.name, 0)  # behind the ratios that follow
            facts["recall"] = {
                view: {str(k): value for k in KS if (value := book.now(task.name, "t2v", k, view)) is not None}
                for view in _VIEWS
            }
            facts["forgetting"] = {view: book.forgetting(task.name, "t2v", 5, view) for view in _VIEWS}
            facts["decisions"] = decisions(eras, task.era)
            out.append(facts)
        return out

    def status(self) -> dict[str, Any]:
        """What the daemon is doing."""
        state, snapshot = self._state, self._searcher.snapshot
        progress = state.progress
        task = state.tasks.current
        return {
            "version": __version__,
            "state": progress.state,
            "detail": progress.detail or self._feed.detail,
            "source": self._source,
            "clips": dict(state.ledger.counts),
            "clips_per_s": round(progress.clips_per_s, 1) if progress.state == "learning" else 0.0,
            "searchable": 0 if snapshot is None else len(snapshot),
            "step": state.learner.steps,
            "task": None if task is None else task.name,
            "generation": state.catalog.generation - 1,
            "loss": progress.loss,
            "drift_score": progress.drift_score,
            "model_version": state.model_version,
            "offsets": nested({} if snapshot is None else snapshot.offsets),
            "stale_clips": state.eras.stale,
            "uptime_s": round(time.monotonic() - self._clock, 1),
            "started_at": self._started.isoformat(timespec="seconds"),
            "examples": self._examples(),
        }

    def ready(self) -> tuple[bool, str]:
        """Ready once a snapshot is served; the source may be away."""
        if self._searcher.snapshot is None:
            return False, "no clip has been indexed yet"
        return True, "searches are answered"

    def _clip(self, video_id: str) -> ClipRow | None:
        return None if video_id in self._searcher.deleting else self._catalog.clip(video_id)

    def _examples(self) -> list[str]:
        """Captions from every era, for a page that would otherwise be empty."""
        snapshot = self._searcher.snapshot
        if snapshot is None:
            return []
        rows = [era.partition.newest for era in snapshot.eras if len(era.partition)][-_EXAMPLES:]
        return [clip.captions[0] for clip in self._catalog.clips(rows).values()]
