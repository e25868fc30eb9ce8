"""The Kafka source against a real broker; only the watchdog is tried on a client that was made to hang."""

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    MemberToRemove,
    NewPartitions,
    ResourcePattern,
    ResourceType,
)
from kafka.coordinator.base import MemberState

from streamlearn.connectors.kafka import KafkaSource
from streamlearn.connectors.kafka_handover import Handover
from streamlearn.connectors.kafka_memo import Memo
from streamlearn.connectors.kafka_reader import Reader
from streamlearn.connectors.kafka_subscription import Subscription
from streamlearn.errors import SettingsError, SourceError
from streamlearn.records import Partition
from streamlearn.settings import KafkaSettings
from streamlearn.source import DeadLetters, Source
from tests.kafka_broker import SASL_PASSWORD, KafkaBroker
from tests.kafka_source import (
    DEADLINE_S,
    NewTopic,
    OpenSource,
    collect,
    members,
    numbers,
    options,
    sasl,
    send,
    trouble,
    until,
    values,
)

pytestmark = pytest.mark.slow


def committed(broker: KafkaBroker, topic: str, partition: int = 0) -> int | None:
    """What the broker has for a partition of the topic."""
    group = f"{topic}-group"
    with broker.admin() as admin:
        offset = admin.list_group_offsets(group)[group].get(TopicPartition(topic, partition))
    return None if offset is None else offset.offset


def test_it_is_a_source_with_dead_letters(kafka: KafkaBroker) -> None:
    source = KafkaSource.from_settings(SimpleNamespace(kafka=options(kafka, "clips")))
    assert isinstance(source, Source)
    assert isinstance(source.dead_letters(), DeadLetters)
    assert (source.connected, source.lag(), source.restarts) == (False, {}, 0)
    source.close()


