"""Work that other threads want done in the pipeline's thread, between two batches: it is the only writer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from streamlearn.errors import BusyError, StreamlearnError

T = TypeVar("T")


class Mailbox:
    """Any thread posts, one thread works.

    Args:
        wake: lets the working thread come here soon; called from the posting one.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._posted = queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]()
        self._something = threading.Event()
        self._closed: str | None = None

    def ask(self, work: Callable[[], T], timeout_s: float) -> T:
        """Let `work` be done, and return what it returns or raises.

        Raises:
            BusyError: nobody works here any more, or not begun in time; then it will not be done.
        """
        done: Future[T] = Future()
        self._posted.put((work, done))
        self._something.set()
        self._wake()
        if self._closed is not None:
            self._refuse()
        try:
            return done.result(timeout_s)
        except TimeoutError:
            if done.cancel():
                raise BusyError("the learner is busy and has not come to it; try again") from None
            return done.result()  # it has begun, and will end

    def work(self, before: Callable[[], None] = lambda: None) -> None:
        """Do what was posted, and `before` each, whenever it was posted.

        An error of the family is the asker's alone: it means that nothing was done. Any other is raised here too.
        """
        self._something.clear()
        while self.posted:
            before()
            try:
                work, done = self._posted.get_nowait()
            except queue.Empty:
                return
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(work())
            except StreamlearnError as error:
                done.set_exception(error)
            except BaseException as error:
                done.set_exception(error)
                raise

    @property
    def posted(self) -> bool:
        """Whether something waits to be done."""
        return not self._posted.empty()

    def wait(self) -> None:
        """Return when something was posted, or `nudge` was called."""
        self._something.wait()

    def nudge(self) -> None:
        """End a `wait`."""
        self._something.set()

    def close(self, why: str) -> None:
        """Nobody works here from now on."""
        self._closed = why
        self._refuse()

    def _refuse(self) -> None:
        while True:
            try:
                _, done = self._posted.get_nowait()
            except queue.Empty:
                return
            if done.set_running_or_notify_cancel():
                done.set_exception(BusyError(str(self._closed)))
