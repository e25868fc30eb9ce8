"""Writing to Kafka so that nothing is forgotten before every in-sync replica has it.

Messages wait here, not in the client: a client whose broker went away fails what it holds. What was not
acknowledged is sent again, so a message may arrive twice after trouble, never not at all.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from streamlearn.connectors.kafka_client import (
    CLIENT_ERRORS,
    KafkaOptions,
    as_source_error,
    client_config,
    open_client,
)
from streamlearn.connectors.kafka_records import HeaderName
from streamlearn.errors import SourceError
from streamlearn.records import Rejected

log = logging.getLogger(__name__)


class Message(NamedTuple):
    """One message to send."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None  # where the topic has it; otherwise, and for None, the key decides


class AcknowledgedProducer:
    """An idempotent producer with acks=all whose unacknowledged messages survive it."""

    def __init__(self, options: KafkaOptions, *, too_large: Callable[[Message], Message | None]) -> None:
        """Connects at the first `flush`.

        Args:
            options: where and how to connect.
            too_large: what to send instead of a message that the broker finds too large: a smaller one, nothing
                for None, or the same one for "there is no way", which makes `flush` raise.

        Raises:
            SettingsError: an option that the client does not know, or a secret file that cannot be read.
        """
        self._options = options
        self._config = client_config(
            options,
            KafkaProducer,
            defaults={
                "acks": "all",
                "enable_idempotence": True,
                "max_block_ms": options.request_timeout_ms,
                # Each message is acknowledged or failed after this long, so a flush ends and a client can be closed.
                "delivery_timeout_ms": options.request_timeout_ms + 1_000,
                "bootstrap_timeout_ms": min(10_000, options.request_timeout_ms),
                "max_request_size": 2**30,  # the broker has the last word: its limits are per topic
            },
        )
        self._too_large = too_large
        self._wait_s = 3 * options.request_timeout_ms / 1000  # the client's own limits come first, unless it hangs
        self._unacknowledged: deque[Message] = deque()
        self._missing: set[tuple[str, int]] = set()  # partitions, said to be
        self._producer: KafkaProducer | None = None

    def __len__(self) -> int:
        """How many messages are not acknowledged yet."""
        return len(self._unacknowledged)

    def send(self, message: Message) -> None:
        """Take a message; the next `flush` sends it."""
        self._unacknowledged.append(message)

    def flush(self) -> None:
        """Return when everything is acknowledged.

        Raises:
            SourceError: it could not be; what is missing is kept for the next flush.
        """
        try:
            while self._unacknowledged:
                try:
                    self._send_together()
                except kafka_errors.MessageSizeTooLargeError:
                    self._send_one_by_one()
        except CLIENT_ERRORS as error:
            self.close()  # its sequence numbers may be broken now; the next flush begins with a new client
            raise as_source_error(error, self._options) from error

    def close(self) -> None:
        """Close the client; what is not acknowledged stays here."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(*CLIENT_ERRORS):
                producer.close(timeout=5)

    def _send_together(self) -> None:
        """Send all, then take from the front what is acknowledged."""
        for future in [self._send(message) for message in self._unacknowledged]:
            future.get(timeout=self._wait_s)
            self._unacknowledged.popleft()

    def _send_one_by_one(self) -> None:
        """Find the messages that are too large: a client that meets one fails all, with the same error, and is dead."""
        self.close()
        for message in list(self._unacknowledged):
            try:
                self._send(message).get(timeout=self._wait_s)
            except kafka_errors.MessageSizeTooLargeError:
                self.close()
                instead = self._too_large(message)
                if instead == message:
                    raise
                if instead is not None:
                    self._unacknowledged.append(instead)
            self._unacknowledged.popleft()

    def _send(self, message: Message) -> Any:
        if self._producer is None:
            self._producer = open_client(KafkaProducer, self._config)
        partition = message.partition
        if partition is not None and partition not in (self._producer.partitions_for(message.topic) or ()):
            if (message.topic, partition) not in self._missing:
                log.warning("%s has no partition %d any more: the key decides where to", message.topic, partition)
            self._missing.add((message.topic, partition))
            partition = None
        headers = [(HeaderName(name), value) for name, value in message.headers]
        return self._producer.send(message.topic, message.value, message.key, headers, partition)


class KafkaDeadLetters:
    """Rejected records as messages: the original key, value and headers, and why and whence in more headers.

    A record that is too large for the dead letter topic goes there without its value, and if need be without its
    key and headers, but with `streamlearn.source.value_bytes`: the headers say where the original is.
    """

    #: So much may wait for the next flush; more, and a write flushes.
    MAX_WAITING = 1_000
    MAX_WAITING_BYTES = 16 * 2**20

    def __init__(self, options: KafkaOptions) -> None:
        self._topic = options.dead_letter_topic
        self._producer = AcknowledgedProducer(options, too_large=_smaller)
        self._waiting_bytes = 0
        self._waiting = 0

    @property
    def full(self) -> bool:
        """Whether more waits than should, because the broker did not take it."""
        return self._waiting >= self.MAX_WAITING or self._waiting_bytes >= self.MAX_WAITING_BYTES

    def write(self, rejected: Rejected) -> None:
        """Take one rejected record."""
        was_full = self.full
        message = dead_letter(rejected, self._topic)
        self._producer.send(message)
        self._waiting += 1
        self._waiting_bytes += len(message.key or b"") + len(message.value or b"")
        if self.full and not was_full:
            try:
                self.flush()
            except SourceError as error:  # not lost: the caller's flush raises if it still cannot be sent
                log.warning("%d dead letters wait: %s", len(self._producer), error)

    def flush(self) -> None:
        """Return when the broker has acknowledged every dead letter.

        Raises:
            SourceError: it has not; they are kept for the next flush.
        """
        self._producer.flush()
        self._waiting = self._waiting_bytes = 0

    def close(self) -> None:
        """Close the client; call `flush` first."""
        self._producer.close()


def dead_letter(rejected: Rejected, topic: str) -> Message:
    """The message of one dead letter."""
    record = rejected.record
    about = {
        "streamlearn.error.code": rejected.code,
        "streamlearn.error.message": rejected.message,
        "streamlearn.error.stage": rejected.stage,
        "streamlearn.source.topic": record.position.topic,
        "streamlearn.source.partition": record.position.partition,
        "streamlearn.source.offset": str(record.position.offset),
        "streamlearn.source.timestamp": "" if record.timestamp_ms is None else str(record.timestamp_ms),
    }
    headers = tuple((name, text.encode("utf-8", "replace")) for name, text in about.items())
    key = record.key
    if key is None and record.value is None:
        key = b""  # the client takes no message of nothing
    return Message(topic, key, record.value, (*record.headers, *headers))


def _smaller(message: Message) -> Message:
    """Without the value, and if that is not enough without the record's own headers and key."""
    if message.value is not None:
        size = ("streamlearn.source.value_bytes", str(len(message.value)).encode())
        return message._replace(value=None, key=message.key or b"", headers=(*message.headers, size))
    ours = tuple(header for header in message.headers if header[0].startswith("streamlearn."))
    return message._replace(key=b"", headers=ours)
