"""What is read: topics by name, topics by a pattern, or named partitions.

A topic that is not there, or that we may not read, keeps nobody waiting but its own readers: the others are read, and
it is looked for again. Where nothing is left to read, that is an error with a sentence.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.base import MemberState

from streamlearn.connectors.kafka_client import CLIENT_ERRORS, KafkaOptions, as_source_error, open_client, where
from streamlearn.errors import SourceError

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 15.0
_FLAGS_FIRST = re.compile(r"((?:\(\?[aimsux]+\))*)(.*)", re.DOTALL)
_NOT_THERE = (kafka_errors.UnknownTopicOrPartitionError.errno, kafka_errors.InvalidTopicError.errno)


class Subscription:
    """Subscribes, or assigns, one consumer after the other.

    Attributes:
        problem: what of it cannot be read, and why; None where all can.
    """

    def __init__(self, options: KafkaOptions, config: Mapping[str, Any]) -> None:
        """Connects nowhere.

        Args:
            options: `topics`, `topic_pattern` and `partitions` are read.
            config: of the consumer; an admin client gets what it knows of it.
        """
        self.problem: str | None = None
        self._options = options
        self._admin = {name: value for name, value in config.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
        self._partitions = [TopicPartition(*_split(name)) for name in options.partitions]
        self._wanted = sorted({tp.topic for tp in self._partitions}) if self._partitions else list(options.topics)
        self._readable: list[str] = []
        self._existing: list[TopicPartition] = []
        self._looked_at = 0.0

    def look(self) -> None:
        """Ask the broker what of it can be read; a consumer would silently wait for a topic that does not exist.

        Raises:
            SourceError: nothing can; SourceRefusedError where that is for want of permissions.
        """
        self._looked_at = time.monotonic()
        if self._options.topic_pattern is not None:
            return
        admin = open_client(KafkaAdminClient, self._admin)
        try:
            described = {topic["name"]: topic for topic in admin.describe_topics(self._wanted)}
        finally:
            admin.close()
        troubles = {name: self._trouble(name, described.get(name, {})) for name in self._wanted}
        found = [trouble for trouble in troubles.values() if trouble is not None]
        self._readable = [name for name, trouble in troubles.items() if trouble is None]
        self._existing = []
        for tp in self._partitions:
            if tp.topic in self._readable:
                has = len(described[tp.topic]["partitions"])
                if tp.partition < has:
                    self._existing.append(tp)
                else:
                    found.append(
                        SourceError(f"{tp.topic!r} has no partition {tp.partition}, only {has}: see kafka.partitions")
                    )
        if not (self._existing if self._partitions else self._readable):
            raise found[0]
        self._note("; ".join(map(str, found)) + "; the others are read" if found else None)

    def begin(self, consumer: KafkaConsumer, listener: ConsumerRebalanceListener) -> None:
        """Let the consumer read; the listener hears of its partitions."""
        if self._options.topic_pattern is not None:
            consumer.subscribe(pattern=self._pattern(), listener=listener)
        elif self._partitions:
            new = set(self._existing) - consumer.assignment()
            consumer.assign(self._existing)
            listener.on_partitions_assigned(new)
        else:
            consumer.subscribe(self._readable, listener=listener)

    def follow(self, consumer: KafkaConsumer, listener: ConsumerRebalanceListener) -> None:
        """Take in what has become readable since; call it often, it looks now and then."""
        if self.problem is None or time.monotonic() - self._looked_at < _LOOK_AGAIN_S:
            return
        before = self._readable, self._existing
        try:
            self.look()
        except (SourceError, *CLIENT_ERRORS):
            return  # the consumer notices for itself what that is
        if (self._readable, self._existing) != before:
            self.begin(consumer, listener)

    def joined(self, consumer: KafkaConsumer) -> bool:
        """Whether the group has let the consumer in; partitions that were named need no group."""
        return bool(self._partitions) or consumer.group_metadata().state is MemberState.STABLE

    def ends(self, consumer: KafkaConsumer, timeout_ms: float) -> Mapping[TopicPartition, int]:
        """The ends of the logs that the consumer has; an error where the broker does not answer."""
        assigned = list(consumer.assignment())
        if not assigned and not (topics := consumer.subscription()):
            # Nothing matches the pattern: any question shows that the broker is there.
            try:
                consumer.committed(TopicPartition(self._options.dead_letter_topic, 0), timeout_ms=timeout_ms)
            except kafka_errors.AuthorizationError:
                pass
            self._note(f"Kafka at {where(self._options)} has no topic that kafka.topic_pattern matches, for us to see")
            return {}
        if self._options.topic_pattern is not None:
            self._note(None)
        ends: Mapping[TopicPartition, int] = consumer.end_offsets(
            assigned or [TopicPartition(min(topics), 0)], timeout_ms=timeout_ms
        )
        return ends

    def _trouble(self, topic: str, described: Mapping[str, Any]) -> SourceError | None:
        code = described.get("error_code", kafka_errors.UnknownTopicOrPartitionError.errno)
        allowed = described.get("authorized_operations")
        if code == kafka_errors.TopicAuthorizationFailedError.errno or (allowed and "READ" not in allowed):
            return as_source_error(kafka_errors.TopicAuthorizationFailedError(topic), self._options)
        if code in _NOT_THERE:
            return SourceError(
                f"Kafka at {where(self._options)} has no topic {topic!r}: create it, or correct kafka.topics;"
                " it is looked for again"
            )
        return None

    def _pattern(self) -> str:
        """A whole name, and never one that we write to: our dead letters would be read again, for ever."""
        ours = filter(None, (self._options.dead_letter_topic, self._options.events_topic))
        # Flags such as (?i) may stand only at the start of an expression; and they are not meant for the names of ours.
        flags, pattern = _FLAGS_FIRST.findall(self._options.topic_pattern or "")[0]
        letters = "".join(filter(str.isalpha, flags))
        end = "\n" if "x" in letters else ""  # of a comment, which would take the parenthesis with it
        return rf"(?!(?:{'|'.join(map(re.escape, ours))})\Z)(?{letters}:{pattern}{end})\Z"

    def _note(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem


def _split(name: str) -> tuple[str, int]:
    topic, _, number = name.rpartition(":")
    return topic, int(number)
