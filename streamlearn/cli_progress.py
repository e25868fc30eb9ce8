"""How far long work is: a bar on a terminal, a plain line now and then elsewhere. All of it goes to standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0

#: Told how much is done, of how much where that is known, and in what words.
Told = Callable[[int, int | None, str], None]


@contextmanager
def progress(what: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Told]:
    """Show work of many steps for a `with` block.

    Args:
        what: is done, such as "clips".
        clock: seconds, monotonic.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, clock).told
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        work = bar.add_task(what, total=None)

        def told(done: int, total: int | None = None, detail: str = "") -> None:
            bar.update(work, completed=done, total=total, description=detail or what)

        yield told


class _Lines:
    def __init__(self, what: str, clock: Callable[[], float]) -> None:
        self._what, self._clock = what, clock
        self._said_at = clock()

    def told(self, done: int, total: int | None = None, detail: str = "") -> None:
        now = self._clock()
        if now - self._said_at >= _LINE_EVERY_S:
            self._said_at = now
            of = "" if total is None else f" of {total}"
            typer.echo(f"{detail or self._what}: {done}{of}", err=True)
