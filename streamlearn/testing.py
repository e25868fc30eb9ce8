"""Public fakes: small real implementations of the protocols, for the tests of those who build on them."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from streamlearn.errors import SearchError
from streamlearn.records import Offsets, Partition, Record
from streamlearn.schemas import SearchAnswer, SearchRequest, SearchResult, thumbnail_url
from streamlearn.source import EndOfStream
from streamlearn.testing_evaluation import fake_evaluation, fake_scores

_COLOURS = {"red": "#d8453e", "blue": "#3d6fd6", "green": "#3a9a5b", "yellow": "#e3b23c", "purple": "#8a52c7"}
_SHAPES = ("ball", "square", "triangle")
_GROUNDS = ("sand", "grass", "snow", "water")


class ListSource:
    """A source that delivers a list, one partition or many, and then ends or waits for more.

    Attributes:
        committed: the offsets of the last `commit`.
        paused: between `pause` and `resume`.
    """

    def __init__(self, records: Iterable[Record] = (), *, ends: bool = True, batch: int = 16) -> None:
        self._records = list(records)
        self._ends, self._batch = ends, batch
        self._changed = threading.Condition()
        self._next = 0
        self._offsets: Offsets = {}
        self._closed = False
        self.committed: Offsets = {}
        self.paused = False

    @classmethod
    def from_settings(cls, settings: Any) -> ListSource:
        """An empty one."""
        return cls()

    def add(self, *records: Record, end: bool = False) -> None:
        """Let more arrive, from any thread; `end` says that they are the last."""
        with self._changed:
            self._records += records
            self._ends |= end
            self._changed.notify_all()

    def start(self, offsets: Offsets) -> None:
        """Deliver from here; what comes before is passed over."""
        self._offsets = offsets

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """The next few."""
        with self._changed:
            if (self.paused or self._next == len(self._records)) and not self._over():
                self._changed.wait(timeout_s)
            if self._over():
                raise EndOfStream
            if self.paused:
                return ()
            chosen = self._records[self._next : self._next + self._batch]
            self._next += len(chosen)
        return [r for r in chosen if r.position.offset >= self._offsets.get(Partition(*r.position[:2]), 0)]

    def pause(self) -> None:
        """Deliver nothing."""
        self.paused = True

    def resume(self) -> None:
        """Deliver again."""
        with self._changed:
            self.paused = False
            self._changed.notify_all()

    def commit(self, offsets: Offsets) -> None:
        """Remember them."""
        self.committed = dict(offsets)

    def lag(self) -> Mapping[Partition, int]:
        """What is left."""
        return {Partition("list", "0"): len(self._records) - self._next}

    def close(self) -> None:
        """End."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _over(self) -> bool:
        return self._closed or (self._ends and self._next == len(self._records))


@dataclass(frozen=True, slots=True)
class FakeClip:
    """One clip of a `FakeService`."""

    video_id: str
    caption: str
    task: str = "t1"


