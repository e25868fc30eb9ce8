"""Work for the one writer, from other threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamlearn.errors import BusyError, StateError
from streamlearn.mailbox import Mailbox


def test_the_working_thread_is_woken_and_the_asker_gets_its_answer() -> None:
    woken = threading.Event()
    box = Mailbox(woken.set)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(box.ask, threading.get_ident, 30)
        box.wait()
        assert woken.wait(30)
        box.work()
        assert asked.result() == threading.get_ident()


def test_an_error_of_the_family_is_the_askers_and_any_other_one_is_everybodys() -> None:
    box = Mailbox(lambda: None)

    def refuse() -> None:
        raise StateError("it is pinned")

    def fail() -> None:
        raise ZeroDivisionError

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(box.ask, refuse, 30)
        box.wait()
        box.work()
        with pytest.raises(StateError, match="pinned"):
            asked.result()
        asked = pool.submit(box.ask, fail, 30)
        box.wait()
        with pytest.raises(ZeroDivisionError):
            box.work()
        with pytest.raises(ZeroDivisionError):
            asked.result()


def test_what_nobody_came_to_in_time_is_never_done() -> None:
    box, done = Mailbox(lambda: None), list[int]()
    with pytest.raises(BusyError, match="busy"):
        box.ask(lambda: done.append(1), 0.01)
    box.work()
    assert done == []


def test_after_the_worker_is_gone_everybody_is_told() -> None:
    box = Mailbox(lambda: None)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.ask, lambda: 1, 30)
        box.wait()
        box.close("learning has stopped")
        with pytest.raises(BusyError, match="learning has stopped"):
            waiting.result()
    with pytest.raises(BusyError, match="learning has stopped"):
        box.ask(lambda: 1, 30)


def test_what_is_posted_while_the_worker_is_at_it_is_prepared_for_too() -> None:
    box, done = Mailbox(lambda: None), list[str]()

    def ask(pool: ThreadPoolExecutor, name: str) -> None:
        pool.submit(box.ask, lambda: done.append(name), 30)
        box.wait()

    with ThreadPoolExecutor(2) as pool:
        box.work(before=lambda: done.append("prepared"))
        assert done == []
        ask(pool, "first")
        box.work(before=lambda: done.append("prepared"))
        ask(pool, "second")
        box.work(before=lambda: done.append("prepared"))
    assert done == ["prepared", "first", "prepared", "second"]
