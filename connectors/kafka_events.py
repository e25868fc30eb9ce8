"""Events of the daemon as messages of a topic: CloudEvents 1.0 in the structured mode of its Kafka binding.

It knows how an event is carried, and neither what it says nor when it is tried again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from streamlearn.connectors.kafka_client import KafkaOptions
from streamlearn.connectors.kafka_producer import AcknowledgedProducer, Message
from streamlearn.errors import SourceError

log = logging.getLogger(__name__)

_HEADERS = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)


class KafkaEvents:
    """A `streamlearn.source.EventSink` that writes to a topic; all events of a group have one key, and so an order."""

    def __init__(self, options: KafkaOptions, topic: str) -> None:
        """Connects with the first events.

        Raises:
            SettingsError: an option that the client does not know, or a secret file that cannot be read.
        """
        self.source = f"/streamlearn/{quote(options.group_id, safe='')}"
        self._options, self._topic = options, topic
        self._producer = self._new_producer()

    def deliver(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Return when the broker has acknowledged all of them.

        Raises:
            SourceError: it has not; some may have arrived.
        """
        for event in events:
            value = json.dumps(event, allow_nan=False).encode()
            self._producer.send(Message(self._topic, self.source.encode(), value, _HEADERS))
        try:
            self._producer.flush()
        except SourceError:
            self._producer.close()
            self._producer = self._new_producer()  # the caller has them all, and gives them again
            raise

    def close(self) -> None:
        """Disconnect; idempotent."""
        self._producer.close()

    def _new_producer(self) -> AcknowledgedProducer:
        return AcknowledgedProducer(self._options, too_large=_leave_out)


def _leave_out(message: Message) -> None:
    log.error(
        "the topic %s takes no event of %d bytes: raise its max.message.bytes", message.topic, len(message.value or b"")
    )
