"""From a source to batches, with a decoder whose futures the test completes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from streamlearn.backlog import Backlog
from streamlearn.errors import SourceError
from streamlearn.feed import Feed
from streamlearn.lag import Lag
from streamlearn.metrics import Metrics
from streamlearn.records import Clip, Event, Offsets, Partition, Position, Record, Rejected, Tombstone
from streamlearn.source import Source
from streamlearn.testing import ListSource
from tests.revoking import RevokingSource

WAIT_S = 20.0
FRAMES = np.zeros((1, 2, 2, 3), np.uint8)


def records(n: int, first: int = 0) -> list[Record]:
    return [Record(b"%d" % i, b"media", Position("list", "0", i)) for i in range(first, first + n)]


def clip(record: Record, task: str | None = None) -> Clip:
    return Clip(str(record.position.offset), FRAMES, b"", ("a caption",), record.position, task=task)


class FakeDecoder:
    """Keeps what is submitted; `now` completes it at once."""

    def __init__(self, *, now: bool = False) -> None:
        self._now = now
        self._changed = threading.Condition()
        self.jobs: list[tuple[Record, Future[Event]]] = []

    def submit(self, record: Record) -> Future[Event]:
        future: Future[Event] = Future()
        with self._changed:
            if self._now:
                future.set_result(clip(record))
            self.jobs.append((record, future))
            self._changed.notify_all()
        return future

    def wait_for(self, n: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.jobs) >= n, WAIT_S), f"{len(self.jobs)} records, not {n}"

    def finish_the_rest(self) -> None:
        """Also what comes later; what was cancelled stays so."""
        with self._changed:
            self._now = True
            for record, future in self.jobs:
                if not future.done():
                    future.set_result(clip(record))

    def finish(self, *which: int, task: str | None = None) -> None:
        for i in which:
            record, future = self.jobs[i]
            future.set_result(clip(record, task))


class Watched(ListSource):
    """Tells what is done to it, and by which thread."""

    def __init__(self, records: Sequence[Record] = (), *, ends: bool = True, batch: int = 16) -> None:
        super().__init__(records, ends=ends, batch=batch)
        self.was_paused, self.was_committed = threading.Event(), threading.Event()
        self.commits: list[tuple[str, Offsets]] = []
        self.failures: list[BaseException] = []  # of the next polls
        self.refusal: SourceError | None = None  # of commits

    def poll(self, timeout_s: float) -> Sequence[Record]:
        if self.failures:
            raise self.failures.pop()
        return super().poll(timeout_s)

    def pause(self) -> None:
        super().pause()
        self.was_paused.set()

    def commit(self, offsets: Offsets) -> None:
        super().commit(offsets)
        self.commits.append((threading.current_thread().name, offsets))
        self.was_committed.set()
        if self.refusal is not None:
            raise self.refusal


def never(name: str) -> bool:
    return False


@contextmanager
def feeding(
    source: ListSource,
    decoder: FakeDecoder,
    *,
    max_wait_s: float = WAIT_S,
    max_age_s: float = WAIT_S,
    show_after_s: float = WAIT_S,
    offsets: Offsets | None = None,
    begins: Callable[[str], bool] = never,
) -> Iterator[Feed]:
    feed = Feed(
        source,
        decoder,
        batch_size=4,
        max_wait_s=max_wait_s,
        max_age_s=max_age_s,
        show_after_s=show_after_s,
        metrics=Metrics.create(CollectorRegistry()),
        begins=begins,
    )
    try:
        feed.start(offsets or {})
        yield feed
    finally:
        feed.close()


def offsets_of(batch: Sequence[Event] | None) -> list[int]:
    assert batch is not None
    return [event.position.offset for event in batch]


def test_batches_are_full_and_in_the_sources_order_whatever_is_decoded_first() -> None:
    decoder = FakeDecoder()
    with feeding(ListSource(records(8)), decoder) as feed:
        decoder.wait_for(8)
        decoder.finish(7, 3, 5, 1, 6, 2, 4, 0)
        assert offsets_of(feed.next()) == [0, 1, 2, 3]
        assert offsets_of(feed.next()) == [4, 5, 6, 7]
        assert feed.next() is None
        assert feed.next() is None


def test_a_clip_being_decoded_is_waited_for_and_not_overtaken() -> None:
    decoder = FakeDecoder()
    with feeding(ListSource(records(4)), decoder, max_wait_s=0.01) as feed:
        decoder.wait_for(4)
        decoder.finish(1, 2, 3)
        threading.Timer(0.3, decoder.finish, [0]).start()  # far longer than max_wait_s: decoding is no silence
        assert offsets_of(feed.next()) == [0, 1, 2, 3]


def test_the_rest_is_handed_over_at_the_end_and_then_none() -> None:
    with feeding(ListSource(records(6)), FakeDecoder(now=True)) as feed:
        assert [offsets_of(feed.next()), offsets_of(feed.next())] == [[0, 1, 2, 3], [4, 5]]
        assert feed.next() is None


def test_an_empty_stream_ends_at_once() -> None:
    with feeding(ListSource(), FakeDecoder()) as feed:
        assert feed.next() is None


def test_silence_hands_over_what_there_is_and_then_nothing() -> None:
    source = ListSource(records(2), ends=False)
    with feeding(source, FakeDecoder(now=True), max_wait_s=0.05) as feed:
        assert offsets_of(feed.next()) == [0, 1]
        assert feed.next() == []
        source.add(*records(1, first=2), end=True)
        assert offsets_of(feed.next()) == [2]
        assert feed.next() is None


def test_tombstones_and_rejected_records_keep_their_place_and_fill_no_batch() -> None:
    decoder = FakeDecoder()
    with feeding(ListSource(records(6)), decoder) as feed:
        decoder.wait_for(6)
        decoder.finish(0, 3, 4, 5)
        (_, dead), (bad, rejected) = decoder.jobs[1], decoder.jobs[2]
        dead.set_result(Tombstone("gone", Position("list", "0", 1)))
        rejected.set_result(Rejected(bad, "no_frames", "decode", "none"))
        batch = feed.next()
        assert offsets_of(batch) == [0, 1, 2, 3, 4, 5]
        assert [type(event) for event in batch or ()] == [Clip, Tombstone, Rejected, Clip, Clip, Clip]


class Refusing(FakeDecoder):
    def submit(self, record: Record) -> Future[Event]:
        future: Future[Event] = Future()
        future.set_result(Rejected(record, "no_frames", "decode", "none"))
        return future


def test_large_rejected_records_are_handed_over_before_they_fill_the_memory() -> None:
    large = [Record(b"k", bytes(10 * 2**20), Position("list", "0", n)) for n in range(8)]
    with feeding(ListSource(large, ends=False), Refusing()) as feed:
        assert [len(feed.next() or ()) for _ in range(2)] == [4, 4]


def test_a_flood_of_rejected_records_is_handed_over_without_waiting_for_clips() -> None:
    with feeding(ListSource(records(1300), ends=False), Refusing()) as feed:
        assert [len(feed.next() or ()) for _ in range(2)] == [512, 512]


def test_a_new_task_never_begins_within_a_batch() -> None:
    decoder, known = FakeDecoder(), {"a"}
    with feeding(ListSource(records(12)), decoder, begins=lambda name: name not in known) as feed:
        decoder.wait_for(12)
        for i, task in enumerate([None, None, "b", "b", "a", None, "c", "c", "b", "c", "a", "a"]):
            decoder.finish(i, task=task)
        assert offsets_of(feed.next()) == [0, 1]
        assert offsets_of(feed.next()) == [2, 3, 4, 5]  # tasks that are known come mixed
        known.add("b")
        assert offsets_of(feed.next()) == [6, 7, 8, 9]
        assert offsets_of(feed.next()) == [10, 11]
        assert feed.next() is None


def test_reading_begins_at_the_offsets_of_the_checkpoint() -> None:
    with feeding(ListSource(records(6)), FakeDecoder(now=True), offsets={Partition("list", "0"): 4}) as feed:
        assert offsets_of(feed.next()) == [4, 5]


def test_a_slow_reader_pauses_the_source_and_loses_nothing() -> None:
    source, decoder = Watched(records(100), batch=3), FakeDecoder(now=True)
    with feeding(source, decoder) as feed:
        assert source.was_paused.wait(WAIT_S)
        ahead = len(decoder.jobs)
        assert ahead == 16  # four batches, whatever one poll brings
        got: list[int] = []
        most = 0
        while (batch := feed.next()) is not None:
            most = max(most, len(decoder.jobs) - len(got))
            got += offsets_of(batch)
    assert got == list(range(100))
    assert most <= 16 + 4  # and the batch being gathered


class Losing(Watched):
    """Has lost so many records before its first poll, and given away late; made anew, it begins to count anew."""

    lost: ClassVar[dict[Partition, int]] = {Partition("list", "0"): 40}
    late_handovers = 2


def test_what_was_lost_or_given_away_late_is_counted_once_and_goes_on_after_a_rewind() -> None:
    registry = CollectorRegistry()
    feed = Feed(
        Losing(records(4)),
        FakeDecoder(now=True),
        batch_size=4,
        max_wait_s=WAIT_S,
        max_age_s=WAIT_S,
        metrics=Metrics.create(registry),
        begins=never,
        reopen=lambda: Losing(records(4)),
    )
    name, labels = "streamlearn_lost_records_total", {"topic": "list", "partition": "0"}
    try:
        feed.start({})
        assert offsets_of(feed.next()) == [0, 1, 2, 3]
        assert registry.get_sample_value(name, labels) == 40
        assert registry.get_sample_value("streamlearn_source_late_handovers_total") == 2
        feed.rewind({})
        assert offsets_of(feed.next()) == [0, 1, 2, 3]
        assert registry.get_sample_value(name, labels) == 80
        assert registry.get_sample_value("streamlearn_source_late_handovers_total") == 4
    finally:
        feed.close()


def test_a_rewind_tells_the_source_that_is_left_where_it_goes_on() -> None:
    """It may be that others read its partitions meanwhile: they are to begin there."""
    left = ListSource(records(4))
    feed = rewinding(left, ListSource(records(4)))
    try:
        feed.start({})
        assert offsets_of(feed.next()) == [0, 1, 2, 3]
        feed.commit({Partition("list", "0"): 4})
        feed.rewind({Partition("list", "0"): 2})
        assert left.committed == {Partition("list", "0"): 2}
        assert offsets_of(feed.next()) == [2, 3]
    finally:
        feed.close()


class Leaving(RevokingSource):
    """Whose partition goes in the middle of a round of the reading thread: `asked`, it waits for `go`."""

    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__(records, ends=False)
        self.asked, self.go = threading.Event(), threading.Event()
        self.go.set()

    def revoked(self) -> Collection[Partition]:
        if not self.go.is_set():
            self.asked.set()
            self.go.wait(WAIT_S)
        return super().revoked()


def test_so_it_is_told_where_a_rebalance_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next owner would begin behind what was undone."""
    part, source = Partition("list", "0"), Leaving(records(4))
    feed = rewinding(source, ListSource(records(4)))
    stop = feed._stop_reading

    def late() -> None:
        source.go.set()
        stop()

    try:
        feed.start({})
        assert offsets_of(feed.next()) == [0, 1, 2, 3]
        source.go.clear()
        assert source.asked.wait(WAIT_S)
        source.revoke(part)
        monkeypatch.setattr(feed, "_stop_reading", late)
        feed.rewind({part: 2})
        assert source.was_given_back.is_set()
        assert source.committed == {part: 2}
        assert offsets_of(feed.next() or feed.next()) == [2, 3]  # the first was woken
        monkeypatch.undo()
    finally:
        feed.close()