@dataclass
class FakeService:
    """An `api.Service` that finds by words shared with the caption.

    Attributes:
        clips: what is indexed.
        is_ready: what `ready` says.
        failure: raised by every search while set.
        requests: every search so far.
        gate: searches wait here; cleared, it holds them.
        entered: released once for every search that arrives at the gate.
    """

    clips: Sequence[FakeClip] = ()
    is_ready: bool = True
    failure: Exception | None = None
    requests: list[SearchRequest] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.gate.set()

    def search(self, request: SearchRequest) -> SearchAnswer:
        """Rank all clips."""
        started_s = time.perf_counter()
        self.requests.append(request)
        self.entered.release()
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        words = set((request.query.text or self._caption_of(request.query.video_id)).lower().split())
        scores = [len(words & set(c.caption.lower().split())) / max(1, len(set(c.caption.split()))) for c in self.clips]
        wanted = request.filter.get("task")
        order = [
            i
            for i in sorted(range(len(scores)), key=lambda i: -scores[i])
            if wanted is None or self.clips[i].task in wanted
        ]
        return SearchAnswer(
            results=[
                SearchResult(
                    rank=rank,
                    score=0.1 + 0.8 * scores[i],
                    video_id=self.clips[i].video_id,
                    captions=[self.clips[i].caption],
                    task=self.clips[i].task,
                    thumbnail_url=thumbnail_url(self.clips[i].video_id),
                    embedded_at_step=10 * i,
                    vector=[1.0, 0.0] if "vector" in request.include else None,
                )
                for rank, i in enumerate(order[: request.limit], start=1)
            ],
            model_version="fake-1",
            generation=3,
            took_ms=1e3 * (time.perf_counter() - started_s),
        )

    def clip(self, video_id: str) -> dict[str, Any] | None:
        """What the clip was made from."""
        clip = self._find(video_id)
        return None if clip is None else {"video_id": clip.video_id, "captions": [clip.caption], "task": clip.task}

    def thumbnail(self, video_id: str) -> bytes | None:
        """A small film of what the caption says."""
        clip = self._find(video_id)
        return None if clip is None else shape_film(clip.caption)

    def tasks(self) -> list[dict[str, Any]]:
        """One task for each name among the clips."""
        names = sorted({clip.task for clip in self.clips})
        return [
            {
                "name": name,
                "cause": "drift" if i else "start",
                "started_clips": 1000 * i,
                "ended_clips": 1000 * (i + 1) if name != names[-1] else None,
                "clips": 950,
                "held_out": 50,
                "pairs": 50,
                "era": i,
                "decisions": [{"era": i, "decision": "encoded" if name != names[-1] else "open", "readout": None}],
                "score": 4.2 if i else None,
                "recall": {
                    "served": {"1": 0.5, "5": 0.9 - 0.07 * i},
                    "single": {"1": 0.1, "5": 0.3 + 0.2 * i},
                    "learner": {"1": 0.1, "5": 0.4 + 0.2 * i},
                },
                "forgetting": {view: max(0.0, 0.5 - 0.2 * i) for view in ("single", "learner")} | {"served": 0.02},
            }
            for i, name in enumerate(names)
        ]

    def scores(
        self, task: str | None, direction: str | None, k: int | None, view: str | None, most: int, columns: int
    ) -> dict[str, Any]:
        """Recall@5 of every task, whatever is asked for."""
        return fake_scores(sorted({clip.task for clip in self.clips}))

    def evaluation(self) -> dict[str, Any]:
        """Of the same numbers."""
        return fake_evaluation([(clip.video_id, clip.caption, clip.task) for clip in self.clips])

    def status(self) -> dict[str, Any]:
        """A daemon that learns."""
        n = len(self.clips)
        return {
            "version": "0",
            "state": "learning",
            "detail": None,
            "source": "fake",
            "clips": {"learned": n, "held_out": 0, "replaced": 0, "deleted": 0, "dead_lettered": 0},
            "clips_per_s": 61.4,
            "searchable": n,
            "step": n // 4,
            "task": self.clips[-1].task if self.clips else None,
            "generation": 3,
            "loss": 1.73,
            "drift_score": 0.98,
            "model_version": "fake-1",
            "uptime_s": 75.0,
            "examples": [clip.caption for clip in self.clips[-3:]],
            "started_at": "2024-05-01T12:00:00Z",
        }

    def ready(self) -> tuple[bool, str]:
        """As set."""
        return self.is_ready, "generation 3 is served" if self.is_ready else "nothing is indexed yet"

    def _find(self, video_id: str | None) -> FakeClip | None:
        return next((clip for clip in self.clips if clip.video_id == video_id), None)

    def _caption_of(self, video_id: str | None) -> str:
        clip = self._find(video_id)
        if clip is None:
            raise SearchError("There is no clip of this id.", status=404)
        return clip.caption


def fake_clips(n: int) -> list[FakeClip]:
    """Clips with distinct captions, in three tasks."""
    motions = ("rolls to the left", "falls slowly", "jumps twice", "rolls to the right")
    return [
        FakeClip(
            f"cam-{i % 3}/{i:04d}.mp4",
            f"a {list(_COLOURS)[i % 5]} {_SHAPES[i % 3]} {motions[i % 4]} over the {_GROUNDS[(i // 2) % 4]}",
            f"t{1 + 3 * i // max(n, 1)}",
        )
        for i in range(n)
    ]


def shape_film(caption: str, *, size_px: int = 64, frames: int = 8) -> bytes:
    """Draw the shape and colour that the caption names, moving over a gradient; an animated WebP."""
    colour = next((code for name, code in _COLOURS.items() if name in caption), "#888888")
    shape = next((name for name in _SHAPES if name in caption), "square")
    ramp = np.linspace(40, 120, size_px, dtype=np.uint8)
    ground = np.stack([np.broadcast_to(ramp[:, None], (size_px, size_px))] * 3, axis=-1)  # (H, W, 3)
    ground = ground + np.uint8(8 * (sum(map(ord, caption)) % 12))
    pictures = []
    for n in range(frames):
        picture = Image.fromarray(ground)
        x, y, r = size_px * (n + 1) / (frames + 1), size_px * 0.6, size_px * 0.18
        draw = ImageDraw.Draw(picture)
        if shape == "ball":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif shape == "square":
            draw.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        else:
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
        pictures.append(picture)
    file = io.BytesIO()
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], duration=120, loop=0, quality=80)
    return file.getvalue()
