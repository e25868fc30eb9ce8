"""Folders and JSONL manifests to a topic: what is valid, what is listed, what arrives, and what the verb says."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import rich.console
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from streamlearn import cli_progress
from streamlearn.cli_progress import progress
from streamlearn.errors import SettingsError, SourceError, SourceRefusedError
from streamlearn.publish import Report, publish, validate
from streamlearn.publish_messages import Checked, Outgoing, Rules, check, outgoing
from streamlearn.publish_sources import rows_of
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import SASL_PASSWORD, SASL_USER, KafkaBroker
from tests.published import MEDIA, RULES, manifest, read, row
from tests.said import Say


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

    report = validate([bad, videos], RULES)

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


def test_a_dry_run_says_how_far_it_is(tmp_path: Path) -> None:
    rows = [row(f"v{n}") for n in range(1_200)]
    seen: list[int] = []
    report = validate([manifest(tmp_path / "many", *rows).parent], RULES, on_progress=seen.append)
    assert report == Report(1_200, 0, ())
    assert seen == [500, 1_000, 1_200]


@pytest.mark.parametrize("name", ["nothing-there", "movie.mp4"])
def test_a_path_that_is_neither_folder_nor_manifest_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "movie.mp4").write_bytes(MEDIA)
    with pytest.raises(SettingsError, match=name):
        validate([tmp_path / name], RULES)


def test_a_message_too_large_for_the_daemon_is_a_problem_before_it_is_sent(tmp_path: Path) -> None:
    path = manifest(tmp_path / "clips", row("v1"))
    assert validate([path], Rules(50, 1_000)).problems[0].code == "message_too_large"


@pytest.mark.slow
@pytest.mark.parametrize("inline", [False, True])
def test_clips_arrive_as_the_daemon_reads_them(
    kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path, inline: bool
) -> None:
    topic = new_topic()
    settings = KafkaSettings(bootstrap_servers=[kafka.bootstrap])
    path = manifest(tmp_path / "clips", row("v1", meta={"cam": "7"}), row("v2"), "{", row("v1", captions=["again"]))
    report = publish([path], Rules(10_000_000, 1_000, inline), settings, topic=topic)
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
    report = publish([path], RULES, KafkaSettings(bootstrap_servers=[kafka.bootstrap]), topic=topic)
    assert [(p.where, p.code) for p in report.problems] == [(f"{path}:2", "message_too_large")]
    assert report.published == 2
    assert [key for key, _ in read(kafka, topic)] == [b"v1", b"v3"]


@pytest.mark.slow
def test_a_broker_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    nobody = KafkaSettings(bootstrap_servers=["127.0.0.1:1"], request_timeout_ms=1_000)
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1 cannot be reached"):
        publish([manifest(tmp_path / "clips", row("v1"))], RULES, nobody, topic="clips")


def test_media_that_the_daemon_would_refuse_is_a_problem_now(tmp_path: Path) -> None:
    path = manifest(tmp_path / "clips", row("v1", path="empty.mp4"), row("v2", path="large.mp4"), row("v3"))
    (path.parent / "empty.mp4").write_bytes(b"")
    (path.parent / "large.mp4").write_bytes(bytes(3_000))
    report = validate([path], Rules(2_000, 1_000))
    assert [(p.where, p.code) for p in report.problems] == [
        (f"{path}:1", "media_empty"),
        (f"{path}:2", "media_too_large"),
    ]


def test_an_inline_message_that_is_too_large_names_file_and_remedy(tmp_path: Path) -> None:
    path = manifest(tmp_path / "clips", row("v1", path="b.mp4"))
    (path.parent / "b.mp4").write_bytes(bytes(1_900))
    assert validate([path], Rules(2_000, 1_000)).problems == ()
    (problem,) = validate([path], Rules(2_000, 1_000, inline=True)).problems
    assert problem.code == "message_too_large"
    assert "leave --inline" in problem.message


def test_an_empty_folder_and_an_empty_manifest_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.jsonl").write_text("\n\n")
    report = validate([tmp_path / "empty", tmp_path / "none.jsonl"], RULES)
    assert [(p.where, p.code) for p in report.problems] == [
        (str(tmp_path / "empty"), "no_clips"),
        (str(tmp_path / "none.jsonl"), "no_clips"),
    ]
    assert "no video file" in report.problems[0].message


@pytest.mark.slow
def test_a_cloud_event_has_its_clip_as_key_and_its_file_inline(
    kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path
) -> None:
    topic = new_topic()
    video = tmp_path / "clips" / "a.mp4"
    clip = {"video_id": "v1", "captions": ["a cat"], "uri": video.as_uri()}
    event = {"specversion": "1.0", "id": "1", "source": "/cam", "type": "clip", "data": clip}
    path = manifest(tmp_path / "clips", event)
    settings = KafkaSettings(bootstrap_servers=[kafka.bootstrap])
    publish([path], Rules(10_000_000, 1_000, inline=True), settings, topic=topic)
    ((key, message),) = read(kafka, topic)
    assert (key, message.media) == (b"v1", MEDIA)


def test_an_event_with_an_attribute_uri_keeps_it_and_its_clip_goes_inline(tmp_path: Path) -> None:
    rules = Rules(10_000_000, 1_000, inline=True)
    event = {
        "specversion": "1.0",
        "uri": "https://cameras.example.org/7",
        "data": {"video_id": "v1", "captions": ["a cat"], "uri": (tmp_path / "a.mp4").as_uri()},
    }
    (found,) = rows_of([manifest(tmp_path, event)], max_bytes=10_000_000)
    checked = check(found, rules)
    assert isinstance(checked, Checked)
    message = outgoing(checked, rules)
    assert isinstance(message, Outgoing)
    sent = json.loads(message.value or b"")
    assert sent["uri"] == "https://cameras.example.org/7"
    assert sent["data"] == {
        "video_id": "v1",
        "captions": ["a cat"],
        "media_b64": base64.b64encode(MEDIA).decode(),
    }


@pytest.mark.parametrize("inline", [False, True])
def test_videos_whose_names_are_not_utf8_are_published(tmp_path: Path, inline: bool) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.mp4")).write_bytes(MEDIA)
    (folder / os.fsdecode(b"\xff.txt")).write_text("a cat")
    report = validate([tmp_path], Rules(10_000, 1_000, inline))
    assert (report.published, report.problems) == (1, ())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["not-there", "no topic/name"])
def test_a_topic_that_is_not_there_is_one_sentence_and_is_not_made(
    kafka: KafkaBroker, tmp_path: Path, name: str
) -> None:
    with pytest.raises(SourceError, match=name):
        publish(
            [manifest(tmp_path / "clips", row("v1"))],
            RULES,
            KafkaSettings(bootstrap_servers=[kafka.bootstrap]),
            topic=name,
        )
    with kafka.admin() as admin:
        assert name not in admin.list_topics()


@pytest.mark.slow
def test_a_topic_that_we_may_not_write_is_one_sentence(
    own_kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path
) -> None:
    topic = new_topic()
    reader = ACL(
        "User:alice", "*", ACLOperation.READ, ACLPermissionType.ALLOW, ResourcePattern(ResourceType.TOPIC, topic)
    )
    with own_kafka.admin() as admin:
        admin.create_acls([reader])
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}
    login |= {"sasl_plain_username": SASL_USER, "sasl_plain_password": SASL_PASSWORD}
    settings = KafkaSettings(bootstrap_servers=[own_kafka.secure["SASL"]], client=login)
    with pytest.raises(SourceRefusedError, match=f"write to the topic {topic}: grant Write"):
        publish([manifest(tmp_path / "clips", row("v1"))], RULES, settings, topic=topic)


# --- the verb


def test_the_verb_lists_problems_ends_with_1_and_has_json(say: Say, tmp_path: Path) -> None:
    path = manifest(tmp_path / "clips", row("v1"), "{")
    code, out, err = say("publish", path, "--dry-run")
    assert (code, err) == (1, "")
    assert out.startswith(f"{path}:2: invalid_json: ")
    assert out.endswith("1 valid, 1 not valid\n")
    code, out, _ = say("publish", path, "--dry-run", "--json")
    assert code == 1
    report = json.loads(out)
    assert (report["published"], report["problems"][0]["where"]) == (1, f"{path}:2")
    assert say("publish", tmp_path / "nowhere") == (
        2, "", f"streamlearn: {tmp_path / 'nowhere'}: there is no such file or folder\n"
    )  # fmt: skip
    assert say("publish", path, "--rate", "0").code == 2


@pytest.mark.slow
def test_where_progress_cannot_be_kept_the_verb_says_so_and_publishes(
    say: Say, kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = new_topic()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    path = manifest(tmp_path / "clips", row("v1"))
    servers = ("--set", f"kafka.bootstrap_servers={kafka.bootstrap}")
    code, out, err = say("publish", path, "--topic", topic, *servers)
    assert (code, out) == (0, f"1 published to {topic}, 0 not valid\n")
    assert "--journal" in err


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with progress("clips", clock=lambda: now) as told:
        for done in range(5):
            now += 6
            told(done, 5, "publishing")
        told(5, None, "")
        now += 20
        told(6, None, "")
    assert capsys.readouterr().err == "publishing: 1 of 5\npublishing: 3 of 5\nclips: 6\n"


def test_progress_is_a_bar_with_its_total_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(cli_progress, "Console", lambda **_: console)
    with progress("clips") as told:
        told(7, 9, "publishing")
    assert "publishing" in screen.getvalue()
    assert "7/9" in screen.getvalue()
