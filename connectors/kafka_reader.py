"""The thread that owns the Kafka consumer: it fetches, follows rebalances, commits, and watches itself.

kafka-python's consumer is not thread-safe, and a member that does not poll is thrown out of its group: so one thread
does nothing but poll, whatever the caller of the source does. What it finds goes into the hand-over.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from streamlearn.connectors.kafka_client import CLIENT_ERRORS, KafkaOptions, as_source_error
from streamlearn.connectors.kafka_handover import Handover
from streamlearn.records import Offsets, Partition, Position, Record

log = logging.getLogger(__name__)

_POLL_MS = 100  # also how late a pause, a commit or the end is noticed
_PROBE_S = 2.0  # between two looks at the ends of the logs
_SILENCE_S = 5.0  # without an answer, after which the broker is said to be away
_LONGEST_BACKOFF_S = 15.0
_CLOSE_MS = 5_000

_ASTRAY = (
    kafka_errors.NoOffsetForPartitionError,
    kafka_errors.OffsetOutOfRangeError,
    kafka_errors.LogTruncationError,
)


class Stalled(Exception):
    """The client is alive and gets nothing: it is closed and made anew."""


class Reader:
    """Fetches into `handover` from `start` to `close`.

    Attributes:
        connected: whether the broker answered when it was last asked.
        restarts: how often a consumer was replaced that got nothing although there was something.
        ends: where the log of each assigned partition ends, as of the last look.
    """

    def __init__(self, options: KafkaOptions, connect: Callable[[], KafkaConsumer], handover: Handover) -> None:
        self.connected = False
        self.restarts = 0
        self.ends: Mapping[Partition, int] = {}
        self._options = options
        self._connect = connect
        self._handover = handover
        # The client gives up on a request after request_timeout_ms and tries again; only after that is it stuck.
        self._stall_s = 2 * options.request_timeout_ms / 1000
        self._to_commit: dict[Partition, int] = {}
        self._commit_lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-source", daemon=True)
        self._trouble: type[BaseException] | None = None
        self._answered_at = 0.0
        self._returning: set[TopicPartition] = set()
        self._progress: dict[TopicPartition, tuple[int | None, float]] = {}

    def start(self) -> None:
        """Begin, in the background."""
        self._thread.start()

    def commit(self, offsets: Offsets) -> None:
        """Let the broker know, soon."""
        with self._commit_lock:
            self._to_commit.update(offsets)

    def close(self) -> None:
        """Commit what `commit` was given, leave the group, end the thread."""
        self._closing.set()
        self._thread.join()
        self.connected = False

    # Everything below runs in the thread; the listener's methods in the client's.

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                self._read()
            except Stalled as stall:
                self.restarts += 1
                log.warning("%s: making a new Kafka consumer", stall)
            except Exception as error:  # noqa: BLE001 - whatever it was, a dead thread would be a stream that silently ended
                failures = 1 if self.connected else failures + 1
                self._report(error)
                longest = min(_LONGEST_BACKOFF_S, 0.25 * 2**failures)
                self._closing.wait(random.uniform(longest / 2, longest))

    def _read(self) -> None:
        """One consumer's life."""
        consumer = self._connect()
        self._answered_at = time.monotonic()
        self._progress.clear()
        probed: tuple[float, Collection[TopicPartition]] = (0.0, ())
        try:
            consumer.subscribe(self._options.topics, listener=_Listener(consumer, self._handover, self._returning))
            while not self._closing.is_set():
                self._commit(consumer)
                try:
                    self._place_returning(consumer)
                    self._open_or_shut(consumer)
                    self._fetch(consumer)
                    assigned = consumer.assignment()
                    if time.monotonic() - probed[0] > _PROBE_S or assigned != probed[1]:
                        self._probe(consumer, assigned)
                        probed = (time.monotonic(), assigned)
                except _ASTRAY as error:
                    self._reposition(consumer, error)
            self._commit(consumer, wait=True)
        finally:
            self._handover.revoke()
            self._returning.clear()
            consumer.close(timeout_ms=_CLOSE_MS)

    def _fetch(self, consumer: KafkaConsumer) -> None:
        for tp, records in consumer.poll(timeout_ms=_POLL_MS).items():
            self._handover.put(_partition(tp), map(_record, records))
            self._answered_at = time.monotonic()

    def _reposition(self, consumer: KafkaConsumer, error: BaseException) -> None:
        """Any call that looks at positions may find that there is none, or none any more."""
        match error:
            case kafka_errors.NoOffsetForPartitionError():
                latest = self._options.auto_offset_reset == "latest"
                (consumer.seek_to_end if latest else consumer.seek_to_beginning)(*error.args[0])
            case kafka_errors.OffsetOutOfRangeError():
                self._go_on_from_earliest(consumer, error.args[0])
            case kafka_errors.LogTruncationError():
                self._follow_truncation(consumer, error.divergent_offsets)

    def _go_on_from_earliest(self, consumer: KafkaConsumer, wanted: Mapping[TopicPartition, int]) -> None:
        """The log holds none of the offsets we stand at: retention was faster, or it is another log by now."""
        earliest = consumer.beginning_offsets(list(wanted), timeout_ms=self._options.request_timeout_ms)
        for tp, offset in wanted.items():
            if offset < earliest[tp]:
                log.warning(
                    "%s/%s: offsets %d to %d are lost, retention removed them before they were read; going on from %d",
                    *(tp.topic, tp.partition, offset, earliest[tp] - 1, earliest[tp]),
                )
            else:
                log.warning(
                    "%s/%s: offset %d is beyond the end of the log, as if the topic was made anew; going on from %d",
                    *(tp.topic, tp.partition, offset, earliest[tp]),
                )
            self._move(consumer, tp, earliest[tp])

    def _follow_truncation(self, consumer: KafkaConsumer, ends: Mapping[TopicPartition, Any]) -> None:
        """A new leader has a shorter log than the one we read: what follows its end is news to us."""
        unknown = [tp for tp, end in ends.items() if end is None]
        if unknown:
            self._go_on_from_earliest(consumer, {tp: consumer.position(tp) for tp in unknown})
        for tp, end in ends.items():
            if end is not None:
                log.warning("%s/%s: its new leader has the log only up to offset %d; going on there", *tp, end.offset)
                self._move(consumer, tp, end.offset)

    def _move(self, consumer: KafkaConsumer, tp: TopicPartition, offset: int) -> None:
        self._handover.move(_partition(tp), offset)
        if tp in consumer.assignment():
            consumer.seek(tp, offset)

    def _open_or_shut(self, consumer: KafkaConsumer) -> None:
        """Fetch from all partitions or from none: the hand-over is one queue, and its bound is for all of them."""
        if self._handover.wants_more:
            consumer.resume(*(consumer.paused() - self._returning))
        else:
            consumer.pause(*(consumer.assignment() - consumer.paused()))

    def _place_returning(self, consumer: KafkaConsumer) -> None:
        """Partitions that were elsewhere meanwhile: go on after what the other member's checkpoints hold."""
        for tp in list(self._returning):
            try:
                committed = consumer.committed(tp, timeout_ms=_POLL_MS)
            except kafka_errors.KafkaTimeoutError:
                return  # it stays paused until we know
            self._returning.discard(tp)
            if committed is not None and committed > (consumer.position(tp, timeout_ms=_POLL_MS) or 0):
                self._move(consumer, tp, committed)

    def _commit(self, consumer: KafkaConsumer, *, wait: bool = False) -> None:
        with self._commit_lock:
            asked, self._to_commit = self._to_commit, {}
        assigned = consumer.assignment()
        offsets = {tp: OffsetAndMetadata(offset, "", -1) for p, offset in asked.items() if (tp := _tp(p)) in assigned}
        if not offsets:
            return
        if not wait:
            consumer.commit_async(offsets, callback=_log_failed_commit)
            return
        try:
            consumer.commit(offsets, timeout_ms=_CLOSE_MS)
        except CLIENT_ERRORS as error:
            _log_failed_commit(offsets, error)

    def _probe(self, consumer: KafkaConsumer, assigned: Collection[TopicPartition]) -> None:
        """See how far the logs go: that is the lag, a sign of life, and what the watchdog judges by."""
        try:
            ends = consumer.end_offsets(
                list(assigned) or [TopicPartition(self._options.topics[0], 0)], timeout_ms=1000 * _PROBE_S
            )
        except CLIENT_ERRORS as error:
            silence_s = time.monotonic() - self._answered_at
            if silence_s > self._stall_s:
                raise  # the broker may be back, and the client not have noticed
            if silence_s > _SILENCE_S:
                self._report(error)
            return
        self._answered_at = time.monotonic()
        self._recovered()
        self.ends = {_partition(tp): end for tp, end in ends.items() if tp in assigned}
        self._watch(consumer, assigned, ends)

    def _watch(
        self, consumer: KafkaConsumer, assigned: Collection[TopicPartition], ends: Mapping[TopicPartition, int]
    ) -> None:
        """Raise `Stalled` when a partition that has more to read, and may be read, has not moved for too long."""
        now = time.monotonic()
        paused = consumer.paused()
        progress = {}
        for tp in assigned:
            position = consumer.position(tp, timeout_ms=_POLL_MS)
            if position is not None and tp not in self._returning:
                self._handover.passed(_partition(tp), position)
            was, since = self._progress.get(tp, (None, now))
            if tp in paused or position != was or position == ends[tp]:
                since = now
            elif now - since > self._stall_s:
                raise Stalled(f"nothing from {tp.topic}/{tp.partition} for {now - since:.0f} s, at offset {position}")
            progress[tp] = (position, since)
        self._progress = progress

    def _report(self, error: BaseException) -> None:
        """Tell the caller once per kind of trouble, not once per attempt."""
        self.connected = False
        if type(error) is not self._trouble:
            self._trouble = type(error)
            trouble = as_source_error(error, self._options)
            log.warning("%s", trouble)
            log.debug("the trouble in full", exc_info=error)
            self._handover.report(trouble)

    def _recovered(self) -> None:
        self.connected = True
        if self._trouble is not None:
            self._trouble = None
            self._handover.report(None)
            log.info("Kafka at %s answers again", ", ".join(self._options.bootstrap_servers))


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called on the client's I/O thread, inside a rebalance: it must not block; seek and pause are local."""

    def __init__(self, consumer: KafkaConsumer, handover: Handover, returning: set[TopicPartition]) -> None:
        self._consumer = consumer
        self._handover = handover
        self._returning = returning

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        for tp in assigned:
            start = self._handover.assign(_partition(tp))
            if start is not None:
                self._consumer.seek(tp, start)
            if self._handover.returns(_partition(tp)):
                self._consumer.pause(tp)
                self._returning.add(tp)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._returning.difference_update(revoked)
        self._handover.revoke(map(_partition, revoked))

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self.on_partitions_revoked(lost)


def _record(record: Any) -> Record:
    return Record(
        key=record.key,
        value=record.value,
        position=Position(record.topic, str(record.partition), record.offset),
        headers=tuple((name, value if value is not None else b"") for name, value in record.headers),
        timestamp_ms=record.timestamp if record.timestamp >= 0 else None,
    )


def _partition(tp: TopicPartition) -> Partition:
    return Partition(tp.topic, str(tp.partition))


def _tp(partition: Partition) -> TopicPartition:
    return TopicPartition(partition.topic, int(partition.partition))


def _log_failed_commit(offsets: Mapping[TopicPartition, OffsetAndMetadata], outcome: object) -> None:
    if isinstance(outcome, Exception):
        log.warning("the broker did not take our offsets (the next checkpoint's will follow): %s", outcome)
