"""Clips that come and go over HTTP: validated as the topic's are, and put into the stream by the source's own way.

Nothing is learned or deleted here. What the source has taken durably comes back out of it like any other record, so
that order, crashes and replays are the stream's affair.
"""

from __future__ import annotations

from collections.abc import Callable

from streamlearn.catalog import Catalog
from streamlearn.envelope import parse
from streamlearn.errors import SourceRefusedError
from streamlearn.message import ClipMessage
from streamlearn.records import Partition, Record
from streamlearn.source import Publisher


class ClipWriter:
    """A `routes_clips.Writer` over a source.

    Args:
        publisher: the source's; None: it has none.
        source: its import string, for the sentence that says so.
        catalog: knows which partition a clip came from.
        max_bytes, max_caption_chars: as for messages of the topic.
        written: is called once the stream has something that was put into it.
    """

    def __init__(
        self,
        publisher: Publisher | None,
        *,
        source: str,
        catalog: Catalog,
        max_bytes: int,
        max_caption_chars: int,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._publisher, self._source, self._catalog = publisher, source, catalog
        self._max_bytes, self._max_caption_chars, self._written = max_bytes, max_caption_chars, written

    def put(self, record: Record) -> str:
        """Put a clip into the stream; returns its id once the stream has it."""
        message = parse(record, max_bytes=self._max_bytes, max_caption_chars=self._max_caption_chars)
        assert isinstance(message, ClipMessage), "a body is never null"
        body = message.model_dump(mode="json", exclude_defaults=True, exclude={"media_b64"})
        self._stream().put(body, message.media, self._partition_of(message.video_id))
        self._written()
        return message.video_id

    def delete(self, video_id: str) -> None:
        """Put a tombstone into the stream, behind the clip wherever its partition is known."""
        self._stream().delete(video_id, self._partition_of(video_id))
        self._written()

    def _stream(self) -> Publisher:
        if self._publisher is None:
            raise SourceRefusedError(f"{self._source} takes no clips over HTTP: send them by its own way")
        return self._publisher

    def _partition_of(self, video_id: str) -> Partition | None:
        """A clip and what replaces or deletes it must stay in one partition, whatever key it was sent with."""
        clip = self._catalog.clip(video_id)
        return None if clip is None else Partition(clip.topic, clip.partition)