def test_a_tombstone_that_is_read_again_after_a_rewind_counts_although_it_was_handed_over_before() -> None:
    both = [Record(b"v7", None, Position("list", "0", n)) for n in range(2)]
    anew = ListSource(both)
    feed = rewinding(ListSource(both), anew)
    try:
        feed.start({})
        assert offsets_of(feed.next()) == [0, 1]
        feed.rewind({})
        while "v7" not in feed.deleting:
            feed.wake()
            threading.Event().wait(0.01)
        feed.wake()
        feed.next()
        assert "v7" in feed.deleting
    finally:
        feed.close()


def rewinding(source: ListSource, anew: ListSource) -> Feed:
    return Feed(
        source,
        FakeDecoder(now=True),
        batch_size=4,
        max_wait_s=WAIT_S,
        max_age_s=WAIT_S,
        metrics=Metrics.create(CollectorRegistry()),
        begins=never,
        reopen=lambda: anew,
    )


def test_a_source_that_cannot_be_made_anew_leaves_the_one_there_is() -> None:
    def broken() -> Source:
        raise SourceError("the secret's file is gone")

    feed = Feed(
        Watched(records(4)),
        FakeDecoder(now=True),
        batch_size=2,
        max_wait_s=WAIT_S,
        max_age_s=WAIT_S,
        metrics=Metrics.create(CollectorRegistry()),
        begins=never,
        reopen=broken,
    )
    try:
        feed.start({})
        assert offsets_of(feed.next()) == [0, 1]
        with pytest.raises(SourceError, match="is gone"):
            feed.prepare_rewind()
        with pytest.raises(SourceError, match="is gone"):
            feed.rewind({})
        assert offsets_of(feed.next()) == [2, 3]
    finally:
        feed.close()


