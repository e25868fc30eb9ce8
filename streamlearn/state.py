"""What is done with all parts of a cut together: tasks begin, publish, checkpoint, restore, roll back. Not when."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from streamlearn import allocator, rollback
from streamlearn.checkpoint import Generation
from streamlearn.cut import Cut
from streamlearn.cutover import Cutover
from streamlearn.errors import StateError, StreamlearnError
from streamlearn.events import Events
from streamlearn.frames import FrameStore
from streamlearn.records import Clip, Event, Partition, Position
from streamlearn.rollback import ResumeFrom, Rollback
from streamlearn.search import Searcher, Snapshot, nested
from streamlearn.settings import SearchSettings
from streamlearn.source import DeadLetters
from streamlearn.tasks import Boundary, Relabelling

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What the loop is doing, for readers in other threads; each attribute is replaced, never changed in place."""

    state: str = "starting"
    detail: str | None = None
    loss: float | None = None
    drift_score: float | None = None
    clips_per_s: float = 0.0


@dataclass(kw_only=True, eq=False)
class State(Cut):
    """A cut that goes on, and where it is stored and served."""

    frames: FrameStore
    searcher: Searcher
    dead_letters: DeadLetters
    events: Events
    cutover: Cutover = field(default_factory=Cutover, init=False)
    progress: Progress = field(default_factory=Progress, init=False)
    _events: int = field(default=0, init=False)
    _done: dict[str, int] = field(default_factory=dict, init=False)
    _published: tuple[float, float] = field(default=(0.0, 0.0), init=False)  # when the last was, how long it took
    _rate: tuple[float, int] = field(default_factory=lambda: (time.monotonic(), 0), init=False)

    def due(self, what: str, interval: int) -> bool:
        """Whether `interval` events have passed since `done(what)`."""
        return self._events - self._done.get(what, 0) >= interval

    def done(self, what: str) -> None:
        """Start counting anew."""
        self._done[what] = self._events

    def unseen(self, settings: SearchSettings) -> bool:
        """Whether so many clips, or so long a time, have passed since the last publication that another is due."""
        late = time.monotonic() - self._published[0] >= max(2 * settings.show_after_s, 20 * self._published[1])  # 5 %
        return self.due("publish", 1 if late else settings.publish_interval_clips)

    def advance(self, batch: Sequence[Event], clips: int) -> None:
        """A batch was learned and written: move the offsets past it."""
        for event in batch:
            topic, name, offset = event.position
            partition = Partition(topic, name)
            self.began[partition] = min(offset, self.began.get(partition, offset))  # of a new log: earlier
            self.offsets[partition] = offset + 1
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
                # A name that others have too, for want of free ones, is not to be recognised later on.
                shared = any(task.name == other.name for other in self.tasks.tasks[:-1])
                self.judge.begin(replace(boundary, name=task.name) if shared else boundary, self.learner.steps)
            self.eras.start(task.name, since_step)
            self.learner.start_task()
            self.book.close_task(before.name)
        self._tell_boundary(batch)
        self.book.open_task(task.name)
        self.show_tasks()

    def locate(self, batch: Sequence[Event]) -> None:
        """Note the first clip of a task that was begun between two batches, and tell of the task."""
        task, first = self.tasks.current, next((event for event in batch if isinstance(event, Clip)), None)
        if task is not None and task.first_clip is None and first is not None:
            self.tasks.locate(first.position, first.video_id)
            self._tell_task()

    def relabel(self, old: str, new: str, how: Relabelling) -> None:
        """Give a task another name, everywhere but in the scores of the past: log, clips, eras, memory, book.

        Raises:
            TaskError: there is no such task, or the new name cannot be used so.
        """
        new = self.tasks.rename(old, new, merge=how != "renamed")
        with self.catalog.transaction():
            self.catalog.rename_task(old, new)  # not by era: one may hold clips of others that it took in
            self.catalog.forget_ranks(old)
        for era in self.eras.eras:
            era.rename(old, new)
        if how == "renamed":
            self.book.rename(old, new)
        elif how == "merged":
            self.book.merge(old, new)
        else:
            self.book.drop_task(old)
        self.book.open_task(self.task)  # a past task that the current one is part of is current again
        if self.judge is not None:
            self.judge.rename(old, new)
        self.metrics.task_info.remove(old)
        self.show_tasks()
        log.info("task %s is now %s%s", old, "" if how == "renamed" else "part of ", new)

    def _tell_boundary(self, batch: Sequence[Event]) -> None:
        """With all that the detector said, and the first clip of the task, where that has come."""
        task = self.tasks.current
        assert task is not None
        rows = self.eras.current.partition.view().rows
        first = next((event for event in batch if isinstance(event, Clip)), None)
        if first is not None:
            task = self.tasks.locate(first.position, first.video_id)
        elif len(rows) and (clip := self.catalog.clips([int(rows.min())]).get(int(rows.min()))) is not None:
            task = self.tasks.locate(Position(clip.topic, clip.partition, clip.offset), clip.video_id)
        known = [
            f"{says} {value:.2f}"
            for says, value in (("score", task.score), ("above", task.threshold), ("shift", task.shift))
            if value is not None
        ]
        if task.onset_steps_ago:
            known.append(f"{task.onset_steps_ago} steps ago")
        known.append(f"first clip {task.first_clip} at {task.position}" if task.first_clip else "from the next clip on")
        log.info(
            "task %s %s: %s, %s", task.name, "returns" if self._returns else "begins", task.cause, ", ".join(known)
        )
        if task.first_clip is not None:
            self._tell_task()

    @property
    def _returns(self) -> bool:
        return any(task.name == self.task for task in self.tasks.tasks[:-1])

    def _tell_task(self) -> None:
        """Once its first clip is known, which others read the stream from."""
        task = self.tasks.tasks[-1]
        self.events.task_started(task, returns=self._returns, model_version=self.model_version)

    def publish(self) -> Snapshot:
        """Serve everything up to now."""
        start = time.monotonic()
        self._serve(snapshot := self._snapshot())
        self._published = (now := time.monotonic()), now - start
        return snapshot

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            stale=self.eras.stale,  # it looks at partitions, too: before the views that are served
            eras=self.eras.views(),
            generation=self.catalog.generation - 1,
            step=self.learner.steps,
            model_version=self.model_version,
            offsets=dict(self.offsets),
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            staleness_ratio=self.staleness_ratio,
        )

    def _serve(self, snapshot: Snapshot) -> None:
        self.searcher.publish(snapshot)
        m = self.metrics
        m.index_clips.set(len(snapshot))
        m.index_stale_clips.set(self.eras.stale)
        m.index_oldest_vector_age_steps.set(self.eras.oldest_age_steps())
        if self.staleness_ratio is not None:
            m.index_staleness_ratio.set(self.staleness_ratio)
        self.done("publish")

    def checkpoint(self) -> None:
        """Write and publish a generation.

        Raises:
            SourceError: dead letters are not durable; the offsets must not move past them.
        """
        self.ledger.settle()
        self.dead_letters.flush()
        number, served = self.catalog.generation, self._snapshot()  # first: it takes what was compacted
        if self.generations.current() != number:  # else: published, but then the disk was full
            self.generations.write(Generation(number, self.offsets, self.facts(), self.tensors(), self.eras.sealed()))
            self.catalog.sync()
            self.generations.publish(number)  # the commit point
        self.catalog.begin(number + 1)
        self.frames.delete(self.catalog.prune(self.generations.prune()))
        self.done("checkpoint")
        self.metrics.index_carried_clips.set(self.carried_clips())
        self._serve(replace(served, generation=number))  # what going back to this generation will answer
        self.metrics.generation.set(number)
        self.metrics.checkpoint_last_success_timestamp_seconds.set_to_current_time()
        log.info("wrote generation %d: step %d, %d clips", number, self.learner.steps, self.clips)
        self._announce(number)

    def restore(self) -> None:
        """Go back to the newest generation that verifies, or begin.

        Raises:
            StateError: none verifies, or it is of another model, preprocessing or lineage.
        """
        generation = self.generations.newest_good()
        self.metrics.generations_rejected_total.inc(self.generations.rejected)
        number = 0 if generation is None else generation.number
        if generation is not None:
            if self.generations.rejected:
                generation = replace(generation, offsets=rollback.read_on(self.generations, generation))
            self.check(generation)
        if number not in (0, self.generations.current()):
            self.generations.publish(number)
        self.generations.drop_unpublished()
        if generation is None:
            self.frames.delete(self.catalog.rewind(0, lineage=self.lineage))
            self.publish()
        else:
            try:
                self._adopt(generation)
            except (LookupError, TypeError, ValueError) as error:
                raise StateError(f"generation {number} lacks what this version needs: {error!r}") from error
            written = datetime.fromisoformat(generation.created).timestamp()
            self.metrics.checkpoint_last_success_timestamp_seconds.set(written)
            log.info("restored generation %d: step %d, %d clips", number, self.learner.steps, self.clips)
            # A crash may have kept it from being said, and a rollback without a daemon says nothing.
            if (done := rollback.told_by(generation)) is not None:
                self.events.rollback_done(done, model_version=self.model_version, time=generation.created)
            self._announce(number, generation.created)
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
            self.generations, self.catalog, number, resume_from,
            offsets=self.offsets, began=self.began, memo=self.kept(), clips=self.clips,
        )  # fmt: skip
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
        self.events.rollback_done(done, model_version=self.model_version)
        return done

    def _announce(self, generation: int, created: str | None = None) -> None:
        task = self.tasks.current
        self.events.checkpoint_published(
            {
                "generation": generation,
                "model_version": self.model_version,
                "step": self.learner.steps,
                "clips": self.clips,
                "task": None if task is None else task.name,
                "searchable": 0 if self.searcher.snapshot is None else len(self.searcher.snapshot),
                "offsets": nested(self.offsets),
            },
            time=created,
        )

    def _adopt(self, generation: Generation) -> None:
        """Make a generation the present, in memory and in the catalog, and serve it: for readers, at one moment."""
        with self.catalog.quick_commits(), ExitStack() as change:
            with self.catalog.transaction():
                gone = rollback.rewind(self.catalog, generation)
                self.load(generation)
                snapshot = self._snapshot()
                change.enter_context(self.cutover.changing())
            self._serve(snapshot)
        self.frames.delete(gone)
        allocator.trim()  # readers of what was served before take milliseconds
