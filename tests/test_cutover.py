"""Readers see all of a change or nothing of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamlearn.cutover import Cutover


class Pair:
    """Two numbers that belong together."""

    def __init__(self) -> None:
        self.first, self.second = 0, 0


def test_a_reader_never_sees_half_a_change() -> None:
    cutover, pair, stop = Cutover(), Pair(), threading.Event()

    def read() -> tuple[int, int]:
        return pair.first, pair.second

    def keep_reading() -> int:
        seen = 0
        while not stop.is_set():
            first, second = cutover.read(read)
            assert first == second
            seen += 1
        return seen

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(keep_reading) for _ in range(2)]
        for number in range(2000):
            with cutover.changing():
                pair.first = number
                pair.second = number
        stop.set()
        assert all(reader.result() > 0 for reader in readers)


def test_what_a_change_overtook_is_asked_again_also_where_it_failed() -> None:
    cutover = Cutover()
    answers: list[str] = []

    def ask() -> str:
        if not answers:
            answers.append("old")
            with cutover.changing():
                pass
            raise KeyError("gone in the middle of it")
        return "new"

    assert cutover.read(ask) == "new"


def test_an_error_that_no_change_overtook_is_the_readers_own() -> None:
    with pytest.raises(KeyError):
        Cutover().read(lambda: {}["nothing"])


def test_a_change_that_fails_lets_readers_go_on() -> None:
    cutover = Cutover()
    with pytest.raises(OSError, match="disk"), cutover.changing():
        raise OSError("disk full")
    assert cutover.read(lambda: 1) == 1
