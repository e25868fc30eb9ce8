"""One trial: one method learns one stream once, and is asked at the end of each task.

What is learned from, in which order and in which batches depends on the trial's seed and order alone, never on the
method. Everything a trial finds is a plain dictionary for JSON.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamlearn.bench.corpus import Corpus, open_corpus
from streamlearn.bench.curve import Curve
from streamlearn.bench.gallery import DIRECTIONS, KS, ask_copy, caption_search, mean_recalls
from streamlearn.bench.methods import learner_settings, method_of
from streamlearn.bench.remembered import remember_captions
from streamlearn.bench.revisits import revisits
from streamlearn.bench.schedule import IID, announced, make_schedule
from streamlearn.bench.sealed import SealedEras
from streamlearn.encoders import Towers
from streamlearn.learner import Learner
from streamlearn.score_book import ScoreBook
from streamlearn.settings import DriftSettings, ModelSettings, SearchSettings
from streamlearn.tasks import Boundaries, Boundary
from streamlearn.tune import mean_shift
from streamlearn.warmup import build_towers, device_of

#: The copies of the encoders that a method may have; "local" is the one that is served.
COPIES = ("local", "online", "global")
SERVED = "local"


@dataclass(frozen=True)
class Spec:
    """What decides a trial's outcome.

    Attributes:
        corpus: folder of the clips.
        method: as `method_of` reads it.
        learning_rate: nominal; a speed-matched control slows it down.
        seed: of the order of clips, and of everything else that is random.
        order, boundaries, mixing_clips, passes: of the stream, as in `streamlearn.bench.schedule`.
        asked_per_task: how often the tasks so far are asked in the course of each.
        eras: whether eras are sealed and searched at the end.
        learner, model, drift, search: settings that all methods share, by their names.
    """

    corpus: str
    method: str
    learning_rate: float
    seed: int
    order: str = "forward"
    boundaries: str = "detector"
    mixing_clips: int = 0
    passes: int = 1
    asked_per_task: int = 2
    eras: bool = True
    learner: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names this trial; a corpus counts by its folder's name, which says what is in it."""
        facts = asdict(self) | {"corpus": Path(self.corpus).name}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def run_trial(spec: Spec) -> dict[str, Any]:
    """Learn and measure; see `Trial.result` for what comes back."""
    return Trial(spec).run()


