"""The parts that one generation holds, and how they become its manifest and tensors, and come back.

Knows what is in a cut, not when one is made or what readers see meanwhile.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from streamlearn import rollback
from streamlearn.catalog import Catalog
from streamlearn.checkpoint import Generation, Generations
from streamlearn.detector import Detector
from streamlearn.eras import Eras
from streamlearn.errors import StateError
from streamlearn.judge import Judge
from streamlearn.learner import Learner
from streamlearn.ledger import Ledger
from streamlearn.lineage import Reading
from streamlearn.metrics import Metrics
from streamlearn.records import Offsets, Partition
from streamlearn.score_book import ScoreBook
from streamlearn.tasks import TaskLog

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class Cut:
    """The parts that are cut together.

    Attributes:
        offsets: the next to read, per partition, after everything that was processed.
        clips: clips processed since the stream began, the time axis of scores and tasks.
        parent: lineage and generation that a rollback went back to.
        remember: what the source wants kept beside offsets.
        memo: what it had kept beside those that were loaded.
    """

    learner: Learner
    eras: Eras
    ledger: Ledger
    detector: Detector
    judge: Judge | None
    book: ScoreBook
    catalog: Catalog
    generations: Generations
    metrics: Metrics
    reading: Reading
    remember: Callable[[Offsets], Any]
    tasks: TaskLog = field(default_factory=TaskLog, init=False)
    offsets: dict[Partition, int] = field(default_factory=dict, init=False)
    began: dict[Partition, int] = field(default_factory=dict, init=False)  # the least that was read of each
    memo: Any = field(default=None, init=False)
    clips: int = field(default=0, init=False)
    staleness_ratio: float | None = field(default=None, init=False)
    outdated: bool = field(default=False, init=False)  # what was measured last is not of what is served
    lineage: str = field(default_factory=lambda: uuid4().hex, init=False)
    parent: dict[str, Any] | None = field(default=None, init=False)
    #: What was changed since, and the last row from before it.
    _carried: list[dict[str, Any]] = field(default_factory=list, init=False)

    @property
    def task(self) -> str:
        """The current task's name; only once there is one."""
        assert self.tasks.current is not None
        return self.tasks.current.name

    @property
    def model_version(self) -> str:
        """Fingerprint, lineage and step: vectors of equal fingerprint and lineage may meet."""
        fingerprint = self.reading.fingerprint(self.learner.online.fingerprint)
        return f"{fingerprint[:8]}-{self.lineage[:8]}-{self.learner.steps}"

    def carried_clips(self) -> int:
        """Clips whose vectors were made with other settings of media, knowingly."""
        return self.catalog.count(int(self._carried[-1]["row"])) if self._carried else 0

    def show_tasks(self) -> None:
        """On the gauge of tasks, which is the current one."""
        for name in self.tasks.names():
            self.metrics.task_info.labels(name).set(name == self.task)

    def check(self, generation: Generation) -> None:
        """Whether the generation can be ours.

        Raises:
            StateError: it is of another model, served copy or preprocessing.
        """
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

    def kept(self) -> Any:
        """The source's memo of the offsets; of one that has none, what another one had left for its own."""
        memo = self.remember(self.offsets)
        return self.memo if memo is None else memo

    def facts(self) -> dict[str, Any]:
        """What the manifest says, as JSON can."""
        return {
            "lineage": self.lineage,
            "parent": self.parent,
            "fingerprint": self.learner.online.fingerprint,
            "model": self._model(),
            "reading": self.reading.facts(),
            "carried": self._carried,
            "learner": self.learner.describe(),
            "clips": self.clips,
            "began": [[*partition, offset] for partition, offset in self.began.items()],
            "memo": self.kept(),
            "counts": dict(self.ledger.counts),
            "tasks": self.tasks.state_dict(),
            "eras": self.eras.state(),
            "book": self.book.state_dict(),
            "detector": self.detector.kind,
            "memory": None if self.judge is None else self.judge.state_dict()["facts"],
            "staleness_ratio": self.staleness_ratio,
            "outdated": self.outdated,
        }

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What moves, by part."""
        tensors = self.learner.state_dict() | self.eras.tensors()
        tensors["detector"] = {name: torch.from_numpy(np.array(a)) for name, a in self.detector.state_dict().items()}
        if self.judge is not None:
            known = self.judge.state_dict()
            tensors["memory"] = {name: torch.from_numpy(known[name]) for name in ("means", "direction")}
        return tensors

    def load(self, generation: Generation) -> None:
        """Inverse of `facts` and `tensors`, with the catalog already at this cut."""
        facts = generation.state
        self.lineage, self.parent, self.clips = facts["lineage"], facts.get("parent"), facts["clips"]
        self.offsets = dict(generation.offsets)
        self.began = self.offsets | rollback.beginnings(facts)
        self.memo = facts.get("memo")
        self._carried = [*facts.get("carried", ())]
        changed = self.reading.carried(facts.get("reading", {}), self.generations.state_dir)
        if changed:
            self._carried.append({"changed": changed, "row": int(max(self.catalog.kept_rows(), default=0))})
            log.warning("%d clips keep vectors that were made otherwise: %s", self.carried_clips(), changed)
        self.ledger.restore(facts["counts"])
        self.tasks = TaskLog.from_state(facts["tasks"])
        self.metrics.task_info.clear()  # tasks that a rollback left never happened
        self.show_tasks()
        self.book.load_state_dict(facts["book"])
        self.staleness_ratio, self.outdated = facts["staleness_ratio"], facts.get("outdated", False)
        self.learner.load_state_dict(generation.tensors)
        self.eras.restore(facts["eras"], generation.tensors)
        if self.judge is not None:
            memory, arrays = facts.get("memory"), generation.tensors.get("memory", {})
            known = self.judge.load_state_dict(
                memory or {"frame": "", "tasks": []},
                arrays.get("means", torch.zeros(0, 0)).numpy(),
                arrays.get("direction", torch.zeros(0)).numpy(),
            )
            if memory and not known:
                log.warning("the encoders at the start are others than before: earlier tasks are not recognised")
        before = facts.get("detector", self.detector.kind)  # of some older generations it is not said
        try:
            if before != self.detector.kind:
                raise KeyError(before)
            self.detector.load_state_dict({k: v.numpy() for k, v in generation.tensors.get("detector", {}).items()})
        except KeyError:
            self.detector.restart()  # after a rollback it knows a time that was undone
            log.warning("the detector of drift was %s and is %s: it begins anew", before, self.detector.kind)
