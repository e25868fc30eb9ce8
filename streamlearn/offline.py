"""Evaluates a state directory without a daemon: the last checkpoint is restored, every task is measured anew.

The directory stays as it is, but for what a daemon's start would clear away too: the catalog is read from a copy.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from streamlearn.catalog import Catalog
from streamlearn.catalog_rows import TaskRanks
from streamlearn.checkpoint import Generation, Generations
from streamlearn.eras import Eras
from streamlearn.errors import StateError
from streamlearn.evaluation_report import report
from streamlearn.evaluator import Evaluator, Measured
from streamlearn.frames import FrameStore
from streamlearn.generation_facts import retention
from streamlearn.index import configure_faiss
from streamlearn.learner import Learner
from streamlearn.metrics import Metrics
from streamlearn.rollback import rewind
from streamlearn.score_book import ScoreBook
from streamlearn.scoreboard import Scoreboard
from streamlearn.search import Searcher, Snapshot
from streamlearn.settings import Settings
from streamlearn.tasks import TaskLog
from streamlearn.warmup import build_towers, device_of


@dataclass(frozen=True)
class Offline:
    """A restored checkpoint, for reading.

    Attributes:
        recorded: the ranks that the daemon wrote down at its last evaluations.
        snapshot: what the checkpoint serves.
    """

    catalog: Catalog
    frames: FrameStore
    book: ScoreBook
    tasks: TaskLog
    recorded: tuple[TaskRanks, ...]
    generation: int
    snapshot: Snapshot
    _evaluator: Evaluator
    _metrics: Metrics
    _clips: int
    _outdated: bool

    def measure(self) -> list[Measured]:
        """Every task that has enough held-out pairs, on what the checkpoint serves."""
        found = [self._evaluator.measure(self.snapshot, name, self._clips) for name in self.tasks.names()]
        return [one for one in found if one is not None]

    def report(self, measured: list[Measured]) -> dict[str, Any]:
        """As a daemon's, of these values, and how they compare with what the daemon recorded.

        Returns:
            Beside the rest, `generation`, and `clips` processed by then; `differences`, of those of the same time;
            `not_comparable`, by task and the clip that it was `recorded_at`: an earlier one, or None for never.
        """
        differences, earlier = self.differences(measured), self.not_comparable(measured)
        Scoreboard(self.book, self.catalog, self._metrics).record(measured)  # in the copy
        found = report(self.catalog, self.book, self.tasks.tasks)
        of_checkpoint = {
            "generation": self.generation,
            "clips": self._clips,
            "differences": differences,
            "not_comparable": [{"task": task, "recorded_at": at} for task, at in earlier.items()],
        }
        return {**found, **of_checkpoint}

    def differences(self, measured: list[Measured]) -> list[str]:
        """Tasks, directions and views whose ranks are not those recorded at the same time, clip by clip.

        The view "single", which older versions did not record, cannot differ then.
        """
        known = {(of.task, of.direction, of.view): dict(zip(of.rows, of.ranks, strict=True)) for of in self.recorded}
        earlier = self.not_comparable(measured)
        out = []
        for one in measured:
            for (direction, view), ranks in one.ranks.items():
                now = dict(zip((clip.row for clip in one.clips), ranks.tolist(), strict=True))
                recorded = known.get((one.task, direction, view), now if view == "single" else None)
                if one.task not in earlier and recorded != now:
                    out.append(f"{one.task} {direction} {view}")
        return out

    def not_comparable(self, measured: list[Measured]) -> dict[str, int | None]:
        """Tasks that the daemon last asked before what the checkpoint serves, with the clips seen then; None: never."""
        recorded = {of.task: of.clips_seen for of in self.recorded}
        return {one.task: at for one in measured if (at := recorded.get(one.task)) != self._clips or self._outdated}


@contextmanager
def opened(settings: Settings) -> Iterator[Offline]:
    """Restore the newest good checkpoint of `state_dir`, which no daemon may be using.

    Raises:
        StateError: there is none, or it is of another model than the settings name.
    """
    with ExitStack() as stack:
        generations = Generations(settings.state_dir, retention(settings.checkpoint))
        generation = generations.newest_good()
        if generation is None:
            raise StateError(f"{settings.state_dir}: there is no checkpoint here; name another --state-dir")
        torch.set_num_threads(settings.model.threads or torch.get_num_threads())
        configure_faiss()
        learner = _learner(settings, generation)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamlearn-eval-")))
        catalog = stack.enter_context(closing(_copy(settings.state_dir / "catalog.db", work / "catalog.db")))
        rewind(catalog, generation)
        frames = stack.enter_context(
            closing(
                FrameStore(
                    settings.state_dir / "frames", settings.media.store_max_bytes, settings.media.recent_max_bytes
                )
            )
        )
        metrics = Metrics.create(CollectorRegistry())
        device_of(settings.search.index_device, "search.index_device")
        eras = Eras(learner, catalog, frames, settings.search)
        eras.restore(generation.state["eras"], generation.tensors)
        searcher = Searcher(catalog, frames, settings.search, metrics)
        book = ScoreBook()
        book.load_state_dict(generation.state["book"])
        snapshot = Snapshot(
            eras=eras.views(),
            generation=generation.number,
            step=learner.steps,
            model_version=learner.online.fingerprint,
            offsets=generation.offsets,
            time=generation.created,
            stale=eras.stale,
            staleness_ratio=None,
        )
        yield Offline(
            catalog=catalog,
            frames=frames,
            book=book,
            tasks=TaskLog.from_state(generation.state["tasks"]),
            recorded=tuple(catalog.matrix.ranks()),
            generation=generation.number,
            _evaluator=Evaluator(catalog, frames, searcher, settings.evaluate),
            snapshot=snapshot,
            _metrics=metrics,
            _clips=generation.state["clips"],
            _outdated=generation.state.get("outdated", False),
        )


def _learner(settings: Settings, generation: Generation) -> Learner:
    towers = build_towers(settings.model, settings.learner.seed)
    if generation.state["fingerprint"] != towers.fingerprint:
        raise StateError(
            f"{settings.state_dir} was written with the model {generation.state['model']}, and the settings name"
            f" {towers.names}: give the daemon's own, with --config or --set"
        )
    learner = Learner(towers, settings.learner, device_of(settings.model.device))
    learner.load_state_dict(generation.tensors)
    return learner


def _copy(path: Path, to: Path) -> Catalog:
    if not path.exists():
        raise StateError(f"{path}: the catalog is missing; restore it beside its generations")
    with (
        closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(to)) as target,
    ):
        source.backup(target)
    return Catalog(to)
