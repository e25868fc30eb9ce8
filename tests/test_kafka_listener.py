"""What happens when the group takes partitions away, on the client's own loop, without a broker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.future import Future
from kafka.net.selector import NetworkSelector

from streamlearn.connectors.kafka_handover import Handover
from streamlearn.connectors.kafka_listener import Listener
from streamlearn.connectors.kafka_memo import Memo
from streamlearn.connectors.kafka_positions import Positions
from streamlearn.connectors.kafka_reader import Reader
from streamlearn.connectors.kafka_subscription import Subscription
from streamlearn.records import Partition, Position, Record
from streamlearn.settings import KafkaSettings
from tests.kafka_source import until

TP, P = TopicPartition("clips", 0), Partition("clips", "0")
NEW = UUID(int=7)
LONG_MS, SHORT_MS = 200_000, 100


class Consumer:
    """The part of one that the listener calls.

    Attributes:
        commits: what it was told.
        refusal: what the broker answers.
    """

    def __init__(self, patience_ms: int) -> None:
        self._net = NetworkSelector()
        self.config = dict.fromkeys(("session_timeout_ms", "max_poll_interval_ms", "request_timeout_ms"), patience_ms)
        self.commits: list[dict[TopicPartition, int]] = []
        self.refusal: Exception | None = None
        self.silent = False

    def commit_async(self, offsets: dict[TopicPartition, Any], callback: Any) -> Future:
        self.commits.append({tp: committed.offset for tp, committed in offsets.items()})
        done = Future()
        if self.silent:
            return done
        callback(offsets, self.refusal)
        return done.success(None) if self.refusal is None else done.failure(self.refusal)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        pass

    def assignment(self) -> set[TopicPartition]:
        return {TP}  # also while it is going

    def beginning_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def pause(self, tp: TopicPartition) -> None:
        pass


class Group:
    """A member that has read ten records of one partition, of which four are in a checkpoint."""

    def __init__(self, patience_ms: int) -> None:
        self.handover = Handover({P: 0}, max_records=100, max_bytes=10_000)
        self.positions = Positions(KafkaSettings(), self.handover, Memo({P: 0}))
        self.consumer, self.closing = Consumer(patience_ms), threading.Event()
        self.listener: ConsumerRebalanceListener = Listener(self.positions, self.handover, self.consumer, self.closing)
        self.listener.on_partitions_assigned([TP])
        self.positions.unplaced.clear()  # as `place` does
        self.handover.put(P, [Record(None, b"", Position("clips", "0", n)) for n in range(10)])
        self.handover.take(10, 0)
        self.handover.saved({P: 4})

    def revoke(self) -> None:
        self.consumer._net.run(self.listener.on_partitions_revoked, {TP})


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    made = Group(getattr(request, "param", LONG_MS))
    yield made
    made.consumer._net.close()


hurried = pytest.mark.parametrize("group", [SHORT_MS], indirect=True)


def test_the_partition_goes_when_what_was_used_of_it_is_in_a_checkpoint_and_committed(group: Group) -> None:
    group.handover.revoked()
    revoking = threading.Thread(target=group.revoke)
    revoking.start()
    until(lambda: group.handover.revoked() == {P})
    assert group.handover.give_back({P: 7}) == {P}
    assert group.consumer.commits == []
    group.handover.saved({P: 7})
    revoking.join()
    assert group.consumer.commits == [{TP: 7}]
    assert group.positions.late_handovers == 0
    assert group.handover.assign(P) == 7


def test_where_nobody_asks_it_goes_at_once_with_the_newest_checkpoint(group: Group) -> None:
    group.revoke()
    assert group.consumer.commits == [{TP: 4}]


@hurried
def test_a_caller_that_does_not_come_to_it_is_waited_for_no_longer_than_that(
    group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    group.handover.revoked()
    group.revoke()
    assert "no checkpoint within 0.1 s of a rebalance" in caplog.text
    assert "clips/0" in caplog.text
    assert group.positions.late_handovers == 1
    assert group.consumer.commits == [{TP: 4}]
    # It comes to it later, and reads on from there if the partition returns.
    assert group.handover.give_back({P: 6}) == {P}
    assert group.handover.assign(P) == 6


def test_a_source_that_is_closed_waits_for_nothing_and_commits_its_last_checkpoint(group: Group) -> None:
    group.handover.revoked()
    group.closing.set()
    group.revoke()
    assert group.consumer.commits == [{TP: 4}]


def test_partitions_that_are_lost_are_another_ones_already(group: Group) -> None:
    group.handover.revoked()
    group.listener.on_partitions_lost({TP})
    assert group.handover.revoked() == set()
    assert group.consumer.commits == []


def test_before_it_is_known_how_far_others_are_nothing_is_committed(group: Group) -> None:
    """Our checkpoint may lie far behind what the member that had the partition before us has committed."""
    assert {tp: told.offset for tp, told in group.positions.commitments({P: 4}).items()} == {TP: 4}
    group.positions.unplaced.add(TP)
    assert group.positions.commitments({P: 4}) == {}
    group.revoke()
    assert group.consumer.commits == []


def test_while_it_goes_the_newest_checkpoint_alone_is_committed(group: Group) -> None:
    """The reader commits between two polls, and one may end while the rebalance waits for a checkpoint."""
    group.revoke()
    assert group.consumer.commits == [{TP: 4}]
    options, consumer = KafkaSettings(), cast(KafkaConsumer, group.consumer)
    subscription = Subscription(options, {})
    reader = Reader(options, lambda _: consumer, subscription, group.handover, Memo({P: 0}))
    reader.commit({P: 2})
    reader._commit(consumer)
    assert group.consumer.commits == [{TP: 4}]


def test_a_topic_that_is_made_anew_while_a_partition_goes_is_noticed_when_it_comes_back(group: Group) -> None:
    """Where it stands is of the old log for as long as nobody has moved it."""
    consumer: Any = group.consumer
    for topic_id in (uuid4(), uuid4()):
        consumer._cluster = SimpleNamespace(topic_id=lambda _, now=topic_id: now)
        group.positions.follow_topics(consumer)
        group.closing.set()
        group.revoke()
    group.listener.on_partitions_assigned([TP])
    group.positions.follow_topics(consumer)
    assert group.handover.stands(P) == 0


def test_where_the_broker_takes_no_metadata_it_takes_offsets(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    group.positions._start_stretch(TP, 0)
    assert group.positions.commitments({P: 4})[TP].metadata
    for refusal in (kafka_errors.OffsetMetadataTooLargeError(), kafka_errors.InvalidCommitOffsetSizeError()):
        group.consumer.refusal = refusal
        group.closing.set()
        group.revoke()
        group.listener.on_partitions_assigned([TP])
        group.positions.unplaced.clear()
    assert group.positions.commitments({P: 4})[TP].metadata == ""
    assert "offset.metadata.max.bytes" in caplog.text


def test_a_partition_that_was_not_ours_any_more_is_not_asked_for(group: Group) -> None:
    group.handover.revoked()
    group.positions.forget()
    group.revoke()
    assert group.handover.revoked() == set()
    assert group.consumer.commits == []


@pytest.mark.parametrize("raised", [False, True])
def test_a_broker_that_refuses_the_commit_stops_nothing(
    group: Group, caplog: pytest.LogCaptureFixture, raised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = kafka_errors.FencedInstanceIdError()
    if raised:

        def commit_async(*_: Any, **__: Any) -> Future:
            raise refusal

        monkeypatch.setattr(group.consumer, "commit_async", commit_async)
    group.consumer.refusal = refusal
    with caplog.at_level(logging.WARNING):
        group.revoke()
    assert "the broker did not take our offsets" in caplog.text


@hurried
def test_a_broker_that_does_not_answer_the_commit_stops_nothing(group: Group) -> None:
    group.consumer.silent = True
    group.revoke()
    assert group.consumer.commits == [{TP: 4}]


class Hurrying(Handover):
    """The daemon's thread takes the rest as soon as the reader's has looked where it stands."""

    rest: Sequence[Record] = ()

    def stands(self, partition: Partition) -> int | None:
        found = super().stands(partition)
        self.rest = self.take(10, 0)
        return found


def test_what_is_taken_while_a_topic_is_found_to_be_made_anew_is_of_the_old_one(group: Group) -> None:
    """As the new one's, a checkpoint there would skip what the new one begins with."""
    memo = Memo({P: 0}, {"reader": "this", "logs": [[*P, "old"]], "line": []})
    handover = Hurrying({P: 0}, max_records=100, max_bytes=10_000)
    handover.assign(P)
    handover.put(P, [Record(None, b"", Position("clips", "0", n)) for n in range(10)])
    handover.take(5, 0)
    consumer = cast(Any, group.consumer)
    consumer._cluster = SimpleNamespace(topic_id=lambda _: NEW)
    Positions(KafkaSettings(), handover, memo).follow_topics(consumer)
    assert memo.log_of(P) == NEW.hex
    learned = 5 + len(handover.rest)
    assert memo.of({P: learned})["logs"] == [[*P, "old"]]
    assert memo.is_gone(P, learned)
