"""The thread that owns the Kafka consumer: it fetches, follows rebalances, commits, and watches itself.

kafka-python's consumer is not thread-safe, and a member that does not poll is thrown out of its group: so one thread
does nothing but poll, whatever the caller of the source does. What it finds goes into the hand-over.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.base import MemberState
from kafka.structs import OffsetAndMetadata

from streamlearn.connectors.kafka_client import CLIENT_ERRORS, KafkaOptions, as_source_error
from streamlearn.connectors.kafka_handover import Handover
from streamlearn.connectors.kafka_listener import Listener
from streamlearn.connectors.kafka_memo import Memo
from streamlearn.connectors.kafka_positions import (
    ASTRAY,
    Positions,
    partition_of,
    topic_partition,
)
from streamlearn.connectors.kafka_records import records_of
from streamlearn.connectors.kafka_subscription import Subscription
from streamlearn.errors import SourceLostError
from streamlearn.records import Offsets, Partition

log = logging.getLogger(__name__)

_POLL_MS = 100  # also how late a pause, a commit or the end is noticed
_FULL_POLL_MS = 10  # of which, while there is no room
_JOIN_MS = 1_000  # kafka-python 3.0 throws away, and begins anew, a join that ends between two polls
_PROBE_S = 2.0  # between two looks at the ends of the logs
_SILENCE_S = 5.0  # without an answer, after which the broker is said to be away
_LONGEST_BACKOFF_S = 15.0
_CLOSE_MS = 5_000
_SMALL_FETCH_BYTES = 2**16  # or one batch, where that is larger


class Stalled(Exception):
    """The client is alive and gets nothing: it is closed and made anew."""


class Reader:
    """Fetches into `handover` from `start` to `close`.

    Attributes:
        connected: whether the broker answered when it was last asked.
        restarts: how often a consumer was replaced that got nothing although there was something.
        has_partitions: whether the group has given this member any.
        ends: where the log of each assigned partition ends, as of the last look.
    """

    def __init__(
        self,
        options: KafkaOptions,
        connect: Callable[[int | None], KafkaConsumer],
        subscription: Subscription,
        handover: Handover,
        memo: Memo,
    ) -> None:
        self.connected = False
        self.restarts = 0
        self.has_partitions = False
        self.ends: Mapping[Partition, int] = {}
        self._options = options
        self._connect = connect
        self._subscription = subscription
        self._handover = handover
        # The client gives up on a request after request_timeout_ms and tries again; only after that is it stuck.
        self._stall_s = 2 * options.request_timeout_ms / 1000
        self._to_commit: dict[Partition, int] = {}
        self._commit_lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-source", daemon=True)
        self._trouble: type[BaseException] | None = None
        self._fetch_bytes: int | None = None  # in all, of the next consumer; None: as configured
        self._answered_at = self._member_at = 0.0
        self._positions = Positions(options, handover, memo)
        self._progress: dict[TopicPartition, tuple[int | None, float]] = {}

    @property
    def lost(self) -> Mapping[Partition, int]:
        """Records that were gone before they were read; 1 where their number is not known."""
        return dict(self._positions.lost)

    @property
    def late_handovers(self) -> int:
        """Rebalances that did not get the checkpoint they waited for."""
        return self._positions.late_handovers

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

    # Everything below runs in the thread.

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                self._read()
            except Stalled as stall:
                self.restarts += 1
                log.warning("%s: making a new Kafka consumer", stall)
            except SourceLostError as error:
                log.error("%s", error)
                self._handover.fail(error)
                return
            except Exception as error:  # noqa: BLE001 - whatever it was, a dead thread would be a stream that silently ended
                failures = 1 if self.connected else failures + 1
                self._report(error)
                longest = min(_LONGEST_BACKOFF_S, 0.25 * 2**failures)
                self._closing.wait(random.uniform(longest / 2, longest))

    def _read(self) -> None:
        """One consumer's life."""
        consumer = self._connect(self._fetch_bytes)
        # Until it gets something: a fetch that takes longer than a request may is made anew, for ever.
        self._fetch_bytes = _SMALL_FETCH_BYTES
        self._answered_at = self._member_at = time.monotonic()
        self._progress.clear()
        probed: tuple[float, Collection[TopicPartition]] = (0.0, ())
        try:
            listener = Listener(self._positions, self._handover, consumer, self._closing)
            self._subscription.begin(consumer, listener)
            while not self._closing.is_set():
                self._commit(consumer)
                _finish_joining(consumer)
                self._subscription.follow(consumer, listener)
                try:
                    self._positions.place(consumer)
                    self._open_or_shut(consumer)
                    self._fetch(consumer)
                    assigned = consumer.assignment()
                    self.has_partitions = bool(assigned)
                    if time.monotonic() - probed[0] > _PROBE_S or assigned != probed[1]:
                        self._probe(consumer, assigned)
                        probed = (time.monotonic(), assigned)
                except ASTRAY as error:
                    self._positions.put_right(consumer, error)
            self._commit_last(consumer)
        finally:
            self._positions.forget()
            consumer.close(timeout_ms=_CLOSE_MS)

    def _fetch(self, consumer: KafkaConsumer) -> None:
        """Poll, which is what keeps us a member; wait for records if we want any, else for room for them."""
        wanted = self._handover.wants_more
        timeout_ms = _POLL_MS if wanted else _FULL_POLL_MS
        # No rebalance comes between this fetch and `put`, which could not tell records of before one: the client calls
        # the listener only while we wait in `poll`, before that fetches, or in `close`. A test watches that.
        for tp, records in consumer.poll(
            timeout_ms=timeout_ms if self._subscription.joined(consumer) else _JOIN_MS
        ).items():
            self._handover.put(partition_of(tp), records_of(tp, records))
            self._fetch_bytes = None
            self._answered()
        if not wanted and self._subscription.joined(consumer):
            self._handover.wait_for_room((_POLL_MS - _FULL_POLL_MS) / 1000)

    def _open_or_shut(self, consumer: KafkaConsumer) -> None:
        """Fetch from all partitions or from none: the hand-over is one queue, and its bound is for all of them."""
        if self._handover.wants_more:
            consumer.resume(*(consumer.paused() - self._positions.unplaced))
        else:
            consumer.pause(*(consumer.assignment() - consumer.paused()))

    def _commit(self, consumer: KafkaConsumer) -> None:
        offsets = self._asked(consumer)
        if offsets:
            consumer.commit_async(offsets, callback=self._positions.was_told)

    def _commit_last(self, consumer: KafkaConsumer) -> None:
        """Commit and wait for it, also through a rebalance: the client refuses until that is over."""
        end = time.monotonic() + _CLOSE_MS / 1000
        with self._commit_lock:
            asked = dict(self._to_commit)
        while offsets := self._asked(consumer):
            try:
                consumer.commit(offsets, timeout_ms=_CLOSE_MS)
            except kafka_errors.RebalanceInProgressError as error:
                if time.monotonic() > end:
                    self._positions.was_told(offsets, error)
                    return
                consumer.pause(*consumer.assignment())
                consumer.poll(timeout_ms=_JOIN_MS)  # rejoins; what goes meanwhile is committed by the listener
                self.commit(asked)
            except CLIENT_ERRORS as error:
                self._positions.was_told(offsets, error)

    def _asked(self, consumer: KafkaConsumer) -> dict[TopicPartition, OffsetAndMetadata]:
        """What `commit` was given since, of the partitions that are ours."""
        with self._commit_lock:
            asked, self._to_commit = self._to_commit, {}
        assigned = consumer.assignment()
        return self._positions.commitments(
            {p: at for p, at in asked.items() if topic_partition(p) in assigned and self._handover.owns(p)}
        )

    def _probe(self, consumer: KafkaConsumer, assigned: Collection[TopicPartition]) -> None:
        """See how far the logs go: that is the lag, a sign of life, and what the watchdog judges by."""
        try:
            ends = self._subscription.ends(consumer, timeout_ms=1000 * _PROBE_S)
        except CLIENT_ERRORS as error:
            silence_s = time.monotonic() - self._answered_at
            if silence_s > self._stall_s:
                raise  # the broker may be back, and the client not have noticed
            if silence_s > _SILENCE_S:
                self._report(error)
            return
        self._answered()
        self.ends = {partition_of(tp): end for tp, end in ends.items() if tp in assigned}
        self._positions.follow_topics(consumer)
        self._watch(consumer, assigned, ends)

    def _watch(
        self, consumer: KafkaConsumer, assigned: Collection[TopicPartition], ends: Mapping[TopicPartition, int]
    ) -> None:
        """Raise `Stalled` when a partition that has more to read, and may be read, has not moved for too long."""
        now = time.monotonic()
        if self._subscription.joined(consumer):
            self._member_at = now
        elif now - self._member_at > self._stall_s + self._options.session_timeout_ms / 1000:
            raise Stalled(f"not let into the group for {now - self._member_at:.0f} s")
        paused = consumer.paused()
        progress = {}
        for tp in assigned:
            position = consumer.position(tp, timeout_ms=_POLL_MS)
            if position is not None and tp not in self._positions.unplaced:
                self._handover.passed(partition_of(tp), position)
            was, since = self._progress.get(tp, (None, now))
            if tp in paused or position != was or position == ends.get(tp, position):  # none: ours only since
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

    def _answered(self) -> None:
        self._answered_at = time.monotonic()
        self.connected = True
        if self._trouble is not None:
            self._trouble = None
            self._handover.report(None)
            log.info("Kafka at %s answers again", ", ".join(self._options.bootstrap_servers))


def _finish_joining(consumer: KafkaConsumer) -> None:
    """Keep kafka-python 3.0 (seen in 3.0.12) from forgetting that it is joining.

    A rejoin that it begins itself, because partitions were added, is lost when one `poll` is too short for it: the
    next one takes it for done, with the heartbeats off. So we ask for it again; there is no public way to.
    """
    if consumer.group_metadata().state is MemberState.REBALANCING:
        consumer._coordinator.request_rejoin()
