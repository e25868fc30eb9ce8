"""How fast clips come out of Kafka, beside the bare client, in one run; and how fast a restart comes back.

    python benchmarks/kafka_speed.py [--rounds 3] [--json results.jsonl]  # the broker of STREAMLEARN_TEST_KAFKA, or one
    python benchmarks/kafka_speed.py --recovery 100000                      # kill -9 of a daemon with so many clips

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
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the test broker

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streamlearn.connectors.kafka import KafkaSource
from streamlearn.envelope import parse
from streamlearn.records import Partition, Position, Record
from streamlearn.settings import KafkaSettings
from tests.daemon import DaemonProcess
from tests.kafka_broker import KafkaBroker, find_broker

PARTITIONS = 4


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


def bare(broker: KafkaBroker, topic: str, count: int, use: Callable[[Iterable[Record]], None]) -> float:
    """Records a second of kafka-python's consumer."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, max_poll_records=500)
    consumer.assign([TopicPartition(topic, p) for p in range(PARTITIONS)])
    consumer.seek_to_beginning()
    seen, start = 0, 0.0
    while seen < count:
        polled = consumer.poll(timeout_ms=1000)
        if not seen:
            start = time.perf_counter()  # connecting and the first fetch are not counted, for either
        for tp, records in polled.items():
            seen += len(records)
            use(
                Record(r.key, r.value, Position(tp.topic, str(tp.partition), r.offset), tuple(r.headers))
                for r in records
            )
    consumer.close()
    return seen / (time.perf_counter() - start)


def ours(broker: KafkaBroker, topic: str, count: int, use: Callable[[Iterable[Record]], None]) -> float:
    """Records a second of the daemon's source."""
    source = KafkaSource(KafkaSettings(bootstrap_servers=[broker.bootstrap], topics=[topic], group_id=f"{topic}-g"))
    source.start({Partition(topic, str(p)): 0 for p in range(PARTITIONS)})
    seen, start = 0, 0.0
    while seen < count:
        records = source.poll(1.0)
        if not seen:
            start = time.perf_counter()
        seen += len(records)
        use(records)
    rate = seen / (time.perf_counter() - start)
    source.close()
    return rate


def consume(broker: KafkaBroker, rounds: int) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for name, make, count in (("1 kB claim check", claim_check, 60_000), ("100 kB inline", inline, 3_000)):
        topic = f"bench-{name.split()[0]}-{os.getpid()}"
        fill(broker, topic, map(make, range(count)))
        best: dict[str, float] = {}
        for _ in range(rounds):
            for what, run, use in (
                ("bare client", bare, nothing),
                ("our source", ours, nothing),
                ("bare client and validation", bare, validate),
                ("our source and validation", ours, validate),
            ):
                best[what] = max(best.get(what, 0.0), run(broker, topic, count, use))
        for suffix in ("", " and validation"):
            bare_rate, our_rate = best[f"bare client{suffix}"], best[f"our source{suffix}"]
            results.append(
                {
                    "messages": name + suffix,
                    "bytes": len(make(0)),
                    "bare_per_s": round(bare_rate),
                    "ours_per_s": round(our_rate),
                    "ratio": round(our_rate / bare_rate, 2),
                }
            )
            print(results[-1], flush=True)
    return results


def recovery(clips: int) -> dict[str, object]:
    """Kill -9 of a daemon with `clips` indexed clips; how long until it answers, and until it learns."""
    from benchmarks.kafka_state import grow

    with tempfile.TemporaryDirectory() as work:
        settings = {"source": "streamlearn.connectors.folder:FolderSource", "folder.path": f"{work}/clips"}
        grow(Path(work), clips, settings)
        with DaemonProcess(Path(work), settings) as running:
            running.wait_for(lambda s: s["searchable"] >= clips, "it serves them")
            running.kill()
        start = time.perf_counter()
        with DaemonProcess(Path(work), settings) as running:
            running.wait_for(lambda s: s["searchable"] >= clips, "it serves them again")
            answers_s = time.perf_counter() - start
            assert len(running.search("a red circle", 10)) == 10
            answer_s = time.perf_counter() - start
        result: dict[str, object] = {
            "clips": clips, "status_s": round(answers_s, 1), "first_answer_s": round(answer_s, 1)
        }  # fmt: skip
        print(result)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recovery", type=int, metavar="CLIPS")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    if arguments.recovery:
        results = [recovery(arguments.recovery)]
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
