"""kill -9 at chosen and at random instants: nothing is lost, nothing doubled, nothing learned twice.

strace kills the daemon at the n-th fsync, fdatasync or rename: the steps of a checkpoint and of a dead letter.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from safetensors.numpy import load_file

from streamlearn.connectors.synthetic import write_stream
from streamlearn.deadletters import read_dead_letters
from tests.daemon import DEADLINE_S, DaemonProcess, until
from tests.kafka_broker import KafkaBroker

CLIPS = 60
SETTINGS = {
    "learner.batch_size": 8,
    "checkpoint.interval_clips": 16,
    "evaluate.interval_clips": 24,
    "media.size_px": 32,
    "media.frames": 8,
    "learner.max_wait_s": 1,
    "learner.max_batch_age_s": 60,
    "evaluate.heldout_ratio": 0.2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream of good clips with bad rows between them."""
    folder = tmp_path_factory.mktemp("stream")
    write_stream(folder, domains=("studio", "night"), clips_per_domain=CLIPS // 2, seed=1, size_px=32)
    rows = (folder / "manifest.jsonl").read_text().splitlines()
    for at, bad in enumerate(
        ("{", '{"video_id": "no-media", "captions": ["x"]}', '{"video_id": "gone", "path": "gone.mp4", "caption": "x"}')
    ):
        rows.insert(11 + 20 * at, bad)
    (folder / "manifest.jsonl").write_text("".join(row + "\n" for row in rows))
    return folder


def good_ids(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "clips").iterdir()}


def settings_for(folder: Path) -> dict[str, Any]:
    return {**SETTINGS, "folder.path": str(folder), "folder.watch": "false"}


def weights(state: Path) -> dict[str, np.ndarray]:
    current = state / "current"
    return {
        f"{part}/{n}": a
        for part in ("online", "local", "queue")
        for n, a in load_file(current / f"{part}.safetensors").items()
    }


def assert_nothing_lost_or_doubled(running: DaemonProcess, folder: Path) -> None:
    found = [hit["video_id"] for hit in running.search("anything at all", 200)]
    assert len(found) == len(set(found))
    assert set(found) == good_ids(folder)
    letters = {letter.record.value for letter in read_dead_letters(running.state_dir / "dead_letters.jsonl")}
    assert len(letters) == 3
    status = running.status()
    assert status is not None
    assert status["clips"]["learned"] + status["clips"]["held_out"] == CLIPS


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    work = tmp_path_factory.mktemp("straight")
    with DaemonProcess(work, settings_for(folder)) as running:
        running.wait_finished()
        assert_nothing_lost_or_doubled(running, folder)
        assert running.stop() == 0
        log = running.log.read_text()
        assert ("wrote generation 1: step " in log, log.rstrip().endswith("streamlearn: stopped")) == (True, True)
    return weights(work / "state")


def finished(status: dict[str, Any]) -> bool:
    """The end of a stream that has one."""
    return bool(status["state"] == "finished")


def run_until_killed(
    work: Path,
    settings: dict[str, Any],
    call: str,
    nth: int,
    deadline_s: float = DEADLINE_S,
    finished: Callable[[dict[str, Any]], bool] = finished,
) -> bool:
    """Whether it was killed; else the stream was finished before the n-th such call."""
    prefix = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:signal=SIGKILL:when={nth}",
    ]
    with DaemonProcess(work, settings, prefix=prefix) as running:

        def over() -> str | None:
            if running.process.poll() is not None:
                return "killed"
            status = running.status()
            return "finished" if status and finished(status) else None

        return bool(
            until(over, f"killed at {call} {nth}, or finished; log:\n{running.log.read_text()[-2000:]}", deadline_s)
            == "killed"
        )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt-get install strace")
@pytest.mark.parametrize(
    ("call", "instants"),
    [("fsync", [7, 19]), ("fdatasync", [1]), ("rename,renameat,renameat2", [12, 50])],
)
def test_killed_at_each_durable_step_it_ends_as_if_never_killed(
    call: str, instants: list[int], folder: Path, uninterrupted: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """One state directory lives through every kill of the list."""
    killed = [run_until_killed(tmp_path, settings_for(folder), call, nth) for nth in instants]
    assert any(killed)
    with DaemonProcess(tmp_path, settings_for(folder)) as running:
        running.wait_finished()
        assert_nothing_lost_or_doubled(running, folder)
        assert running.stop() == 0
    after = weights(tmp_path / "state")
    assert after.keys() == uninterrupted.keys()
    assert all(np.array_equal(after[name], uninterrupted[name]) for name in after)


def read(kafka: KafkaBroker, topic: str) -> list[Any]:
    """Everything in a topic of one partition."""
    with closing(KafkaConsumer(bootstrap_servers=kafka.bootstrap)) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end, messages = consumer.end_offsets([partition])[partition], []
        while consumer.position(partition) < end:
            messages += [m for batch in consumer.poll(1000).values() for m in batch]
    return messages


@pytest.mark.slow
def test_killed_at_random_while_reading_kafka_every_clip_is_found_once_and_every_bad_one_is_a_dead_letter(
    kafka: KafkaBroker, new_topic: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    topic, dead = new_topic(partitions=2), new_topic()
    rows = [json.loads(row) for row in (folder / "manifest.jsonl").read_text().splitlines() if row != "{"]
    good = {}
    for row in rows:
        path = folder / row.get("path", "")
        if path.is_file():
            good[row["video_id"]] = {
                "captions": [row["caption"]], "media_b64": base64.b64encode(path.read_bytes()).decode(),
            }  # fmt: skip
    bad = {f"bad-{i}": {"captions": ["x"], "media_b64": base64.b64encode(os.urandom(50)).decode()} for i in range(6)}
    with closing(KafkaProducer(bootstrap_servers=kafka.bootstrap)) as producer:
        for key, value in (good | bad).items():
            producer.send(topic, key=key.encode(), value=json.dumps(value).encode())
        producer.flush()
    settings = {
        **SETTINGS,
        "source": "streamlearn.connectors.kafka:KafkaSource",
        "kafka.bootstrap_servers": [kafka.bootstrap],
        "kafka.topics": [topic],
        "kafka.dead_letter_topic": dead,
        "kafka.group_id": topic,
        "kafka.session_timeout_ms": 6000,
    }
    chance = random.Random(7)
    for _ in range(2):
        with DaemonProcess(tmp_path, settings) as running:
            seen = chance.randrange(1, CLIPS)
            running.wait_for(
                lambda s, n=seen: s["clips"]["learned"] >= n or s["state"] == "idle", f"{seen} clips are learned"
            )
            running.kill()
    with DaemonProcess(tmp_path, settings) as running:
        running.wait_for(
            lambda s: s["searchable"] == len(good) and s["clips"].get("dead_lettered", 0) == len(bad),
            "all was processed",
        )
        found = [hit["video_id"] for hit in running.search("anything at all", 200)]
        assert sorted(found) == sorted(good)
        status = running.wait_for(lambda s: s["state"] == "idle", "it is idle")
        assert status["clips"]["learned"] + status["clips"]["held_out"] == len(good)
        assert running.stop() == 0
    letters = read(kafka, dead)
    assert {letter.key for letter in letters} == {key.encode() for key in bad}
    assert all(dict(letter.headers)["streamlearn.error.code"] == b"not_a_video" for letter in letters)