def test_it_reads_in_order_from_the_given_offsets_whatever_the_broker_has_committed(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamlearn")
    topic = new_topic(partitions=2)
    for partition in (0, 1):
        send(kafka, topic, numbers(100), partition)
    p0, p1 = Partition(topic, "0"), Partition(topic, "1")
    first = open_source(options(kafka, topic))
    collect(first, 200)
    first.commit({p0: 90, p1: 80})
    first.close()

    records = collect(open_source(options(kafka, topic), {p0: 40}), 60 + 20)

    assert values([r for r in records if r.position.partition == "0"]) == numbers(60, start=40)
    # A partition that the checkpoint does not know begins at the committed offset, and that is said.
    assert f"{topic}/1: no checkpoint here has it; going on from offset 80" in caplog.text
    assert f"{topic}/0: no checkpoint" not in caplog.text
    assert values([r for r in records if r.position.partition == "1"]) == numbers(20, start=80)
    assert [r.position.offset for r in records if r.position.partition == "0"] == list(range(40, 100))


def test_a_commit_reaches_the_broker(kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(10))
    source = open_source(options(kafka, topic))
    collect(source, 10)
    source.commit({Partition(topic, "0"): 7})
    until(lambda: committed(kafka, topic) == 7)
    source.commit({Partition(topic, "0"): 9})
    source.close()
    assert committed(kafka, topic) == 9


def test_latest_begins_at_the_end_of_the_log(kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(10))
    source = open_source(options(kafka, topic, auto_offset_reset="latest"))
    until(lambda: source.lag() == {Partition(topic, "0"): 0})
    send(kafka, topic, [b"new"])
    assert values(collect(source, 1)) == [b"new"]


def test_headers_tombstones_timestamps_and_large_values_arrive(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    large = bytes(range(256)) * 8192  # 2 MiB: larger than one fetch of a partition asks for
    send(kafka, topic, [b"with", None, large], headers=[("caption", b"a red ball"), ("caption", b"")], timestamp_ms=7)
    with_headers, tombstone, big = collect(open_source(options(kafka, topic)), 3)
    assert with_headers.headers == (("caption", b"a red ball"), ("caption", b""))
    assert (with_headers.key, with_headers.timestamp_ms) == (b"key", 7)
    assert tombstone.value is None
    assert tombstone.key == b"key"
    assert big.value == large


def test_a_caller_that_stalls_longer_than_the_poll_interval_stays_a_member_and_loses_nothing(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(500))
    source = open_source(
        options(kafka, topic, max_poll_records=10, session_timeout_ms=1_000, client={"max_poll_interval_ms": 1_500})
    )
    records = collect(source, 10)
    before = members(kafka, f"{topic}-group")
    assert len(before) == 1
    Event().wait(4.0)  # the stall itself
    assert members(kafka, f"{topic}-group") == before
    records += collect(source, 490)
    assert values(records) == numbers(500)


def test_pause_and_resume_lose_nothing_and_keep_the_member(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=2)
    for partition in (0, 1):
        send(kafka, topic, numbers(300), partition)
    source = open_source(options(kafka, topic, max_poll_records=20, session_timeout_ms=1_000))
    records = collect(source, 20)
    for _ in range(3):
        source.pause()
        assert source.poll(1.0) == []
        source.resume()
        records += collect(source, 20)
    records += collect(source, 600 - len(records))
    for partition in ("0", "1"):
        assert values([r for r in records if r.position.partition == partition]) == numbers(300)
    assert source.poll(0.5) == []


def test_lag_counts_what_was_not_handed_over(kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(100))
    source = open_source(options(kafka, topic, max_poll_records=30))
    until(lambda: source.lag() == {Partition(topic, "0"): 100})
    collect(source, 30)
    assert source.lag() == {Partition(topic, "0"): 70}
    collect(source, 70)
    assert source.lag() == {Partition(topic, "0"): 0}
    assert source.connected


def test_two_members_share_the_partitions_and_one_that_leaves_gives_its_own_to_the_other(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=4)
    first = open_source(options(kafka, topic))
    until(lambda: len(first.lag()) == 4)
    second = open_source(options(kafka, topic))
    until(lambda: (len(first.lag()), len(second.lag())) == (2, 2))
    assert set(first.lag()) | set(second.lag()) == {Partition(topic, str(n)) for n in range(4)}

    for partition in range(4):
        send(kafka, topic, numbers(50), partition)
    seconds = collect(second, 100)
    firsts = collect(first, 100)
    mine, its = set(first.lag()), set(second.lag())
    assert {Partition(*r.position[:2]) for r in seconds} == its
    assert {Partition(*r.position[:2]) for r in firsts} == mine

    # Its checkpoint has 40 of each; what it had read on to 50 is for the next owner to read again.
    second.commit({partition: 40 for partition in its})
    second.close()
    until(lambda: len(first.lag()) == 4)
    again = collect(first, 20)
    assert {(Partition(*r.position[:2]), r.position.offset) for r in again} == {
        (partition, offset) for partition in its for offset in range(40, 50)
    }
    assert first.poll(0.5) == []


def test_a_partition_that_comes_back_goes_on_after_what_the_other_member_finished(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=2)
    for partition in (0, 1):
        send(kafka, topic, numbers(30), partition)
    first = open_source(options(kafka, topic))
    collect(first, 60)
    second = open_source(options(kafka, topic), {Partition(topic, n): 30 for n in "01"})
    until(lambda: (len(first.lag()), len(second.lag())) == (1, 1))
    (moved,) = second.lag()
    send(kafka, topic, numbers(30, start=30), int(moved.partition))
    collect(second, 30)
    second.commit({moved: 50})
    second.close()
    until(lambda: len(first.lag()) == 2)
    assert [r.position.offset for r in collect(first, 10)] == list(range(50, 60))
    first.commit({moved: 30})  # as a checkpoint says that has nothing new of it
    first.close()
    assert committed(kafka, topic, int(moved.partition)) == 50


def test_a_partition_that_comes_back_skips_nothing_that_was_committed_before_the_start(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=2)
    begin, end = ({Partition(topic, n): offset for n in "01"} for offset in (0, 30))
    for partition in (0, 1):
        send(kafka, topic, numbers(30), partition)
    before = open_source(options(kafka, topic))
    collect(before, 60)
    before.commit(end)
    before.close()
    # Rolled back to a checkpoint that is older than what the broker knows: all is to be read again.
    rolled_back = open_source(options(kafka, topic, max_poll_records=2), begin)
    records = collect(rolled_back, 2)
    other = open_source(options(kafka, topic), end)
    until(lambda: (len(rolled_back.lag()), len(other.lag())) == (1, 1))
    other.close()
    until(lambda: len(rolled_back.lag()) == 2)
    records += collect(rolled_back, 58)
    for partition in ("0", "1"):
        assert values([r for r in records if r.position.partition == partition]) == numbers(30)


class WatchedConsumer(KafkaConsumer):
    """Notes where the client stands whenever it calls the listener of rebalances."""

    heard: ClassVar[list[str]]

    def __init__(self, **config: Any) -> None:
        self.standing = "elsewhere"
        super().__init__(**config)
        # Of all that `poll` does, what may rebalance; it comes before the fetch of the same `poll`.
        self._coordinator.poll = self.inside("rebalance", self._coordinator.poll)

    def inside(self, place: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self.standing = place
            try:
                return act(*arguments, **named)
            finally:
                self.standing = "elsewhere"

        return run

    def close(self, *arguments: Any, **named: Any) -> None:
        self.inside("close", super().close)(*arguments, **named)

    def subscribe(self, topics: Sequence[str], listener: Any) -> None:
        for name in ("on_partitions_assigned", "on_partitions_revoked", "on_partitions_lost"):
            setattr(listener, name, self.noted(name, getattr(listener, name)))
        super().subscribe(topics, listener=listener)

    def noted(self, name: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(partitions: Any) -> Any:
            self.heard.append(f"{name} in {self.standing}")
            return call(partitions)

        async def run_async(partitions: Any) -> None:
            await run(partitions)

        return run_async if inspect.iscoroutinefunction(call) else run


def test_no_rebalance_comes_between_a_fetch_and_the_hand_over_of_its_records(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hand-over takes what it is given for fetched since the partition was assigned: that rests on the client.
    monkeypatch.setattr(WatchedConsumer, "heard", [], raising=False)
    monkeypatch.setattr("streamlearn.connectors.kafka.KafkaConsumer", WatchedConsumer)
    topic = new_topic(partitions=4)
    first = open_source(options(kafka, topic))
    until(lambda: len(first.lag()) == 4)
    for _ in range(2):
        second = open_source(options(kafka, topic))
        until(lambda: (len(first.lag()), len(second.lag())) == (2, 2))  # noqa: B023 - called here
        second.close()
        until(lambda: len(first.lag()) == 4)
    # Thrown out by the broker, and let in again.
    with kafka.admin() as admin:
        admin.remove_group_members(f"{topic}-group", [MemberToRemove(*members(kafka, f"{topic}-group"))])
    until(lambda: "on_partitions_lost in rebalance" in WatchedConsumer.heard)
    until(lambda: len(first.lag()) == 4)
    first.close()
    assert set(WatchedConsumer.heard) >= {
        "on_partitions_assigned in rebalance",
        "on_partitions_revoked in rebalance",
        "on_partitions_revoked in close",
    }
    assert not [call for call in WatchedConsumer.heard if call.endswith("elsewhere")]


def test_partitions_that_are_added_are_read_from_their_beginning(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    source = open_source(options(kafka, topic, client={"metadata_max_age_ms": 500}))
    until(lambda: len(source.lag()) == 1)
    with kafka.admin() as admin:
        admin.create_partitions({topic: NewPartitions(2)})
    until(lambda: len(source.lag()) == 2)
    send(kafka, topic, numbers(5), partition=1)
    assert values(collect(source, 5)) == numbers(5)


def test_a_broker_that_is_killed_and_comes_back_costs_no_record_and_doubles_none(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=2)
    for partition in (0, 1):
        send(own_kafka, topic, numbers(200), partition)
    source = open_source(options(own_kafka, topic, max_poll_records=10))
    records = collect(source, 50)
    own_kafka.kill()
    # What was fetched is still handed over; then comes the sentence.
    deadline = time.monotonic() + DEADLINE_S
    said = None
    while said is None:
        assert time.monotonic() < deadline
        try:
            records += source.poll(0.5)
        except SourceError as error:
            said = error
    assert "cannot be reached" in str(said)
    assert said.retriable
    assert not source.connected
    own_kafka.start()
    for partition in (0, 1):
        send(own_kafka, topic, numbers(50, start=200), partition)
    records += collect(source, 500 - len(records))
    for partition in ("0", "1"):
        assert values([r for r in records if r.position.partition == partition]) == numbers(250)
    until(lambda: source.connected)
    assert source.poll(0.5) == []


def test_a_broker_that_cannot_be_reached_is_one_sentence_and_close_does_not_hang(
    kafka: KafkaBroker, open_source: OpenSource
) -> None:
    source = open_source(options(kafka, "clips", bootstrap_servers=["127.0.0.1:1"]))
    said = trouble(source)
    assert "127.0.0.1:1 cannot be reached" in str(said)
    assert "kafka.bootstrap_servers" in str(said)
    assert said.retriable
    assert source.poll(0.2) == []  # said once, not in every poll
    begun = time.monotonic()
    source.close()
    assert time.monotonic() - begun < 15


def test_a_topic_that_does_not_exist_is_one_sentence_and_read_once_it_does(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    name = f"{new_topic()}-not-yet"
    source = open_source(options(kafka, name))
    assert f"has no topic '{name}'" in str(trouble(source))
    kafka.create_topic(name)
    send(kafka, name, numbers(3))
    assert values(collect(source, 3)) == numbers(3)
    until(lambda: source.connected)


def test_wrong_credentials_are_one_sentence_and_no_reason_to_wait(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    said = trouble(open_source(options(own_kafka, new_topic(), **sasl(own_kafka, "wrong"))))
    assert "credentials" in str(said)
    assert "wrong" not in str(said)
    assert not said.retriable


def test_credentials_may_come_from_a_file(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource, tmp_path: Path
) -> None:
    topic = new_topic()
    send(own_kafka, topic, numbers(3))
    secret = tmp_path / "password"
    secret.write_text(SASL_PASSWORD + "\n")
    settings = options(own_kafka, topic, **sasl(own_kafka, "unused"))
    del settings.client["sasl_plain_password"]
    settings.client_secret_files["sasl_plain_password"] = secret
    assert values(collect(open_source(settings), 3)) == numbers(3)


@pytest.mark.parametrize(("kind", "sentence"), [(ResourceType.TOPIC, "the topic"), (ResourceType.GROUP, "the group")])
def test_what_we_may_not_use_is_one_sentence_and_no_reason_to_wait(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource, kind: ResourceType, sentence: str
) -> None:
    topic = new_topic()
    settings = options(own_kafka, topic, **sasl(own_kafka, SASL_PASSWORD))
    name = topic if kind is ResourceType.TOPIC else settings.group_id
    # Once somebody is allowed, all others are not.
    somebody = ACL("User:somebody", "*", ACLOperation.ALL, ACLPermissionType.ALLOW, ResourcePattern(kind, name))
    with own_kafka.admin() as admin:
        admin.create_acls([somebody])
    said = trouble(open_source(settings))
    assert sentence in str(said)
    assert name in str(said)
    assert not said.retriable


def test_a_log_that_retention_cut_is_read_from_its_earliest_with_the_lost_range_in_the_log(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(100))
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 60})
    with caplog.at_level(logging.WARNING, "streamlearn"):
        records = collect(open_source(options(kafka, topic), {Partition(topic, "0"): 20}), 40)
    assert values(records) == numbers(40, start=60)
    assert f"{topic}/0: offsets 20 to 59 are lost" in caplog.text


def test_a_topic_that_was_made_anew_is_read_from_its_beginning_with_a_warning(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(10))
    with caplog.at_level(logging.WARNING, "streamlearn"):
        records = collect(open_source(options(kafka, topic), {Partition(topic, "0"): 1000}), 10)
    assert values(records) == numbers(10)
    assert "offset 1000 is beyond the end of the log" in caplog.text


def test_an_option_that_the_client_does_not_know_is_refused_at_once(kafka: KafkaBroker) -> None:
    with pytest.raises(SettingsError, match=r"kafka\.client\.max_pol_interval_ms"):
        KafkaSource(options(kafka, "clips", client={"max_pol_interval_ms": 1}))


def test_options_of_the_producer_alone_do_not_disturb_the_consumer(kafka: KafkaBroker) -> None:
    KafkaSource(options(kafka, "clips", client={"compression_type": "gzip"})).dead_letters().close()


def test_a_secret_file_that_is_not_there_is_refused_at_once(kafka: KafkaBroker, tmp_path: Path) -> None:
    missing = {"sasl_plain_password": tmp_path / "nowhere"}
    with pytest.raises(SettingsError, match="sasl_plain_password"):
        KafkaSource(options(kafka, "clips", client_secret_files=missing))


class HungConsumer:
    """A client as the watchdog is there for: the broker answers, there is more to read, and nothing comes."""

    def __init__(self) -> None:
        self.closed = Event()
        self._tick = Event()

    _cluster = SimpleNamespace(topic_id=lambda topic: None)

    def subscribe(self, topics: Sequence[str], listener: Any) -> None:
        listener.on_partitions_assigned(self.assignment())

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("clips", 0)}

    def paused(self) -> set[TopicPartition]:
        return set()

    def pause(self, *partitions: TopicPartition) -> None: ...

    def resume(self, *partitions: TopicPartition) -> None: ...

    def seek(self, partition: TopicPartition, offset: int) -> None: ...

    def committed(self, partition: TopicPartition, *, metadata: bool, timeout_ms: float) -> None: ...

    def beginning_offsets(self, partitions: Sequence[TopicPartition], timeout_ms: float) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 5)

    def group_metadata(self) -> Any:
        return SimpleNamespace(state=MemberState.STABLE)

    def poll(self, timeout_ms: float) -> dict[Any, Any]:
        self._tick.wait(timeout_ms / 1000)
        return {}

    def end_offsets(self, partitions: Sequence[TopicPartition], timeout_ms: float) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 10)

    def position(self, partition: TopicPartition, timeout_ms: float) -> int:
        return 5

    def close(self, timeout_ms: float) -> None:
        self.closed.set()


def test_a_consumer_that_gets_nothing_although_there_is_something_is_replaced_and_counted() -> None:
    made: list[HungConsumer] = []
    asked: list[int | None] = []

    def connect(fetch_bytes: int | None) -> HungConsumer:
        asked.append(fetch_bytes)
        made.append(HungConsumer())
        return made[-1]

    settings = KafkaSettings(request_timeout_ms=1_000)
    handover = Handover({}, max_records=10, max_bytes=10)
    reader = Reader(settings, connect, Subscription(settings, {}), handover, Memo({}))
    reader.start()
    until(lambda: reader.restarts == 1 and len(made) == 2)
    assert made[0].closed.is_set()
    assert reader.connected
    reader.close()
    assert made[-1].closed.is_set()
    assert asked[0] is None
    assert asked[1] is not None, "the next one asks for less: perhaps it was too much"


def test_a_member_that_waits_for_the_partitions_of_one_that_crashed_says_so(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    holder = open_source(options(kafka, topic))
    send(kafka, topic, numbers(1))
    collect(holder, 1)
    second = open_source(options(kafka, topic))  # one partition, and it is taken
    until(lambda: second.waiting is not None)
    assert "session_timeout_ms" in str(second.waiting)
    assert holder.waiting is None
