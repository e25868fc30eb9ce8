"""The nouns of the stream, frozen. They know nothing about where they came from or what is done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]  # (T, H, W, 3), RGB
Vectors = npt.NDArray[np.float32]  # (n, d), rows of unit length


class Partition(NamedTuple):
    """One ordered part of a source: a Kafka partition, a manifest, a file."""

    topic: str
    partition: str


#: The next offset to read, per partition. Resuming reads from exactly here.
Offsets = Mapping[Partition, int]


class Position(NamedTuple):
    """Where a record stands in its source; offsets grow within a partition, not necessarily by one."""

    topic: str
    partition: str
    offset: int


#: Before what was written with a schema of a registry: a zero byte and four of the schema's id.
FRAME_BYTES = 5


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """What a key or value was written with, as a schema registry says it.

    Attributes:
        id: the registry's number.
        kind: "AVRO", "JSON" ..., as the registry calls it.
        text: of the schema.
        references: name and text of the schemas that it refers to; what others need comes first.
        problem: why there is none, a sentence with the remedy.
    """

    id: int
    kind: str = ""
    text: str = ""
    references: tuple[tuple[str, str], ...] = ()
    problem: str | None = None

    @staticmethod
    def id_in(data: bytes | None) -> int | None:
        """The id before a framed key or value; None where it is not framed, or is an MP4 (`0000 0018 ftyp`)."""
        if data is None or data[:1] != b"\0" or len(data) <= FRAME_BYTES or data[4:8] == b"ftyp":
            return None
        return int.from_bytes(data[1:FRAME_BYTES], "big")


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the source gave it: bytes and a position. A `None` value is a tombstone.

    `schemas` are those that key and value name, where the source has a registry to ask.
    """

    key: bytes | None
    value: bytes | None
    position: Position
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None
    schemas: tuple[WriterSchema, ...] = ()


@dataclass(frozen=True, slots=True)
class Clip:
    """A decoded video-caption pair.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB: what the encoder reads.
        kept: the frames as they are stored and shown, larger perhaps; made by `frames.pack`.
        captions: at least one, none empty.
        start_s, end_s: the segment of the media in seconds, if only a part was meant.
        time: event time, RFC 3339, as given.
        split: "auto", "train" or "heldout".
        task: an operator's explicit task name, a boundary when it changes.
        sha256: of the media bytes that were decoded, hexadecimal.
    """

    video_id: str
    frames: Frames
    kept: bytes
    captions: tuple[str, ...]
    position: Position
    uri: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    time: str | None = None
    split: str = "auto"
    task: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The clip of this id leaves index, catalog, held-out sets and frame store."""

    video_id: str
    position: Position


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is not a valid clip, with the reason; it becomes a dead letter."""

    record: Record
    code: str
    stage: str
    message: str

    @property
    def position(self) -> Position:
        """Where the record stands in its source."""
        return self.record.position


#: What one record becomes.
Event = Clip | Tombstone | Rejected


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one learner step returns, besides its effect.

    Attributes:
        keys_video, keys_text: (n, d) unit rows: the served momentum encoders' view of the batch, as it was
            before the step. The video keys are the index entries.
        loss: symmetric InfoNCE, in nats.
        recall: share of the batch whose own key is the nearest in the batch, both directions averaged.
        grad_norm: before clipping.
        step: optimizer steps so far, this one included.
    """

    keys_video: Vectors
    keys_text: Vectors
    loss: float
    recall: float
    grad_norm: float
    step: int


def named_tasks(events: Sequence[Event]) -> list[str]:
    """The different tasks that the clips of a batch name, in their order."""
    return list(dict.fromkeys(event.task for event in events if isinstance(event, Clip) and event.task is not None))
