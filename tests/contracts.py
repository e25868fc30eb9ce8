"""What every source must do (`streamlearn.source.Source`), as checks that any connector can be run against, yours too.

    def test_my_source_keeps_the_contract(tmp_path):
        fill(tmp_path)                                             # at least three records, which stay
        check_source(lambda: MySource(tmp_path), count=3)

It needs neither pytest nor anything of this folder: copy it beside your tests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

from streamlearn.errors import SourceError
from streamlearn.records import Partition, Position, Record
from streamlearn.source import DeadLetters, EndOfStream, EventSink, Publisher, Remembering, Revocable, Source

_POLL_S = 0.2
_QUIET_POLLS = 3  # that must bring nothing, where nothing is to come

Open = Callable[[], Source]


def check_source(open_source: Open, count: int, *, cuts: int = 10, deadline_s: float = 60.0) -> None:
    """Raise AssertionError, with what is wrong, unless the source keeps the contract.

    Args:
        open_source: makes another source over the same records, not yet started.
        count: how many records there are; a source that goes on must be silent behind them.
        cuts: from so many places it is resumed, evenly spaced; 1 + count: from every one.
        deadline_s: for `count` records.
    """
    assert count >= 3, "give it three records at least, or there is nothing to resume and nothing to pause"
    records = check_reading(open_source, count, deadline_s)
    for done in {round(i * count / max(1, cuts - 1)) for i in range(cuts)} if cuts <= count else range(count + 1):
        check_resuming(open_source, records, done, deadline_s)
    check_pausing(open_source, records, deadline_s)
    check_keeping(open_source, records, deadline_s)
    check_remembering(open_source, records, deadline_s)
    check_closing(open_source)


def check_reading(open_source: Open, count: int, deadline_s: float) -> list[Record]:
    """All records come once, as bytes, with offsets that grow; returns them."""
    with _started(open_source) as source:
        records = _read(source, count, deadline_s)
        _silent(source, "behind the last record")
        for partition, waiting in source.lag().items():
            assert isinstance(partition, Partition), f"lag: {partition!r} is no Partition"
            assert waiting == 0, f"lag: {waiting} of {partition} wait, and all were delivered"
        source.commit(_offsets(records))
    for record in records:
        assert isinstance(record.position, Position), f"{record.position!r} is no Position"
        for name, content in (("key", record.key), ("value", record.value)):
            assert content is None or isinstance(content, bytes), f"the {name} at {record.position} is not bytes"
        assert record.value is not None or record.key, f"the tombstone at {record.position} has no key"
    for partition, offsets in _by_partition(records).items():
        assert all(isinstance(offset, int) and offset >= 0 for offset, _ in offsets), f"{partition}: no whole numbers"
        assert all(a < b for (a, _), (b, _) in pairwise(offsets)), f"{partition}: not growing"
    return records


def check_resuming(open_source: Open, records: Sequence[Record], done: int, deadline_s: float) -> None:
    """Started with the offsets behind the first `done` records, it delivers the others and nothing else, in order."""
    offsets = _offsets(records[:done])
    # A partition of which nothing is done begins where the source does, wherever that is: here, at its beginning.
    expected = [r for r in records if r.position.offset >= offsets.get(_partition(r), 0)]
    with _started(open_source, offsets) as source:
        found = _read(source, len(expected), deadline_s) if expected else []
        _silent(source, f"resumed at {offsets}, behind the last record")
    assert _by_partition(found) == _by_partition(expected), f"resumed at {offsets}, it delivers something else"


def check_pausing(open_source: Open, records: Sequence[Record], deadline_s: float) -> None:
    """While paused it is polled and delivers nothing; nothing is lost or doubled by it, at any moment."""
    with _started(open_source) as source:
        source.pause()
        _silent(source, "paused before its first record")
        source.resume()
        found: list[Record] = []
        while len(found) < len(records):
            found += _read(source, 1, deadline_s)
            source.pause()
            _silent(source, "paused")
            source.commit(_offsets(found))
            source.resume()
            if len(found) > len(records) // 2:
                found += _read(source, len(records) - len(found), deadline_s)
    assert _by_partition(found) == _by_partition(records), "pauses have changed what it delivers"


def check_keeping(open_source: Open, records: Sequence[Record], deadline_s: float) -> None:
    """Where its partitions can go to another reader: none does without one, and none is given back that did not go."""
    with _started(open_source) as source:
        if not isinstance(source, Revocable):
            return
        found = _read(source, 1, deadline_s)
        assert not source.revoked(), f"{source.revoked()} go, and there is no other reader"
        held: dict[Partition, int | None] = {_partition(record): record.position.offset for record in reversed(found)}
        assert not source.give_back(held), "it takes back what did not go"
        found += _read(source, len(records) - len(found), deadline_s)
        _silent(source, "asked what goes, behind the last record")
    assert _by_partition(found) == _by_partition(records), "being asked what goes has changed what it delivers"


def check_remembering(open_source: Open, records: Sequence[Record], deadline_s: float) -> None:
    """Where it has a memo: JSON keeps it, and it changes nothing of what follows; a strange one is ignored."""
    half = len(records) // 2
    offsets = _offsets(records[:half])
    expected = [r for r in records if r.position.offset >= offsets.get(_partition(r), 0)]
    memo: Any = {"of": "another source"}
    for whose in ("another one's", "its own"):
        source = open_source()
        if not isinstance(source, Remembering):
            return
        try:
            source.remember(memo)
            source.start(offsets)
            found = _read(source, len(expected), deadline_s)
            assert _by_partition(found) == _by_partition(expected), f"with {whose} memo it delivers something else"
            kept = source.memo(offsets)
            memo = json.loads(json.dumps(kept))
            assert memo == kept, "JSON makes something else of its memo"
        finally:
            source.close()


def check_closing(open_source: Open) -> None:
    """It is built without being started, closes twice, and its optional parts are what they must be."""
    unstarted = open_source()
    assert isinstance(unstarted, Source), "it lacks a method of streamlearn.source.Source"
    optional: dict[str, Any] = {"dead_letters": DeadLetters, "publisher": Publisher, "events": EventSink}
    for name, protocol in optional.items():
        part = getattr(unstarted, name, lambda: None)()
        assert part is None or isinstance(part, protocol), f"{name}() is no {protocol.__name__}"
        if part is not None:
            part.close()
            part.close()
    for source in (unstarted, open_source()):
        if source is not unstarted:
            source.start({})
        source.close()
        source.close()


@contextmanager
def _started(open_source: Open, offsets: dict[Partition, int] | None = None) -> Any:
    source = open_source()
    try:
        source.start(offsets or {})
        yield source
    finally:
        source.close()


def _read(source: Source, count: int, deadline_s: float) -> list[Record]:
    """`count` records or some more; a source that is away may be polled again."""
    records: list[Record] = []
    end = time.monotonic() + deadline_s
    while len(records) < count:
        assert time.monotonic() < end, f"{len(records)} of {count} records came within {deadline_s:g} s"
        try:
            records += source.poll(_POLL_S)
        except EndOfStream:
            raise AssertionError(f"the stream ended after {len(records)} of {count} records") from None
        except SourceError as error:
            if not error.retriable:
                raise AssertionError(f"it gives up: {error}") from error
    return records


def _silent(source: Source, when: str) -> None:
    for _ in range(_QUIET_POLLS):
        with suppress(EndOfStream):
            more = source.poll(0.01)
            assert not more, f"{when}: it delivers {len(more)} records"


def _partition(record: Record) -> Partition:
    return Partition(*record.position[:2])


def _offsets(records: Iterable[Record]) -> dict[Partition, int]:
    """As the daemon keeps them: one more than the last of each partition."""
    return {_partition(record): record.position.offset + 1 for record in records}


def _by_partition(records: Iterable[Record]) -> dict[Partition, list[tuple[int, tuple[bytes | None, bytes | None]]]]:
    found: dict[Partition, list[tuple[int, tuple[bytes | None, bytes | None]]]] = {}
    for record in records:
        found.setdefault(_partition(record), []).append((record.position.offset, (record.key, record.value)))
    return found
