"""The loop, in one thread: evaluate, learn, index, look for a boundary, checkpoint.

One clip's way, top to bottom, is `process`. Only this thread changes model, index and catalog; what readers see is
published whole. Offsets move with the checkpoint and nowhere else, so that a crash is a rewind to the last one.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Sequence

import numpy as np
from safetensors import SafetensorError

from streamlearn import allocator, task_names
from streamlearn.drift_log import DriftLog
from streamlearn.errors import SourceError, SourceLostError, StreamlearnError
from streamlearn.examiner import Examiner
from streamlearn.feed import Feed
from streamlearn.learner import Learner
from streamlearn.ledger import Ledger
from streamlearn.mailbox import Mailbox
from streamlearn.metrics import Metrics
from streamlearn.records import Clip, Event, StepStats
from streamlearn.rollback import ResumeFrom, Rollback
from streamlearn.room import Room
from streamlearn.settings import Settings
from streamlearn.state import State
from streamlearn.tasks import Boundaries, Boundary, Relabelling
from streamlearn.waiting import Waiting
from streamlearn.watch import Watch

log = logging.getLogger(__name__)

# What a checkpoint can fail on that may be over later: dead letters that cannot be delivered, a disk that is full.
_MAY_PASS = (SourceError, OSError, sqlite3.OperationalError, SafetensorError)
_IDLE_S, _IDLE_WAIT_S = 0.25, 0.1  # of re-encoding, and for an evaluation, before the feed is asked again


class Pipeline:
    """The daemon's one writer.

    Args:
        feed: batches of events.
        learner: BMU-MoCo.
        ledger: writes what became of each record.
        boundaries: says when a task begins.
        examiner: recall and forgetting, beside the loop.
        state: checkpoints and published snapshots.
        settings: the intervals.
    """

    def __init__(
        self,
        *,
        feed: Feed,
        learner: Learner,
        ledger: Ledger,
        boundaries: Boundaries,
        examiner: Examiner,
        state: State,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.feed, self.learner, self.ledger, self.boundaries = feed, learner, ledger, boundaries
        self.examiner, self.state, self.settings, self.metrics = examiner, state, settings, metrics
        self.room = Room(settings.state_dir, settings.checkpoint.min_free_bytes)
        self._stopping = threading.Event()
        self.mailbox, self.waiting = Mailbox(feed.wake), Waiting()
        record = DriftLog(settings.state_dir) if settings.drift.log else None
        self.watch = Watch(
            boundaries, state.judge, settle=ledger.settle, log=record, metrics=metrics, detector=settings.drift.detector
        )
        self._outdated = False  # what was evaluated last is no longer what is served
        self._unwritten = False  # scores are in no checkpoint yet
        self._as_restored = False  # since a rollback nothing was changed: scores of it are not worth a generation

    def run(self) -> None:
        """Work until `stop`; an error ends learning with a sentence, and reads go on."""
        progress, self._outdated, settled, heard = self.state.progress, self.state.outdated, True, time.monotonic()
        try:
            while not self._stopping.is_set():
                settled &= not self.mailbox.posted  # it may leave something to be done
                self.mailbox.work(before=self.learn_waiting)  # whatever is asked for, it is of whole batches
                if self.feed.wants_checkpoint:
                    self.save()
                start = time.perf_counter()
                soon = self.settings.search.show_after_s if self.state.due("publish", 1) else None
                try:
                    batch = self.feed.next(soon if settled or self.feed.unfinished else 0.0)
                except SourceLostError:
                    self.settle()  # what was learned before it is kept
                    raise
                if not self.room.wait(self._stopping, self._tell_room):
                    break
                if batch or (self.waiting and not self.feed.unfinished):
                    progress.state = "learning"
                    self.metrics.stage_seconds.labels("wait").observe(time.perf_counter() - start)
                    self.process(batch or (), whole=not self.feed.unfinished)
                    heard = time.monotonic()
                elif self.mailbox.posted or self.feed.wants_checkpoint or self.feed.unfinished:
                    continue  # somebody waits for an answer; what was put off can wait
                elif self.state.due("publish", 1):
                    self.state.publish()  # of a batch that came soon after another, and nothing after it
                elif settled := self.settle(silent=time.monotonic() - heard >= self.settings.learner.max_wait_s):
                    progress.state = "idle" if batch is not None else "finished"
                    if batch is None:
                        self.mailbox.wait()
            self.finish_evaluation()
            self.save()
        except Exception as error:  # whatever it is, reads must go on and the operator must know
            log.exception("learning has stopped, searches are answered; restart to go on from the last checkpoint")
            progress.state, progress.detail = "stopped", f"{type(error).__name__}: {error}"
            self.metrics.learner_ok.set(0)
        finally:
            self.mailbox.close("learning has stopped; restart the daemon")

    def stop(self) -> None:
        """End after the current batch, with a checkpoint; returns at once."""
        self._stopping.set()
        self.mailbox.nudge()
        self.feed.interrupt()

    def process(self, batch: Sequence[Event], *, whole: bool = True) -> None:
        """One batch, from evaluation to checkpoint; or a part of one, found at once and learned with the rest."""
        self._as_restored = False
        clips = {i: event for i, event in enumerate(batch) if isinstance(event, Clip)}
        named = task_names.usable(self.state.tasks, together := [*self.waiting.clips, *batch])
        self.examiner.hurry()
        self._begin_task(named, together, whole=whole)
        idle = self.collect() and self.examiner.affordable
        if idle and self.state.due("evaluate", self.settings.evaluate.interval_clips):
            self.evaluate()  # first test, then learn
        splits = dict(zip(clips, self.ledger.splits(list(clips.values())), strict=True))
        train = {i: clip for i, clip in clips.items() if splits[i] == "train"}
        learned = train if whole else {}
        start = time.perf_counter()
        others = {i: clip for i, clip in clips.items() if i not in learned}  # held out, or learned later
        frames = [clip.frames for clip in others.values()]
        vectors = dict(zip(others, self.learner.encode_video(np.stack(frames)), strict=True)) if others else {}
        pairs = [*self.waiting.clips, *learned.values()]
        stats = self._learn(pairs) if whole else None
        self.metrics.stage_seconds.labels("learn").observe(spent := time.perf_counter() - start)
        self.examiner.earn(spent)
        if stats is not None:
            vectors |= dict(zip(learned, stats.keys_video[len(self.waiting) :], strict=True))
            self.state.eras.note_pairs(stats.keys_text, stats.keys_video, [clip.captions for clip in pairs])

        with self.metrics.stage_seconds.labels("index").time():
            tasks = {i: task_names.task_of(self.state.tasks, clip) for i, clip in clips.items()}
            learned_by = self.learner.steps + (not whole)
            changed = self.ledger.write(batch, splits, vectors, tasks=tasks, step=learned_by)
            self.state.advance(batch, len(clips))
            if not whole:
                self.waiting.add(train, self.ledger.rows)
            elif stats is not None and self.waiting:
                self.state.eras.upsert(rows := self.waiting.take(), stats.keys_video[: len(rows)])
            if changed or not whole or self.state.unseen(self.settings.search):
                self.state.publish()  # at once: a replaced clip is not in the snapshot before
            if not whole:
                return
            if stats is not None:
                self._look_for_boundary(stats, named)
            self.state.eras.snapshots.remember()
            self.state.eras.reencode()
        if self.state.due("checkpoint", self.settings.checkpoint.interval_clips) or self.ledger.full:
            self.checkpoint()

    def learn_waiting(self) -> None:
        """Learn what is found already; before a checkpoint, and before an operator changes anything."""
        if self.waiting:
            self.process(())

    def settle(self, *, silent: bool = True) -> bool:
        """Nothing is there to be learned: finish what was put off, for a moment; returns whether all is done."""
        encoded, all_done = self.state.eras.catch_up(_IDLE_S)
        self._unwritten |= encoded > 0 and not self._as_restored
        if encoded or self.state.due("publish", 1):
            self.state.publish()
        self._outdated |= encoded > 0 or self.state.due("evaluate", 1)
        if self._outdated and all_done and self.collect():
            self.evaluate(leisurely=True)
            self._outdated = False
        settled = self.collect(_IDLE_WAIT_S) and all_done and not self._outdated
        if (settled and self._unwritten) or ((settled or silent) and self.state.due("checkpoint", 1)):
            self.checkpoint()
        return settled

    def evaluate(self, *, leisurely: bool = False) -> None:
        """Have recall and forgetting measured on what is served now, within the budget or at leisure."""
        self.ledger.settle()  # or the newest held-out clips would count as clips without frames
        snapshot = self.state.publish()
        self.examiner.begin(snapshot, self.state.tasks.names(), self.state.clips, leisurely=leisurely)
        self.state.done("evaluate")

    def collect(self, wait_s: float | None = 0.0) -> bool:
        """Write down what was measured; returns whether nothing is being measured now."""
        idle, found = self.examiner.collect(wait_s)
        self._unwritten |= bool(found) and not self._as_restored
        for measured in found:
            if measured.staleness_ratio is not None:
                self.state.staleness_ratio = measured.staleness_ratio
        return idle

    def roll_back(self, number: int, resume_from: ResumeFrom) -> Rollback:
        """Go back to an older generation; from this pipeline's thread, as `State.roll_back` says."""
        self.finish_evaluation()  # it is of the time that is left, and must not be found after it
        if resume_from == "generation":
            self.feed.prepare_rewind()
        done = self.state.roll_back(number, resume_from)
        self.waiting.take()
        self.examiner.scoreboard.restart()
        self._outdated, self._unwritten, self._as_restored = True, False, True
        if resume_from == "generation":
            try:
                self.feed.rewind(self.state.offsets, self.state.memo)
            except StreamlearnError as error:  # as such it would mean that nothing was changed
                raise RuntimeError(f"rolled back to generation {number}, but nothing can be read: {error}") from error
        return done

    def finish_evaluation(self) -> None:
        """Wait for the task that is being asked, and write down what was measured."""
        self.examiner.hurry()
        self.collect(None)

    def _evaluate_at_end(self) -> None:
        """What the current task knows as it ends: forgetting is measured from there."""
        self.finish_evaluation()
        if (task := self.state.tasks.current) is not None:
            self.ledger.settle()
            self.examiner.begin_end(self.state.publish(), task.name, self.state.clips)
            self.finish_evaluation()

    def save(self) -> None:
        """Checkpoint what is new, and tell the source."""
        self.learn_waiting()
        if self.state.due("checkpoint", 1) or self._unwritten:
            self.checkpoint()
        else:
            self.feed.commit(self.state.offsets)

    def checkpoint(self) -> None:
        """Make everything so far durable; the source is told afterwards.

        While dead letters cannot be delivered, or the disk takes no more, this waits: the source is paused, and
        searches are answered. Told to stop, it gives up after one more try; the next run reads on from the one before.
        """
        progress, delay_s = self.state.progress, 1.0
        self.state.outdated = self._outdated or not self.examiner.idle
        with self.metrics.stage_seconds.labels("checkpoint").time():
            while True:
                try:
                    self.state.checkpoint()
                    break
                except _MAY_PASS as error:
                    log.error("no checkpoint, and no further learning, until this is over: %s", error)
                    progress.detail = str(error)
                if self._stopping.wait(delay_s):
                    return
                delay_s = min(2 * delay_s, 30.0)
        progress.detail, self._unwritten = None, False
        self.feed.commit(self.state.offsets)
        allocator.trim()

    def _tell_room(self, trouble: str | None) -> None:
        self.state.progress.detail = trouble
        self.metrics.learner_ok.set(trouble is None)

    def _learn(self, clips: Sequence[Clip]) -> StepStats | None:
        if not clips:
            return None
        captions, ids = [clip.captions for clip in clips], [clip.video_id for clip in clips]
        stats = self.learner.step(np.stack([clip.frames for clip in clips]), captions, ids)
        self.metrics.train_loss.set(stats.loss)
        if len(clips) > 1:  # one clip is always found among one
            self.metrics.prequential_recall_ratio.set(stats.recall)
        self.state.progress.loss = stats.loss
        return stats

    def _begin_task(self, named: Sequence[str], batch: Sequence[Event], *, whole: bool) -> None:
        """Before the batch is learned: the first task of all, or an operator's boundary."""
        explicit = task_names.announced(self.state.tasks, named, whole=whole)
        current = self.state.tasks.current
        boundary = self.boundaries.announced(explicit, current=current.name if current else None)
        if boundary is not None:
            self.start_task(boundary, batch)
        self.state.locate(batch)

    def _look_for_boundary(self, stats: StepStats, named: Sequence[str]) -> None:
        explicit = named[0] if named else None
        seen = self.watch.look(stats, explicit=explicit, task=self.state.task, clips=self.state.clips)
        self.state.progress.drift_score = seen.score
        if seen.boundary is not None:
            self.start_task(seen.boundary, ())
        elif seen.known is not None:
            self.relabel(self.state.task, seen.known, "recognised")
            self.state.publish()

    def relabel(self, old: str, new: str, how: Relabelling) -> None:
        """Give a task another name; from the pipeline's thread.

        Raises:
            TaskError: there is no such task, or the new name cannot be used so.
        """
        self.finish_evaluation()  # or it would be written down under the old name
        self.ledger.settle()
        self.state.relabel(old, new, how)
        self.examiner.scoreboard.restart()
        self._as_restored, self._outdated = False, True  # other questions, or ranks kept under the old name

    def start_task(self, boundary: Boundary, batch: Sequence[Event]) -> None:
        """Act on a boundary; from the pipeline's thread."""
        self._evaluate_at_end()
        self.state.start_task(boundary, batch)
        self._outdated = True  # another pair reads the era that ended, and its clips are encoded anew
        self.watch.began(boundary)
        self.metrics.task_boundaries_total.labels(boundary.cause).inc()