@pytest.mark.slow
def test_a_source_that_is_away_is_told_and_comes_back() -> None:
    source = Watched(records(2))
    source.failures = [SourceError("the broker is away")]
    told: list[str | None] = []
    metrics: list[float | None] = []
    registry = CollectorRegistry()
    feed = Feed(
        source,
        FakeDecoder(now=True),
        batch_size=2,
        max_wait_s=0.1,
        max_age_s=WAIT_S,
        metrics=Metrics.create(registry),
        begins=never,
    )
    try:
        feed.start({})
        while not (batch := feed.next()):
            assert batch is not None
            told.append(feed.error)
            metrics.append(registry.get_sample_value("streamlearn_source_connected"))
        assert offsets_of(batch) == [0, 1]
        assert "the broker is away" in told
        assert 0.0 in metrics
        assert feed.error is None
        assert registry.get_sample_value("streamlearn_source_connected") == 1
    finally:
        feed.close()


class Shared(ListSource):
    """As a member of a group, whose partitions come and go with the other members."""

    def __init__(self, ours: Mapping[Partition, int]) -> None:
        super().__init__([])
        self.connected, self.ours = True, ours

    def lag(self) -> Mapping[Partition, int]:
        return self.ours


def test_a_partition_that_went_to_another_member_has_no_lag_here_any_more() -> None:
    metrics = Metrics.create(registry := CollectorRegistry())
    source, lag = Shared({Partition("clips", "0"): 7, Partition("clips", "1"): 9}), Lag(metrics)

    def shown() -> list[float | None]:
        value = registry.get_sample_value
        return [value("streamlearn_source_lag_records", {"topic": "clips", "partition": p}) for p in "01"]

    lag.report(source)
    source.ours = {Partition("clips", "1"): 3}
    lag.report(source)
    assert shown() == [None, 3]
    source.connected, source.ours = False, {}
    lag.report(source)
    assert shown() == [None, 3]  # nobody knows; what was known last is nearest
    source.connected = True
    lag.report(source)
    assert shown() == [None, None]


