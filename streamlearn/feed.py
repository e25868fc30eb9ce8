"""From a source to batches of events, in order, with bounded memory.

Owns the one thread that talks to the source, and pauses it when the learner is behind. The loader decodes ahead.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from typing import Any

from streamlearn.backlog import Backlog, Decoder
from streamlearn.connection import Connection
from streamlearn.deleting import Deleting
from streamlearn.errors import SourceError, SourceLostError
from streamlearn.lag import Lag
from streamlearn.metrics import Metrics
from streamlearn.records import Event, Offsets, Record
from streamlearn.source import EndOfStream, Revocable, Source, begin, memo_of

log = logging.getLogger(__name__)

_TICK_S = 0.2


class Feed:
    """Batches of events from a source.

    Args:
        source: not yet started.
        loader: decodes ahead.
        batch_size: clips of a batch.
        max_wait_s: a batch that is not full is handed over after the source was silent for this long.
        max_age_s: or when its first event has waited for this long.
        show_after_s: at most so long a clip waits to be handed over as a part of its batch (`Backlog.to_show`).
        metrics: poll and decode times, lag, connection.
        begins: whether a task begins with the first clip that names it so; that clip is then the first of a batch.
        reopen: makes another source of the same stream, not yet started, for `rewind`; None: it cannot be read again.
        deleting: told of tombstones as they are read.
    """

    def __init__(
        self,
        source: Source,
        loader: Decoder,
        *,
        batch_size: int,
        max_wait_s: float,
        max_age_s: float,
        show_after_s: float = math.inf,
        metrics: Metrics,
        begins: Callable[[str], bool],
        reopen: Callable[[], Source] | None = None,
        deleting: Deleting | None = None,
    ) -> None:
        self._source, self._loader, self._metrics, self._reopen, self._begins = source, loader, metrics, reopen, begins
        self._prepared: Source | None = None  # for `rewind`
        self._max_wait_s, self._max_age_s, self._show_after_s = max_wait_s, max_age_s, show_after_s
        self._backlog, self._lag, self._connection = Backlog(batch_size), Lag(metrics), Connection(metrics)
        self.deleting = deleting or Deleting()
        self._handed: Sequence[Event] = ()  # by the last `next`: applied when the following one is called
        self._ended, self._wants_checkpoint = False, False
        self._changed, self._closing = threading.Condition(), threading.Event()
        self._failure: BaseException | None = None
        self._commit: Offsets | None = None
        self._interrupted, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self, offsets: Offsets, memo: Any = None) -> None:
        """Begin reading at `offsets`, with the source's memo of them."""
        begin(self._source, offsets, memo)
        self._connection.there()
        self._thread.start()

    @property
    def can_rewind(self) -> bool:
        """Whether the stream can be read again from an earlier offset."""
        return self._reopen is not None

    def prepare_rewind(self) -> Source:
        """Make the source that `rewind` reads from; where that raises, nothing was done."""
        assert self._reopen is not None, "can_rewind says so"
        self._prepared = self._prepared or self._reopen()
        return self._prepared

    def rewind(self, offsets: Offsets, memo: Any = None) -> None:
        """Read from `offsets` instead, with a new source; what was read and not handed over is dropped.

        From the thread that calls `next`.
        """
        source = self.prepare_rewind()
        self._stop_reading()
        self._commit = dict(offsets)  # for who reads its partitions until they come back
        self._commit_pending()
        self._source.close()
        with self._changed:
            self._backlog.clear()
            self.deleting.clear()
            self._handed, self._ended, self._failure, self._wants_checkpoint = (), False, None, False
        self._connection, self._lag = Connection(self._metrics), Lag(self._metrics)
        self._closing, self._source, self._prepared = threading.Event(), source, None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self.start(offsets, memo)

    def next(self, within_s: float | None = None) -> Sequence[Event] | None:
        """The next batch: full, or what there is when the source is silent; empty when there is nothing, or on `wake`.

        Where `unfinished` it is a part of one. None means that the stream has ended and everything was handed over.
        After `within_s` of silence it returns, empty, in any case.

        Raises:
            SourceLostError: the stream cannot go on; everything before that was handed over.
        """
        self.deleting.applied(self._handed)
        if self._handed and self.unfinished:
            self._backlog.part_is_done()
        batch = self._next(self._max_wait_s if within_s is None else min(within_s, self._max_wait_s))
        self._handed = batch or ()
        return batch

    def _next(self, patience_s: float) -> Sequence[Event] | None:
        end, backlog = time.monotonic() + patience_s, self._backlog
        while not self._interrupted.is_set():
            if self._woken.is_set():
                self._woken.clear()
                return []
            self._await_event(min(_TICK_S, max(0.01, min(patience_s, backlog.show_in_s(self._show_after_s)))))
            with self._changed:  # what is to be given back is either in flight or in the batch, never between
                if (event := backlog.land()) is not None:
                    self._changed.notify_all()  # there is room behind it
                waited = backlog.age_s >= self._max_age_s  # clips that trickle in
                if backlog.begun and (waited or backlog.opens(event, self._begins)):
                    batch = backlog.hand_over()
                    if event is not None:
                        backlog.keep(event)
                    return batch
                if event is not None:
                    end = time.monotonic() + patience_s
                    backlog.keep(event)
                    if backlog.batch_full:
                        return backlog.hand_over()
                elif not backlog.flight:  # being decoded is not silence; a stuck decoder is ended by its own timeout
                    silent = backlog.silent_s >= self._max_wait_s
                    if backlog.begun and (silent or self._failure is not None or self._ended):
                        return backlog.hand_over()
                    if self._failure is not None:
                        raise self._failure
                    if (time.monotonic() >= end or self._ended) and not backlog.to_show(self._show_after_s):
                        return None if self._ended else []
                if backlog.to_show(self._show_after_s):
                    return backlog.hand_over_part()
        return []

    @property
    def unfinished(self) -> bool:
        """Whether clips were handed over of a batch that is not whole yet; asked between two calls of `next`."""
        return self._backlog.shown > 0

    def commit(self, offsets: Offsets) -> None:
        """Tell the source, from its own thread, that a checkpoint is durable."""
        with self._changed:
            self._commit = dict(offsets)
            self._wants_checkpoint = False
            self._changed.notify_all()

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the source waits for a checkpoint, of everything handed over so far: partitions go elsewhere."""
        return self._wants_checkpoint

    @property
    def error(self) -> str | None:
        """Why the source is away."""
        return self._connection.error

    @property
    def detail(self) -> str | None:
        """Why nothing comes, where the source knows."""
        return self.error or getattr(self._source, "waiting", None)

    def memo(self, offsets: Offsets) -> Any:
        """What the source wants kept beside these offsets, as JSON can."""
        return memo_of(self._source, offsets)

    def close(self) -> None:
        """Stop reading; what was read and not handed over is read again by the next run."""
        self._interrupted.set()
        self._stop_reading()
        for source in filter(None, (self._source, self._prepared)):
            source.close()

    def look(self) -> None:
        """Something was written into the stream: a source that looks for records only now and then looks at once."""
        getattr(self._source, "look", lambda: None)()

    def wake(self) -> None:
        """Let the next `next`, or the one that waits, return nothing, soon; what it has collected stays collected."""
        self._woken.set()
        self._nudge()

    def interrupt(self) -> None:
        """Let `next` return at once, now and from now on; what it had collected is read again by the next run."""
        self._interrupted.set()
        self._nudge()

    def _nudge(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _stop_reading(self) -> None:
        self._closing.set()
        self._nudge()
        if self._thread.is_alive():
            self._thread.join()

    def _await_event(self, timeout_s: float) -> None:
        with self._changed:
            if not self._backlog.flight and not self._ended:
                self._changed.wait(timeout_s)
        while not (self._interrupted.is_set() or self._woken.is_set()):
            with self._changed:
                first = next(iter(self._backlog.flight), None)
            if first is None or first.event.done() or self._backlog.to_show(self._show_after_s):
                return
            wait([first.event], timeout_s)

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001 - handed to the pipeline, which stops on it
            self._failure = error
        while not self._closing.is_set():  # the stream is over; commits still come
            self._await_change()
            self._commit_pending()
        self._commit_pending()  # that of the last checkpoint, which is written just before closing

    def _read(self) -> None:
        paused = False
        while not self._closing.is_set():
            self._commit_pending()
            self._give_back()
            full = self._decode_ahead()
            try:
                if full != paused:
                    (self._source.pause if full else self._source.resume)()
                    paused = full
                self._lag.report_now_and_then(self._source)
                start = time.perf_counter()
                records = self._source.poll(0.0 if paused else _TICK_S)
            except (EndOfStream, SourceLostError) as end:
                if self._backlog.ahead:  # it is said again
                    self._await_change()
                    continue
                if isinstance(end, SourceLostError):
                    raise  # nothing will come again before somebody has decided
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()
                return
            except SourceError as error:
                self._closing.wait(self._connection.lost(error))
                continue
            if records or getattr(self._source, "connected", True):
                self._connection.there()
            if records:
                self._metrics.stage_seconds.labels("poll").observe(time.perf_counter() - start)
            self.deleting.note(records)
            self._backlog.ahead.extend(records)
            if paused and not records:
                self._await_change()  # the reader ends it as soon as there is room

    def _await_change(self) -> None:
        with self._changed:
            self._changed.wait(_TICK_S)

    def _decode_ahead(self) -> bool:
        """Whether there is more to decode than there is room for."""
        while True:
            with self._changed:
                if self._backlog.full or not self._backlog.ahead:
                    return self._backlog.full or bool(self._backlog.ahead)
                record = self._backlog.ahead.popleft()
            self._submit(record)

    def _submit(self, record: Record) -> None:
        took, start = self._metrics.stage_seconds.labels("decode").observe, time.perf_counter()
        future = self._loader.submit(record)
        future.add_done_callback(lambda _: took(time.perf_counter() - start))
        with self._changed:
            self._backlog.launch(record, future)
            self._changed.notify_all()

    def _give_back(self) -> None:
        """Drop what is not handed over of partitions that go to another reader, and want a checkpoint of the rest."""
        source = self._source
        if not isinstance(source, Revocable) or not (revoked := source.revoked()):
            return
        with self._changed:
            given = source.give_back(self._backlog.held(revoked))
            self._backlog.drop(given)
            self.deleting.drop(given)
            self._commit = None  # of a checkpoint before this: something may have been handed over since
            self._wants_checkpoint = True
        self.wake()

    def _commit_pending(self) -> None:
        with self._changed:
            offsets, self._commit = self._commit, None
        if offsets is not None:
            try:
                self._source.commit(offsets)
            except SourceError as error:
                log.warning("offsets were not committed to the source, which only its lag tools miss: %s", error)
