"""Readers see everything before a change or everything after it, although it is made of several parts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Cutover:
    """A sequence lock: readers never hold the writer up, and redo what a change overtook.

    One thread changes, any thread reads. A reader waits only between the change's first visible effect and its last,
    so the writer prepares all it can beforehand.
    """

    def __init__(self) -> None:
        self._version = 0  # odd during a change
        self._settled = threading.Event()
        self._settled.set()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """What is done inside is seen whole or not at all by whoever asks through `read`."""
        self._settled.clear()
        self._version += 1
        try:
            yield
        finally:
            self._version += 1
            self._settled.set()

    def read(self, function: Callable[[], T]) -> T:
        """The answer, or the exception, of a call that no change overtook; it may be called several times."""
        while True:
            self._settled.wait()
            before = self._version
            if before % 2:
                continue  # a change began just now
            try:
                answer = function()
            except Exception:
                if self._version == before:
                    raise
                continue
            if self._version == before:
                return answer