@pytest.mark.parametrize("call", ["pause", "resume", "lag"])
def test_a_source_that_is_away_when_paused_resumed_or_asked_for_its_lag_comes_back_too(call: str) -> None:
    class Away(ListSource):
        failures = 1

    def fail_once(self: Away) -> object:
        if self.failures:
            self.failures -= 1
            raise SourceError("away")
        return getattr(ListSource, call)(self)

    setattr(Away, call, fail_once)
    source = Away(records(40), batch=4)
    with feeding(source, FakeDecoder(now=True)) as feed:
        got: list[int] = []
        while (batch := feed.next()) is not None:
            got += offsets_of(batch)
    assert got == list(range(40))
    assert source.failures == 0


def test_any_other_failure_of_the_source_reaches_the_reader() -> None:
    source = Watched(records(2))
    source.failures = [ZeroDivisionError("a bug in the source")]
    with feeding(source, FakeDecoder(now=True)) as feed, pytest.raises(ZeroDivisionError, match="a bug"):
        feed.next()


@pytest.mark.parametrize("ends", [True, False])
def test_a_commit_reaches_the_source_from_its_own_thread(ends: bool) -> None:
    source = Watched(records(1), ends=ends)
    with feeding(source, FakeDecoder(now=True), max_wait_s=0.05) as feed:
        feed.next()
        feed.commit({Partition("list", "0"): 1})
        assert source.was_committed.wait(WAIT_S)
    assert source.commits == [("feed", {Partition("list", "0"): 1})]


