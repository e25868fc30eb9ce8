"""The tasks that clips name: which of them begin, which can be used, and what a clip belongs to."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from streamlearn.errors import TaskError
from streamlearn.records import Clip, Event, named_tasks
from streamlearn.tasks import TaskLog

log = logging.getLogger(__name__)


def begins(tasks: TaskLog, name: str) -> bool:
    """Whether a clip that names this task is its first: the name was not used, and can be."""
    try:
        return tasks.check(name) not in tasks.names()
    except TaskError:
        return False


def usable(tasks: TaskLog, batch: Sequence[Event]) -> list[str]:
    """The different tasks that the clips of a batch name; says so where one cannot be used."""
    found = []
    for name in named_tasks(batch):
        try:
            found.append(tasks.check(name))
        except TaskError as error:
            log.warning("the clips' task is not used: %s", error)
    return found


def announced(tasks: TaskLog, named: Sequence[str], *, whole: bool = True) -> str | None:
    """The task that is the current one from a batch on, by what its clips name; None where they do not say.

    A task begins with the first clip that names it, and again with the first batch that names it alone: clips of tasks
    that come mixed are learned side by side, as there is no boundary between them. A part of a batch, where it is not
    `whole`, does not say what it names alone.
    """
    alone = len(named) == 1 and whole
    return named[0] if alone or (named and begins(tasks, named[0])) else None


def task_of(tasks: TaskLog, clip: Clip) -> str:
    """The task that a clip names, or the current one.

    Raises:
        ValueError: it names none, and there is none.
    """
    if clip.task is not None and clip.task in tasks.names():
        return clip.task
    if tasks.current is None:
        raise ValueError("no task has begun")
    return tasks.current.name
