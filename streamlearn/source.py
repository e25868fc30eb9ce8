"""The contract between the daemon and whatever feeds it.

Resume: the daemon keeps, inside each checkpoint, the next offset of every partition it has finished, and hands
them to `start`. A source must then deliver every record at or after those offsets, in order within a
partition, and none before them. `commit` is called after a checkpoint is durable and is advisory: it exists for
the source's own lag tools, never for correctness.

`start` comes first. Everything after it but `close` is called from one thread, which may be another. `close` is last.

Optional: `connected` (bool) and `waiting` (a sentence or None), for a source that can be away or kept waiting without
failing a poll; `dead_letters() -> DeadLetters`, for one that has a place for rejected records, others' go to a file in
the state directory; `publisher() -> Publisher`, for one that clips can be written to, over HTTP; `look()`, for one
that looks for records only now and then: something was written, so `poll` looks at once, also one that waits (from any
thread); `events() -> EventSink | None`, for one that has a place for the daemon's events; `lost` (numbers by partition,
which only grow), for one whose records can be gone before they are read; `revoked` and `give_back`, for one whose
partitions can go to another reader, as `Revocable` says; `late_handovers`, of such a one, how often it did not wait
longer; `memo` and `remember`, for one that needs more than offsets to go on, as `Remembering` says.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from streamlearn.errors import SettingsError
from streamlearn.records import Offsets, Partition, Record, Rejected


class EndOfStream(Exception):
    """The source has delivered everything and will never deliver more."""


@runtime_checkable
class Source(Protocol):
    """A stream of records that can resume."""

    @classmethod
    def from_settings(cls, settings: Any) -> Source:
        """Build from the daemon's settings tree; a connector of your own reads `settings.source_options`."""
        ...

    def start(self, offsets: Offsets) -> None:
        """Begin; `offsets` are the next to read, partitions not named start at the source's default."""
        ...

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """Wait up to `timeout_s` for records; may return none.

        Raises:
            EndOfStream: nothing will ever come again.
            SourceError: the source is away; polling again later may help.
        """
        ...

    def pause(self) -> None:
        """The daemon is behind: stop fetching, stay a member. `poll` goes on being called and returns nothing."""
        ...

    def resume(self) -> None:
        """Fetch again; nothing that was fetched before the pause may be lost by it."""
        ...

    def commit(self, offsets: Offsets) -> None:
        """A checkpoint up to `offsets` is durable. Failure is logged by the caller, never fatal."""
        ...

    def lag(self) -> Mapping[Partition, int]:
        """Records not yet delivered, per partition; empty when unknown. Keep the number of keys bounded."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


@runtime_checkable
class Revocable(Protocol):
    """A source whose partitions another reader can take over, at the offsets of the last `commit`.

    So that no record is used by both, the daemon asks between two polls which go. It drops what it has not begun to
    learn of them, says so by `give_back`, and makes a checkpoint: the first `commit` after that is of all it has used.
    The source waits for it before it lets them go, but not for ever.
    """

    def revoked(self) -> Collection[Partition]:
        """Partitions that go, or went, and are not given back; empty otherwise, so asking must be cheap."""
        ...

    def give_back(self, held: Mapping[Partition, int | None]) -> Collection[Partition]:
        """Of these partitions, what was delivered from the offset on will not be used; None: all of it was.

        Returns those that the source takes back, and would deliver from that offset again if they returned. The
        others have returned already, and are read on behind what the caller holds. Must not wait.
        """
        ...


@runtime_checkable
class Remembering(Protocol):
    """A source to which offsets do not say enough: whose they are, or of which log.

    Each checkpoint keeps what `memo` returns beside its offsets, and the next run hands both back. A rollback hands
    back what the generation has. A checkpoint of an older version has none; one of another source that one's, or what
    was kept before.
    """

    def memo(self, offsets: Offsets) -> Any:
        """What to keep beside these offsets, as JSON can; None: what was before. From any thread, and must not wait."""
        ...

    def remember(self, memo: Any) -> None:
        """Before `start`, if at all: what was kept beside its offsets. What is not of its making it ignores."""
        ...


@runtime_checkable
class DeadLetters(Protocol):
    """Where rejected records go. The daemon moves no offset past one before `flush` has returned.

    Optional: `full` (bool), for one that buffers: it holds more than it should. The daemon then learns nothing further
    before a `flush` has returned.
    """

    def write(self, rejected: Rejected) -> None:
        """Take one rejected record; may buffer. What cannot be written now is for `flush` to say."""
        ...

    def flush(self) -> None:
        """Return when everything written is durable.

        Raises:
            SourceError: it could not be made durable; the caller will flush again.
        """
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


@runtime_checkable
class Publisher(Protocol):
    """Writes into the stream that its source reads; from any thread. It has the record durably when a call returns.

    Every method raises `SourceRefusedError` where that can never be, `SourceError` where it cannot be now.
    """

    def put(self, message: dict[str, Any], media: bytes | None, partition: Partition | None) -> None:
        """Write a valid clip message, its video apart; into `partition`, where the clip of this id came from."""
        ...

    def delete(self, video_id: str, partition: Partition | None) -> None:
        """Write a tombstone, likewise."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


@runtime_checkable
class EventSink(Protocol):
    """Where the daemon's events go; called from one thread.

    Attributes:
        source: the CloudEvents attribute, a URI reference that names who speaks.
    """

    source: str

    def deliver(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Return when they are there. Each is a CloudEvent, ready for JSON.

        Raises:
            SourceError: some are not; all of them will be given again.
        """
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


def begin(source: Source, offsets: Offsets, memo: Any) -> None:
    """Start a source where a checkpoint ends, with what it had kept there."""
    if memo is not None and isinstance(source, Remembering):
        source.remember(memo)
    source.start(offsets)


def memo_of(source: Source, offsets: Offsets) -> Any:
    """What a source wants kept beside these offsets; None: nothing of its own."""
    return source.memo(offsets) if isinstance(source, Remembering) else None


def load_source_class(path: str) -> type[Source]:
    """Import `package.module:Class`.

    Raises:
        SettingsError: no such module or class, or it lacks a method of `Source`.
    """
    module, _, name = path.partition(":")
    if not name:
        raise SettingsError(f"source = {path!r}: write it as package.module:Class")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"source = {path!r} cannot be imported: {error}") from error
    missing = [
        m
        for m in ("from_settings", "start", "poll", "pause", "resume", "commit", "lag", "close")
        if not hasattr(cls, m)
    ]
    if missing:
        raise SettingsError(f"source = {path!r} lacks {', '.join(missing)}: see streamlearn.source.Source")
    return cls  # type: ignore[no-any-return]
