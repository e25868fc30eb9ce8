"""Who has learned which stretch of a partition, as the metadata of its committed offset says.

A reader that goes on at the committed offset of another one adds its own stretch to those before it. So one that was
away sees what others have learned meanwhile, and one whose state was lost what it had learned itself. It knows no
client and no broker.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

_VERSION = 1
_KEPT = 16  # stretches: the broker takes 4096 bytes as shipped, and one is about 50


class Stretch(NamedTuple):
    """What one reader has learned without a gap, from `begin` until the next stretch begins.

    Attributes:
        reader: its id.
        begin: an offset.
    """

    reader: str
    begin: int


@dataclass(frozen=True)
class Stretches:
    """Of one partition, in order and without a gap between them; the last one ends at `end`.

    Attributes:
        log: the id of its topic, or None where the broker has none.
        parts: oldest first; of many, the last ones.
        end: the committed offset, the next to read.
    """

    log: str | None
    parts: tuple[Stretch, ...]
    end: int

    @classmethod
    def read(cls, metadata: str | None, end: int) -> Stretches | None:
        """From a commit's metadata; None where that is not of our making."""
        try:
            facts: Any = json.loads(metadata or "")
            if facts["streamlearn"] != _VERSION:
                return None
            parts = tuple(Stretch(str(reader), int(begin)) for reader, begin in facts["read"])
            log = facts["log"]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        begins = [part.begin for part in parts]
        sound = (
            begins == sorted(set(begins)) and begins and 0 <= begins[0] and begins[-1] <= end
            and (log is None or isinstance(log, str))
        )  # fmt: skip
        return cls(log, parts, end) if sound else None

    def metadata(self) -> str:
        """For a commit at `end`."""
        facts = {"streamlearn": _VERSION, "log": self.log, "read": self.parts}
        return json.dumps(facts, separators=(",", ":"))

    def begin_of(self, reader: str) -> int | None:
        """Where the reader's first stretch begins; None without one."""
        return next((part.begin for part in self.parts if part.reader == reader), None)

    def beyond_others(self, reader: str, offset: int) -> int:
        """How far others have learned from an offset on, without a gap; the offset itself where they have not.

        What is the reader's own ends it: had it that still, it would not stand before it.
        """
        ends = [part.begin for part in self.parts[1:]] + [self.end]
        for part, end in zip(self.parts, ends, strict=True):
            if part.begin <= offset < end and part.reader != reader:
                offset = end
        return offset

    def gone_on(self, reader: str, offset: int) -> Stretches:
        """Those before an offset, with the reader's own that goes on there; it ends nowhere yet."""
        if offset <= self.end:
            before = tuple(part for part in self.parts if part.begin < offset)
        else:  # its commit did not get through, if the last stretch is its own; else nobody says what lies between
            before = self.parts if self.parts[-1].reader == reader else ()
        if not before or before[-1].reader != reader:
            before = (*before, Stretch(reader, offset))
        return Stretches(self.log, before[-_KEPT:], offset)
