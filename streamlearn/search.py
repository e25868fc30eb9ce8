"""The read side: answers from the last published snapshot, from any thread, while learning goes on.

Each era is asked with its own encoder, and scores of all eras are merged as they are (`era_scores` says what a score
is). The evaluation asks through the same `ask`, so recall reported is recall served.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from streamlearn.catalog import Catalog, ClipRow
from streamlearn.era_scores import HEAD, hubness, less_hubness, weighed
from streamlearn.era_view import EraView
from streamlearn.era_words import familiarity
from streamlearn.errors import SearchError
from streamlearn.frames import FrameStore
from streamlearn.index_lists import DEEP_K
from streamlearn.metrics import Metrics
from streamlearn.paging import continued, offset_of, token_of
from streamlearn.queries import Encode, Queries, Submit, as_today
from streamlearn.records import Offsets, Vectors
from streamlearn.schemas import AsOf, SearchAnswer, SearchRequest, SearchResult, Staleness, thumbnail_url
from streamlearn.settings import SearchSettings
from streamlearn.text_stack import TextStack, stacked

_MOST_PARTITIONS = 64  # told one by one in an answer

Rows = npt.NDArray[np.int64]
Mode = Literal["eras", "single"]


@dataclass(frozen=True)
class Snapshot:
    """What is served, immutable. `stale` counts clips of sealed eras that await re-encoding."""

    eras: tuple[EraView, ...]
    generation: int
    step: int
    model_version: str
    offsets: Offsets
    time: str
    stale: int
    staleness_ratio: float | None

    def __len__(self) -> int:
        return sum(len(era.partition) for era in self.eras)


class Searcher:
    """Holds the published snapshot and answers from it.

    Args:
        catalog, frames: what results are made of.
        settings: limits, and how eras are asked.
        metrics: gets the time of the stages "encode" and "index", and how vectors that are asked fit.
        submit: hands a query's video to the decoders; None: videos are not fetched.
        decode_timeout_s: longest wait for them.
        deleting: ids of clips that are being deleted, and are not found any more.
    """

    def __init__(
        self,
        catalog: Catalog,
        frames: FrameStore,
        settings: SearchSettings,
        metrics: Metrics,
        *,
        submit: Submit | None = None,
        decode_timeout_s: float = 30.0,
        deleting: Container[object] = (),
    ) -> None:
        self._catalog, self._frames, self._settings, self._metrics = catalog, frames, settings, metrics
        self.queries = Queries(catalog, frames, metrics, submit, timeout_s=decode_timeout_s)
        self.deleting = deleting
        self.mode: Mode = settings.mode  # of users' searches
        self.snapshot: Snapshot | None = None
        self._sealed: TextStack | None = None  # of the sealed eras, which stay
        self._stack: TextStack | None = None  # the same and the current one, which is another at each publication

    def publish(self, snapshot: Snapshot) -> None:
        """Serve this from now on; searches under way end on the one they began with."""
        if self.mode == "eras":
            encoders = list(dict.fromkeys(era.encoder.reader for era in snapshot.eras))
            self._sealed = stacked(encoders[:-1], self._sealed)
            self._stack = stacked(encoders, self._sealed)
        served = {str(era.number): era for era in snapshot.eras}
        before, self.snapshot = self.snapshot, snapshot
        if before is not None:
            for gone in {str(era.number) for era in before.eras} - set(served):
                for gauge in (self._metrics.era_bytes, self._metrics.era_search_seconds):
                    gauge.remove_by_labels({"era": gone})
        for number, era in served.items():
            self._metrics.era_bytes.labels(number).set(era.partition.nbytes + era.encoder.nbytes)

    def ask(
        self,
        snapshot: Snapshot,
        encode: Encode,
        limit: int,
        allowed: Rows | None = None,
        texts: Sequence[str] = (),
        *,
        mode: Mode | None = None,
        timed: bool = True,
    ) -> tuple[Vectors, Rows, Rows]:
        """The best rows of all eras.

        Args:
            snapshot: where to search.
            encode: the queries as an era sees them, (q, d).
            limit: rows per query.
            allowed: search only these rows.
            texts: the queries, where they are texts. Others are ranked by cosine alone: words and captions say nothing
                of likeness to a video.
            mode: of `search.mode`; None: the one that is set.
            timed: whether the metrics get the time. Not of an evaluation: hundreds of queries at once are no search.

        Returns:
            Scores (q, n), descending, rows (q, n) and era numbers (q, n), n = min(limit, clips). Where fewer rows
            are allowed, -inf and -1 pad.
        """
        limit = min(limit, len(snapshot))
        if not limit:
            empty = np.zeros((0, 0), np.int64)
            return np.zeros((0, 0), np.float32), empty, empty
        if (mode or self.mode) == "single":
            encode, texts = as_today(snapshot.eras[-1], encode), ()
        began, weight = time.perf_counter(), self._settings.familiarity_weight
        scores, rows, numbers, encoding = self._answers(snapshot, encode, max(limit, HEAD), allowed, timed)
        if texts:
            scores = weighed(scores, familiarity(texts, [era.words for era in snapshot.eras]), weight)
        best = _descending(np.concatenate(scores, 1), np.concatenate(rows, 1), np.concatenate(numbers, 1))
        if texts and self._settings.hub_weight:
            near = _hubness(snapshot.eras, *(part[:, :HEAD] for part in best[1:]))
            less = less_hubness(best[0], near, hub_weight=self._settings.hub_weight, familiarity_weight=weight)
            best = _descending(less, *best[1:])
        if timed:
            self._metrics.search_seconds.labels("encode").observe(encoding)
            self._metrics.search_seconds.labels("index").observe(time.perf_counter() - began - encoding)
        return best[0][:, :limit], best[1][:, :limit], best[2][:, :limit]

    def _answers(
        self, snapshot: Snapshot, encode: Encode, most: int, allowed: Rows | None, timed: bool
    ) -> tuple[list[Vectors], list[Rows], list[Rows], float]:
        """Of each era cosines, rows and its number; and the seconds that encoding took."""
        cosines, rows, numbers = [], [], []
        encoding = 0.0
        for era in snapshot.eras:
            start = time.perf_counter()
            asked = encode(era)
            encoded = time.perf_counter()
            found, at = era.partition.search(asked, min(most, len(era.partition)), allowed)
            cosines.append(found)
            rows.append(at)
            numbers.append(np.where(at < 0, -1, era.number))
            encoding += encoded - start
            taken = time.perf_counter() - encoded
            # Of an era that is served no more, the series was taken away.
            if timed and (self.snapshot is snapshot or era.number in self._numbers()):
                self._metrics.era_search_seconds.labels(str(era.number)).set(taken)
        return cosines, rows, numbers, encoding

    def _numbers(self) -> set[int]:
        return set() if self.snapshot is None else {era.number for era in self.snapshot.eras}

    def search(self, request: SearchRequest) -> SearchAnswer:
        """Answer one request.

        Raises:
            SearchError: the query cannot be answered, or nothing is served yet (503).
        """
        start = time.perf_counter()
        snapshot = self.snapshot
        if snapshot is None:
            raise SearchError("no clip has been indexed yet; try again in a moment", status=503)
        if request.limit > self._settings.max_limit:
            raise SearchError(f"limit is {request.limit}, at most {self._settings.max_limit} (search.max_limit)")
        offset = offset_of(request.page_token)
        allowed = self._allowed(request, snapshot) if request.filter else None
        encode = self._encoder(request, snapshot)
        texts = [] if request.query.text is None else [request.query.text]
        live = self._live(snapshot, encode, offset, request.limit + 1, allowed, texts)
        page = live[offset : offset + request.limit]
        steps = self._catalog.vector_steps([clip.row for _, clip in page])
        return SearchAnswer(
            results=[
                self._result(rank, score, clip, steps.get(clip.row, clip.step), request, snapshot)
                for rank, (score, clip) in enumerate(page, offset + 1)
            ],
            model_version=snapshot.model_version,
            generation=snapshot.generation,
            as_of=AsOf(offsets=nested(snapshot.offsets), time=snapshot.time),
            staleness=Staleness(clips=snapshot.stale, ratio=snapshot.staleness_ratio),
            took_ms=round((time.perf_counter() - start) * 1000, 3),
            next_page_token=token_of(offset + request.limit) if len(live) > offset + request.limit else None,
        )

    def _live(
        self, snapshot: Snapshot, encode: Encode, offset: int, more: int, allowed: Rows | None, texts: Sequence[str]
    ) -> list[tuple[float, ClipRow]]:
        """The best clips of one query, so many more than the offset where there are; without those deleted since."""
        if not len(snapshot):
            return []
        first = more + 8  # what the first page asked for
        limit = offset + first
        while True:
            scores, rows = (part[0] for part in self.ask(snapshot, encode, limit, allowed, texts)[:2])
            complete = len(rows) < limit or bool((rows < 0).any())
            if first <= DEEP_K < limit:  # the first places were not looked for in all lists
                shown = self.ask(snapshot, encode, DEEP_K, allowed, texts, timed=False)
                scores, rows = continued((shown[0][0], shown[1][0]), (scores, rows))
            clips = self._clips(rows.tolist())
            live = [
                (score, clips[row])
                for score, row in zip(scores.tolist(), rows.tolist(), strict=True)
                if row in clips and clips[row].video_id not in self.deleting
            ]
            if len(live) >= offset + more or complete:
                return live
            limit *= 2

    def _allowed(self, request: SearchRequest, snapshot: Snapshot) -> Rows:
        """Rows that pass the filter; of a clip that was replaced since the snapshot, the old one that stands for it."""
        rows, buried = self._catalog.rows_where(request.filter), self._catalog.last_buried()
        served = [era.partition.holds(buried) for era in snapshot.eras]
        replaced = self._catalog.successors(buried[np.any(served, axis=0)].tolist()) if len(buried) else {}
        passing = np.isin([clip.row for clip in replaced.values()], rows)
        return np.concatenate([rows, np.array([*replaced], np.int64)[passing]])

    def _clips(self, rows: list[int]) -> dict[int, ClipRow]:
        """Live clips by the row they were found by; one that was replaced since the snapshot stands for the old one."""
        clips = self._catalog.clips(rows)  # -1 is no row
        missing = [row for row in rows if row >= 0 and row not in clips]
        if missing:
            clips |= {old: clip for old, clip in self._catalog.successors(missing).items() if clip.row not in clips}
        return clips

    def _encoder(self, request: SearchRequest, snapshot: Snapshot) -> Encode:
        if request.query.video_id in self.deleting:
            raise SearchError(f"video {request.query.video_id!r} is being deleted", status=404)
        dim = snapshot.eras[-1].partition.dim if snapshot.eras else 0
        encode = self.queries.encoder(request.query, dim=dim, model_version=snapshot.model_version)
        text, stack = request.query.text, self._stack
        if text is None or stack is None:
            return encode

        def primed(era: EraView) -> Vectors:
            if era is snapshot.eras[0]:  # which is asked first
                stack.prime([text])
            return encode(era)

        return primed

    def _result(
        self, rank: int, score: float, clip: ClipRow, step: int, request: SearchRequest, snapshot: Snapshot
    ) -> SearchResult:
        image = self._frames.thumbnail(clip.row) if "thumbnail" in request.include else None
        vector = None
        if "vector" in request.include:
            row = np.asarray([clip.row], np.int64)
            # None for a clip that has replaced one since the snapshot.
            vector = next(
                (era.partition.vectors(row)[0].tolist() for era in snapshot.eras if era.partition.holds(row)[0]), None
            )
        return SearchResult(
            rank=rank,
            score=round(score, 6),
            video_id=clip.video_id,
            uri=clip.uri,
            start_s=clip.start_s,
            end_s=clip.end_s,
            captions=list(clip.captions),
            meta=dict(clip.meta),
            task=clip.task,
            thumbnail_url=thumbnail_url(clip.video_id),
            embedded_at_step=step,
            thumbnail_b64=base64.b64encode(image).decode() if image else None,
            vector=vector,
        )


def _descending(scores: Vectors, rows: Rows, numbers: Rows) -> tuple[Vectors, Rows, Rows]:
    """By score; equals as they come. Shape: (q, n) each, and so returned."""
    order = np.argsort(-scores, axis=1, kind="stable")
    line = np.arange(len(scores))[:, None]
    return scores[line, order], rows[line, order], numbers[line, order]


def _hubness(eras: Sequence[EraView], rows: Rows, numbers: Rows) -> Vectors:
    """How near each clip is to whatever its era was told, NaN where that is not known. Shape: (q, n) -> (q, n)."""
    near = np.full(rows.shape, np.nan, np.float32)  # so where there is no row, lest it counts in a mean
    for era in eras:
        here = numbers == era.number
        if not here.any():
            continue
        if len(rows) == 1:  # a user's query, which meets no clip twice
            near[here] = hubness(era.partition.vectors(rows[here]), era.captions)
        else:
            once, back = np.unique(rows[here], return_inverse=True)
            near[here] = hubness(era.partition.vectors(once), era.captions)[back]
    return near


def nested(offsets: Offsets) -> dict[str, dict[str, int]]:
    """Offsets by topic, then partition; of a topic with very many (a folder of files), their number under "*"."""
    out: dict[str, dict[str, int]] = {}
    for (topic, partition), offset in offsets.items():
        out.setdefault(topic, {})[partition] = offset
    return {topic: p if len(p) <= _MOST_PARTITIONS else {"*": len(p)} for topic, p in out.items()}
