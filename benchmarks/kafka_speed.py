"""How fast clips come out of Kafka, beside the bare client, in one run; and how fast a restart comes back.

    python benchmarks/kafka_speed.py [--rounds 3] [--json results.jsonl]
    python benchmarks/kafka_speed.py --learned 2000        # what a whole daemon makes of so many clips
    python benchmarks/kafka_speed.py --recovery 20000      # kill -9 of a daemon with so many clips

The broker is that of STREAMLEARN_TEST_KAFKA, or one that is started.

The bare client is kafka-python's own consumer, which polls and validates in a loop: no hand-over, no thread, no
watching. Both validate by `envelope.parse`, as a decoder process does. The rounds of all are taken in turn; every
figure is the best of them.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the test broker

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streamlearn.app import Daemon
from streamlearn.connectors.kafka import KafkaSource
from streamlearn.connectors.synthetic import write_stream
from streamlearn.envelope import parse
from streamlearn.frames import pack
from streamlearn.records import Partition, Position, Record
from streamlearn.settings import KafkaSettings, load
from tests.daemon import DaemonProcess, until
from tests.kafka_broker import KafkaBroker, find_broker

PARTITIONS = 4
STATE = {"folder.watch": False, "media.size_px": 32, "model.threads": 1, "learner.batch_size": 8}
SMALL = {"max_poll_records": 64, "prefetch_records": 256}


class Rate(NamedTuple):
    """Records by the second that passed, and by the second of processor time, which other work disturbs less."""

    wall: float
    cpu: float


def claim_check(n: int) -> bytes:
    """About 1 kB: an address, captions, what a producer knows."""
    caption = "a small red circle moves slowly from left to right over a plain grey ground "
    message = {
        "uri": f"s3://videos/archive/2026/{n:09d}.mp4",
        "captions": [f"{caption}{n}", caption * 4],
        "meta": {"camera": f"cam-{n % 40}", "site": "north", "notes": caption * 6},
        "time": "2026-11-21T10:00:00Z",
    }
    return json.dumps(message).encode()


def inline(n: int) -> bytes:
    """About 100 kB: the video itself."""
    media = base64.b64encode(np.random.default_rng(n).bytes(75_000)).decode()
    return json.dumps({"captions": [f"clip {n}"], "media_b64": media}).encode()


def fill(broker: KafkaBroker, topic: str, messages: Iterable[bytes]) -> None:
    broker.create_topic(topic, PARTITIONS)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=20, batch_size=2**18, acks=1)
    for n, message in enumerate(messages):
        producer.send(topic, message, b"clip-%d" % n, partition=n % PARTITIONS)
    producer.flush()
    producer.close()


def validate(records: Iterable[Record]) -> None:
    for record in records:
        parse(record, max_bytes=64 * 2**20, max_caption_chars=10_000)


def nothing(records: Iterable[Record]) -> None:
    for _ in records:
        pass


def now() -> Rate:
    return Rate(time.perf_counter(), time.process_time())


def since(start: Rate, records: int) -> Rate:
    return Rate(records / (time.perf_counter() - start.wall), records / (time.process_time() - start.cpu))


def bare(broker: KafkaBroker, topic: str, count: int, use: Callable[[Iterable[Record]], None], **changes: int) -> Rate:
    """Records a second of kafka-python's consumer."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, max_poll_records=500)
    consumer.assign([TopicPartition(topic, p) for p in range(PARTITIONS)])
    consumer.seek_to_beginning()
    seen, start = 0, now()
    while seen < count:
        polled = consumer.poll(timeout_ms=1000)
        if not seen:
            start = now()  # connecting and the first fetch are not counted, for either
        for tp, records in polled.items():
            seen += len(records)
            use(
                Record(r.key, r.value, Position(tp.topic, str(tp.partition), r.offset), tuple(r.headers))
                for r in records
            )
    rate = since(start, seen)
    consumer.close()
    return rate


def ours(broker: KafkaBroker, topic: str, count: int, use: Callable[[Iterable[Record]], None], **changes: int) -> Rate:
    """Records a second of the daemon's source."""
    settings = {"bootstrap_servers": [broker.bootstrap], "topics": [topic], "group_id": f"{topic}-g", **changes}
    source = KafkaSource(KafkaSettings.model_validate(settings))
    source.start({Partition(topic, str(p)): 0 for p in range(PARTITIONS)})
    seen, start = 0, now()
    while seen < count:
        records = source.poll(1.0)
        if not seen:
            start = now()
        seen += len(records)
        use(records)
    rate = since(start, seen)
    source.close()
    return rate


def consume(broker: KafkaBroker, rounds: int) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for name, make, count in (("1 kB claim check", claim_check, 60_000), ("100 kB inline", inline, 3_000)):
        topic = f"bench-{name.split()[0]}-{os.getpid()}"
        fill(broker, topic, map(make, range(count)))
        best: dict[str, Rate] = {}
        for _ in range(rounds):
            for what, run, use, changes in (
                ("bare client", bare, nothing, {}),
                ("our source", ours, nothing, {}),
                (
                    "our source, polls of 64, 256 ahead",
                    ours,
                    nothing,
                    {"max_poll_records": 64, "prefetch_records": 256},
                ),
                ("bare client and validation", bare, validate, {}),
                ("our source and validation", ours, validate, {}),
            ):
                rate, before = run(broker, topic, count, use, **changes), best.get(what, Rate(0, 0))
                best[what] = Rate(max(rate.wall, before.wall), max(rate.cpu, before.cpu))
        for what, rate in best.items():
            beside = best["bare client and validation" if "validation" in what else "bare client"]
            results.append(
                {
                    "messages": name,
                    "bytes": len(make(0)),
                    "what": what,
                    "per_s": round(rate.wall),
                    "per_cpu_s": round(rate.cpu),
                    "of_bare": round(rate.wall / beside.wall, 2),
                    "of_bare_cpu": round(rate.cpu / beside.cpu, 2),
                }
            )
            print(results[-1], flush=True)
    return results


