"""A query, of whatever kind, as each era's encoder sees it; and what cannot be asked, in a sentence.

A video named by its URI is untrusted like any clip's: it is fetched within the same allow lists, and decoded by the
same processes. A vector is believed only where it has our dimension and, if it says which model made it, ours.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from streamlearn.catalog import Catalog, ClipRow
from streamlearn.era_view import EncodedClips, EraView
from streamlearn.errors import SearchError, StreamlearnError
from streamlearn.frames import FrameStore
from streamlearn.index_view import PartitionView
from streamlearn.metrics import Metrics
from streamlearn.records import Clip, Event, Frames, Position, Record, Vectors
from streamlearn.schemas import Query

#: Encodes the queries for one era: (q, d).
Encode = Callable[[EraView], Vectors]
#: Hands a record to the decoder processes: `Loader.submit`.
Submit = Callable[[Record], Future[Event]]

_MOST_WAITING = 4  # videos that queries have with the decoders, which the stream needs too
_SLOW = ("fetch_failed", "decode_timeout")  # what keeps a decoder for long
_LEFT_ALONE_S = 60.0


class Queries:
    """Turns queries into encodings; safe from any thread.

    Args:
        catalog, frames: known clips.
        metrics: gets how vectors that are asked fit.
        submit: to the decoders; None: a video must be known here.
        timeout_s: longest wait for a decoder.
    """

    def __init__(
        self, catalog: Catalog, frames: FrameStore, metrics: Metrics, submit: Submit | None = None, *, timeout_s: float
    ) -> None:
        self._catalog, self._frames, self._submit, self._timeout_s = catalog, frames, submit, timeout_s
        self._vectors = metrics.query_vectors_total
        self._free = threading.BoundedSemaphore(_MOST_WAITING)
        self._slow: dict[str, float] = {}  # until when a place of videos is left alone

    def encoder(self, query: Query, *, dim: int, model_version: str) -> Encode:
        """What each era is asked.

        Args:
            query: the question.
            dim: of the vectors that are served.
            model_version: that is served; "fingerprint-lineage-step".

        Raises:
            SearchError: it cannot be asked here, and why.
        """
        if query.text is not None:
            text = query.text
            return lambda era: era.encoder.texts([text])
        if query.vector is not None:
            given = np.asarray([query.vector], np.float32)
            self._check_space(given, query.model_version, dim, model_version)
            unit: Vectors = given / np.linalg.norm(given)
            return lambda era: unit
        row, frames = self._known(query.video_id) if query.video_id is not None else (-1, self._asked(str(query.uri)))
        clips = EncodedClips(np.stack([frames]))

        def video(era: EraView) -> Vectors:
            here = np.asarray([row], np.int64)
            if era.partition.holds(here)[0]:
                # Another pair than the one that reads the era may have written it: where eras were merged, or today's
                # has learned on.
                return era.partition.vectors(here)
            return era.encoder.from_reader(clips.by(era.encoder.reader))  # one reads for many eras

        return video

    def known(self, clip: ClipRow) -> Frames:
        """The frames of a clip that is here, (T, H, W, 3): as they are kept, else read from its uri once more.

        Raises:
            SearchError: neither can be had, and why (404); or not now (429, 503).
        """
        frames = self._frames.get(clip.row)
        if frames is not None:
            return frames
        gone = f"the frames of video {clip.video_id!r} are no longer kept (media.store_max_bytes)"
        if clip.uri is None or self._submit is None:
            raise SearchError(f"{gone}, and it came without a uri: send it again", status=404)
        try:
            return self._fetched(clip.uri, start_s=clip.start_s, end_s=clip.end_s, sha256=clip.sha256)
        except SearchError as error:
            later_s = error.retry_after_s
            status = error.status if error.status != 422 else 404 if later_s is None else 503
            raise SearchError(f"{gone}, and from its uri: {error}", status=status, retry_after_s=later_s) from error

    def picture(self, clip: ClipRow) -> Frames | None:
        """As `known`, for what is only shown: None where it cannot be had any more.

        A page shows dozens of clips, and each keeps a decoder from the stream while it waits for a host that is away:
        one that failed is not asked for pictures for a minute.

        Raises:
            SearchError: it cannot be had now (503).
        """
        away_s = self._slow.get(_place(clip.uri), 0.0) - time.monotonic() if clip.uri is not None else 0.0
        if away_s > 0:
            if (frames := self._frames.get(clip.row)) is not None:
                return frames
            raise SearchError(
                "the clip's frames are no longer kept, and its host is away", status=503, retry_after_s=away_s
            )
        try:
            return self.known(clip)
        except SearchError as error:
            if error.status == 404:
                return None
            raise SearchError(str(error), status=503, retry_after_s=error.retry_after_s) from error

    def _check_space(self, given: Vectors, its_model: str | None, dim: int, model_version: str) -> None:
        """Vectors of another length, fingerprint or lineage are refused: their cosines with ours mean nothing."""
        another = its_model is not None and its_model.split("-")[:2] != model_version.split("-")[:2]
        fits = given.shape[1] == dim and not another
        self._vectors.labels("refused" if not fits else "unnamed" if its_model is None else "named").inc()
        if given.shape[1] != dim:
            raise SearchError(
                f"query: vector has {given.shape[1]} numbers, vectors here have {dim}: it is another model's"
            )
        if another:
            raise SearchError(
                f"query: vector was made by the model {its_model!r}, served is {model_version!r}: their vectors cannot"
                " be compared; ask with text, video_id or uri"
            )

    def _known(self, video_id: str) -> tuple[int, Frames]:
        clip = self._catalog.clip(video_id)
        if clip is None:
            raise SearchError(f"there is no video {video_id!r} here", status=404)
        return clip.row, self.known(clip)

    def _asked(self, uri: str) -> Frames:
        try:
            return self._fetched(uri)
        except SearchError as error:
            later_s = None if error.status == 422 else error.retry_after_s
            raise SearchError(f"query: uri: {error}", status=error.status, retry_after_s=later_s) from error

    def _fetched(self, uri: str, **segment: Any) -> Frames:
        if self._submit is None:
            raise SearchError("no video is fetched here; use video_id, text or vector")
        if not self._free.acquire(blocking=False):
            raise SearchError("other queries wait for the decoders; try again in a moment", status=429, retry_after_s=1)
        told = {name: value for name, value in segment.items() if value is not None}
        value = json.dumps({"video_id": "query", "uri": uri, "caption": "query", **told}).encode()
        future = self._submit(Record(b"query", value, Position("query", "0", 0)))
        # Not sooner: what a decoder has begun it ends, whether or not somebody still waits for it.
        future.add_done_callback(lambda _: self._free.release())
        try:
            event = future.result(self._timeout_s)
        except NotInTime as error:
            future.cancel()  # the stream need not wait for it
            raise SearchError("the decoders are busy; try again in a moment", status=503, retry_after_s=1) from error
        except (CancelledError, StreamlearnError) as error:
            raise SearchError("no video can be decoded now", status=503) from error
        slow = getattr(event, "code", "") in _SLOW
        if slow:
            self._slow[_place(uri)] = time.monotonic() + _LEFT_ALONE_S
        if not isinstance(event, Clip):
            reason = f"{getattr(event, 'code', '')}: {getattr(event, 'message', '')}"
            raise SearchError(reason, retry_after_s=_LEFT_ALONE_S if slow else None)
        return event.frames


def as_today(last: EraView, encode: Encode) -> Encode:
    """One encoding for all eras: by the pair of the last one, today's, without a readout, which is of its own words.

    Of a known clip, too: its stored vector may be an older pair's.
    """
    nothing = PartitionView(last.partition.dim, (), deque())
    today = replace(last, encoder=last.encoder.reader, partition=nothing)
    return lambda era: encode(today)


def _place(uri: str) -> str:
    """Scheme and host; of a file its folder."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc or parts.path.rpartition('/')[0]}"
