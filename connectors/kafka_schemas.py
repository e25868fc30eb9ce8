"""Schemas by the ids that keys and values carry, from a registry that speaks Confluent's REST API.

It asks through Confluent's client (extra `registry`) and keeps what it was told; it decodes nothing: the schema goes
with the record to whoever does.
"""

from __future__ import annotations

import importlib.util
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from streamlearn.errors import SettingsError, SourceError, SourceRefusedError, unreadable_secret
from streamlearn.records import Record, WriterSchema

_KEPT = 1_000  # ids
_UNKNOWN_S = 30.0  # an id that the registry does not know is asked for again after this long
_NOT_THERE = 40401, 40402, 40403  # a subject or a version that is referred to, a schema
_LARGEST_ID = 2**31 - 1
_CLIENT = {"max.retries": 1, "retries.wait.ms": 100}  # a connection that was reset; for the rest `poll` comes again


class RegistryOptions(Protocol):
    """The settings of a registry: a part of the `kafka` section."""

    schema_registry_url: str | None
    schema_registry_auth_file: Path | None
    schema_registry_ca_file: Path | None
    request_timeout_ms: int


class SchemaRegistry:
    """What the registry says of ids.

    Attributes:
        reachable: whether it answered when it was last asked.
    """

    def __init__(self, options: RegistryOptions) -> None:
        """Connects with the first schema.

        Raises:
            SettingsError: the extra is not installed, or a file cannot be read.
        """
        self._url = options.schema_registry_url
        self._client = _client(options)
        self._schemas: OrderedDict[int, tuple[WriterSchema, float]] = OrderedDict()  # and until when
        self.reachable = True

    @classmethod
    def of(cls, options: RegistryOptions) -> SchemaRegistry | None:
        """The one that the settings name, if they do."""
        return None if options.schema_registry_url is None else cls(options)

    def knows(self, record: Record) -> bool:
        """Whether `attach` has all that the record needs."""
        now = time.monotonic()
        return all(number in self._schemas and self._schemas[number][1] > now for number in _ids(record))

    def learn(self, record: Record) -> None:
        """Ask for what the record needs and is not known.

        Raises:
            SourceError: the registry is away; ask again.
            SourceRefusedError: it does not let us in, or is none.
        """
        now = time.monotonic()
        for number in _ids(record):
            if number not in self._schemas or self._schemas[number][1] <= now:
                schema = self._ask(number)
                until = now + _UNKNOWN_S if schema.problem is not None else float("inf")
                self._schemas[number] = schema, until
                self._schemas.move_to_end(number)
                while len(self._schemas) > _KEPT:
                    self._schemas.popitem(last=False)

    def attach(self, record: Record) -> Record:
        """The record with the schemas of its key and value."""
        schemas = tuple([self._schemas[number][0] for number in _ids(record) if number in self._schemas])
        return replace(record, schemas=schemas) if schemas else record

    def close(self) -> None:
        """Disconnect; idempotent."""
        self._client.close()

    def _ask(self, number: int) -> WriterSchema:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        if number > _LARGEST_ID:  # which registries take for another address, as it is no id
            return WriterSchema(
                number, problem=f"{number} is no id of a schema; write the value as a registry's client"
            )
        try:
            schema = self._client.get_schema(number)
            references: dict[str, str] = {}
            self._follow(schema, references)
            self.reachable = True
            return WriterSchema(number, schema.schema_type or "AVRO", schema.schema_str, tuple(references.items()))
        except SchemaRegistryError as error:
            if error.error_code in _NOT_THERE:
                self.reachable = True
                return WriterSchema(
                    number,
                    problem=f"the registry at {self._url} has no schema {number}, or not all that it refers to;"
                    " register it, or read from the registry that its producer writes to",
                )
            self.reachable = False
            raise self._sentence(error) from error
        except Exception as error:  # of the HTTP client, TLS, the network, or an answer that is none
            self.reachable = False
            raise SourceError(
                f"the schema registry at {self._url} cannot be reached ({type(error).__name__}: {str(error)[:200]}):"
                " it is tried again; see kafka.schema_registry_url and kafka.schema_registry_ca_file"
            ) from error

    def _follow(self, schema: Any, found: dict[str, str]) -> None:
        """What a schema refers to, and that in its turn; those that others need come first."""
        for reference in schema.references or ():
            if reference.name not in found:
                other = self._client.get_version(reference.subject, reference.version).schema
                self._follow(other, found)
                found[reference.name] = other.schema_str

    def _sentence(self, error: Any) -> SourceError:
        status = error.http_status_code
        if status in (401, 403):
            return SourceRefusedError(
                f"the schema registry at {self._url} refuses our credentials (HTTP {status}):"
                " see kafka.schema_registry_auth_file"
            )
        if 400 <= status < 500 and status not in (408, 429):
            return SourceRefusedError(
                f"{self._url} does not answer as a schema registry does (HTTP {status}): kafka.schema_registry_url is"
                " the address below which /schemas/ids/1 lies"
            )
        return SourceError(f"the schema registry at {self._url} is in trouble (HTTP {status}): it is tried again")


def _ids(record: Record) -> list[int]:
    """Of the schemas of value and key; the bytes of a video may look like one."""
    headers = {name.lower(): content for name, content in reversed(record.headers)}
    framed = [record.key] if headers.get("content-type", b"").startswith(b"video/") else [record.value, record.key]
    return [number for data in framed if (number := WriterSchema.id_in(data)) is not None]


def _client(options: RegistryOptions) -> Any:
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as error:
        raise SettingsError("kafka.schema_registry_url: pip install streamlearn[registry]") from error
    if missing := [name for name in ("fastavro", "jsonschema") if importlib.util.find_spec(name) is None]:
        raise SettingsError(f"kafka.schema_registry_url: {missing[0]} is missing; pip install streamlearn[registry]")
    config: dict[str, Any] = {
        "url": options.schema_registry_url,
        "timeout": options.request_timeout_ms / 1000,
        **_CLIENT,
    }
    if options.schema_registry_auth_file is not None:
        config["basic.auth.user.info"] = _login(options.schema_registry_auth_file)
    if options.schema_registry_ca_file is not None:
        config["ssl.ca.location"] = str(options.schema_registry_ca_file)
    try:
        return SchemaRegistryClient(config)
    except OSError as error:  # ssl's are among them
        raise SettingsError(
            f"kafka.schema_registry_ca_file = {str(options.schema_registry_ca_file)!r} cannot be used: {error}"
        ) from error


def _login(path: Path) -> str:
    name = "kafka.schema_registry_auth_file"
    try:
        login = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(unreadable_secret(name, path, error)) from None
    if ":" not in login:
        raise SettingsError(f"{name} = {str(path)!r}: write user:password into it")
    return login
