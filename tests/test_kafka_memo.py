"""What a Kafka source remembers beside its offsets: who has learned what, and of which log; against a real broker."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import CoordinatorNotAvailableError
from kafka.structs import OffsetAndMetadata

from streamlearn.connectors.kafka import KafkaSource
from streamlearn.connectors.kafka_memo import Memo
from streamlearn.errors import SourceLostError
from streamlearn.records import Offsets, Partition
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import NewTopic, OpenSource, collect, make_anew, numbers, options, send, trouble, until, values

pytestmark = pytest.mark.slow

SOON = {"metadata_max_age_ms": 500}


class Checkpoint(NamedTuple):
    """What a daemon writes down of its source."""

    offsets: Offsets
    memo: Any = None


NONE = Checkpoint({})


class Group:
    """State directories that learn from a topic one after the other; each is the name of what it has learned."""

    def __init__(self, kafka: KafkaBroker, topic: str, open_source: OpenSource) -> None:
        self.kafka, self.topic, self.open = kafka, topic, open_source
        self.settings: KafkaSettings = options(kafka, topic, client=SOON)

    def go_on(self, checkpoint: Checkpoint = NONE, **others: Any) -> KafkaSource:
        return self.open(self.settings.model_copy(update=others), *checkpoint)

    def learn(self, count: int, checkpoint: Checkpoint = NONE) -> tuple[list[int], Checkpoint]:
        """So many records, with a checkpoint at the end: their offsets, and the checkpoint."""
        source = self.go_on(checkpoint, max_poll_records=1)
        records = collect(source, count)
        offsets = dict(checkpoint.offsets)
        for record in records:
            offsets[Partition(*record.position[:2])] = record.position.offset + 1
        kept = Checkpoint(offsets, json.loads(json.dumps(source.memo(offsets))))
        source.commit(offsets)
        source.close()
        return [record.position.offset for record in records], kept

    def committed(self, partition: int = 0) -> Any:
        name = self.settings.group_id
        with self.kafka.admin() as admin:
            return admin.list_group_offsets(name)[name].get(TopicPartition(self.topic, partition))

    def commit_by_hand(self, offset: int, metadata: str = "", partition: int = 0) -> None:
        with self.kafka.admin() as admin:
            told = {TopicPartition(self.topic, partition): OffsetAndMetadata(offset, metadata, -1)}
            until(lambda: _told(admin, self.settings.group_id, told))


def _told(admin: KafkaAdminClient, group: str, offsets: dict[TopicPartition, OffsetAndMetadata]) -> bool:
    try:
        admin.alter_group_offsets(group, offsets)
    except CoordinatorNotAvailableError:  # a broker that has just begun
        return False
    return True


@pytest.fixture
def group(kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource) -> Callable[..., Group]:
    """Of a new topic with so many records in each partition."""

    def made(records: int = 40, partitions: int = 1) -> Group:
        topic = new_topic(partitions=partitions)
        for partition in range(partitions):
            send(kafka, topic, numbers(records), partition)
        return Group(kafka, topic, open_source)

    return made


def test_one_that_was_away_goes_on_behind_what_others_have_learned_meanwhile(
    group: Callable[..., Group], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamlearn")
    one = group()
    _, a = one.learn(10)
    assert one.learn(5)[0] == list(range(10, 15))  # a new state directory, which goes on where the group is
    assert one.learn(5)[0] == list(range(15, 20))  # and another one
    learned, a = one.learn(5, a)
    assert learned == list(range(20, 25))
    assert f"{one.topic}/0: other members have learned offsets 10 to 19" in caplog.text
    assert one.learn(5, a)[0] == list(range(25, 30))


def test_one_that_is_rolled_back_reads_its_own_again_whoever_has_read_on(group: Callable[..., Group]) -> None:
    one = group()
    _, older = one.learn(5)
    _, newer = one.learn(5, older)
    one.learn(10)
    assert one.learn(3, older)[0] == [5, 6, 7]
    assert one.committed().offset == 8
    assert one.learn(3, newer)[0] == [10, 11, 12]  # what was committed says nothing of what lies behind it any more


def test_it_passes_over_others_up_to_what_it_had_itself(group: Callable[..., Group]) -> None:
    one = group()
    _, older = one.learn(5)
    one.learn(5)
    assert one.learn(5, older)[0] == list(range(10, 15))
    one.learn(5)
    assert one.learn(10, older)[0] == list(range(10, 20))


def test_what_a_state_directory_had_committed_and_lost_since_it_reads_again(
    group: Callable[..., Group], caplog: pytest.LogCaptureFixture
) -> None:
    """Restored from a backup from before it had a partition; another one that never had it goes on behind it."""
    one = group(records=10, partitions=2)
    _, everything = one.learn(20)
    p0, p1 = Partition(one.topic, "0"), Partition(one.topic, "1")
    assert everything.offsets == {p0: 10, p1: 10}
    backup = Checkpoint({p0: 10}, Memo({}, everything.memo).of({p0: 10}))
    again = collect(one.go_on(backup), 10)
    assert [record.position for record in again] == [(*p1, offset) for offset in range(10)]
    assert f"{one.topic}/1: no checkpoint here has it, as if the state directory were an old one" in caplog.text


@pytest.mark.parametrize("metadata", ["", "by hand", '{"streamlearn":2}'])
def test_where_nobody_says_who_committed_a_checkpoint_goes_on_where_it_is(
    group: Callable[..., Group], metadata: str
) -> None:
    one = group()
    _, a = one.learn(10)
    one.commit_by_hand(30, metadata)
    assert one.learn(5, a)[0] == list(range(10, 15))


def test_a_checkpoint_of_an_older_version_passes_over_nothing(group: Callable[..., Group]) -> None:
    """It cannot tell its own stretches from others'."""
    one = group()
    one.learn(10)
    learned, upgraded = one.learn(5, Checkpoint({Partition(one.topic, "0"): 5}))
    assert learned == list(range(5, 10))
    one.learn(5)
    assert one.learn(5, upgraded)[0] == list(range(15, 20))


