"""Dead letters listed and sent back: from a file and its folder, and in a real broker."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from streamlearn.connectors.folder import FolderSource
from streamlearn.connectors.kafka_producer import KafkaDeadLetters
from streamlearn.connectors.kafka_range import read, resolve, whole_topics
from streamlearn.deadletters import FileDeadLetters
from streamlearn.dlq import FilePlace, KafkaPlace, Letter, describe, replay, summarise
from streamlearn.errors import SourceError
from streamlearn.records import Position, Record, Rejected
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import KafkaBroker
from tests.said import Say


def rejected(
    offset: int, code: str = "media_not_found", value: bytes | None = b'{"video_id": "a"}', **others: str
) -> Rejected:
    position = Position(others.get("topic", "clips"), others.get("partition", "manifest.jsonl#0"), offset)
    stage = "fetch" if code.startswith("media") else "validate"
    return Rejected(Record(b"a", value, position, (("h", b"1"),), 1234), code, stage, "why")


def write(path: Path, *letters: Rejected) -> None:
    dead = FileDeadLetters(path)
    for letter in letters:
        dead.write(letter)
    dead.flush()
    dead.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "clips"
    path.mkdir()
    (path / "manifest.jsonl").write_text('{"video_id": "first", "caption": "c", "path": "first.mp4"}\n')
    return path


def rows(folder: Path) -> list[str]:
    return (folder / "manifest.jsonl").read_text().splitlines()[1:]


# --- a file


def test_letters_are_counted_by_code_with_the_newest_as_samples(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    write(path, *(rejected(n) for n in range(5)), rejected(9, "invalid_json", b"{"))
    summary = summarise(FilePlace(path, None), samples=2)
    assert summary.codes == {"media_not_found": 5, "invalid_json": 1}
    assert [letter.rejected.position.offset for letter in summary.samples["media_not_found"]] == [3, 4]
    shown = describe(summary.samples["invalid_json"][0])
    assert (shown["code"], shown["key"], shown["value"], shown["offset"]) == ("invalid_json", "a", "{", 9)


def test_rows_go_back_to_the_end_of_the_manifest_once_and_by_code(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "dead.jsonl"
    write(
        path,
        rejected(1, value=b'{"video_id": "x"}'),
        rejected(2, "invalid_json", b"{"),
        rejected(1),
        rejected(3, value=None),
    )
    place = FilePlace(path, folder)
    assert replay(place, ["media_not_found"], dry_run=True).sent == {"media_not_found": 2}
    assert rows(folder) == []
    assert replay(place, ["media_not_found"]).sent == {"media_not_found": 2}
    assert [json.loads(row) for row in rows(folder)] == [{"video_id": "x"}, {"video_id": "a", "deleted": True}]
    assert replay(place, ["media_not_found"]).sent == {}
    assert summarise(place).replayed == {"media_not_found": 3, "invalid_json": 0}
    assert replay(place).sent == {"invalid_json": 1}
    write(path, rejected(7))
    assert replay(place).sent == {"media_not_found": 1}
    assert replay(place, again=True).sent == {"media_not_found": 3, "invalid_json": 1}


def test_rows_that_went_back_are_read_again(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "dead.jsonl"
    source = FolderSource(folder, watch=True, poll_interval_s=0.001)
    source.start({})
    (record,) = source.poll(0)
    write(path, Rejected(record, "media_not_found", "fetch", "not there yet"))
    replay(FilePlace(path, folder))
    (again,) = source.poll(10)
    assert (again.key, json.loads(again.value or b"")) == (record.key, json.loads(record.value or b""))


def test_a_file_of_a_folder_without_manifest_is_touched(tmp_path: Path) -> None:
    video = tmp_path / "clips" / "cam" / "a.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"video")
    video.with_suffix(".txt").write_text("a caption")
    os.utime(video, ns=(5, 5))
    source = FolderSource(tmp_path / "clips", watch=True, poll_interval_s=0.001)
    source.start({})
    (record,) = source.poll(0)
    path = tmp_path / "dead.jsonl"
    gone = rejected(3, partition="gone.mp4#7")
    write(path, Rejected(record, "decode_failed", "decode", "torn"), gone)
    report = replay(FilePlace(path, tmp_path / "clips"))
    assert report.sent == {"decode_failed": 1}
    assert [problem for _, problem in report.problems] == [f"{tmp_path / 'clips' / 'gone.mp4'} is gone"]
    (again,) = source.poll(10)
    assert again.key == record.key == b"cam/a"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_a_sentence(
    say: Say, tmp_path: Path, folder: Path
) -> None:  # pragma: no cover - CI runs as a user
    write(tmp_path / "state" / "dead_letters.jsonl", rejected(1))
    (folder / "manifest.jsonl").chmod(0o444)
    said = say("dlq", "replay", "--set", f"folder.path={folder}", "--set", f"state_dir={tmp_path / 'state'}")
    assert said.code == 2
    assert "cannot be written" in said.err


class Refusing(FilePlace):
    """A place that takes back only some letters, until it is mended."""

    def __init__(self, path: Path, folder: Path, refused: set[int]) -> None:
        super().__init__(path, folder)
        self.refused = refused

    def send(self, letter: Letter) -> str | None:
        return "too large" if letter.rejected.position.offset in self.refused else super().send(letter)


def test_what_could_not_be_sent_is_not_marked_and_goes_with_the_next_replay(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "dead.jsonl"
    write(path, *(rejected(n, value=b'{"video_id": "%d"}' % n) for n in (1, 2, 3, 2)))  # 2 twice, as after a crash
    place = Refusing(path, folder, {2})
    assert replay(place).sent == {"media_not_found": 2}
    assert summarise(place).replayed == {"media_not_found": 2}
    again = replay(place)
    assert (again.sent, again.problems) == ({}, (("media_not_found", "too large"),))
    place.refused = set()
    assert replay(place).sent == {"media_not_found": 1}
    assert [json.loads(row)["video_id"] for row in rows(folder)] == ["1", "3", "2"]
    assert summarise(place).replayed == {"media_not_found": 4}
    assert replay(place).sent == {}


def test_marks_of_before_are_read(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "dead.jsonl"
    write(path, rejected(1))
    with path.open("a") as file:
        file.write('{"replayed": [], "ends": {"0": 1}}\n')
    assert replay(FilePlace(path, folder)).sent == {}


# --- the verbs


def test_replay_says_by_its_exit_code_that_not_all_could_be_sent_each_time(say: Say, tmp_path: Path) -> None:
    video = tmp_path / "clips" / "a.mp4"
    video.parent.mkdir()
    video.write_bytes(b"video")
    gone, there = rejected(1, partition="gone.mp4#7"), rejected(2, partition="a.mp4#5")
    write(tmp_path / "state" / "dead_letters.jsonl", gone, there)
    where = ("--set", f"folder.path={tmp_path / 'clips'}", "--set", f"state_dir={tmp_path / 'state'}")
    first, listed, second = (
        say("dlq", "replay", *where),
        say("dlq", "ls", "--json", *where),
        say("dlq", "replay", *where),
    )
    assert (first.code, second.code) == (1, 1)
    assert "sent 1 again" in first.out
    assert json.loads(listed.out)["codes"]["media_not_found"]["replayed"] == 1
    assert "gone.mp4 is gone" in second.out


def test_verbs_list_and_replay_the_state_directorys_file(say: Say, tmp_path: Path, folder: Path) -> None:
    where = ("--set", f"folder.path={folder}", "--set", f"state_dir={tmp_path / 'state'}")
    assert "0 dead letters" in say("dlq", "ls", *where).out
    write(tmp_path / "state" / "dead_letters.jsonl", rejected(1), rejected(2, "invalid_json", b"[/b]{"))
    listed = say("dlq", "ls", *where).out
    assert "2 dead letters in" in listed
    assert "clips:manifest.jsonl#0:1 key 'a': why" in listed
    as_json = json.loads(say("dlq", "ls", "--json", "--samples", "3", *where).out)
    assert as_json["codes"]["invalid_json"]["samples"][0]["value"] == "[/b]{"
    assert say("dlq", "replay", "--code", "nonsense", *where).code == 2
    assert "would send 1 again" in say("dlq", "replay", "--dry-run", "--code", "media_not_found", *where).out
    assert json.loads(say("dlq", "replay", "--json", *where).out)["sent"] == {"media_not_found": 1, "invalid_json": 1}
    assert len(rows(folder)) == 2
    assert "sent 0 again" in say("dlq", "replay", *where).out
    assert say("dlq", "ls", "--file", tmp_path / "none", *where).code == 2


def test_letters_of_a_source_of_ones_own_can_be_listed_only(say: Say, tmp_path: Path) -> None:
    write(tmp_path / "state" / "dead_letters.jsonl", rejected(1))
    where = ("--set", "source=streamlearn.testing:ListSource", "--set", f"state_dir={tmp_path / 'state'}")
    assert say("dlq", "ls", *where).code == 0
    said = say("dlq", "replay", *where)
    assert (said.code, said.err.count("\n")) == (2, 1)


# --- a topic


def in_topic(broker: KafkaBroker, topic: str) -> list[Record]:
    settings = KafkaSettings(bootstrap_servers=[broker.bootstrap])
    return list(read(settings, resolve(settings, whole_topics(settings, [topic]))))


@pytest.mark.slow
def test_letters_go_back_to_their_topics_as_they_were_once(kafka: KafkaBroker, new_topic: Callable[..., str]) -> None:
    clips, others, letters = new_topic(), new_topic(), new_topic(configs={"max.message.bytes": "2000"})
    settings = KafkaSettings(bootstrap_servers=[kafka.bootstrap], dead_letter_topic=letters)
    with closing(KafkaDeadLetters(settings)) as dead:
        for letter in (
            rejected(1, topic=clips, partition="0"),
            rejected(2, "invalid_json", b"{", topic=others, partition="0"),
            rejected(2, "invalid_json", b"{", topic=others, partition="0"),  # twice, as after a crash
            rejected(3, "decode_failed", bytes(5_000), topic=clips, partition="0"),
            rejected(4, "invalid_field", None, topic=clips, partition="0"),
        ):
            dead.write(letter)
        dead.flush()
    with closing(KafkaPlace(settings, letters)) as place:
        assert summarise(place).codes == {
            "invalid_json": 2,
            "media_not_found": 1,
            "decode_failed": 1,
            "invalid_field": 1,
        }
        assert replay(place, ["invalid_json"]).sent == {"invalid_json": 1}
        report = replay(place)
        assert report.sent == {"media_not_found": 1, "invalid_field": 1}
        assert [code for code, _ in report.problems] == ["decode_failed"]
        assert f"the original is at {clips}:0:3" in report.problems[0][1]
        assert replay(place, ["invalid_json", "media_not_found"]).sent == {}
        assert summarise(place).replayed["invalid_json"] == 2
    assert [(r.key, r.value, r.headers) for r in in_topic(kafka, clips)] == [
        (b"a", b'{"video_id": "a"}', (("h", b"1"),)),
        (b"a", None, (("h", b"1"),)),
    ]
    assert [(r.key, r.value, r.headers) for r in in_topic(kafka, others)] == [(b"a", b"{", (("h", b"1"),))]


@pytest.mark.slow
def test_letters_that_were_not_acknowledged_are_not_marked(kafka: KafkaBroker, new_topic: Callable[..., str]) -> None:
    clips, letters = new_topic(configs={"max.message.bytes": "2000"}), new_topic()
    settings = KafkaSettings(bootstrap_servers=[kafka.bootstrap], dead_letter_topic=letters)
    with closing(KafkaDeadLetters(settings)) as dead:
        dead.write(rejected(1, topic=clips, partition="0"))
        dead.write(rejected(2, value=bytes(5_000), topic=clips, partition="0"))  # more than its topic takes by now
        dead.flush()
    with closing(KafkaPlace(settings, letters)) as place:
        with pytest.raises(SourceError, match=r"max\.message\.bytes"):
            replay(place)
        assert summarise(place).replayed == {"media_not_found": 0}


@pytest.mark.slow
def test_a_letter_goes_back_behind_what_it_came_with(
    kafka: KafkaBroker, new_topic: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever partitioner the producer had: a replacement and a tombstone are in the partition of their clip."""
    clips, letters = new_topic(partitions=3), new_topic()
    settings = KafkaSettings(bootstrap_servers=[kafka.bootstrap], dead_letter_topic=letters)
    with closing(KafkaDeadLetters(settings)) as dead:
        for number in ("0", "1", "2", "7"):
            dead.write(rejected(int(number), topic=clips, partition=number))
        dead.flush()
    with closing(KafkaPlace(settings, letters)) as place:
        assert replay(place).sent == {"media_not_found": 4}
    there = [record.position.partition for record in in_topic(kafka, clips)]
    assert {"0", "1", "2"} == set(there)
    assert len(there) == 4
    assert f"{clips} has no partition 7 any more" in caplog.text


@pytest.mark.slow
def test_what_others_wrote_into_the_topic_is_listed_and_stays(
    kafka: KafkaBroker, new_topic: Callable[..., str], say: Say
) -> None:
    from kafka import KafkaProducer

    letters = new_topic()
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    producer.send(letters, b"\xff\x00", b"k")
    producer.flush()
    producer.close()
    where = ("--topic", letters, "--set", f"kafka.bootstrap_servers={kafka.bootstrap}")
    assert "unknown" in say("dlq", "ls", *where).out
    said = say("dlq", "replay", *where)
    assert said.code == 1
    assert "no dead letter of streamlearn" in said.out
