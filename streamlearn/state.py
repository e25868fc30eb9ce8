"""All that one generation holds, and the three things done with it: restore, checkpoint, publish.

Knows the parts and how they fit together in a cut, not when to cut.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from streamlearn import rollback
from streamlearn.catalog import Catalog
from streamlearn.checkpoint import Generation, Generations
from streamlearn.cutover import Cutover
from streamlearn.drift import Detector
from streamlearn.eras import Eras
from streamlearn.errors import StateError, StreamlearnError
from streamlearn.evaluate import ScoreBook
from streamlearn.frames import FrameStore
from streamlearn.judge import Judge
from streamlearn.learner import Learner
from streamlearn.ledger import Ledger
from streamlearn.lineage import Reading
from streamlearn.metrics import Metrics
from streamlearn.records import Clip, Event, Partition, Position
from streamlearn.rollback import ResumeFrom, Rollback
from streamlearn.search import Searcher, Snapshot
from streamlearn.source import DeadLetters
from streamlearn.tasks import Boundary, TaskLog

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What the loop is doing, for readers in other threads; each attribute is replaced, never changed in place."""

    state: str = "starting"
    detail: str | None = None
    loss: float | None = None
    drift_score: float | None = None
    clips_per_s: float = 0.0


class State:
    """The parts that are cut together.

    Attributes:
        offsets: the next to read, per partition, after everything that was processed.
        clips: clips processed since the stream began, the time axis of scores and tasks.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        eras: Eras,
        ledger: Ledger,
        detector: Detector,
        judge: Judge | None,
        book: ScoreBook,
        catalog: Catalog,
        frames: FrameStore,
        generations: Generations,
        searcher: Searcher,
        dead_letters: DeadLetters,
        metrics: Metrics,
        reading: Reading,
    ) -> None:
        self.learner, self.eras, self.ledger, self.book = learner, eras, ledger, book
        self.detector, self.judge = detector, judge
        self.catalog, self.frames, self.generations = catalog, frames, generations
        self.searcher, self.dead_letters, self.metrics = searcher, dead_letters, metrics
        self.reading = reading
        self._carried: list[dict[str, Any]] = []  # what was changed since, and the last row from before it
        self.tasks = TaskLog()
        self.offsets: dict[Partition, int] = {}
        self.clips = 0
        self.staleness_ratio: float | None = None
        self.lineage = uuid4().hex
        self.parent: dict[str, Any] | None = None  # lineage and generation that a rollback went back to
        self.cutover = Cutover()
        self.progress = Progress()
        self._events = 0
        self._done: dict[str, int] = {}
        self._rate = (time.monotonic(), 0)

    @property
    def task(self) -> str:
        """The current task's name; only once there is one."""
        assert self.tasks.current is not None
        return self.tasks.current.name

    @property
    def model_version(self) -> str:
        """Fingerprint, lineage and step: vectors of equal fingerprint and lineage may meet."""
        return f"{self.learner.online.fingerprint[:8]}-{self.lineage[:8]}-{self.learner.steps}"

    def carried_clips(self) -> int:
        """Clips whose vectors were made with other settings of media, knowingly."""
        return self.catalog.count(int(self._carried[-1]["row"])) if self._carried else 0

    def due(self, what: str, interval: int) -> bool:
        """Whether `interval` events have passed since `done(what)`."""
        return self._events - self._done.get(what, 0) >= interval

    def done(self, what: str) -> None:
        """Start counting anew."""
        self._done[what] = self._events

    def advance(self, batch: Sequence[Event], clips: int) -> None:
        """A batch was learned and written: move the offsets past it."""
        for event in batch:
            topic, partition, offset = event.position
            self.offsets[Partition(topic, partition)] = offset + 1
        self._events += len(batch)
        self.clips += clips
        since, before = self._rate
        if (elapsed := time.monotonic() - since) > 1:
            self.progress.clips_per_s = (self.clips - before) / elapsed
            self._rate = (time.monotonic(), self.clips)

    def start_task(self, boundary: Boundary, batch: Sequence[Event]) -> None:
        """Open a task: its era begins where the drift began, the local momentum pair restarts.

        `batch` is what is about to be learned where the boundary was known beforehand, else empty.
        """
        before = self.tasks.current
        # A boundary within the first steps of a task cannot lie before it.
        since_step = max(self.learner.steps - boundary.onset_steps_ago, before.started_step if before else 0)
        task = self.tasks.start(
            boundary,
            step=since_step,
            clips=self.clips,
            position=batch[0].position if batch else None,
            era=self.eras.current.number + (before is not None),
        )
        if before is None:
            self.eras.current.task = task.name
        else:
            self.ledger.settle()  # the era is judged by held-out clips, and its clips are encoded anew
            if self.judge is not None:
                self.judge.close(before.name, since_step)
            self.eras.start(task.name, since_step)
            self.learner.start_task()
            self.book.close_task(before.name)
        self._log_boundary(batch)
        self.book.open_task(task.name)
        self._show_tasks()

    def _show_tasks(self) -> None:
        for name in self.tasks.names():
            self.metrics.task_info.labels(name).set(name == self.task)

    def relabel(self, old: str, new: str, *, merge: bool) -> None:
        """Give a task another name, everywhere but in the scores of the past: log, clips, eras, memory, gauges.

        Raises:
            TaskError: there is no such task, or the new name cannot be used so.
        """
        self.tasks.rename(old, new, merge=merge)
        with self.catalog.transaction():
            for era in self.eras.eras:
                if era.task == old:
                    self.catalog.move(from_era=era.number, since_step=0, to_era=era.number, to_task=new)
                    era.task = new
        self.book.rename(old, new)
        if self.judge is not None:
            self.judge.memory.rename(old, new)
        m = self.metrics
        m.task_info.remove(old)
        for gauge in (m.recall_ratio, m.forgetting_ratio, m.median_rank, m.eval_pairs):
            gauge.remove_by_labels({"task": old})
        self._show_tasks()
        log.info("task %s is now %s%s", old, "part of " if merge else "", new)

    def _log_boundary(self, batch: Sequence[Event]) -> None:
        """With the first clip of the task, which is known now, and all that the detector said."""
        task = self.tasks.current
        assert task is not None
        rows = self.eras.current.partition.view().rows
        first = next((event for event in batch if isinstance(event, Clip)), None)
        if first is not None:
            task = self.tasks.locate(first.position, first.video_id)
        elif len(rows) and (clip := self.catalog.clips([int(rows.min())]).get(int(rows.min()))) is not None:
            task = self.tasks.locate(Position(clip.topic, clip.partition, clip.offset), clip.video_id)
        log.info(
            "task %s %s: %s, score %s above %s, shift %s, %d steps ago, first clip %s at %s",
            task.name,
            "returns" if any(t.name == task.name for t in self.tasks.tasks[:-1]) else "begins",
            task.cause,
            *(None if value is None else round(value, 2) for value in (task.score, task.threshold, task.shift)),
            task.onset_steps_ago,
            task.first_clip,
            task.position,
        )

    def publish(self) -> Snapshot:
        """Serve everything up to now."""
        snapshot = self._snapshot()
        self._serve(snapshot)
        return snapshot

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            eras=self.eras.views(),
            generation=self.catalog.generation - 1,
            step=self.learner.steps,
            model_version=self.model_version,
            offsets=dict(self.offsets),
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            stale=self.eras.stale,
            staleness_ratio=self.staleness_ratio,
        )

    def _serve(self, snapshot: Snapshot) -> None:
        self.searcher.publish(snapshot)
        self.done("publish")
        m = self.metrics
        m.index_clips.set(len(snapshot))
        m.index_stale_clips.set(self.eras.stale)
        m.index_oldest_vector_age_steps.set(self.eras.oldest_age_steps())
        if self.staleness_ratio is not None:
            m.index_staleness_ratio.set(self.staleness_ratio)

    def checkpoint(self) -> None:
        """Write and publish a generation.

        Raises:
            SourceError: dead letters are not durable; the offsets must not move past them.
        """
        self.ledger.settle()
        self.dead_letters.flush()
        number = self.catalog.generation
        tensors = self.learner.state_dict() | self.eras.tensors()
        tensors["detector"] = {name: torch.from_numpy(np.array(a)) for name, a in self.detector.state_dict().items()}
        if self.judge is not None:
            tensors["memory"] = {"means": torch.from_numpy(self.judge.memory.state_dict()["means"])}
        if self.generations.current() != number:  # else: published, but then the disk was full
            self.generations.write(Generation(number, self.offsets, self._facts(), tensors, self.eras.sealed()))
            self.catalog.sync()
            self.generations.publish(number)  # the commit point
        self.catalog.begin(number + 1)
        self.frames.delete(self.catalog.prune(self.generations.prune()))
        self.done("checkpoint")
        self.metrics.index_carried_clips.set(self.carried_clips())
        self.publish()  # what is answered now is what going back to this generation will answer
        self.metrics.generation.set(number)
        self.metrics.checkpoint_last_success_timestamp_seconds.set_to_current_time()

    def restore(self) -> None:
        """Go back to the newest generation that verifies, or begin.

        Raises:
            StateError: none verifies, or it is of another model, preprocessing or lineage.
        """
        generation = self.generations.newest_good()
        self.metrics.generations_rejected_total.inc(self.generations.rejected)
        number = 0 if generation is None else generation.number
        if generation is not None:
            self._check(generation)
        if number not in (0, self.generations.current()):
            self.generations.publish(number)
        self.generations.drop_unpublished()
        if generation is None:
            self.frames.delete(self.catalog.rewind(0, lineage=self.lineage))
            self.publish()
        else:
            try:
                self._adopt(generation)
            except (KeyError, TypeError, ValueError) as error:
                raise StateError(f"generation {number} lacks what this version needs: {error!r}") from error
            written = datetime.fromisoformat(generation.created).timestamp()
            self.metrics.checkpoint_last_success_timestamp_seconds.set(written)
            log.info("restored generation %d: step %d, %d clips", number, self.learner.steps, self.clips)
        self.frames.keep_only(self.catalog.kept_rows())
        self.metrics.index_carried_clips.set(self.carried_clips())
        self.metrics.generation.set(number)
        self.metrics.learner_ok.set(1)

    def roll_back(self, number: int, resume_from: ResumeFrom) -> Rollback:
        """Go back to an older generation while searches are answered: from before it, or from after it.

        The offsets are then where learning goes on; who feeds it must read from there.

        Raises:
            StateError: there is no such generation, it is damaged, or a newer one is pinned; nothing was changed.
            SourceError: dead letters are not durable, so nothing was changed.
        """
        self.ledger.settle()
        self.dead_letters.flush()
        generation, done = rollback.prepare(
            self.generations, self.catalog, number, resume_from, offsets=self.offsets, clips=self.clips
        )
        try:
            rollback.publish(self.generations, generation, done)
            self._adopt(generation)
            self.catalog.sync()
        except StreamlearnError as error:  # as such it would mean that nothing was changed
            raise RuntimeError(f"the rollback to generation {number} ended half-way; a restart completes it") from error
        self._events, self._done = 0, {}
        if resume_from == "latest":
            self.metrics.clips_total.labels("skipped").inc(done.undone_clips)
        self.metrics.generation.set(generation.number)
        log.warning("%s", done)
        return done

    def _adopt(self, generation: Generation) -> None:
        """Make a generation the present, in memory and in the catalog, and serve it: for readers, at one moment."""
        with ExitStack() as change:
            with self.catalog.transaction():
                gone = rollback.rewind(self.catalog, generation)
                self._load(generation)
                snapshot = self._snapshot()
                change.enter_context(self.cutover.changing())
            self._serve(snapshot)
        self.frames.delete(gone)

    def _check(self, generation: Generation) -> None:
        if generation.state["fingerprint"] != self.learner.online.fingerprint:
            raise StateError(
                f"{self.generations.state_dir} was written with the model {generation.state['model']}, and this is"
                f" {self._model()}: use the same again, or another state_dir"
            )
        served = json.loads(generation.state["learner"]).get("serve", "local")
        if served != self.learner.settings.serve:
            raise StateError(
                f"{self.generations.state_dir} holds vectors of learner.serve = {served!r}, and this is"
                f" {self.learner.settings.serve!r}: use the same again, or another state_dir"
            )
        self.reading.carried(generation.state.get("reading", {}), self.generations.state_dir)

    def _model(self) -> dict[str, Any]:
        return {**self.learner.online.names, "dim": self.learner.online.dim}

    def _facts(self) -> dict[str, Any]:
        return {
            "lineage": self.lineage,
            "parent": self.parent,
            "fingerprint": self.learner.online.fingerprint,
            "model": self._model(),
            "reading": self.reading.facts(),
            "carried": self._carried,
            "learner": self.learner.describe(),
            "clips": self.clips,
            "counts": dict(self.ledger.counts),
            "tasks": self.tasks.state_dict(),
            "eras": self.eras.state(),
            "book": self.book.state_dict(),
            "memory": None if self.judge is None else self.judge.memory.state_dict()["facts"],
            "staleness_ratio": self.staleness_ratio,
        }

    def _load(self, generation: Generation) -> None:
        facts = generation.state
        self.lineage, self.parent, self.clips = facts["lineage"], facts.get("parent"), facts["clips"]
        self.offsets = dict(generation.offsets)
        self._carried = [*facts.get("carried", ())]
        changed = self.reading.carried(facts.get("reading", {}), self.generations.state_dir)
        if changed:
            self._carried.append({"changed": changed, "row": int(max(self.catalog.kept_rows(), default=0))})
            log.warning("%d clips keep vectors that were made otherwise: %s", self.carried_clips(), changed)
        self.ledger.restore(facts["counts"])
        self.tasks = TaskLog.from_state(facts["tasks"])
        self.metrics.task_info.clear()  # tasks that a rollback left never happened
        self._show_tasks()
        self.book.load_state_dict(facts["book"])
        self.staleness_ratio = facts["staleness_ratio"]
        self.learner.load_state_dict(generation.tensors)
        self.eras.restore(facts["eras"], generation.tensors)
        if self.judge is not None:
            memory, means = facts.get("memory"), generation.tensors.get("memory", {}).get("means", torch.zeros(0, 0))
            known = self.judge.memory.load_state_dict(memory or {"frame": "", "tasks": []}, means.numpy())
            if memory and not known:
                log.warning("the encoders at the start are others than before: earlier tasks are not recognised")
        if "detector" in generation.tensors:
            self.detector.load_state_dict({k: v.numpy() for k, v in generation.tensors["detector"].items()})
