"""kill -9 at every fsync, fdatasync and rename of a daemon's start and of its first two checkpoints, one by one.

    python benchmarks/crash_steps.py [--clips 240]                              # a folder; needs strace
    python benchmarks/crash_steps.py --source kafka --clips 60 --most 16        # a topic of a real broker

Life n of a state directory is killed at the n-th such call (strace does it, before the call is made), until a life
reaches the end of the stream. After the last kill the stream is read to its end, and must be as if there had been
none: every clip is found once, every bad one is a dead letter, the weights are equal bit by bit.
`tests/test_crash.py` does this at eight chosen calls.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from kafka import KafkaProducer
from kafka.errors import TopicAlreadyExistsError

sys.path.insert(0, str(Path(__file__).parents[1]))  # the broker and the daemon process of the tests

from streamlearn.connectors.synthetic import write_stream
from streamlearn.deadletters import read_dead_letters
from tests.daemon import DaemonProcess
from tests.kafka_broker import KafkaBroker, find_broker
from tests.test_crash import SETTINGS, finished, read, run_until_killed, weights

CALLS = ("fsync", "fdatasync", "rename,renameat,renameat2")
BAD_EVERY = 50
LEARNING = {**SETTINGS, "learner.batch_size": 4, "checkpoint.interval_clips": 4, "evaluate.interval_clips": 1000}


class Stream(Protocol):
    """Clips with a bad one now and then, for one state directory after the other."""

    def settings(self, state: str) -> dict[str, Any]: ...

    def finished(self, status: dict[str, Any]) -> bool: ...

    def letters(self, state: str, running: DaemonProcess) -> set[Any]:
        """What was dead-lettered, each once."""
        ...


class Folder:
    """A manifest that ends."""

    def __init__(self, folder: Path) -> None:
        rows = (folder / "manifest.jsonl").read_text().splitlines()
        for n, at in enumerate(range(0, len(rows), BAD_EVERY)):
            rows.insert(at + n, json.dumps({"video_id": f"bad-{n}", "captions": ["no media"]}))
        (folder / "manifest.jsonl").write_text("".join(row + "\n" for row in rows))
        self._folder = folder

    def settings(self, state: str) -> dict[str, Any]:
        return {**LEARNING, "folder.path": str(self._folder), "folder.watch": "false"}

    def finished(self, status: dict[str, Any]) -> bool:
        return finished(status)

    def letters(self, state: str, running: DaemonProcess) -> set[Any]:
        return {letter.record.value for letter in read_dead_letters(running.state_dir / "dead_letters.jsonl")}


class Topic:
    """A topic of one partition; each state directory has a group and dead letters of its own."""

    def __init__(self, broker: KafkaBroker, folder: Path) -> None:
        self._broker, self._topic = broker, broker.create_topic("clips")
        rows = list(map(json.loads, (folder / "manifest.jsonl").read_text().splitlines()))
        with contextlib.closing(KafkaProducer(bootstrap_servers=broker.bootstrap)) as producer:
            for n, row in enumerate(rows):
                if n % BAD_EVERY == 0:
                    producer.send(self._topic, b'{"captions": ["no media"]}', b"bad-%d" % (n // BAD_EVERY))
                media = base64.b64encode((folder / row["path"]).read_bytes()).decode()
                clip = {"captions": [row["caption"]], "media_b64": media}
                producer.send(self._topic, json.dumps(clip).encode(), row["video_id"].encode())
        self._clips = len(rows)
        # Only whole batches: when a broker is slow, the clock must not decide which clips are learned together.
        assert self._clips % LEARNING["learner.batch_size"] == 0

    def settings(self, state: str) -> dict[str, Any]:
        with contextlib.suppress(TopicAlreadyExistsError):  # in the life before
            self._broker.create_topic(self._dead(state))
        return {
            **LEARNING,
            "learner.max_wait_s": 10,
            "source": "streamlearn.connectors.kafka:KafkaSource",
            "kafka.bootstrap_servers": [self._broker.bootstrap],
            "kafka.topics": [self._topic],
            "kafka.dead_letter_topic": self._dead(state),
            "kafka.group_id": state,
            "kafka.group_instance_id": "the-one",  # so that the next life need not wait for the session's end
        }

    def finished(self, status: dict[str, Any]) -> bool:
        return bool(status["state"] == "idle" and status["searchable"] == self._clips)

    def letters(self, state: str, running: DaemonProcess) -> set[Any]:
        return {letter.key for letter in read(self._broker, self._dead(state))}

    def _dead(self, state: str) -> str:
        return f"dead-{state}"


def finish(work: Path, stream: Stream, clips: set[str], state: str) -> dict[str, np.ndarray]:
    """Read to the end, check the ledger; the weights."""
    bad = -(-len(clips) // BAD_EVERY)
    with DaemonProcess(work, stream.settings(state)) as running:
        status = running.wait_for(stream.finished, "the stream is read to its end")
        found: list[str] = []
        token = None
        while True:
            page = running.get("/v1/search", {"query": {"text": "anything"}, "limit": 100, "page_token": token})
            found += [hit["video_id"] for hit in page["results"]]
            token = page["next_page_token"]
            if token is None:
                break
        assert sorted(found) == sorted(clips), "missing, or there twice"
        assert status["clips"]["learned"] + status["clips"]["held_out"] == len(clips), status["clips"]
        assert running.stop() == 0
    letters = stream.letters(state, running)
    assert len(letters) == bad, f"{len(letters)} of {bad} dead letters"
    return weights(work / "state")


@contextlib.contextmanager
def opened(source: str, work: Path, folder: Path) -> Iterator[Stream]:
    if source == "folder":
        yield Folder(folder)
        return
    broker = find_broker(work)
    try:
        yield Topic(broker, folder)
    finally:
        broker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("folder", "kafka"), default="folder")
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--most", type=int, default=60, help="kills at each call")
    parser.add_argument("--calls", choices=CALLS, nargs="+", default=CALLS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        folder = work / "stream"
        write_stream(folder, domains=("studio",), clips_per_domain=arguments.clips, seed=1, size_px=32)
        clips = {path.stem for path in (folder / "clips").iterdir()}
        with opened(arguments.source, work, folder) as stream:
            (work / "straight").mkdir()
            uninterrupted = finish(work / "straight", stream, clips, "straight")
            for call in arguments.calls:
                start, kills, name = time.monotonic(), 0, call.partition(",")[0]
                (state := work / name).mkdir()
                while kills < arguments.most and run_until_killed(
                    state, stream.settings(name), call, kills + 1, 3600, stream.finished
                ):
                    kills += 1
                after = finish(state, stream, clips, name)
                equal = after.keys() == uninterrupted.keys() and all(
                    np.array_equal(after[name], uninterrupted[name]) for name in after
                )
                assert equal, f"after kills at {call} the weights are others"
                seen = {"source": arguments.source, "call": call, "kills": kills}
                print(json.dumps({**seen, "took_s": round(time.monotonic() - start)}), flush=True)


if __name__ == "__main__":
    main()
