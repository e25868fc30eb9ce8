"""What every Kafka client of this project shares: its configuration, its opening, its errors as sentences.

It knows kafka-python (docs/decisions.md says why that one); it reads and writes no record.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from streamlearn.connectors.kafka_auth import LoginOptions, given_options
from streamlearn.connectors.kafka_records import tolerate_names
from streamlearn.connectors.kafka_schemas import RegistryOptions
from streamlearn.errors import SettingsError, SourceError, SourceRefusedError, without_logins

Client = TypeVar("Client")

#: What can come out of the client when the broker is away or odd; ValueError and RuntimeError are among them
#: because kafka-python raises them from its own insides (a loop that was closed, a socket that was).
CLIENT_ERRORS = (kafka_errors.KafkaError, OSError, RuntimeError, ValueError)

_REFUSED = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
    kafka_errors.KafkaConfigurationError,
)
_TLS = "[SSL: "  # as Python's ssl module begins


class KafkaOptions(LoginOptions, RegistryOptions, Protocol):
    """The settings a Kafka connection reads: the `kafka` section of the daemon's settings has them all."""

    bootstrap_servers: list[str]
    topics: list[str]
    topic_pattern: str | None
    partitions: list[str]
    group_id: str
    group_instance_id: str | None
    auto_offset_reset: Literal["earliest", "latest"]
    on_truncated: Literal["earliest", "error"]
    dead_letter_topic: str
    events_topic: str | None
    session_timeout_ms: int
    max_poll_records: int
    prefetch_records: int
    prefetch_bytes: int


def client_config(options: KafkaOptions, client: type[Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of one client: `defaults`, then the operator's map, as far as this client has the key.

    One map serves all clients, so a key that belongs to another client is left out, not refused.

    Raises:
        SettingsError: a key that no client knows, or a secret file that cannot be read.
    """
    given = given_options(options)
    for name in given:
        if not any(name in other.DEFAULT_CONFIG for other in (KafkaConsumer, KafkaProducer, KafkaAdminClient)):
            raise SettingsError(f"kafka.client.{name}: kafka-python has no such option")
    return {
        "bootstrap_servers": options.bootstrap_servers,
        "client_id": "streamlearn",
        "request_timeout_ms": options.request_timeout_ms,
        **defaults,
        **{name: value for name, value in given.items() if name in client.DEFAULT_CONFIG},
    }


def open_client(client: Callable[..., Client], config: Mapping[str, Any]) -> Client:
    """Construct a client, which connects; if it cannot, leave nothing behind.

    kafka-python's constructors start an I/O thread and do not stop it when the connection fails; a daemon that
    waits for its broker would collect one per attempt.

    Raises:
        SourceError: no token is to be had; and whatever the client raises.
    """
    tolerate_names()
    parts: list[KafkaNetClient] = []

    def build(**network: Any) -> KafkaNetClient:
        net = NetworkSelector(**network)
        connections = _Connections(net, **network)
        part = KafkaNetClient(net, connections, **network)
        parts.append(part)
        # kafka-python 3.0 (seen in 3.0.12) loses this on the way: a topic that was deleted would come back, empty.
        connections.cluster.config["allow_auto_create_topics"] = network.get("allow_auto_create_topics", True)
        return part

    if (provider := config.get("sasl_oauth_token_provider")) is not None:
        provider.token()  # its trouble has a sentence; inside of the client it would be a timeout
    try:
        return client(**config, kafka_client=build)
    except BaseException:
        for part in parts:
            part.close()
        raise


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """Ends the first contact when it is refused; the client tries on, and says in the end that time is up."""

    refusal: BaseException | None = None

    def get_connection(self, node_id: Any, *args: Any, **kwargs: Any) -> Any:
        """As the client asks for it, again and again."""
        if self.refusal is not None and self.cluster.is_bootstrap(node_id):
            raise self.refusal
        connection = super().get_connection(node_id, *args, **kwargs)
        connection.init_future.add_errback(self._look_at)
        return connection

    def _look_at(self, error: BaseException) -> None:
        if isinstance(error, _REFUSED) or _TLS in str(error):
            self.refusal = error


def as_source_error(error: BaseException, options: KafkaOptions) -> SourceError:
    """One sentence for the operator: what, where, and what to do."""
    at, said = where(options), without_logins(str(error))
    match error:
        case SourceError():
            return error
        case kafka_errors.TopicAuthorizationFailedError():
            return SourceRefusedError(
                f"Kafka at {at} does not let us use the topic {_names(error)}: grant Read and Describe on it"
            )
        case kafka_errors.GroupAuthorizationFailedError():
            return SourceRefusedError(
                f"Kafka at {at} does not let us join the group {options.group_id!r}: grant Read on the group"
            )
        case _ if _TLS in str(error):
            return SourceRefusedError(
                f"Kafka at {at} and we do not come to terms over TLS ({said}): see ssl_cafile, ssl_certfile and"
                " ssl_keyfile of kafka.client"
            )
        case _ if isinstance(error, _REFUSED):
            return SourceRefusedError(
                f"Kafka at {at} refuses our credentials ({said}): see kafka.client and kafka.client_secret_files"
            )
        case kafka_errors.MessageSizeTooLargeError():
            return SourceError(f"Kafka at {at} takes no message of this size: raise the topic's max.message.bytes")
        case kafka_errors.FencedInstanceIdError():
            return SourceError(
                f"another process took over kafka.group_instance_id {options.group_instance_id!r}: each needs its own"
            )
        case kafka_errors.KafkaTimeoutError() if "SASL" in _protocol(options) and _accepts_connections(options):
            # kafka-python 3.0 (seen in 3.0.12) overlooks an answer that comes together with the end of the
            # connection, as Kafka's refusal does.
            return SourceRefusedError(
                f"Kafka at {at} accepts connections and closes them at the login: most likely it refuses our"
                " credentials; see kafka.client and kafka.client_secret_files"
            )
        case kafka_errors.KafkaTimeoutError() | kafka_errors.KafkaConnectionError() | OSError():
            return SourceError(
                f"Kafka at {at} cannot be reached ({said}): see kafka.bootstrap_servers, and whether it runs"
            )
        case _:
            return SourceError(f"Kafka at {at}: {type(error).__name__}: {said}")


def _protocol(options: KafkaOptions) -> str:
    return str(options.client.get("security_protocol", "PLAINTEXT"))


def _accepts_connections(options: KafkaOptions) -> bool:
    host, _, port = options.bootstrap_servers[0].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True


def topic_id(consumer: KafkaConsumer, topic: str) -> str | None:
    """The id of a topic, which another of its name does not have; None where the broker has none, or has not said.

    There is no public way to it; the client itself uses it for its epochs alone.
    """
    found = consumer._cluster.topic_id(topic)
    return None if found is None else str(found.hex)


def where(options: KafkaOptions) -> str:
    """The brokers, for a sentence."""
    return ", ".join(options.bootstrap_servers)


def _names(error: BaseException) -> str:
    topics = error.args[0] if error.args else ""
    return ", ".join(sorted(topics)) if isinstance(topics, set | frozenset) else str(topics)
