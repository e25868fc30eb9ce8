"""Ids that are being deleted, told by two threads: neither may undo what the other says."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamlearn.deleting import Deleting
from streamlearn.records import Position, Record, Tombstone


class Slow(Position):
    """Lets another thread begin something whenever it is looked for."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def __hash__(self) -> int:
        type(self).meanwhile()
        return super().__hash__()


def tombstone(name: str, offset: int) -> Record:
    return Record(name.encode(), None, Slow("clips", "0", offset))


def test_what_is_read_while_another_is_applied_counts_too() -> None:
    deleting, threads = Deleting(), list[threading.Thread]()
    first, second = tombstone("a", 0), tombstone("b", 1)
    deleting.note([first])

    def read_on() -> None:
        Slow.meanwhile = staticmethod(lambda: None)
        threads.append(threading.Thread(target=deleting.note, args=([second],)))
        threads[0].start()
        threads[0].join(0.2)

    handed = [Tombstone("a", Position(*first.position))]
    Slow.meanwhile = staticmethod(read_on)
    deleting.applied(handed)
    threads[0].join()
    assert "a" not in deleting
    assert "b" in deleting