@pytest.mark.parametrize("ends", [True, False])
def test_the_commit_of_the_last_checkpoint_is_not_lost_by_closing(ends: bool) -> None:
    source = Watched(records(1), ends=ends)
    with feeding(source, FakeDecoder(now=True), max_wait_s=0.05) as feed:
        feed.next()
        feed.commit({Partition("list", "0"): 1})
    assert source.committed == {Partition("list", "0"): 1}


def test_a_commit_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = Watched(records(1), ends=False)
    with feeding(source, FakeDecoder(now=True), max_wait_s=0.05) as feed:
        assert len(feed.next() or ()) == 1
        source.refusal = SourceError("not now")
        feed.commit({Partition("list", "0"): 1})
        assert source.was_committed.wait(WAIT_S)
        source.add(*records(1, first=1), end=True)
        assert offsets_of(feed.next()) == [1]
    assert "not now" in caplog.text


@pytest.mark.parametrize("submitted", [0, 1])
def test_closing_ends_a_reader_that_waits(submitted: int) -> None:
    decoder = FakeDecoder()
    handed: list[object] = []
    feed = Feed(
        ListSource(records(submitted), ends=False),
        decoder,
        batch_size=4,
        max_wait_s=WAIT_S,
        max_age_s=WAIT_S,
        metrics=Metrics.create(CollectorRegistry()),
        begins=never,
    )
    feed.start({})
    decoder.wait_for(submitted)
    reader = threading.Thread(target=lambda: handed.append(feed.next()))
    reader.start()
    feed.close()
    reader.join(WAIT_S)
    assert handed == [[]]
    feed.close()


def test_a_batch_that_fills_too_slowly_is_handed_over_by_its_age() -> None:
    decoder = FakeDecoder(now=True)
    source = ListSource(records(1), ends=False)
    with feeding(source, decoder, max_age_s=0.3) as feed:
        assert offsets_of(feed.next()) == [0]  # long before the silence of WAIT_S


def test_an_interrupted_reader_returns_at_once_and_what_it_had_is_not_handed_over() -> None:
    decoder = FakeDecoder(now=True)
    handed: list[object] = []
    with feeding(ListSource(records(2), ends=False), decoder) as feed:
        reader = threading.Thread(target=lambda: handed.append(feed.next()))
        reader.start()
        decoder.wait_for(2)
        feed.interrupt()
        reader.join(10)
        assert not reader.is_alive()
    assert handed == [[]]


P0, P1 = Partition("list", "0"), Partition("list", "1")