class Trial:
    """The state of one trial; `run` it once."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.corpus: Corpus = open_corpus(Path(spec.corpus))
        self.method = method_of(spec.method)
        self.settings = learner_settings(self.method, spec.learner, spec.learning_rate, spec.seed)
        self.schedule = make_schedule(
            self.corpus, order=spec.order, seed=spec.seed, mixing_clips=spec.mixing_clips, passes=spec.passes
        )
        self._device = device_of(spec.model.get("device", "cpu"))
        # All of it is there before it is remembered: what copies share moves with them, a trunk's buffers do not.
        self._warm = build_towers(ModelSettings(**spec.model), spec.seed).to(self._device)
        remember_captions(self._warm)
        self.learner = self._fresh()
        # The frozen judge looks at stored clips, of which a trial has none.
        self.boundaries = Boundaries(mean_shift(DriftSettings(**{"frozen_judge": False} | spec.drift)))
        self.eras = SealedEras(self.corpus, self.schedule.place, SearchSettings(**spec.search))
        self.book = ScoreBook()
        self.course: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []  # boundaries
        self._clips_at = [0]  # learned after each step
        self._era_step = 0  # where the current era begins
        self._learn_s = 0.0

    def _fresh(self) -> Learner:
        return Learner(self._copy(self._warm), self.settings, self._device)

    @staticmethod
    def _copy(towers: Towers) -> Towers:
        copy = towers.frozen_copy()
        for parameter in copy.moving:
            parameter.requires_grad_(True)
        return copy

    @property
    def steps(self) -> int:
        """Learned so far; the learner's own count starts again with restarted weights."""
        return len(self._clips_at) - 1

    @property
    def clips(self) -> int:
        """Learned so far."""
        return self._clips_at[-1]

    def run(self) -> dict[str, Any]:
        """Learn the stream, and say what came of it."""
        cuts = announced(self.schedule, self.spec.boundaries, self.settings.batch_size)
        due = self._questions_due()
        for rows in self.schedule.batches(self.settings.batch_size, cuts):
            if self.clips in cuts:
                self._boundary(Boundary("operator"))
            keys = self._learn(rows)
            while due and due[0][0] <= self.clips:
                self._ask(*due.pop(0))
            if self.spec.boundaries == "detector" and (boundary := self.boundaries.update(keys)) is not None:
                self._boundary(boundary)
            self.eras.remember(self.learner, self.steps, self.clips)
        return self.result()

    def _learn(self, rows: np.ndarray) -> np.ndarray:
        frames = np.ascontiguousarray(self.corpus.frames[rows])
        captions, ids = [self.corpus.captions[row] for row in rows], [self.corpus.ids[row] for row in rows]
        began = time.process_time()
        stats = self.learner.step(frames, captions, ids)
        self._learn_s += time.process_time() - began
        self._clips_at.append(self.clips + len(rows))
        return np.concatenate([stats.keys_video, stats.keys_text], axis=1)  # (n, 2 d)

    def _boundary(self, boundary: Boundary) -> None:
        """As `streamlearn.state.State.start_task`."""
        since_step = max(self.steps - boundary.onset_steps_ago, self._era_step)
        self.found.append({"clips": self._clips_at[since_step], "noticed": self.clips, "score": boundary.score})
        if self.spec.eras:
            known = boundary.onset_steps_ago == 0
            self.eras.seal(
                self.learner, end=self._clips_at[since_step], since_step=None if known else since_step
            )  # fmt: skip
        self._era_step = since_step
        if self.method.restarts:
            self.learner = self._fresh()
        else:
            self.learner.start_task()

    def _questions_due(self) -> list[tuple[int, int, bool]]:
        """Clips after which to ask, the tasks begun by then, and whether one ends there; without the stream's end."""
        starts, total = self.schedule.starts, len(self.schedule.rows)
        parts = self.spec.asked_per_task if self.spec.order != IID else 2 * self.spec.asked_per_task
        due = []
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], total], strict=True), 1):
            for part in range(1, parts + 1):
                at = start + (end - start) * part // parts
                if at < total:
                    due.append((at, number, part == parts))
        return due

    def copies(self) -> dict[str, Towers]:
        """The copies that this method has."""
        return {name: self.learner.copies[name] for name in COPIES if name in self.learner.copies}

    def _domains(self, tasks: int) -> list[int]:
        if self.spec.order == IID:
            return list(range(len(self.corpus.domains)))
        return list(dict.fromkeys(self.schedule.tasks[:tasks]))

    def _reopen(self, tasks: int) -> None:
        """A domain that came back is learned again, and is current."""
        *before, now = self.schedule.tasks[:tasks]
        if now in before:
            self.book.open_task(self.corpus.domains[now])

    def _ask(self, _: int, tasks: int, ends: bool) -> None:
        domains = self._domains(tasks)
        self._reopen(tasks)
        self._record(SERVED, ask_copy(self.copies()[SERVED], self.corpus, domains))
        if ends:  # the others only where the definitions need them: what was learned, and the end
            name = self.corpus.domains[self.schedule.tasks[tasks - 1]]
            for copy, towers in self.copies().items():
                if copy != SERVED:
                    self._record(copy, ask_copy(towers, self.corpus, [self.schedule.tasks[tasks - 1]]))
            self.book.close_task(name)

    def _record(self, copy: str, found: dict[str, Any]) -> None:
        recall = {}
        for domain, by_direction in found.items():
            if domain == "pooled":
                continue
            for direction in DIRECTIONS:
                for k in KS:
                    self.book.record(domain, direction, k, copy, by_direction[direction][str(k)] / 100)
            recall[domain] = mean_recalls(by_direction)
        self.course.append({"clips": self.clips, "copy": copy, "recall": recall})

    def result(self) -> dict[str, Any]:
        """What came of it: recall in percent, forgetting as a share.

        "copies": by copy "final" and "learned" (means over tasks, directions), "forgetting", "bwt", "harmonic",
        "minimum", by k; "tasks" and "pooled" by direction. "served": the curve over era encoders. "revisits": of
        domains that come back. "course": recall of the tasks so far over time. "boundaries": what was
        found. "pairs_per_s" of processor time, and "state_bytes": the memory of weights, copies, moments and
        queues.
        """
        copies, domains = {}, self._domains(len(self.schedule.tasks))
        self._reopen(len(self.schedule.tasks))
        for copy, towers in self.copies().items():
            asked = ask_copy(towers, self.corpus, domains, pooled=True)
            self._record(copy, asked)
            pooled = asked.pop("pooled")
            copies[copy] = {"tasks": asked, "pooled": pooled} | self._continual(copy)
        served: dict[str, Any] = {}
        returns: list[dict[str, Any]] = []
        if self.spec.eras:
            self.eras.seal(self.learner, end=len(self.schedule.rows), since_step=None)
            curve = Curve(self.corpus, self.eras.eras, SearchSettings(**self.spec.search))
            served = curve.measured(self.spec.seed)
            returns = revisits(curve, self.corpus, self.schedule)
        return {
            "copies": copies,
            "served": served,
            "revisits": returns,
            "captions": caption_search(self.corpus, self.spec.seed),
            "sealed_with": [era.chosen for era in self.eras.eras],
            "course": self.course,
            "starts": self.schedule.starts,
            "boundaries": self.found,
            "learning_rate": self.settings.learning_rate,
            "pairs": self.clips,
            "pairs_per_s": self.clips / self._learn_s,
            "state_bytes": sum(t.nbytes for part in self.learner.state_dict().values() for t in part.values()),
        }

    def _continual(self, copy: str) -> dict[str, dict[str, float]]:
        """By measure and k; means over both directions."""
        names = [self.corpus.domains[d] for d in self._domains(len(self.schedule.tasks))]
        last = self.corpus.domains[self.schedule.tasks[-1]]
        past = [name for name in names if name != last] if self.spec.order != IID else []
        mine = [entry["recall"] for entry in self.course if entry["copy"] == copy]
        out: dict[str, dict[str, float]] = {}
        for k in map(str, KS):
            final = [mine[-1][name][k] for name in names]
            out.setdefault("final", {})[k] = float(np.mean(final))
            for measure, ask in (
                ("bwt", self.book.backward_transfer),
                ("harmonic", self.book.harmonic_mean),
                ("minimum", self.book.anytime_minimum),
            ):
                values = [v for d in DIRECTIONS if (v := ask(d, int(k), copy)) is not None]
                if values:
                    out.setdefault(measure, {})[k] = 100 * float(np.mean(values))
            lost = [self.book.forgetting(name, d, int(k), copy) for name in past for d in DIRECTIONS]
            if past:
                out.setdefault("forgetting", {})[k] = 100 * float(np.mean([v for v in lost if v is not None]))
                out.setdefault("learned", {})[k] = out["final"][k] - out["bwt"][k] * len(past) / len(names)
        return out
