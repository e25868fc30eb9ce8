"""What is done while the group gives and takes partitions: hold them back until placed, finish before they go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.net.wakeup_notifier import WakeupNotifier

from streamlearn.connectors.kafka_client import CLIENT_ERRORS
from streamlearn.connectors.kafka_handover import Handover
from streamlearn.connectors.kafka_positions import Positions, partition_of
from streamlearn.records import Partition

log = logging.getLogger(__name__)

_TICK_S = 0.02
_COMMIT_S = 5.0


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called on the client's I/O thread, inside a rebalance: it must not block; seek and pause are local.

    The client awaits a revocation, and sends heartbeats meanwhile; only then does it let the partitions go.
    """

    def __init__(
        self, positions: Positions, handover: Handover, consumer: KafkaConsumer, closing: threading.Event
    ) -> None:
        """Of one consumer; once `closing` is set, nothing is waited for."""
        self._positions = positions
        self._handover = handover
        self._consumer = consumer
        self._closing = closing

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Where they were, for `Positions.place` to look at before they are read."""
        for tp in assigned:
            start = self._handover.assign(partition_of(tp))
            if start is not None:
                self._consumer.seek(tp, start)
            self._consumer.pause(tp)
            self._positions.unplaced.add(tp)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Let the caller finish what it has begun, for a while, and tell the next owner by a commit."""
        unplaced = set(map(partition_of, self._positions.unplaced))  # of which we do not know how far others are
        gone = self._let_go(revoked)
        self._handover.ask_back(gone)
        wait_s = self._patience_s()
        if not await self._until(lambda: self._handover.finished(gone) or self._closing.is_set(), wait_s):
            self._positions.late_handovers += 1
            log.warning(
                "no checkpoint within %.1f s of a rebalance: what was learned since the last one of %s is learned"
                " again by the next owner",
                wait_s,
                ", ".join(sorted(f"{p.topic}/{p.partition}" for p in gone)),
            )
        await self._commit(gone - unplaced, min(_COMMIT_S, wait_s / 2))

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """They are another's already: nothing to wait for, nothing that may be committed."""
        self._let_go(lost)

    def _let_go(self, partitions: Iterable[TopicPartition]) -> set[Partition]:
        self._positions.unplaced.difference_update(partitions)
        return self._handover.revoke(map(partition_of, partitions))

    def _patience_s(self) -> float:
        """Well below what the group gives a member that joins, and our own watchdog a consumer that gets nothing."""
        config = self._consumer.config
        names = ("session_timeout_ms", "max_poll_interval_ms", "request_timeout_ms")
        return float(min(config[name] for name in names)) / 2000

    async def _commit(self, partitions: Iterable[Partition], timeout_s: float) -> None:
        """What the newest checkpoint has of them, whether it was waited for or not: they are ours until we return."""
        offsets = self._positions.commitments(self._handover.checkpoint(partitions))
        if not offsets:
            return
        try:
            future = self._consumer.commit_async(offsets, callback=self._positions.was_told)
            await self._until(lambda: future.is_done, timeout_s)
        except CLIENT_ERRORS as error:
            self._positions.was_told(offsets, error)
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
