"""The contract checks: every source that ships keeps them, and each finds a source that does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import pytest

from streamlearn.connectors.folder import FolderSource
from streamlearn.connectors.kafka import KafkaSource
from streamlearn.connectors.kafka_range import Range
from streamlearn.connectors.kafka_replay import RangeSource
from streamlearn.records import Offsets, Partition, Position, Record
from streamlearn.testing import ListSource
from tests.contracts import check_source
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import NewTopic, numbers, options, send
from tests.remembering import RememberingSource
from tests.revoking import RevokingSource


def records(n: int = 6) -> list[Record]:
    return [Record(b"k", b"%d" % i, Position("list", str(i % 2), i)) for i in range(n)]


@pytest.mark.parametrize("ends", [True, False])
def test_the_list_source_keeps_the_contract(ends: bool) -> None:
    check_source(lambda: ListSource(records(), ends=ends, batch=2), 6)


def test_a_source_whose_partitions_can_go_keeps_the_contract() -> None:
    check_source(lambda: RevokingSource(records(), batch=2), 6)


def test_a_source_that_remembers_keeps_the_contract() -> None:
    check_source(lambda: RememberingSource(records(), batch=2), 6)


@pytest.mark.parametrize("watch", [True, False])
def test_the_folder_source_keeps_the_contract(tmp_path: Path, watch: bool) -> None:
    rows = [{"video_id": str(i), "path": f"{i}.mp4", "caption": "c"} for i in range(6)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_source(lambda: FolderSource(tmp_path, watch=watch, poll_interval_s=0.001, max_records=2), 6)


@pytest.mark.slow
def test_the_kafka_source_keeps_the_contract(kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic(partitions=2)
    for partition in (0, 1):
        send(kafka, topic, numbers(10), partition)
    # By name: members of a group would wait for each other's leave, and begin at what the one before committed.
    settings = options(kafka, topic, partitions=[f"{topic}:0", f"{topic}:1"], max_poll_records=4, events_topic="events")
    check_source(lambda: KafkaSource(settings.model_copy(update={"group_id": f"{topic}-{next(ids)}"})), 20, cuts=3)


ids = iter(range(1000))


@pytest.mark.slow
def test_the_source_of_a_replay_keeps_the_contract(kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(10))
    check_source(lambda: RangeSource(options(kafka, topic), [Range(topic, 0, 0, 10)]), 10, cuts=3)


class Doubling(ListSource):
    """Delivers the record before the offsets again."""

    def start(self, offsets: Offsets) -> None:
        super().start({partition: offset - 1 for partition, offset in offsets.items()})


class Forgetful(ListSource):
    """Begins anew at the end, whatever the offsets."""

    def start(self, offsets: Offsets) -> None:
        super().start(dict.fromkeys(offsets, 6))


class Deaf(ListSource):
    """Goes on while it is paused."""

    def pause(self) -> None:
        pass


class Dropping(ListSource):
    """Loses what it was about to deliver when it is paused."""

    def pause(self) -> None:
        super().pause()
        self._next = min(self._next + 1, len(self._records))


class Texts(ListSource):
    """Delivers text."""

    def poll(self, timeout_s: float) -> Sequence[Record]:
        return [Record(r.key, "text", r.position) for r in super().poll(timeout_s)]  # type: ignore[arg-type]


class Endless(ListSource):
    """Says that much waits when nothing does."""

    def lag(self) -> dict[tuple[str, str], int]:  # type: ignore[override]
        return {("list", "0"): 1}


class Fickle(RevokingSource):
    """Gives all away, to nobody."""

    def revoked(self) -> Collection[Partition]:
        return {Partition("list", "0")}


class Grasping(RevokingSource):
    """Takes back what has not gone."""

    def give_back(self, held: Mapping[Partition, int | None]) -> Collection[Partition]:
        return set(held)


class Scribbling(RememberingSource):
    """Has a memo that comes back as something else."""

    def memo(self, offsets: Offsets) -> dict[int, int]:
        return dict(enumerate(offsets.values()))


class Credulous(RememberingSource):
    """Takes any memo for its own."""

    def start(self, offsets: Offsets) -> None:
        super().start({} if self._memo else offsets)


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Doubling, "delivers"),
        (Forgetful, "the stream ended"),
        (Deaf, "paused"),
        (Dropping, "the stream ended"),
        (Texts, "not bytes"),
        (Endless, "no Partition"),
        (Fickle, "no other reader"),
        (Grasping, "did not go"),
        (Scribbling, "JSON"),
        (Credulous, "another one's memo"),
    ],
)
def test_a_source_that_breaks_the_contract_is_found_out(cls: Callable[..., ListSource], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_source(lambda: cls(records(), batch=2), 6)


def test_offsets_that_run_backwards_are_found_out() -> None:
    shuffled = [records()[i] for i in (2, 0, 4, 1, 3, 5)]
    with pytest.raises(AssertionError, match="not growing"):
        check_source(lambda: ListSource(shuffled), 6)