def test_a_topic_that_was_made_anew_while_it_was_down_is_read_from_its_beginning(
    group: Callable[..., Group], caplog: pytest.LogCaptureFixture
) -> None:
    """Though the new log has grown past our offset."""
    one = group(records=10)
    _, a = one.learn(10)
    make_anew(one.kafka, one.topic)
    send(one.kafka, one.topic, numbers(50, start=1000))
    refusing = one.go_on(a, on_truncated="error")
    said = trouble(refusing)
    assert isinstance(said, SourceLostError)
    assert "made anew" in str(said)
    refusing.close()
    source = one.go_on(a)
    assert values(collect(source, 50)) == numbers(50, start=1000)
    assert source.lost == {Partition(one.topic, "0"): 1}
    assert "made anew" in caplog.text
    source.close()
    # One that no checkpoint tells of which log its offset is goes by the offset, as ever.
    assert values(collect(one.go_on(Checkpoint(a.offsets)), 40)) == numbers(40, start=1010)


def test_until_something_of_the_new_log_is_learned_checkpoints_are_of_the_old_one(group: Callable[..., Group]) -> None:
    one = group(records=10)
    p0 = Partition(one.topic, "0")
    source = one.go_on(max_poll_records=1)
    collect(source, 10)
    before = source.memo({p0: 10})
    source.commit({p0: 10})
    until(lambda: one.committed() is not None)
    make_anew(one.kafka, one.topic)
    send(one.kafka, one.topic, numbers(50, start=1000))
    while values(collect(source, 1)) != numbers(1, start=1000):
        pass
    assert source.memo({p0: 10}) == before
    source.commit({p0: 10})  # as a checkpoint does that something else has caused
    after = source.memo({p0: 1})
    assert after["logs"] != before["logs"]
    source.close()
    # In the new log it means nothing. Unless it was told before the source noticed, as the group took the topic away.
    told = one.committed()
    assert told is None or json.loads(told.metadata)["log"] == before["logs"][0][2]
    again = one.go_on(Checkpoint({p0: 10}, before))
    assert values(collect(again, 50)) == numbers(50, start=1000)
    again.close()
    assert values(collect(one.go_on(Checkpoint({p0: 1}, after)), 49)) == numbers(49, start=1001)


def log_in(memo: Memo, offset: int) -> str:
    return str(memo.of({P0: offset})["logs"][0][2])


P0 = Partition("clips", "0")


def test_an_offset_is_of_the_old_log_for_as_long_as_it_may_be() -> None:
    memo = Memo({P0: 10})
    memo.reads(P0, "old")
    assert log_in(memo, 20) == "old"
    memo.turn_back(P0, 20)  # it had delivered up to there, and the checkpoint is at 10
    memo.reads(P0, "new")
    assert [log_in(memo, offset) for offset in (0, 9, 10, 20, 21)] == ["new", "new", "old", "old", "new"]
    memo.settle({P0: 15})
    assert (log_in(memo, 14), log_in(memo, 15)) == ("new", "old")
    assert memo.is_gone(P0, 15)
    memo.settle({P0: 3})  # which only the new one has
    assert log_in(memo, 15) == "new"
    assert not memo.is_gone(P0, 15)


