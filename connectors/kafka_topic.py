"""One question before anything is written: is there such a topic, and may we write to it?"""

from __future__ import annotations

from contextlib import closing

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from streamlearn.connectors.kafka_client import (
    CLIENT_ERRORS,
    KafkaOptions,
    as_source_error,
    client_config,
    open_client,
    where,
)
from streamlearn.errors import SourceError, SourceRefusedError


def writable_topic(options: KafkaOptions, topic: str) -> str:
    """The topic's id, which another topic of its name, in this cluster or elsewhere, does not have.

    Raises:
        SourceError: the broker is away or has no such topic; a producer would have made one, or waited for it.
        SourceRefusedError: we may not write to it.
    """
    defaults = {"bootstrap_timeout_ms": min(10_000, options.request_timeout_ms)}
    try:
        with closing(open_client(KafkaAdminClient, client_config(options, KafkaAdminClient, defaults))) as admin:
            (described,) = admin.describe_topics([topic])
    except CLIENT_ERRORS as error:
        raise as_source_error(error, options) from error
    code, allowed = described["error_code"], described.get("authorized_operations")
    at = where(options)
    if code == kafka_errors.TopicAuthorizationFailedError.errno or (allowed and "WRITE" not in allowed):
        raise SourceRefusedError(
            f"Kafka at {at} does not let us write to the topic {topic}: grant Write and Describe on it"
        )
    if code == kafka_errors.InvalidTopicError.errno:
        raise SourceError(f"{topic!r} is no name of a topic: use letters, digits, '.', '_' and '-'")
    if code == kafka_errors.UnknownTopicOrPartitionError.errno:
        raise SourceError(f"Kafka at {at} has no topic {topic!r}: create it, or correct its name")
    if code:
        raise SourceError(f"Kafka at {at}: the topic {topic} cannot be written now: {kafka_errors.for_code(code)}")
    return str(described.get("topic_id") or f"{at}/{topic}")
