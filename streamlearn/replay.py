"""Learning ranges of a topic's log and ending there: what `streamlearn replay` does, without the terminal.

It is the daemon with another source. So a replay evaluates, draws boundaries and checkpoints as a live run does, can
be cut short and taken up again, and what it leaves behind is a state directory like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamlearn.app import Daemon
from streamlearn.connectors.kafka_range import Range
from streamlearn.connectors.kafka_replay import RangeSource
from streamlearn.settings import Settings

_TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What came of it.

    Attributes:
        ranges: as they were read, "topic:partition:start:end".
        finished: whether their end was reached; otherwise it goes on from the last checkpoint when asked again.
        detail: why not.
        counts: clips by outcome, of the state directory as a whole.
        generation: the checkpoint that holds them.
    """

    ranges: tuple[str, ...]
    finished: bool
    detail: str | None
    counts: dict[str, int]
    generation: int


def replay(
    settings: Settings,
    ranges: Sequence[Range],
    *,
    stop: threading.Event,
    on_progress: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> ReplayReport:
    """Learn the ranges into `settings.state_dir`.

    Args:
        settings: those of a daemon; the source they name is not used.
        ranges: with both ends.
        stop: ends it before the end, with a checkpoint.
        on_progress: told offsets done, offsets in all, and what goes on.

    Raises:
        SettingsError: a setting is wrong, or a daemon uses the state directory.
        StateError: the state directory cannot be used.
    """
    total = sum(each.end - each.start for each in ranges)
    source = RangeSource(settings.kafka, ranges)
    with Daemon(settings, source) as daemon:
        while not stop.wait(_TICK_S):
            progress = daemon.state.progress
            done = source.done(daemon.state.offsets)
            on_progress(done, total, progress.detail or daemon.feed.detail or progress.state)
            if progress.state in ("finished", "stopped"):
                break
    state = daemon.state
    finished = state.progress.state == "finished"
    return ReplayReport(
        tuple(map(str, ranges)),
        finished,
        state.progress.detail,
        dict(state.ledger.counts),
        state.catalog.generation - 1,
    )
