"""An interrupted publication goes on: what the journal knows, and kills in the middle before a real broker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition

from streamlearn.errors import SettingsError, SourceError
from streamlearn.publish import publish
from streamlearn.publish_journal import Journal
from streamlearn.publish_pace import Pace
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import until
from tests.published import RULES, manifest, read, row
from tests.said import Say

# --- the journal


def sent(journal: Journal, *rows: str, acknowledged: bool = True) -> list[str]:
    """Go through rows such as "v1=a", and return those that were due."""
    due = []
    for each in rows:
        video_id, _, content = each.partition("=")
        if (entry := journal.due(video_id, content.encode())) is not None:
            due.append(each)
            journal.begin(entry)
            journal.note([entry] if acknowledged else [])
    return due


def run(path: Path | None, *rows: str, acknowledged: bool = True) -> list[str]:
    with closing(Journal(path, "p")) as journal:
        return sent(journal, *rows, acknowledged=acknowledged)


def test_only_what_was_acknowledged_is_not_due_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert run(path, "v1=a", "v2=a") == ["v1=a", "v2=a"]
    assert run(path, "v3=a", acknowledged=False) == ["v3=a"]
    assert run(path, "v2=a", "v1=a", "v3=a", "v4=a") == ["v3=a", "v4=a"]


@pytest.mark.parametrize(
    ("before", "now", "due"),
    [
        ("v=a v=b", "v=a v=b v=a", ["v=a"]),  # the third row is not the first
        ("v=a v=b", "v=c v=b", ["v=c", "v=b"]),  # b must come after c again
        ("v=a v=b", "v=b v=a", ["v=b", "v=a"]),
        ("v=a w=a v=b", "v=a w=b v=b", ["w=b"]),
    ],
)
def test_rows_of_one_clip_keep_their_order(tmp_path: Path, before: str, now: str, due: list[str]) -> None:
    run(tmp_path / "j", *before.split())
    assert run(tmp_path / "j", *now.split()) == due


def test_a_row_changed_and_changed_back_is_sent_each_time(tmp_path: Path) -> None:
    for content in ("v=a", "v=b", "v=a"):
        assert run(tmp_path / "j", content) == [content]
    # Also where the change was sent and its acknowledgement never noted.
    assert run(tmp_path / "j", "v=b", acknowledged=False) == ["v=b"]
    assert run(tmp_path / "j", "v=a") == ["v=a"]


def test_a_journal_that_is_forgotten_or_kept_nowhere_knows_nothing(tmp_path: Path) -> None:
    run(tmp_path / "j", "v=a")
    with closing(Journal(tmp_path / "j", "p")) as journal:
        journal.forget()
    assert run(tmp_path / "j", "v=a") == ["v=a"]
    assert run(None, "v=a", "v=a") == ["v=a", "v=a"]


def test_a_journal_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run(tmp_path / "j", "v=a")
    with pytest.raises(SettingsError, match="journal of another publication"):
        Journal(tmp_path / "j", "q")
    (tmp_path / "text").write_text("no journal" * 1_000)
    with pytest.raises(SettingsError, match="is no journal"):
        Journal(tmp_path / "text", "p")
    with closing(Journal(tmp_path / "j", "p")), pytest.raises(SettingsError, match="another process"):
        Journal(tmp_path / "j", "p")
    with pytest.raises(SettingsError, match="--journal"):
        Journal(tmp_path / "no" / "folder" / "j", "p")
    assert run(tmp_path / "j", "v=a") == []


# --- the pace


class Clock:
    """Time that passes while one waits, and where the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds * 0.999 + 1e-6  # waits end early at times


@pytest.mark.parametrize("per_s", [0.5, 7, 30, 5_000])
def test_a_rate_is_kept_without_drift(per_s: float) -> None:
    clock = Clock()
    pace = Pace(per_s, clock=clock, wait=clock.wait)
    flushes = 0

    def flush() -> None:
        nonlocal flushes
        flushes += 1
        clock.now += 0.003

    count = int(per_s * 60)
    for n in range(count):
        pace.take(flush)
        clock.now += 0.00001  # the work itself
        assert n / per_s - 0.11 <= clock.now - 100 <= n / per_s + 0.11
    assert flushes <= 60 * 10 + count / 100


def test_what_a_stall_cost_comes_later_and_not_in_one_burst() -> None:
    clock = Clock()
    pace = Pace(10, clock=clock, wait=clock.wait)
    for _ in range(10):
        pace.take(lambda: None)
    clock.now += 60
    stalled = clock.now
    for _ in range(100):
        pace.take(lambda: None)
    assert clock.now - stalled >= 100 / 10 - 1 - 0.2


