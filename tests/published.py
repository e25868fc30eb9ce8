"""What the tests of publishing share: manifests, their rows, and what lies in a topic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from streamlearn.envelope import parse
from streamlearn.message import ClipMessage
from streamlearn.publish_messages import Rules
from streamlearn.records import Position, Record
from tests.kafka_broker import KafkaBroker

MEDIA = b"\x00not a video, but publishing opens none"
RULES = Rules(max_bytes=10_000_000, max_caption_chars=1_000)


def manifest(folder: Path, *rows: object, name: str = "manifest.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("".join(line + "\n" for line in lines))
    if not (folder / "a.mp4").exists():
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
