"""One clip at a time into the source's own topic, acknowledged: how clips come and go over HTTP.

It knows topics and partitions, and not what asks for it.
"""

from __future__ import annotations

import base64
import json
import threading
from typing import Any

from streamlearn.connectors.kafka_client import KafkaOptions
from streamlearn.connectors.kafka_producer import AcknowledgedProducer, Message
from streamlearn.errors import SourceError, SourceRefusedError
from streamlearn.records import Partition


class KafkaPublisher:
    """A `streamlearn.source.Publisher` that writes to the topic it reads, the first where there are several."""

    def __init__(self, options: KafkaOptions) -> None:
        """Connects with the first clip.

        Raises:
            SettingsError: an option that the client does not know, or a secret file that cannot be read.
        """
        self._options = options
        self._lock = threading.Lock()
        self._refused: int | None = None
        self._producer = self._new_producer()

    def put(self, message: dict[str, Any], media: bytes | None, partition: Partition | None) -> None:
        """Send a clip message; the key is its id.

        Raises:
            SourceRefusedError: the topic takes no message of this size, or not from us.
            SourceError: the broker is away; whether it has the message is then not known.
        """
        if media is not None:
            message = message | {"media_b64": base64.b64encode(media).decode()}
        self._send(message["video_id"], json.dumps(message).encode(), partition)

    def delete(self, video_id: str, partition: Partition | None) -> None:
        """Send a tombstone.

        Raises:
            SourceError: as `put`.
        """
        self._send(video_id, None, partition)

    def close(self) -> None:
        """Disconnect; idempotent."""
        self._producer.close()

    def _send(self, video_id: str, value: bytes | None, partition: Partition | None) -> None:
        topic, number = self._place(partition)
        with self._lock:
            self._refused = None
            self._producer.send(Message(topic, video_id.encode(), value, (), number))
            try:
                self._producer.flush()
            except SourceError:
                # Who asked has been told; it must not arrive behind what they do next.
                self._producer.close()
                self._producer = self._new_producer()
                raise
            if self._refused is not None:
                raise SourceRefusedError(
                    f"the topic {topic} takes no message of {self._refused} bytes: send a uri instead of the video, or"
                    " raise the topic's max.message.bytes"
                )

    def _place(self, partition: Partition | None) -> tuple[str, int | None]:
        """Where the clip was read from, where that is one of our topics still."""
        topics = self._options.topics
        if not topics:
            raise SourceRefusedError("kafka.topics names no topic to write to: name one, beside the pattern")
        if partition is not None:
            topic = partition.topic.partition("@")[0]  # a replay's positions carry their range
            if topic in topics and partition.partition.isdecimal():
                return topic, int(partition.partition)
        return topics[0], None

    def _new_producer(self) -> AcknowledgedProducer:
        return AcknowledgedProducer(self._options, too_large=self._refuse)

    def _refuse(self, message: Message) -> None:
        self._refused = len(message.value or b"")