def in_turn(n: int) -> list[Record]:
    """Of two partitions, n each: 0/0, 1/0, 0/1 ..."""
    return [Record(b"k", b"media", Position("list", str(i % 2), i // 2)) for i in range(2 * n)]


@pytest.mark.parametrize("decoded", [0, 3, 30])
def test_what_is_not_handed_over_of_a_partition_that_goes_is_given_back_wherever_it_is(decoded: int) -> None:
    # Room for 16 in flight, so 14 of them wait behind it, after a batch of four was handed over.
    decoder, source = FakeDecoder(), RevokingSource(in_turn(17), batch=34)
    with feeding(source, decoder) as feed:
        decoder.wait_for(4)
        decoder.finish(*range(4))
        assert len(feed.next() or ()) == 4
        decoder.wait_for(20)
        decoder.finish(*range(4, min(4 + decoded, 20)))
        source.revoke(P1)
        assert source.was_given_back.wait(WAIT_S)
        assert source.given_back == {P1: 2}
        decoder.finish_the_rest()
        rest = []
        while (batch := feed.next()) is not None:
            rest += [(event.position.partition, event.position.offset) for event in batch]
    assert rest == [("0", n) for n in range(2, 17)]


def test_a_batch_that_is_being_gathered_loses_what_goes() -> None:
    decoder, source = FakeDecoder(now=True), RevokingSource(in_turn(1), ends=False)
    with feeding(source, decoder) as feed:
        handed: list[Sequence[Event] | None] = []
        reader = threading.Thread(target=lambda: handed.extend([feed.next(), feed.next()]))
        reader.start()
        decoder.wait_for(2)
        source.revoke(P1)
        assert source.was_given_back.wait(WAIT_S)
        source.add(*in_turn(4)[2::2], *in_turn(2)[2::2], end=True)
        reader.join(WAIT_S)
    assert source.given_back == {P1: 0}
    assert handed[0] == []  # woken, for a checkpoint
    assert [(e.position.partition, e.position.offset) for e in handed[1] or ()] == [("0", n) for n in range(4)]


def test_the_first_commit_behind_a_revocation_is_of_a_checkpoint_after_it() -> None:
    source = RevokingSource(in_turn(2), ends=False)
    with feeding(source, FakeDecoder(now=True)) as feed:
        assert len(feed.next() or ()) == 4
        assert not feed.wants_checkpoint
        source.revoke(P0)
        assert source.was_given_back.wait(WAIT_S)
        assert source.given_back == {P0: None}  # nothing of it is here any more
        while not feed.wants_checkpoint:  # it is said to the source before
            assert feed.next() == []
        feed.commit({P0: 2, P1: 2})
        assert not feed.wants_checkpoint
        assert source.was_committed.wait(WAIT_S)
    assert source.commits == [{P0: 2, P1: 2}]


def test_what_has_come_back_meanwhile_is_kept() -> None:
    decoder, source = FakeDecoder(), RevokingSource(in_turn(4), ends=False)
    with feeding(source, decoder) as feed:
        decoder.wait_for(8)
        source.returned.add(P1)
        source.revoke(P0, P1)
        assert source.was_given_back.wait(WAIT_S)
        source.add(end=True)
        decoder.finish_the_rest()
        rest: list[str] = []
        while (batch := feed.next()) is not None:
            rest += [event.position.partition for event in batch]
    assert rest == ["1"] * 4


def test_what_has_waited_is_handed_over_as_a_part_of_its_batch() -> None:
    source = ListSource(records(3), ends=False)
    with feeding(source, FakeDecoder(now=True), show_after_s=0.01, max_wait_s=1000) as feed:
        seen: list[int] = []
        while len(seen) < 3:  # in one part or in several
            seen += offsets_of(feed.next())
            assert feed.unfinished
        source.add(*records(1, first=3))
        assert (seen, offsets_of(feed.next()), feed.unfinished) == ([0, 1, 2], [3], False)  # a batch is of four clips


def test_a_batch_whose_parts_are_all_handed_over_ends_with_nothing_more() -> None:
    source = ListSource(records(1), ends=False)
    with feeding(source, FakeDecoder(now=True), show_after_s=0.01, max_wait_s=0.05) as feed:
        assert (offsets_of(feed.next()), feed.unfinished) == ([0], True)
        assert (feed.next(), feed.unfinished) == ([], False)


def test_a_part_is_handed_over_while_the_next_clip_is_being_decoded() -> None:
    decoder = FakeDecoder()
    with feeding(ListSource(records(2), ends=False), decoder, show_after_s=0.01, max_wait_s=0.01) as feed:
        decoder.wait_for(2)
        decoder.finish(0)
        assert (offsets_of(feed.next()), feed.unfinished) == ([0], True)
        decoder.finish(1)
        assert offsets_of(feed.next()) == [1]


def test_a_tombstone_counts_from_when_it_is_read_until_it_was_applied() -> None:
    tombstone = Record(b"v7", None, Position("clips", "0", 1))
    decoder = FakeDecoder()
    with feeding(ListSource([*records(1), tombstone], ends=False), decoder, max_wait_s=0.05) as feed:
        decoder.wait_for(2)
        assert "v7" in feed.deleting
        decoder.finish(0)
        decoder.finish(1)
        assert offsets_of(feed.next()) == [0, 1]
        assert "v7" in feed.deleting  # it is only handed over
        feed.wake()
        feed.next()
        assert "v7" not in feed.deleting


class Clock:
    """What a backlog takes for the time."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patched.setattr("streamlearn.backlog.time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_part_is_handed_over_later_where_its_batch_is_nearly_whole(clock: Clock) -> None:
    quick, slow = Backlog(4), Backlog(100)
    for record in records(3):
        quick.keep(clip(record))
        slow.keep(clip(record))
    clock.now = 1.0
    assert (quick.to_show(1.0), slow.to_show(1.0)) == (False, True)  # one is missing, and comes within a third
    clock.now = 2.0
    assert quick.to_show(1.0)
    quick.hand_over_part()
    assert not quick.to_show(0.0)  # nothing is there


def test_the_last_few_clips_of_a_slow_batch_wait_no_longer_than_others(clock: Clock) -> None:
    backlog = Backlog(16)
    for record in records(13):
        backlog.keep(clip(record))
    backlog.hand_over_part()
    clock.now = 10.0
    backlog.keep(clip(records(1, first=13)[0]))
    clock.now = 10.9
    assert not backlog.to_show(2.0)  # two are missing, and come within two seconds
    clock.now = 12.0
    assert backlog.to_show(2.0)  # so few are quickly encoded twice


def test_where_nothing_else_is_to_be_done_a_part_is_handed_over_at_once(clock: Clock) -> None:
    backlog, decoded = Backlog(100), Future[Event]()
    first, second, third = records(3)
    backlog.launch(first, decoded)
    backlog.keep(clip(second))
    clock.now = 0.9
    assert (backlog.to_show(1.0), backlog.show_in_s(1.0)) == (False, pytest.approx(0.1))  # more is coming
    decoded.set_result(clip(first))
    assert backlog.land() is not None
    assert backlog.to_show(1.0)
    backlog.hand_over_part()
    clock.now = 1.0
    backlog.part_is_done()  # it took a tenth of a second
    backlog.keep(clip(third))
    clock.now = 1.05
    assert not backlog.to_show(1.0)  # some may come right behind it
    clock.now = 1.9
    assert not backlog.to_show(1.0)  # so soon after another it would take more than 5 % of the time
    clock.now = 2.0
    assert backlog.to_show(1.0)  # but nothing waits for longer
    backlog.hand_over_part()
    clock.now = 2.01
    backlog.part_is_done()
    clock.now = 2.1
    backlog.keep(clip(first))
    assert backlog.show_in_s(1.0) == pytest.approx(0.1)
    clock.now = 2.21
    assert backlog.to_show(1.0)


class Looking(Watched):
    """Counts who tells it to look."""

    def __init__(self, records: Sequence[Record] = ()) -> None:
        super().__init__(records, ends=False)
        self.looks = 0

    def look(self) -> None:
        self.looks += 1


def test_the_source_that_is_read_now_is_told_to_look_where_it_can() -> None:
    left, now = Looking(), Looking(records(4))
    feed = rewinding(left, now)
    try:
        feed.start({})
        feed.look()
        feed.rewind({})
        feed.look()
        feed.look()
        assert (left.looks, now.looks) == (1, 2)
    finally:
        feed.close()
    with feeding(ListSource(records(4)), FakeDecoder(now=True)) as other:
        other.look()
        assert offsets_of(other.next()) == [0, 1, 2, 3]


def test_who_cannot_wait_long_is_answered_with_nothing_and_the_batch_goes_on() -> None:
    source = ListSource(records(1), ends=False)
    with feeding(source, FakeDecoder(now=True)) as feed:
        assert feed.next(0.01) == []
        source.add(*records(3, first=1))
        assert offsets_of(feed.next()) == [0, 1, 2, 3]
