"""The Kafka source: a consumer group member that stays one however long the caller takes.

What the caller decides (positions, pauses, commits) is left for the reader's thread to do; what the thread learns
(records, lag, trouble) is left for the caller to find.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from streamlearn.connectors.kafka_client import KafkaOptions, client_config, open_client
from streamlearn.connectors.kafka_events import KafkaEvents
from streamlearn.connectors.kafka_handover import Handover
from streamlearn.connectors.kafka_memo import Memo
from streamlearn.connectors.kafka_positions import of_topics
from streamlearn.connectors.kafka_producer import KafkaDeadLetters
from streamlearn.connectors.kafka_publisher import KafkaPublisher
from streamlearn.connectors.kafka_reader import Reader
from streamlearn.connectors.kafka_schemas import SchemaRegistry
from streamlearn.connectors.kafka_subscription import Subscription
from streamlearn.records import Offsets, Partition, Record


class KafkaSource:
    """Topics of a Kafka cluster, read as a member of a consumer group; or partitions of it, read by themselves.

    The offsets given to `start` are where their partitions are read from; a partition not named there begins at
    the group's committed offset, else where `auto_offset_reset` says.
    """

    def __init__(self, options: KafkaOptions) -> None:
        """Connects at `start`.

        Raises:
            SettingsError: an option that the client does not know, a file that cannot be read, a missing extra.
        """
        self._options = options
        self._config = _consumer_config(options)
        self._subscription = Subscription(options, self._config)
        self._registry = SchemaRegistry.of(options)
        self._handover = self._new_handover({})
        self._reader: Reader | None = None
        self._memo = Memo({})
        self._kept: Any = None

    @classmethod
    def from_settings(cls, settings: Any) -> KafkaSource:
        """Build from the `kafka` section of the daemon's settings."""
        return cls(settings.kafka)

    def dead_letters(self) -> KafkaDeadLetters:
        """Where this source's rejected records go: `dead_letter_topic` of the same cluster."""
        return KafkaDeadLetters(self._options)

    def publisher(self) -> KafkaPublisher:
        """Where clips that come over HTTP go: the topic itself."""
        return KafkaPublisher(self._options)

    def events(self) -> KafkaEvents | None:
        """Where the daemon's events go: `events_topic` of the same cluster, where there is one."""
        topic = self._options.events_topic
        return None if topic is None else KafkaEvents(self._options, topic)

    @property
    def connected(self) -> bool:
        """Whether the broker, and the registry if there is one, answered when they were last asked."""
        reachable = self._registry is None or self._registry.reachable
        return self._reader is not None and self._reader.connected and reachable

    @property
    def waiting(self) -> str | None:
        """Why nothing, or not all, comes although the broker answers; None where nothing is wrong."""
        if self._reader is None or not self._reader.connected:
            return None
        if self._subscription.problem is not None or self._reader.has_partitions:
            return self._subscription.problem
        return "the group has given this member no partitions yet; after a crash that takes up to session_timeout_ms"

    @property
    def restarts(self) -> int:
        """How often the watchdog replaced a consumer that got nothing although there was something."""
        return self._reader.restarts if self._reader else 0

    @property
    def lost(self) -> Mapping[Partition, int]:
        """Records that were gone before they were read; 1 where their number is not known."""
        return self._reader.lost if self._reader else {}

    @property
    def late_handovers(self) -> int:
        """Rebalances that got no checkpoint in time: what was learned since the last one is learned again."""
        return self._reader.late_handovers if self._reader else 0

    def memo(self, offsets: Offsets) -> Any:
        """Who this reader is, of which logs the offsets are, and where others begin that it has learned nothing of."""
        return self._memo.of(offsets)

    def remember(self, memo: Any) -> None:
        """Go on as the same reader."""
        self._kept = memo

    def start(self, offsets: Offsets) -> None:
        """Join the group, in the background: a broker that is away is reported by `poll`."""
        assert self._reader is None, "a source is started once"
        offsets = of_topics(offsets)
        self._handover, self._memo = self._new_handover(offsets), Memo(offsets, self._kept)
        self._reader = Reader(self._options, self._connect, self._subscription, self._handover, self._memo)
        self._reader.start()

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """Records in the order of their partition; none while paused.

        Raises:
            SourceError: once each time that the broker goes away, or refuses us; always while the next record's schema
                cannot be looked up.
            SourceLostError: always, once records are gone that were to be read and `on_truncated` is "error".
        """
        limit, registry = self._options.max_poll_records, self._registry
        if registry is None:
            return self._handover.take(limit, timeout_s)
        first = self._handover.peek(timeout_s)
        if first is None:
            return []
        registry.learn(first)  # it stays where it is for as long as the registry is away
        return [registry.attach(record) for record in self._handover.take(limit, 0, registry.knows)]

    def pause(self) -> None:
        """Stop fetching; the member stays in the group for as long as it takes."""
        self._handover.pause()

    def resume(self) -> None:
        """Fetch again."""
        self._handover.resume()

    def commit(self, offsets: Offsets) -> None:
        """Let the broker know, soon; of partitions that went to another member it will hear from that one."""
        if self._reader is not None:
            offsets = of_topics(offsets)
            self._reader.commit(offsets)
            self._handover.saved(offsets)
            self._memo.settle(offsets)

    def revoked(self) -> Collection[Partition]:
        """Partitions that a rebalance takes away; it waits for `give_back` and a commit, but not for long.

        A source of which this was never asked lets them go at once.
        """
        return self._handover.revoked()

    def give_back(self, held: Mapping[Partition, int | None]) -> Collection[Partition]:
        """What was delivered from these offsets on is not used, of the partitions returned."""
        return self._handover.give_back(held)

    def lag(self) -> Mapping[Partition, int]:
        """Records not yet delivered, of the partitions this member has."""
        return self._handover.lag(self._reader.ends) if self._reader else {}

    def close(self) -> None:
        """Commit what `commit` was given, leave the group, end the thread."""
        if self._reader is not None:
            self._reader.close()
        if self._registry is not None:
            self._registry.close()

    def _connect(self, fetch_bytes: int | None) -> KafkaConsumer:
        """`fetch_bytes`: of one fetch at most; None: as configured."""
        self._subscription.look()
        sizes = (
            {} if fetch_bytes is None else dict.fromkeys(("fetch_max_bytes", "max_partition_fetch_bytes"), fetch_bytes)
        )
        return open_client(KafkaConsumer, self._config | sizes)

    def _new_handover(self, offsets: Offsets) -> Handover:
        return Handover(offsets, max_records=self._options.prefetch_records, max_bytes=self._options.prefetch_bytes)


def _consumer_config(options: KafkaOptions) -> dict[str, Any]:
    return client_config(
        options,
        KafkaConsumer,
        defaults={
            "group_id": options.group_id,
            "group_instance_id": options.group_instance_id,
            "session_timeout_ms": options.session_timeout_ms,
            "heartbeat_interval_ms": min(3_000, options.session_timeout_ms // 3),
            "max_poll_records": options.max_poll_records,
            "fetch_max_bytes": min(options.prefetch_bytes, KafkaConsumer.DEFAULT_CONFIG["fetch_max_bytes"]),
            "enable_auto_commit": False,
            # Not the operator's choice: we resolve unknown positions ourselves, and must hear of lost ranges.
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",  # what a producer's transaction took back was never said
            "allow_auto_create_topics": False,  # a misspelt topic must be an error, not an empty topic
            "metadata_max_age_ms": 30_000,  # so soon are new partitions noticed
            "reconnect_backoff_max_ms": 5_000,  # a broker that is back is noticed soon
            "bootstrap_timeout_ms": 5_000,  # `close` waits for it, and we try again anyway
            "partition_assignment_strategy": [CooperativeStickyAssignor],
        },
    )
