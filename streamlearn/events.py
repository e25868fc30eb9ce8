"""What the daemon tells others of itself, as CloudEvents 1.0: a task began, a generation is there, a rollback is done.

Learning never waits for it: events are queued, and a thread delivers them. It knows what is said and when it is tried
again, not where it goes: a source may have a place (`streamlearn.source.EventSink`).
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from streamlearn.metrics import Metrics
from streamlearn.rollback import Rollback
from streamlearn.source import EventSink
from streamlearn.tasks import Task

log = logging.getLogger(__name__)

Event = dict[str, Any]

_LONGEST_DELAY_S = 30.0
_CLOSE_S = 10.0  # for the last ones; whoever stops the daemon waits for it


class Events:
    """Tells what happened, in order, to whoever listens.

    An event's id follows from what it is about, so one that is delivered twice, or said again after a crash, has the
    id that it had.

    Args:
        sink: where events go, and are closed; None: nowhere.
        metrics: what was sent, dropped, and waits.
        capacity: so many wait while the sink is away; beyond, the oldest are dropped.
        first_delay_s: before it is tried again; it doubles from there.
    """

    def __init__(
        self, sink: EventSink | None, metrics: Metrics, *, capacity: int = 1000, first_delay_s: float = 1.0
    ) -> None:
        self._sink, self._metrics, self._capacity, self._first_delay_s = sink, metrics, capacity, first_delay_s
        self._waiting: deque[Event] = deque()
        self._changed = threading.Condition()
        self._in_flight = 0
        self._closing = False
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        if sink is not None:
            self._thread.start()

    def task_started(self, task: Task, *, returns: bool, model_version: str) -> None:
        """A task began; a crash before the next checkpoint may let it begin again."""
        data = {
            "task": task.name,
            "era": task.era,
            "cause": task.cause,
            "returns": returns,
            **{name: _finite(getattr(task, name)) for name in ("score", "threshold", "shift")},
            "onset_steps_ago": task.onset_steps_ago,
            "started_step": task.started_step,
            "started_clips": task.started_clips,
            "position": None if task.position is None else task.position._asdict(),
            "first_clip": task.first_clip,
        }
        self._emit("task.started", task.name, f"{task.era}-{model_version}", data)

    def checkpoint_published(self, facts: Mapping[str, Any], *, time: str | None = None) -> None:
        """A generation is durable and served; `facts` has at least generation and model_version.

        `time` is when it was made, where that was not just now.
        """
        generation = str(facts["generation"])
        self._emit("checkpoint.published", generation, f"{generation}-{facts['model_version']}", facts, time)

    def rollback_done(self, done: Rollback, *, model_version: str, time: str | None = None) -> None:
        """The daemon went back to an older generation; `time` as for `checkpoint_published`."""
        data = {**asdict(done), "model_version": model_version}
        self._emit("rollback.done", str(done.generation), f"{done.generation}-{model_version}", data, time)

    def close(self) -> None:
        """Deliver what waits if that is possible now; what is not is dropped, counted and said. Idempotent."""
        if self._sink is None or self._closing:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._sink.close()
        with self._changed:
            left = len(self._waiting) + self._in_flight  # the latter where the broker does not answer
            self._metrics.events_total.labels("dropped").inc(left)
        if left:
            log.warning("%d events were not delivered: %s", left, self._trouble)

    def _emit(self, kind: str, subject: str, identity: str, data: Mapping[str, Any], time: str | None = None) -> None:
        if self._sink is None:
            return
        event = {
            "specversion": "1.0",
            "id": f"{kind}-{identity}",
            "source": self._sink.source,
            "type": kind,
            "subject": subject,
            "time": time or datetime.now(UTC).isoformat(timespec="milliseconds"),
            "datacontenttype": "application/json",
            "data": dict(data),
        }
        with self._changed:
            self._waiting.append(event)
            self._bound()
            self._changed.notify_all()

    def _run(self) -> None:
        assert self._sink is not None
        delay_s = self._first_delay_s
        while batch := self._next():
            last = self._closing
            try:
                self._sink.deliver(batch)
            except Exception as error:  # noqa: BLE001 - a sink of somebody's own must not end the others' news
                self._put_back(batch, str(error))
                if last:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, random.uniform(0.5, 1) * delay_s)
                delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
                continue
            delay_s = self._first_delay_s
            if self._trouble is not None:
                log.info("events are delivered again")
                self._trouble = None
            self._in_flight = 0
            self._metrics.events_total.labels("sent").inc(len(batch))

    def _next(self) -> Sequence[Event]:
        """Wait for events, and take all; none once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            batch = list(self._waiting)
            self._waiting.clear()
            self._in_flight = len(batch)
            self._metrics.events_waiting.set(0)
            return batch

    def _put_back(self, batch: Sequence[Event], trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("events wait, learning goes on: %s", trouble)
            self._trouble = trouble
        with self._changed:
            self._waiting.extendleft(reversed(batch))
            self._in_flight = 0
            self._bound()

    def _bound(self) -> None:
        self._drop(len(self._waiting) - self._capacity)
        self._metrics.events_waiting.set(len(self._waiting))

    def _drop(self, oldest: int) -> None:
        for _ in range(oldest):
            self._waiting.popleft()
            self._metrics.events_total.labels("dropped").inc()


def _finite(value: float | None) -> float | None:
    """JSON has no infinity, and no number that is none."""
    return value if value is not None and math.isfinite(value) else None