def learned(broker: KafkaBroker, clips: int) -> dict[str, object]:
    """Clips a second that a daemon learns from a topic which has them all; and how long its learner waits for them."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_stream(work / "films", domains=("studio", "night"), clips_per_domain=60, seed=0)
        rows = [json.loads(row) for row in (work / "films" / "manifest.jsonl").read_text().splitlines()]
        messages = [
            json.dumps({
                "captions": [row["caption"]],
                "media_b64": base64.b64encode((work / "films" / row["path"]).read_bytes()).decode(),
            }).encode()
            for row in rows
        ]  # fmt: skip
        topic = f"learned-{os.getpid()}"
        fill(broker, topic, (messages[n % len(messages)] for n in range(clips)))
        settings = {
            "source": "streamlearn.connectors.kafka:KafkaSource", "kafka.bootstrap_servers": [broker.bootstrap],
            "kafka.topics": [topic], "kafka.group_id": topic, "kafka.dead_letter_topic": f"{topic}-dead",
        }  # fmt: skip
        seen: list[tuple[float, int, float]] = []
        with DaemonProcess(work, settings) as daemon:
            for part in (clips // 5, clips):  # the first fifth warms up
                status = daemon.wait_for(lambda s, n=part: s["searchable"] >= 0.98 * n, f"{part} clips are learned")
                seen.append((time.perf_counter(), status["searchable"], waited(daemon)))
        (start, first, idle), (end, last, idle_in_all) = seen
        took = end - start
        return {
            "clips": last - first, "per_s": round((last - first) / took),
            "learner_waits_for_clips": round((idle_in_all - idle) / took, 2), "bytes": len(messages[0]),
        }  # fmt: skip


def waited(daemon: DaemonProcess) -> float:
    """Seconds that the pipeline has waited for a batch."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if 'stage_seconds_sum{stage="wait"}' in line).split()[-1])


def grow(work: Path, clips: int) -> None:
    """A state with so many clips: a few that were learned, the rest with vectors by chance, in the real format."""
    write_stream(work / "clips", domains=("studio",), clips_per_domain=64, seed=0, size_px=32)
    settings = load(None, STATE | {"state_dir": work / "state", "folder.path": work / "clips", "api.port": 0})
    chance = np.random.default_rng(0)
    with Daemon(settings) as daemon:
        until(lambda: daemon.service.status()["state"] == "finished", "a few clips are learned", 600)
        state = daemon.state  # the loop has nothing to do any more, so we may write
        first = next(iter(state.catalog.clips([1]).values()))
        frames = state.frames.get(1)
        assert frames is not None
        packed = pack(frames)
        for begin in range(64, clips, 5_000):
            ids = range(begin, min(clips, begin + 5_000))
            vectors = chance.standard_normal((len(ids), state.learner.online.dim), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            with state.catalog.transaction():
                rows, _ = state.catalog.put([replace(first, video_id=f"synthetic-{n}") for n in ids])
                state.eras.upsert(rows, vectors)
            for row in rows:  # a start looks at every file
                state.frames.put(row, packed)
        state.publish()
        state.checkpoint()


def recovery(clips: int) -> dict[str, object]:
    """Kill -9 of a daemon with `clips` indexed clips; how long from its next start to its first answer."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        start = time.perf_counter()
        grow(work, clips)
        print(f"the state took {time.perf_counter() - start:.0f} s to make", flush=True)
        settings = STATE | {"folder.path": str(work / "clips")}
        took: dict[int, dict[str, float]] = {}
        for n in (0, clips):
            place = work if n else work / "empty"
            place.mkdir(exist_ok=True)
            for _ in range(2):  # the second start follows a kill -9
                start = time.perf_counter()
                with DaemonProcess(place, settings) as running:
                    until(running.status, "it answers", 600)
                    status_s = time.perf_counter() - start
                    running.wait_for(lambda s, n=n: s["searchable"] >= max(n, 64), "it serves them")
                    assert len(running.search("a red circle", 10)) == 10
                    took[n] = {"up_s": round(status_s, 1), "answer_s": round(time.perf_counter() - start, 1)}
                    running.kill()
        result: dict[str, object] = {"clips": clips, "after kill -9": took[clips], "with 64 clips": took[0]}
        print(result)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--learned", type=int, metavar="CLIPS")
    parser.add_argument("--recovery", type=int, metavar="CLIPS")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    if arguments.recovery:
        results = [recovery(arguments.recovery)]
    elif arguments.learned:
        with tempfile.TemporaryDirectory() as work:
            broker = find_broker(Path(work))
            try:
                results = [learned(broker, arguments.learned)]
            finally:
                broker.close()
        print(results[0])
    else:
        with tempfile.TemporaryDirectory() as work:
            broker = find_broker(Path(work))
            try:
                results = consume(broker, arguments.rounds)
            finally:
                broker.close()
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(result) + "\n" for result in results)


if __name__ == "__main__":
    main()
