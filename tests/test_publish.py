import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from streamlearn.envelope import parse
from streamlearn.errors import SettingsError, SourceError
from streamlearn.message import ClipMessage
from streamlearn.publish import PublishReport, publish
from streamlearn.records import Position, Record
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import KafkaBroker

MEDIA = b"\x00not a video, but publishing opens none"


def run(paths: list[Path], kafka: KafkaSettings | None = None, **others: Any) -> PublishReport:
    given = {"topic": "clips", "max_bytes": 10_000_000, "max_caption_chars": 1_000, "dry_run": kafka is None}
    return publish(paths, kafka or KafkaSettings(), **(given | others))


def manifest(folder: Path, *rows: object, name: str = "manifest.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("".join(line + "\n" for line in lines))
    (folder / "a.mp4").write_bytes(MEDIA)
    return folder / name


def row(video_id: str, **others: Any) -> dict[str, Any]:
    return {"video_id": video_id, "path": "a.mp4", "captions": [f"the video {video_id}"], **others}


def read(broker: KafkaBroker, topic: str) -> list[tuple[bytes | None, ClipMessage]]:
    tp = TopicPartition(topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    messages: list[tuple[bytes | None, ClipMessage]] = []
    try:
        consumer.assign([tp])
        consumer.seek_to_beginning(tp)
        end = consumer.end_offsets([tp])[tp]
        while consumer.position(tp) < end:
            for r in consumer.poll(timeout_ms=1000).get(tp, []):
                record = Record(r.key, r.value, Position(topic, "0", r.offset))
                message = parse(record, max_bytes=10_000_000, max_caption_chars=1_000)
                assert isinstance(message, ClipMessage)
                messages.append((r.key, message))
    finally:
        consumer.close()
    return messages


def test_a_dry_run_lists_what_is_wrong_with_file_and_line(tmp_path: Path) -> None:
    bad = manifest(
        tmp_path / "bad",
        row("v1"),
        "{not json",
        row("v2", captions=[]),
        "",
        row("v3", path="nowhere.mp4"),
        row("v4"),
        name="bad.jsonl",
    )
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("one", "two"):
        (videos / f"{name}.mp4").write_bytes(MEDIA)
    (videos / "one.txt").write_text("a red ball\n")

    report = run([bad, videos])

    assert report.published == 3
    assert [(p.where, p.code) for p in report.problems] == [
        (f"{bad}:2", "invalid_json"),
        (f"{bad}:3", report.problems[1].code),
        (f"{bad}:5", "media_not_found"),
        (str(videos / "two.mp4"), report.problems[3].code),
    ]
    for problem in (report.problems[1], report.problems[3]):
        assert problem.code in ("missing_field", "invalid_field")
        assert "captions" in problem.message


def test_a_dry_run_needs_no_broker_and_says_how_far_it_is(tmp_path: Path) -> None:
    nobody = KafkaSettings(bootstrap_servers=["127.0.0.1:1"])
    rows = [row(f"v{n}") for n in range(1_200)]
    seen: list[int] = []
    report = run([manifest(tmp_path / "many", *rows).parent], nobody, dry_run=True, on_progress=seen.append)
    assert report == PublishReport(1_200, ())
    assert seen == [500, 1_000, 1_200]


@pytest.mark.parametrize("name", ["nothing-there", "movie.mp4"])
def test_a_path_that_is_neither_folder_nor_manifest_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "movie.mp4").write_bytes(MEDIA)
    with pytest.raises(SettingsError, match=name):
        run([tmp_path / name])


def test_a_message_too_large_for_the_daemon_is_a_problem_before_it_is_sent(tmp_path: Path) -> None:
    path = manifest(tmp_path / "clips", row("v1"))
    assert run([path], max_bytes=50).problems[0].code == "message_too_large"


@pytest.mark.slow
@pytest.mark.parametrize("inline", [False, True])
def test_clips_arrive_as_the_daemon_reads_them(
    kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path, inline: bool
) -> None:
    topic = new_topic()
    settings = KafkaSettings(bootstrap_servers=[kafka.bootstrap])
    path = manifest(tmp_path / "clips", row("v1", meta={"cam": "7"}), row("v2"), "{", row("v1", captions=["again"]))
    report = run([path], settings, topic=topic, inline=inline)
    assert (report.published, [p.where for p in report.problems]) == (3, [f"{path}:3"])
    messages = read(kafka, topic)
    assert [key for key, _ in messages] == [b"v1", b"v2", b"v1"]
    assert [list(m.captions) for _, m in messages] == [["the video v1"], ["the video v2"], ["again"]]
    assert messages[0][1].meta == {"cam": "7"}
    for _, message in messages:
        if inline:
            assert message.media == MEDIA
            assert message.uri is None
        else:
            assert message.uri == (tmp_path / "clips" / "a.mp4").as_uri()


@pytest.mark.slow
def test_a_message_that_the_topic_does_not_take_is_a_problem_and_the_others_arrive(
    kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path
) -> None:
    topic = new_topic(configs={"max.message.bytes": "2000"})
    large = row("v2", media_b64=base64.b64encode(bytes(5_000)).decode())
    del large["path"]
    path = manifest(tmp_path / "clips", row("v1"), large, row("v3"))
    report = run([path], KafkaSettings(bootstrap_servers=[kafka.bootstrap]), topic=topic)
    assert [(p.where, p.code) for p in report.problems] == [(f"{path}:2", "message_too_large")]
    assert report.published == 2
    assert [key for key, _ in read(kafka, topic)] == [b"v1", b"v3"]


@pytest.mark.slow
def test_a_broker_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    nobody = KafkaSettings(bootstrap_servers=["127.0.0.1:1"], request_timeout_ms=1_000)
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1 cannot be reached"):
        run([manifest(tmp_path / "clips", row("v1"))], nobody)