def test_of_a_log_that_is_made_anew_twice_the_offset_is_of_the_first_for_as_long_as_it_may_be_of_either() -> None:
    memo = Memo({P0: 10}, {"reader": "a", "logs": [[*P0, "first"]], "line": []})
    for log, stood in (("second", 12), ("third", 30)):
        memo.turn_back(P0, stood)
        memo.reads(P0, log)
    assert [log_in(memo, offset) for offset in (5, 10, 30, 31)] == ["first", "first", "first", "third"]
    memo.settle({P0: 5})  # of the second or the third
    assert [log_in(memo, offset) for offset in (4, 5)] == ["third", "first"]


@pytest.mark.parametrize(
    "kept",
    [
        *(None, "text", 7, [], {}, {"reader": 3}, {"of": "another source"}),
        *({"reader": "its own", "logs": logs, "line": []} for logs in (7, [["clips", "0"]], {"clips": 3})),
    ],
)
def test_a_memo_that_is_not_of_its_making_counts_as_none(kept: Any) -> None:
    memo = Memo({P0: 1}, kept)
    assert memo.is_new
    assert memo.log_of(P0) is None
    assert memo.line(P0) is None
    assert not Memo({P0: 1}, memo.of({P0: 1})).is_new


def test_a_commit_of_another_log_is_none(group: Callable[..., Group]) -> None:
    """As of a member that has not noticed yet that the topic was made anew."""
    one = group(records=10)
    one.commit_by_hand(5, '{"streamlearn":1,"log":"another","read":[["somebody",0]]}')
    assert one.learn(10)[0] == list(range(10))


def test_nor_does_latest_begin_there(group: Callable[..., Group]) -> None:
    """The group began before there was this log."""
    one = group(records=10)
    one.settings = one.settings.model_copy(update={"auto_offset_reset": "latest"})
    one.commit_by_hand(5, '{"streamlearn":1,"log":"another","read":[["somebody",0]]}')
    assert one.learn(10)[0] == list(range(10))


def test_one_that_is_rolled_back_leaves_to_others_what_it_has_lost_and_no_more(group: Callable[..., Group]) -> None:
    one = group()
    p0 = Partition(one.topic, "0")
    _, a = one.learn(5)
    _, b = one.learn(5)
    source = one.go_on(a, max_poll_records=1)
    assert [record.position.offset for record in collect(source, 10)] == list(range(10, 20))
    source.commit({p0: 20})
    until(lambda: one.committed().offset == 20)
    source.commit(a.offsets)  # as a rollback does
    source.close()
    assert one.committed().offset == 10
    learned, b = one.learn(3, b)
    assert learned == [10, 11, 12]
    assert one.learn(3, a)[0] == [13, 14, 15]


def test_the_line_of_latest_is_kept_where_the_broker_forgets(kafka: KafkaBroker, group: Callable[..., Group]) -> None:
    """As it does of a group that is empty for a week."""
    one = group(records=1, partitions=2)
    one.settings = options(kafka, one.topic, auto_offset_reset="latest", client=SOON)
    source = one.go_on()
    until(lambda: source.poll(0) == [] and len(source.lag()) == 2)
    send(kafka, one.topic, [b"learned"], partition=0)
    assert values(collect(source, 1)) == [b"learned"]
    offsets = {Partition(one.topic, "0"): 2}
    kept = Checkpoint(offsets, source.memo(offsets))
    source.close()
    with kafka.admin() as admin:
        admin.delete_groups([one.settings.group_id])
    assert one.committed(1) is None
    send(kafka, one.topic, [b"while it was down"], partition=1)
    again = one.go_on(kept)
    assert values(collect(again, 1)) == [b"while it was down"]
    assert again.poll(0.2) == []


def test_until_it_has_read_on_a_commit_does_not_take_back_what_others_have_learned(group: Callable[..., Group]) -> None:
    one = group()
    _, a = one.learn(10)
    one.learn(20)
    source = one.go_on(a)
    assert collect(source, 1)[0].position.offset == 30
    source.commit(a.offsets)
    source.close()
    assert one.committed().offset == 30


def test_checkpoints_that_keep_offsets_of_another_source_are_committed_and_end_no_consumer(
    group: Callable[..., Group], caplog: pytest.LogCaptureFixture
) -> None:
    one = group()
    films = {Partition("films", "manifest.jsonl#0a1b2c3d4e5f"): 900}
    source = one.go_on(Checkpoint(films), max_poll_records=1)
    collect(source, 10)
    source.commit({**films, Partition(one.topic, "0"): 10})
    until(lambda: one.committed() is not None or "invalid literal" in caplog.text)
    source.commit({**films, Partition(one.topic, "0"): 10})
    source.close()
    assert one.committed().offset == 10
    assert "invalid literal" not in caplog.text
