"""Folders and manifests of clips to a Kafka topic: what `streamlearn publish` does, without the terminal.

Each row becomes one clip message, validated as the daemon will validate it. The media stays where it is and the
message names it, unless it is asked for inline. Publishing again what was published before is harmless: the same
`video_id` replaces.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from streamlearn.connectors.folder_readers import MANIFEST, FilesReader, ManifestReader
from streamlearn.connectors.kafka_client import KafkaOptions
from streamlearn.connectors.kafka_producer import AcknowledgedProducer, Message
from streamlearn.envelope import parse
from streamlearn.errors import FetchError, RejectedClip, SettingsError
from streamlearn.records import Record

_FLUSH_MESSAGES = 500
_FLUSH_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that is no valid clip message, and was not published.

    Attributes:
        where: "path/manifest.jsonl:12", or the video file.
        code: as a dead letter's.
        message: what is wrong and how to put it right.
    """

    where: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What became of all rows; `published` counts the valid ones when nothing was to be sent."""

    published: int
    problems: tuple[Problem, ...]


def publish(
    paths: Sequence[Path],
    options: KafkaOptions,
    *,
    topic: str,
    inline: bool = False,
    dry_run: bool = False,
    max_bytes: int,
    max_caption_chars: int,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> PublishReport:
    """Publish every clip of folders (a manifest.jsonl, or videos with sidecars) and of JSONL manifests.

    Args:
        paths: folders and `.jsonl` files.
        options: where and how to connect.
        topic: where to publish.
        inline: send the bytes of local videos too, so that no reader needs the files.
        dry_run: validate everything, send nothing, connect nowhere.
        max_bytes: largest message.
        max_caption_chars: longest caption.
        on_progress: told the rows read so far, now and then.

    Raises:
        SettingsError: a path is neither, or an option is wrong.
        SourceError: Kafka is away; what was acknowledged before is published.
    """
    sources = [_source(path) for path in paths]
    problems: list[Problem] = []
    waiting: dict[int, str] = {}  # where the messages of the batch come from

    def too_large(message: Message) -> None:
        text = f"the topic takes no message of {len(message.value or b'')} bytes; raise its max.message.bytes"
        problems.append(Problem(waiting[id(message)], "message_too_large", text + (", or leave --inline" * inline)))

    producer = AcknowledgedProducer(options, too_large=too_large)
    rows = waiting_bytes = 0

    def flush() -> None:
        nonlocal waiting_bytes
        producer.flush()
        waiting.clear()
        waiting_bytes = 0
        on_progress(rows)

    try:
        for where, record in (row for source in sources for row in source()):
            rows += 1
            try:
                record = _with_media(record, inline=inline)
                parse(record, max_bytes=max_bytes, max_caption_chars=max_caption_chars)
            except RejectedClip as error:
                problems.append(Problem(where(), error.code, str(error)))
                continue
            if not dry_run:
                message = Message(topic, record.key, record.value)
                waiting[id(message)] = where()
                waiting_bytes += len(record.value or b"")
                producer.send(message)
            if rows % _FLUSH_MESSAGES == 0 or waiting_bytes >= _FLUSH_BYTES:
                flush()
        flush()
    finally:
        producer.close()
    return PublishReport(rows - len(problems), tuple(problems))


_Rows = Iterator[tuple[Callable[[], str], Record]]


def _source(path: Path) -> Callable[[], _Rows]:
    if path.is_dir() and not (path / MANIFEST).exists():
        return lambda: _video_files(path)
    manifest = path / MANIFEST if path.is_dir() else path
    if manifest.is_file() and manifest.suffix in (".jsonl", ".ndjson"):
        return lambda: _manifest(manifest)
    raise SettingsError(f"{path}: name a folder of videos with sidecars or with a {MANIFEST}, or a .jsonl file")


def _video_files(folder: Path) -> _Rows:
    reader = FilesReader(folder, folder.name, {}, False)
    while records := reader.read(64):
        for record in records:
            yield lambda record=record: str(folder / record.position.partition.rpartition("#")[0]), record  # type: ignore[misc]


def _manifest(path: Path) -> _Rows:
    reader = _NamedManifest(path)
    while records := reader.read(64):
        for record in records:
            yield lambda record=record: f"{path}:{_line_at(path, record.position.offset)}", record  # type: ignore[misc]


class _NamedManifest(ManifestReader):
    """A manifest of any name, read once to its end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent, path.name, {}, False)
        self._path = path


def _line_at(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        return file.read(offset).count(b"\n") + 1


def _with_media(record: Record, *, inline: bool) -> Record:
    """The record with the bytes of its local file, if they are to be inline.

    Raises:
        FetchError: there is no such file.
    """
    row = _row(record.value)
    uri = row.get("uri")
    if not isinstance(uri, str) or urlsplit(uri).scheme != "file":
        return record
    path = Path(unquote(urlsplit(uri).path))
    if not path.is_file():
        raise FetchError("media_not_found", f"{path}: there is no such file; correct the path")
    if not inline:
        return record
    try:
        media = path.read_bytes()
    except OSError as error:
        raise FetchError("media_forbidden", f"{path} cannot be read: {error.strerror}") from error
    del row["uri"]
    value = json.dumps(row | {"media_b64": base64.b64encode(media).decode()}).encode()
    return Record(record.key, value, record.position, record.headers, record.timestamp_ms)


def _row(value: bytes | None) -> dict[str, object]:
    """The row, empty where `parse` will say what is wrong with it."""
    try:
        row = json.loads(value or b"")
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
