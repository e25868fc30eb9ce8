"""Settings of where clips come from and how they are decoded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from streamlearn.settings_base import Section, masked

_OURS = "cannot be chosen"
_OBJECT = f"{_OURS}: it is no value but an object of Python"

#: What `kafka.client` may not hold: the setting to use instead, or why there is none.
_NOT_PASSED_THROUGH = {
    **{
        name: f"has a setting of its own, kafka.{name}"
        for name in (
            "bootstrap_servers",
            "group_id",
            "group_instance_id",
            "auto_offset_reset",
            "session_timeout_ms",
            "request_timeout_ms",
            "max_poll_records",
        )
    },
    **dict.fromkeys(
        ("enable_auto_commit", "auto_commit_interval_ms", "default_offset_commit_callback"),
        f"{_OURS}: an offset is committed when a checkpoint holds its clip, or a crash would lose clips",
    ),
    **dict.fromkeys(
        ("acks", "enable_idempotence"),
        f"{_OURS}: a message counts as sent when all in-sync replicas have it, once and in order",
    ),
    **dict.fromkeys(("transactional_id", "transaction_timeout_ms"), f"{_OURS}: nothing is sent in transactions"),
    **dict.fromkeys(
        ("key_deserializer", "value_deserializer", "key_serializer", "value_serializer"),
        f"{_OURS}: keys and values are bytes; for schemas see kafka.schema_registry_url",
    ),
    "partitioner": f"{_OURS}: it is Kafka's own, so that a clip's messages stay in one partition",
    "allow_auto_create_topics": f"{_OURS}: a misspelt topic must be an error, not an empty topic",
    "consumer_timeout_ms": f"{_OURS}: it would end the stream",
    "sasl_oauth_token_provider": "has settings of its own: kafka.oauth_token_file, or kafka.oauth_token_url",
    **dict.fromkeys(("kafka_client", "metric_reporters", "selector", "ssl_context"), _OBJECT),
}


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


class FolderSettings(Section):
    """The folder source."""

    path: Path = Field(
        Path("clips"), description="Folder with manifest.jsonl, or with video files that have .txt or .json sidecars."
    )
    watch: bool = Field(True, description="Follow new rows and files; false: end with the last one and go on serving.")
    poll_interval_s: float = Field(0.5, gt=0, description="How often a watched folder is looked at.")


class KafkaSettings(Section):
    """The Kafka source."""

    bootstrap_servers: list[str] = Field(
        ["localhost:9092"], min_length=1, description="host:port of brokers to begin with."
    )
    topics: list[str] = Field(["clips"], min_length=1, description="Topics to read.")
    topic_pattern: str | None = Field(
        None,
        description="Read every topic whose whole name matches this regular expression, instead of `topics`; the"
        " dead-letter topic and the events topic are never among them.",
    )
    partitions: list[str] = Field(
        [], description="Read these partitions (clips:0,clips:3) and no others, outside of any group's assignment."
    )
    group_id: str = Field("streamlearn", min_length=1, description="Consumer group.")
    group_instance_id: str | None = Field(
        None, description="Static membership: a name that survives a restart of this process."
    )
    auto_offset_reset: Literal["earliest", "latest"] = Field(
        "earliest",
        description="Where a group that has never read begins. latest: at the end of the partitions that there are"
        " then; what comes later is read from its beginning.",
    )
    on_truncated: Literal["earliest", "error"] = Field(
        "earliest",
        description="When records that were to be read next are gone (retention, a topic made anew): go on with the"
        " oldest there is, or stop learning. Either way the lost range is said.",
    )
    dead_letter_topic: str = Field("clips.dlq", min_length=1, description="Where rejected records go.")
    events_topic: str | None = Field(
        None,
        min_length=1,
        description="Where the daemon says, as CloudEvents, that a task began, a generation was published or a rollback"
        " done, such as streamlearn.events; null: nowhere.",
    )
    session_timeout_ms: int = Field(
        45_000, ge=1_000, description="A member not heard of for this long leaves the group."
    )
    max_poll_records: int = Field(500, ge=1, description="Records handed over by one poll.")
    prefetch_records: int = Field(2_000, ge=1, description="Records fetched ahead; then fetching pauses.")
    prefetch_bytes: int = Field(
        64 * 2**20, ge=2**20, description="Bytes fetched ahead; then fetching pauses. Exceeded by one fetch at most."
    )
    request_timeout_ms: int = Field(30_000, ge=1_000, description="Longest wait for a broker's answer.")
    client: dict[str, Any] = Field(
        {},
        description="Passed through to the client (kafka-python names): security_protocol, sasl_mechanism, sizes,"
        " timeouts ... What promises rest on (acks, enable_auto_commit ...), and what has a setting here, is refused.",
    )
    client_secret_files: dict[str, Path] = Field(
        {}, description="As `client`, each value read from a file: sasl_plain_password ..."
    )
    oauth_token_file: Path | None = Field(
        None, description="SASL OAUTHBEARER: a file that holds the token; read again at every login."
    )
    oauth_token_url: str | None = Field(
        None,
        pattern=r"^https?://[^@]+$",
        description="SASL OAUTHBEARER: an OIDC token endpoint to get tokens from (client credentials; extra `oauth`)."
        " Without credentials.",
    )
    oauth_client_id: str | None = Field(None, description="For `oauth_token_url`.")
    oauth_client_secret_file: Path | None = Field(None, description="For `oauth_token_url`.")
    oauth_scope: str | None = Field(None, description="For `oauth_token_url`, where the provider wants one.")

    schema_registry_url: str | None = Field(
        None,
        pattern=r"^https?://[^@]+$",
        description="A schema registry (Confluent's REST API): values and keys in its wire format, Avro or JSON, are"
        " read by its schemas (extra `registry`). Without credentials; several with commas.",
    )
    schema_registry_auth_file: Path | None = Field(
        None, description="A file with user:password for it, or an API key and its secret."
    )
    schema_registry_ca_file: Path | None = Field(
        None, description="Certificates that it must be vouched for by, PEM; null: the usual ones."
    )

    @field_validator("bootstrap_servers")
    @classmethod
    def _without_login(cls, servers: list[str]) -> list[str]:
        # It would be in every sentence about the broker.
        if any("@" in server or "://" in server for server in servers):
            raise ValueError("write host:port; a login is in kafka.client and kafka.client_secret_files")
        return servers

    @field_validator("topic_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return pattern

    @field_validator("client", "client_secret_files")
    @classmethod
    def _passed_through(cls, options: dict[str, Any]) -> dict[str, Any]:
        if wrong := [f"{name} {_NOT_PASSED_THROUGH[name]}" for name in options if name in _NOT_PASSED_THROUGH]:
            raise ValueError("; ".join(wrong))
        if any(not isinstance(each, type) for each in _as_list(options.get("partition_assignment_strategy"))):
            raise ValueError(f"partition_assignment_strategy {_OURS} by name: it is cooperative-sticky")
        for name in ("proxy_url", "socks5_proxy"):
            if isinstance(url := options.get(name), str) and "://" not in url:
                raise ValueError(f"{name}: write scheme://host:port, with user:password@ before the host where needed")
        return options

    @field_validator("partitions")
    @classmethod
    def _named(cls, partitions: list[str]) -> list[str]:
        for name in partitions:
            topic, _, number = name.rpartition(":")
            if not topic or not number.isdecimal():
                raise ValueError(f"{name!r}: write a partition as topic:number, such as clips:0")
        return partitions

    @model_validator(mode="after")
    def _one_way(self) -> KafkaSettings:
        if self.topic_pattern is not None and self.partitions:
            raise ValueError("topic_pattern and partitions exclude each other: give one")
        clips = {*self.topics, *(name.rpartition(":")[0] for name in self.partitions)}
        if self.dead_letter_topic in clips:
            raise ValueError(
                f"dead_letter_topic = {self.dead_letter_topic!r} is among topics or partitions, so that dead letters"
                " would be read again: name another one"
            )
        if self.events_topic is not None and self.events_topic in (*clips, self.dead_letter_topic):
            raise ValueError(
                f"events_topic = {self.events_topic!r} is among topics, or dead_letter_topic: name another one"
            )
        if self.oauth_token_url is not None:
            if self.oauth_token_file is not None:
                raise ValueError("oauth_token_file and oauth_token_url exclude each other: give one")
            if self.oauth_client_id is None or self.oauth_client_secret_file is None:
                raise ValueError("oauth_token_url needs oauth_client_id and oauth_client_secret_file")
        if self.schema_registry_url is None and (self.schema_registry_auth_file or self.schema_registry_ca_file):
            raise ValueError("schema_registry_auth_file and schema_registry_ca_file need schema_registry_url")
        return self

    @field_serializer("client")
    def _masked(self, client: dict[str, Any]) -> Any:
        return masked(client)

    @field_serializer("client_secret_files")
    def _paths(self, files: dict[str, Path]) -> dict[str, str]:
        # What is no absolute path may be the secret itself, in the wrong place.
        return {name: str(path) if path.is_absolute() else "***" for name, path in files.items()}


class MediaSettings(Section):
    """Fetching and decoding."""

    allowed_roots: list[Path] = Field(
        [], description="file:// URIs are read only below these folders; empty: none. The folder source adds its own."
    )
    allowed_schemes: list[str] = Field(
        ["file"],
        description="URI schemes that may be fetched: file, https, s3, gs ... (with the fsspec extra installed).",
    )
    allowed_hosts: list[str] = Field([], description="Hosts that http(s) URIs may name; empty: none.")
    max_bytes: int = Field(64 * 2**20, ge=1, description="Largest media, and largest message.")
    max_pixels: int = Field(3840 * 2160 * 2, ge=1, description="Largest frame, in pixels, before scaling.")
    max_caption_chars: int = Field(10_000, ge=1, description="Longest caption.")
    timeout_s: float = Field(30.0, gt=0, description="Longest time for one clip to be fetched and decoded.")
    frames: int = Field(8, ge=1, le=256, description="Frames sampled per clip.")
    size_px: int = Field(
        64,
        ge=16,
        le=1024,
        description="Frames are stored and shown at this height and width; encoders scale down from it.",
    )
    sampling: Literal["exact", "keyframe"] = Field(
        "exact", description="exact: evenly spaced frames; keyframe: 5-30 times faster, the nearest keyframes."
    )
    decoder: Literal["pyav", "decord"] = Field(
        "pyav", description="decord must be installed (extra `decord`); it reads fewer formats."
    )
    workers: int = Field(1, ge=1, description="Decoder processes. A clip that crashes one costs that clip alone.")
    store_max_bytes: int = Field(10 * 2**30, ge=0, description="Size of the frame store; the oldest frames go first.")
    recent_max_bytes: int = Field(
        2**29,
        ge=0,
        description="Of it, what the encoder read of the latest clips, raw, on disk: saves decoding them again.",
    )

    @model_validator(mode="after")
    def _storable(self) -> MediaSettings:
        if self.frames * self.size_px > 65_500:
            raise ValueError(
                f"frames = {self.frames} x size_px = {self.size_px} may not exceed 65500, the height of a JPEG that"
                " holds a clip's frames: lower one"
            )
        return self
