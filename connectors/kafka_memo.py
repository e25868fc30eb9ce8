"""What the checkpoints keep of a Kafka source beside its offsets: who it is, and of which log each offset is.

Asked from the daemon's threads, told from the one that reads; it knows no client.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from streamlearn.records import Offsets, Partition


class Memo:
    """Of one run, from what the checkpoint has that it goes on from.

    Attributes:
        reader: the id by which others know what this state has learned, the same for as long as there is the state.
        is_new: whether no checkpoint had one: what was committed before may be by this very state.
    """

    def __init__(self, offsets: Offsets, kept: Any = None) -> None:
        """`kept` beside `offsets`; what is no memo of a Kafka source counts as none."""
        self._lock = threading.Lock()
        found = _read(kept)
        self.is_new = found is None
        self.reader: str
        self._logs: dict[Partition, str]
        self._line: dict[Partition, int]
        self.reader, self._logs, self._line = found or (uuid4().hex, {}, {})
        self._offsets = dict(offsets)  # of the newest checkpoint
        self._gone: dict[Partition, tuple[str | None, int]] = {}  # a log, and where reading of it ended
        self._twice: set[Partition] = set()  # of which two logs are gone since the newest checkpoint

    def of(self, offsets: Offsets) -> dict[str, Any]:
        """What to keep beside these offsets, for JSON."""
        with self._lock:
            logs, line = dict(self._logs), {p: at for p, at in self._line.items() if p not in offsets}
            for partition, (log, _) in self._gone.items():
                if log is not None and partition in offsets and self._is_gone(partition, offsets[partition]):
                    logs[partition] = log
            return {
                "reader": self.reader,
                "logs": [[*p, log] for p, log in logs.items() if p in offsets or p in line],
                "line": [[*p, offset] for p, offset in line.items()],
            }

    def settle(self, offsets: Offsets) -> None:
        """A checkpoint has these, and nobody goes by those of the one before."""
        with self._lock:
            for partition in [p for p in self._gone if p in offsets and not self._is_gone(p, offsets[p])]:
                del self._gone[partition]
            self._twice.difference_update(offsets)
            self._offsets.update(offsets)

    def log_of(self, partition: Partition) -> str | None:
        """The id of the log that it is read from, or was; None where that is not known."""
        with self._lock:
            return self._logs.get(partition)

    def reads(self, partition: Partition, log: str) -> None:
        """It is read from this log."""
        with self._lock:
            self._logs[partition] = log

    def turn_back(self, partition: Partition, stood: int) -> None:
        """Offsets up to `stood` are of a log that is gone; call it before `reads` of the other one."""
        with self._lock:
            if partition in self._gone:
                self._twice.add(partition)
            log, before = self._gone.get(partition, (self._logs.get(partition), stood))
            self._gone[partition] = log, max(before, stood)

    def is_gone(self, partition: Partition, offset: int) -> bool:
        """Whether an offset of a checkpoint is of a log that is gone, or may be: to read again loses nothing."""
        with self._lock:
            return self._is_gone(partition, offset)

    def line(self, partition: Partition) -> int | None:
        """Where it begins though neither checkpoint nor broker says so."""
        with self._lock:
            return self._line.get(partition)

    def draw(self, partition: Partition, offset: int, log: str | None) -> None:
        """There it begins, until a checkpoint has an offset of it; `log`, unless it is known already."""
        with self._lock:
            self._line[partition] = offset
            if log is not None:
                self._logs.setdefault(partition, log)

    def _is_gone(self, partition: Partition, offset: int) -> bool:
        """Offsets of one log only grow: one that is not between the last checkpoint's and the end is of the other."""
        least = 0 if partition in self._twice else self._offsets.get(partition, 0)
        return partition in self._gone and least <= offset <= self._gone[partition][1]


def _read(kept: Any) -> tuple[str, dict[Partition, str], dict[Partition, int]] | None:
    """Reader, logs and line; None where it is not of our making."""
    try:
        reader, logs, line = kept["reader"], _mapping(kept["logs"]), _mapping(kept["line"])
    except (KeyError, TypeError, ValueError):
        return None
    return (reader, logs, line) if isinstance(reader, str) else None


def _mapping(rows: Iterable[Any]) -> dict[Partition, Any]:
    return {Partition(topic, partition): value for topic, partition, value in rows}
