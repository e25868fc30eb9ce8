"""Records of the client as ours, names of headers that are no UTF-8 included, there and back.

Kafka's protocol says that they are UTF-8; its broker does not check, so a producer's slip is in the log for good.
kafka-python (seen in 3.0.12) calls such a batch corrupt, at each attempt anew: one record would stop the stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kafka import TopicPartition
from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch

from streamlearn.records import Position, Record


def records_of(tp: TopicPartition, fetched: Iterable[Any]) -> list[Record]:
    """What a poll gave for one partition."""
    topic, partition = tp.topic, str(tp.partition)
    return [
        Record(
            r.key,
            r.value,
            Position(topic, partition, r.offset),
            tuple([(str(name), value or b"") for name, value in r.headers]) if r.headers else (),
            r.timestamp if r.timestamp >= 0 else None,
        )
        for r in fetched
    ]


class HeaderName(str):
    """Text whose lone surrogates stand for bytes that are no UTF-8, and become these again where it is encoded."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> bytes:
        """As the client asks for it, on the wire and to count bytes."""
        return super().encode(encoding, errors)


class _NameBytes(bytes):
    def decode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> str:
        return HeaderName(super().decode(encoding, errors))


class _TolerantBuffer(bytearray):
    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _NameBytes(found) if isinstance(at, slice) else found


class _TolerantBatch(DefaultRecordBatch):  # type: ignore[misc]
    _buffer: Any

    def _read_msg(self) -> Any:
        try:
            return super()._read_msg()
        except UnicodeDecodeError:  # nothing was consumed; the rest of the batch is read like this too
            self._buffer = _TolerantBuffer(self._buffer)
            return super()._read_msg()


def tolerate_names() -> None:
    """Let every consumer of this process read them; there is no public way to."""
    memory_records.DefaultRecordBatch = _TolerantBatch