def test_without_a_rate_nothing_waits() -> None:
    pace = Pace(None, wait=lambda seconds: pytest.fail("it waited"))
    for _ in range(1_000):
        pace.take(lambda: pytest.fail("it flushed"))


# --- a real broker


def settings(broker: KafkaBroker) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=[broker.bootstrap], request_timeout_ms=1_000)


def keys(broker: KafkaBroker, topic: str) -> list[str]:
    return [(key or b"").decode() for key, _ in read(broker, topic)]


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_goes_on_with_what_was_not_acknowledged(
    say: Say, kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path, with_signal: signal.Signals
) -> None:
    topic = new_topic()
    ids = [f"v{n:04}" for n in range(2_000)]
    path = manifest(tmp_path / "clips", *map(row, ids))
    arguments = ["publish", str(path), "--topic", topic, "--journal", str(tmp_path / "journal")]
    arguments += ["--set", f"kafka.bootstrap_servers={kafka.bootstrap}"]
    tp = TopicPartition(topic, 0)
    command = [sys.executable, "-m", "streamlearn", *arguments, "--rate", "400"]
    # A test run in the background of a shell ignores Ctrl-C, and its children would inherit that.
    command = ["env", "--default-signal=INT", *command]
    with (
        closing(KafkaConsumer(bootstrap_servers=kafka.bootstrap)) as consumer,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
    ):
        until(lambda: process.poll() is not None or consumer.end_offsets([tp])[tp] > 300)
        process.send_signal(with_signal)
        _, err = process.communicate(timeout=30)
    if with_signal == signal.SIGINT:
        assert (process.returncode, "the same command goes on" in err) == (130, True)
    there = len(keys(kafka, topic))
    assert 300 < there < 2_000

    code, out, _ = say(*arguments, "--json")
    report = json.loads(out)
    assert (code, report["journal"]) == (0, None)
    assert report["before"] + report["published"] == 2_000
    found = Counter(keys(kafka, topic))
    assert sorted(found) == ids
    # At most what was in flight is there twice: a portion of a tenth of a second, or of what a slow start made up for.
    assert there - report["before"] == found.total() - 2_000 <= 450
    assert report["before"] > 0
    assert not (tmp_path / "journal").exists()


@pytest.mark.slow
def test_a_broker_that_goes_away_is_a_sentence_with_what_is_published_and_the_rest_follows(
    own_kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path
) -> None:
    topic = new_topic()
    ids = [f"v{n:04}" for n in range(1_200)]
    path = manifest(tmp_path / "clips", *map(row, ids))
    journals = tmp_path / "journals"
    journals.mkdir()

    def leave(rows: int) -> None:
        if rows == 500:
            own_kafka.kill()

    with pytest.raises(SourceError, match="; 500 clips were published"):
        publish([path], RULES, settings(own_kafka), topic=topic, journal=journals, on_progress=leave)
    own_kafka.start()
    report = publish([path], RULES, settings(own_kafka), topic=topic, journal=journals)
    assert (report.published, report.before, report.problems) == (700, 500, ())
    assert keys(own_kafka, topic) == ids
    assert list(journals.iterdir()) == []


@pytest.mark.slow
def test_after_rows_were_mended_only_these_are_sent_and_after_the_end_all(
    kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path
) -> None:
    topic = new_topic()
    rows = [row("v1"), "{", row("v3", path="later.mp4"), row("v4")]
    path = manifest(tmp_path / "clips", *rows)

    def go(topic: str = topic, anew: bool = False) -> tuple[int, int, list[str]]:
        report = publish([path], RULES, settings(kafka), topic=topic, journal=tmp_path, anew=anew)
        return report.published, report.before, [problem.code for problem in report.problems]

    assert go() == (2, 0, ["invalid_json", "media_not_found"])
    manifest(tmp_path / "clips", rows[0], row("v2"), *rows[2:])
    assert go() == (1, 2, ["media_not_found"])
    assert go(new_topic()) == (3, 0, ["media_not_found"])  # another topic has none of it
    assert go(anew=True) == (3, 0, ["media_not_found"])
    (path.parent / "a.mp4").write_bytes(b"another video under the same name")
    (path.parent / "later.mp4").write_bytes(b"there now")
    assert go() == (4, 0, [])
    assert go() == (4, 0, [])  # that one had come to its end
    assert keys(kafka, topic)[:6] == ["v1", "v4", "v2", "v1", "v2", "v4"]
