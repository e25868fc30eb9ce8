"""Where each partition is read from: what `start` was given, where we were, or what the log still has.

The broker's committed offsets are not the truth: they decide only for a partition that nothing else is known of, and
tell of a partition that comes back how far another member has finished it meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.net.wakeup_notifier import WakeupNotifier
from kafka.structs import OffsetAndMetadata

from streamlearn.connectors.kafka_beginnings import begin_at_beginning, begin_at_line
from streamlearn.connectors.kafka_client import CLIENT_ERRORS, KafkaOptions
from streamlearn.connectors.kafka_handover import Handover
from streamlearn.errors import SourceLostError
from streamlearn.records import Partition

log = logging.getLogger(__name__)

#: What any call that looks at positions may raise: there is none, or none any more. `Positions.put_right` knows how.
ASTRAY = (
    kafka_errors.NoOffsetForPartitionError,
    kafka_errors.OffsetOutOfRangeError,
    kafka_errors.LogTruncationError,
)
_LOOKUP_MS = 200
_TICK_S = 0.02
_COMMIT_S = 5.0


class Positions:
    """The positions of one member's partitions, over the lives of its consumers.

    Attributes:
        unplaced: assigned partitions that stay paused until `place` has looked at them.
        unknown: those of them that begin wherever the group has come to, as no checkpoint of ours has them.
        lost: records that were gone before they were read; 1 for each time that their number is not known.
    """

    def __init__(self, options: KafkaOptions, handover: Handover) -> None:
        self.unplaced: set[TopicPartition] = set()
        self.unknown: set[TopicPartition] = set()
        self.lost: Counter[Partition] = Counter()
        self._topic_ids: dict[str, UUID] = {}
        self._options = options
        self._handover = handover
        self._committed: dict[TopicPartition, int] = {}  # at the broker, while the partition was ours
        self._finished: dict[TopicPartition, int] = {}  # by another member, while the partition was its

    def listener(self, consumer: KafkaConsumer, closing: threading.Event) -> ConsumerRebalanceListener:
        """What to subscribe with; once `closing` is set, nothing is waited for."""
        return _Listener(self, self._handover, consumer, closing)

    def place(self, consumer: KafkaConsumer) -> None:
        """Let new partitions be read, from after what another member's checkpoints hold if that is further.

        Only an offset that was committed since we had the partition says so: one from before `start` may be ahead
        of the checkpoint that we were started with, and what lies between is to be read again.

        Raises:
            SourceLostError: its topic was made anew, and `on_truncated` says that this is the end.
        """
        self.follow_topics(consumer)
        for tp in list(self.unplaced):
            try:
                committed = consumer.committed(tp, timeout_ms=_LOOKUP_MS)
            except kafka_errors.KafkaTimeoutError:
                return  # paused until we know
            before = self._committed.get(tp)
            if committed is not None:
                if tp in self.unknown:
                    log.info(
                        "%s/%s: no checkpoint here has it; going on from offset %d, which its group has committed",
                        *tp,
                        committed,
                    )
                if before is not None and committed > max(before, consumer.position(tp, timeout_ms=_LOOKUP_MS) or 0):
                    self._move(consumer, tp, committed)
                    self._finished[tp] = committed
                self._committed[tp] = committed
            else:
                self._committed.setdefault(tp, -1)
            self.unplaced.discard(tp)
            self.unknown.discard(tp)

    def handed_over(self, tp: TopicPartition, committed: int) -> None:
        """The partition goes with this offset at the broker: what is committed beyond is another member's."""
        self._committed[tp] = committed

    def takes_back(self, tp: TopicPartition, offset: int) -> bool:
        """Whether to commit `offset` would take back what another member has finished and we need not read."""
        return offset < self._finished.get(tp, 0)

    def follow_topics(self, consumer: KafkaConsumer) -> None:
        """Notice topics that were deleted and made anew: our offsets are not of this log, even where it has them.

        Raises:
            SourceLostError: there is one, and `on_truncated` says that this is the end.
        """
        for topic in {tp.topic for tp in consumer.assignment()}:
            # There is no public way to the id; the client itself uses it for its epochs alone.
            now = consumer._cluster.topic_id(topic)
            before = self._topic_ids.get(topic, now)
            if now is None:
                continue
            if now != before:
                anew = [tp for tp in consumer.assignment() if tp.topic == topic]
                earliest = consumer.beginning_offsets(anew, timeout_ms=self._options.request_timeout_ms)
                for tp in anew:
                    self._lose(consumer, tp, earliest[tp], "its topic was deleted and made anew")
                    self._committed.pop(tp, None)
                    self._finished.pop(tp, None)
            self._topic_ids[topic] = now

    def forget(self) -> None:
        """The consumer is gone, and its partitions with it."""
        self.unplaced.clear()
        self._handover.revoke()

    def put_right(self, consumer: KafkaConsumer, error: BaseException) -> None:
        """Go on after one of `ASTRAY`.

        Raises:
            SourceLostError: there is nothing to go on with but a gap, and `on_truncated` says that this is the end.
        """
        match error:
            case kafka_errors.NoOffsetForPartitionError():
                self._begin(consumer, error.args[0])
            case kafka_errors.OffsetOutOfRangeError():
                self._go_on_from_earliest(consumer, error.args[0])
            case kafka_errors.LogTruncationError():
                self._follow_truncation(consumer, error.divergent_offsets)

    def _begin(self, consumer: KafkaConsumer, partitions: Collection[TopicPartition]) -> None:
        if self._options.auto_offset_reset == "earliest":
            begin_at_beginning(consumer, partitions)
        else:
            timeout_ms = self._options.request_timeout_ms
            begin_at_line(consumer, partitions, began=self._handover.resumed, timeout_ms=timeout_ms)

    def _go_on_from_earliest(self, consumer: KafkaConsumer, wanted: Mapping[TopicPartition, int]) -> None:
        """The log holds none of the offsets we stand at: retention was faster, or it is another log by now."""
        earliest = consumer.beginning_offsets(list(wanted), timeout_ms=self._options.request_timeout_ms)
        for tp, offset in wanted.items():
            if offset < earliest[tp]:
                why = f"offsets {offset} to {earliest[tp] - 1} are lost, retention removed them before they were read"
                self._lose(consumer, tp, earliest[tp], why, earliest[tp] - offset)
            else:
                why = f"offset {offset} is beyond the end of the log, as if the topic was made anew"
                self._lose(consumer, tp, earliest[tp], why)

    def _lose(self, consumer: KafkaConsumer, tp: TopicPartition, go_on: int, why: str, records: int = 1) -> None:
        """Say what is gone; go on or stop, as the operator wants it."""
        said = f"{tp.topic}/{tp.partition}: {why}"
        if self._options.on_truncated == "error":
            raise SourceLostError(f'{said}; kafka.on_truncated = "earliest" would go on from offset {go_on}')
        log.warning("%s; going on from offset %d", said, go_on)
        self.lost[partition_of(tp)] += records
        self._move(consumer, tp, go_on)

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
        self._handover.move(partition_of(tp), offset)
        if tp in consumer.assignment():
            consumer.seek(tp, offset)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called on the client's I/O thread, inside a rebalance: it must not block; seek and pause are local.

    The client awaits a revocation, and sends heartbeats meanwhile; only then does it let the partitions go.
    """

    def __init__(
        self, positions: Positions, handover: Handover, consumer: KafkaConsumer, closing: threading.Event
    ) -> None:
        self._positions = positions
        self._handover = handover
        self._consumer = consumer
        self._closing = closing

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        for tp in assigned:
            start = self._handover.assign(partition_of(tp))
            if start is not None:
                self._consumer.seek(tp, start)
            else:
                self._positions.unknown.add(tp)
            self._consumer.pause(tp)
            self._positions.unplaced.add(tp)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Let the caller finish what it has begun, for a while, and tell the next owner by a commit."""
        gone = self._let_go(revoked)
        self._handover.ask_back(gone)
        wait_s = self._patience_s()
        if not await self._until(lambda: self._handover.finished(gone) or self._closing.is_set(), wait_s):
            log.warning(
                "no checkpoint within %.1f s of a rebalance: what was learned since the last one of %s is learned"
                " again by the next owner",
                wait_s,
                ", ".join(sorted(f"{p.topic}/{p.partition}" for p in gone)),
            )
        await self._commit(gone, min(_COMMIT_S, wait_s / 2))

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._let_go(lost)  # they are another's already: nothing to wait for, nothing that may be committed

    def _let_go(self, partitions: Iterable[TopicPartition]) -> set[Partition]:
        self._positions.unplaced.difference_update(partitions)
        return self._handover.revoke(map(partition_of, partitions))

    def _patience_s(self) -> float:
        """Well below what the group gives a member that joins, and our own watchdog a consumer that gets nothing."""
        config = self._consumer.config
        names = ("session_timeout_ms", "max_poll_interval_ms", "request_timeout_ms")
        return float(min(config[name] for name in names)) / 2000

    async def _commit(self, gone: Iterable[Partition], timeout_s: float) -> None:
        """What the newest checkpoint has of them, whether it was waited for or not: they are ours until we return."""
        offsets = {
            tp: OffsetAndMetadata(offset, "", -1)
            for p, offset in self._handover.checkpoint(gone).items()
            if not self._positions.takes_back(tp := topic_partition(p), offset)
        }
        if not offsets:
            return
        try:
            future = self._consumer.commit_async(offsets, callback=log_failed_commit)
            await self._until(lambda: future.is_done, timeout_s)
        except CLIENT_ERRORS as error:
            log_failed_commit(offsets, error)
            return
        if future.succeeded():
            for tp, committed in offsets.items():
                self._positions.handed_over(tp, committed.offset)

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it comes to be true in time."""
        end = time.monotonic() + timeout_s
        tick = WakeupNotifier(self._consumer._net)  # there is no public way to wait on the client's loop
        while not (true := condition()) and time.monotonic() < end:
            await tick(_TICK_S)
        return true


def log_failed_commit(offsets: Mapping[TopicPartition, OffsetAndMetadata], outcome: object) -> None:
    """A callback for the client's commits."""
    if isinstance(outcome, Exception):
        log.warning("the broker did not take our offsets (the next checkpoint's will follow): %s", outcome)


def partition_of(tp: TopicPartition) -> Partition:
    """Kafka's partition in our terms."""
    return Partition(tp.topic, str(tp.partition))


def topic_partition(partition: Partition) -> TopicPartition:
    """And back."""
    return TopicPartition(partition.topic, int(partition.partition))
