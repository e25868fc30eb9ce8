"""Where each partition is read from: what `start` was given, where we were, or what the log still has.

The broker's committed offsets are not the truth: they decide only for a partition that nothing else is known of, and
tell how far other members have learned one while it was not ours.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from streamlearn.connectors.kafka_beginnings import draw_line
from streamlearn.connectors.kafka_client import KafkaOptions, topic_id
from streamlearn.connectors.kafka_handover import Handover
from streamlearn.connectors.kafka_memo import Memo
from streamlearn.connectors.kafka_stretches import Stretch, Stretches
from streamlearn.errors import SourceLostError
from streamlearn.records import Offsets, Partition

log = logging.getLogger(__name__)

#: What any call that looks at positions may raise: there is none, or none any more. `Positions.put_right` knows how.
ASTRAY = (
    kafka_errors.NoOffsetForPartitionError,
    kafka_errors.OffsetOutOfRangeError,
    kafka_errors.LogTruncationError,
)
_TOO_LONG = (kafka_errors.OffsetMetadataTooLargeError, kafka_errors.InvalidCommitOffsetSizeError)
_LOOKUP_MS = 200
_TOPIC = re.compile(r"[a-zA-Z0-9._-]+")


class Positions:
    """The positions of one member's partitions, over the lives of its consumers.

    Attributes:
        unplaced: assigned partitions that stay paused until `place` has looked at them.
        lost: records that were gone before they were read; 1 for each time that their number is not known.
        late_handovers: rebalances that did not get the checkpoint they waited for.
    """

    def __init__(self, options: KafkaOptions, handover: Handover, memo: Memo) -> None:
        self.unplaced: set[TopicPartition] = set()
        self.lost: Counter[Partition] = Counter()
        self.late_handovers = 0
        self._options = options
        self._handover = handover
        self._memo = memo
        self._with_metadata = True
        self._stretches: dict[TopicPartition, Stretches] = {}  # up to where ours goes on
        self._committed: dict[TopicPartition, int] = {}  # at the broker, while the partition was ours
        self._finished: dict[TopicPartition, int] = {}  # by another member, while the partition was its

    def place(self, consumer: KafkaConsumer) -> None:
        """Let new partitions be read, from after what other members have learned of them.

        Raises:
            SourceLostError: its topic was made anew, and `on_truncated` says that this is the end.
        """
        self.follow_topics(consumer)
        found: dict[TopicPartition, OffsetAndMetadata | None] = {}
        try:
            for tp in list(self.unplaced):
                found[tp] = consumer.committed(tp, metadata=True, timeout_ms=_LOOKUP_MS)
        except kafka_errors.KafkaTimeoutError:
            pass  # the others stay paused until we know
        # Together, as each time all partitions that there are must be asked for.
        if new := [tp for tp, committed in found.items() if not self._place(consumer, tp, committed)]:
            self._begin(consumer, new)
        self.unplaced.difference_update(found)

    def _place(self, consumer: KafkaConsumer, tp: TopicPartition, committed: OffsetAndMetadata | None) -> bool:
        """Whether it is known where to go on."""
        stands = self._handover.stands(partition_of(tp))
        known = None if committed is None else Stretches.read(committed.metadata, committed.offset)
        if _is_of_another_log(known, self._memo.log_of(partition_of(tp))):
            committed = known = None  # by a member that has not noticed yet
        if committed is None:
            self._committed.setdefault(tp, -1)
            if stands is None:
                return False
        elif stands is None:
            stands = self._unknown(tp, committed.offset, known)
            self._move(consumer, tp, stands)
        elif (further := self._learned_by_others(tp, stands, committed.offset, known)) > stands:
            log.info("%s/%s: other members have learned offsets %d to %d", *tp, stands, further - 1)
            self._move(consumer, tp, further)
            self._finished[tp] = stands = further
        if committed is not None:
            self._committed[tp] = committed.offset
        if known is not None:
            self._stretches[tp] = known.gone_on(self._memo.reader, stands)
        elif tp not in self._stretches or committed is not None:
            self._start_stretch(tp, stands)
        return True

    def _unknown(self, tp: TopicPartition, committed: int, known: Stretches | None) -> int:
        """Where to begin what no checkpoint of ours has: at the group's offset, unless it was us who came so far."""
        own = None if known is None else known.begin_of(self._memo.reader)
        if own is not None:
            log.warning(
                "%s/%s: no checkpoint here has it, as if the state directory were an old one; it has learned it from"
                " offset %d on before, and does so again",
                *tp,
                own,
            )
            return own
        log.info(
            "%s/%s: no checkpoint here has it; going on from offset %d, which its group has committed", *tp, committed
        )
        return committed

    def _learned_by_others(self, tp: TopicPartition, stands: int, committed: int, known: Stretches | None) -> int:
        """Up to where others have it from where we stand.

        Where nobody says who came so far, only an offset that was committed since we had the partition is theirs: one
        from before `start` may be ahead of the checkpoint that we were started with, and what lies between is to be
        read again. A reader that is new, with offsets that are not, cannot tell either: stretches may be its own.
        """
        reader, before = self._memo.reader, self._committed.get(tp)
        if known is not None and not (self._memo.is_new and known.begin_of(reader) is None):
            return known.beyond_others(reader, stands)
        return committed if before is not None and committed > max(before, stands) else stands

    def commitments(self, offsets: Offsets) -> dict[TopicPartition, OffsetAndMetadata]:
        """What to tell the broker of a checkpoint's offsets, whose partitions are ours.

        What others have learned from there on is not taken back. Nothing of a partition before we have asked how far
        they are, nor what is of a log that is gone.
        """
        told = {}
        for partition, offset in offsets.items():
            tp = topic_partition(partition)
            if tp in self.unplaced or self._memo.is_gone(partition, offset):
                continue
            if (ours := self._stretches.get(tp)) is not None and ours.parts[0].begin <= offset:
                reader = self._memo.reader  # its last part, which has no end yet
                known = ours.gone_on(reader, ours.beyond_others(reader, offset))
                said = replace(known, log=self._memo.log_of(partition)).metadata() if self._with_metadata else ""
                told[tp] = OffsetAndMetadata(known.end, said, -1)
            elif offset >= self._finished.get(tp, 0):
                told[tp] = OffsetAndMetadata(offset, "", -1)
        return told

    def was_told(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], outcome: object) -> None:
        """A callback for the client's commits."""
        if not isinstance(outcome, Exception):
            return
        log.warning("the broker did not take our offsets (the next checkpoint's will follow): %s", outcome)
        if isinstance(outcome, _TOO_LONG) and self._with_metadata:
            self._with_metadata = False
            log.warning(
                "from now on they go without saying who has learned what (%d bytes of one partition): the broker's"
                " offset.metadata.max.bytes is below what is shipped, or these are very many partitions",
                max(len(told.metadata) for told in offsets.values()),
            )

    def handed_over(self, tp: TopicPartition, committed: int) -> None:
        """The partition goes with this offset at the broker: what is committed beyond is another member's."""
        self._committed[tp] = committed

    def follow_topics(self, consumer: KafkaConsumer) -> None:
        """Notice topics that were deleted and made anew: our offsets are not of this log, even where it has them.

        Raises:
            SourceLostError: there is one, and `on_truncated` says that this is the end.
        """
        anew = {}
        for tp in consumer.assignment():
            if not self._handover.owns(partition_of(tp)):
                continue  # it is going, and cannot be moved: when it comes back
            now, before = topic_id(consumer, tp.topic), self._memo.log_of(partition_of(tp))
            if now is not None and before is None:
                self._memo.reads(partition_of(tp), now)
            elif now not in (None, before):
                anew[tp] = now
        if anew:
            earliest = consumer.beginning_offsets(list(anew), timeout_ms=self._options.request_timeout_ms)
            for tp, log_id in anew.items():
                self._lose(consumer, tp, earliest[tp], "its topic was deleted and made anew")
                self._memo.reads(partition_of(tp), log_id)
                self._committed.pop(tp, None)
                self._finished.pop(tp, None)

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
        timeout_ms = self._options.request_timeout_ms
        if self._options.auto_offset_reset == "latest":
            for tp, at in draw_line(consumer, began=self._handover.resumed, timeout_ms=timeout_ms).items():
                log_id = topic_id(consumer, tp.topic)
                if not _is_of_another_log(Stretches.read(at.metadata, at.offset), log_id):
                    self._memo.draw(partition_of(tp), at.offset, log_id)
        earliest = consumer.beginning_offsets(list(partitions), timeout_ms=timeout_ms)
        for tp in partitions:
            line_at = self._memo.line(partition_of(tp))
            self._move(consumer, tp, earliest[tp] if line_at is None else line_at)

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
        """Go on from `offset`; what lies behind it is nobody's, as far as is known here."""
        partition = partition_of(tp)
        # At one moment: what was handed over after a look before it would pass for the new log's.
        if (stood := self._handover.move(partition, offset)) is not None and offset < stood:
            self._memo.turn_back(partition, stood)
        self._memo.draw(partition, offset, None)
        self._start_stretch(tp, offset)
        if tp in consumer.assignment():
            consumer.seek(tp, offset)

    def _start_stretch(self, tp: TopicPartition, offset: int) -> None:
        log_id = self._memo.log_of(partition_of(tp))
        self._stretches[tp] = Stretches(log_id, (Stretch(self._memo.reader, offset),), offset)


def _is_of_another_log(known: Stretches | None, log_id: str | None) -> bool:
    return known is not None and None not in (known.log, log_id) and known.log != log_id


def of_topics(offsets: Offsets) -> Offsets:
    """Those that can be of Kafka's partitions: a state directory keeps others' too, of a folder or a replay."""
    return {p: offset for p, offset in offsets.items() if _TOPIC.fullmatch(p.topic) and p.partition.isdecimal()}


def partition_of(tp: TopicPartition) -> Partition:
    """Kafka's partition in our terms."""
    return Partition(tp.topic, str(tp.partition))


def topic_partition(partition: Partition) -> TopicPartition:
    """And back."""
    return TopicPartition(partition.topic, int(partition.partition))
