"""The detector of task boundaries and the recognition of tasks that return, on fresh seeds.

    python benchmarks/drift.py render CACHE [KIND ...]     # half an hour of a core, once
    python benchmarks/drift.py replay CACHE [KIND ...]     # seconds, with any settings: --set threshold=5

`render` draws clips, lets a learner learn streams of them, and keeps what a detector sees: the keys of every step, and
what the frozen encoders of the start make of each clip. `replay` gives both to detector and judge, as the daemon does.
Seeds below 2000 are used nowhere else; kinds that begin with "tuning-" have others, and what was chosen was chosen on
those.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from streamlearn.connectors.scenes import DOMAINS, WORLD, Scene, sample
from streamlearn.connectors.synthetic import render
from streamlearn.learner import Learner
from streamlearn.records import Frames, Vectors
from streamlearn.settings import LearnerSettings, ModelSettings
from streamlearn.warmup import build_towers

BATCH = 32
POOL = 1400  # clips of a part, of which every stream takes its own
KINDS = {"abrupt": 9, "gradual1k": 4, "gradual2k": 3, "stationary": 5, "near": 3, "one-sided": 3}
_MIXING = {"gradual1k": 1024, "gradual2k": 2048}


@dataclass(frozen=True)
class Stream:
    """What comes when: `parts` one after the other, each `clips` long, mixed over `mixing` clips.

    A part is a domain; `studio~shapes` and `studio~small` are a nearby one, with two of five shapes or small objects
    only; `studio+night` has studio's captions and night's pictures, `studio-night` studio's pictures and night's
    captions.
    """

    name: str
    seed: int
    parts: tuple[str, ...]
    clips: tuple[int, ...]
    mixing: int = 0

    @property
    def boundaries(self) -> list[int]:
        """The clip with which each change begins."""
        return [int(at) - self.mixing // 2 for at in np.cumsum(self.clips)[:-1]]

    def schedule(self) -> np.ndarray:
        """The part of every clip, whole batches of them."""
        rng, total = np.random.default_rng((self.seed, 1)), sum(self.clips)
        place = np.arange(total) + rng.uniform(-0.5, 0.5, total) * self.mixing
        return np.searchsorted(np.cumsum(self.clips)[:-1], place, side="right")[: total // BATCH * BATCH]


def streams(kind: str) -> Iterator[Stream]:
    """The streams of a kind; every one has a seed of its own."""
    plain = kind.removeprefix("tuning-")
    mixing = _MIXING.get(plain, 0)
    for i in range(2 if plain != kind else KINDS[plain]):
        seed = (2000 if plain != kind else 1000) + 100 * list(KINDS).index(plain) + i
        rng = np.random.default_rng(seed)
        order = [str(domain) for domain in rng.permutation(DOMAINS)]
        a, b, c, d, e = order
        parts: tuple[str, ...] = (*order, *(str(d) for d in rng.permutation(order[:4])[:2]))  # two return
        if mixing:
            parts = (*order[:3], a)
        if plain == "stationary":
            parts = (DOMAINS[i],)
        if plain == "near":
            parts = (a, f"{a}~shapes", b, f"{b}~small", c, f"{c}~shapes")
        if plain == "one-sided":
            parts = (a, f"{a}+{b}", c, f"{c}-{d}", e)
        length = rng.integers(576, 1152, len(parts)) + mixing * 3 // 4
        if plain == "stationary":
            length = np.array([8000])
        yield Stream(f"{kind}-{seed}", seed, parts, tuple(int(n) for n in length), mixing)


def scenes_of(part: str, n: int, rng: np.random.Generator) -> tuple[list[Scene], list[str]]:
    """What is shown and what is said of it."""
    domain = next(d for d in DOMAINS if part.startswith(d))
    scenes = list(sample(domain, 8 * n if "~" in part else n, rng))
    if part.endswith("~shapes"):
        scenes = [s for s in scenes if s.shape in WORLD[domain].shapes[:2]][:n]
    if part.endswith("~small"):
        scenes = [s for s in scenes if s.size == "small"][:n]
    captions = [s.caption for s in scenes]
    if other := part[len(domain) + 1 :] if "+" in part or "-" in part else "":
        backdrops = dict(zip(WORLD[domain].backdrops, WORLD[other].backdrops, strict=True))
        template = WORLD[other].templates[0]
        moved = [replace(s, domain=other, background=backdrops[s.background], template=template) for s in scenes]
        scenes, captions = (moved, captions) if "+" in part else (scenes, [s.caption for s in moved])
    return scenes, captions


class Pool:
    """Clips of every part, rendered once, and what the frozen encoders make of them."""

    def __init__(self, cache: Path, *, tuning: bool) -> None:
        self._cache, self._seed = cache, 20 if tuning else 10
        self.frozen = build_towers(ModelSettings(), 0).frozen_copy()
        self._parts: dict[str, tuple[Frames, list[str], Vectors]] = {}

    def part(self, name: str) -> tuple[Frames, list[str], Vectors]:
        """Frames (n, 8, 32, 32, 3), captions, and frozen embeddings (n, 2 d)."""
        if name not in self._parts:
            path = self._cache / f"pool-{self._seed}-{name}.npz"
            if not path.exists():
                rng = np.random.default_rng((self._seed, *name.encode()))
                scenes, captions = scenes_of(name, POOL, rng)
                frames = render(scenes, size_px=32, rng=rng)
                np.savez(path, frames=frames, captions=captions, frozen=self._encode(frames, captions))
            with np.load(path) as file:
                self._parts[name] = file["frames"], file["captions"].tolist(), file["frozen"]
        return self._parts[name]

    @torch.inference_mode()
    def _encode(self, frames: Frames, captions: list[str]) -> Vectors:
        out = []
        for at in range(0, len(frames), BATCH):
            video = self.frozen.encode_video(torch.from_numpy(frames[at : at + BATCH]))
            out.append(torch.cat([video, self.frozen.encode_text(captions[at : at + BATCH])], dim=1).numpy())
        return np.concatenate(out)


def rows_of(stream: Stream) -> np.ndarray:
    """Which clip of its part's pool each clip of the stream is: all of them, before any comes again."""
    schedule, rng = stream.schedule(), np.random.default_rng((stream.seed, 2))
    rows = np.empty(len(schedule), np.int64)
    names = np.array(stream.parts)[schedule]
    for name in set(stream.parts):
        at = np.flatnonzero(names == name)
        rows[at] = np.concatenate([rng.permutation(POOL) for _ in range(-(-len(at) // POOL))])[: len(at)]
    return rows


def learn(stream: Stream, pool: Pool) -> Vectors:
    """Learn a stream and return the keys of every step, (steps, 32, 2 d).

    The local pair restarts two batches after a boundary, as it does where a boundary is found at once; of a gradual
    one, in the middle.
    """
    learner = Learner(build_towers(ModelSettings(), 0), LearnerSettings(seed=stream.seed))
    restarts = {(at + stream.mixing // 2) // BATCH + 2 for at in stream.boundaries}
    schedule, rows = stream.schedule(), rows_of(stream)
    keys = []
    for step in range(len(schedule) // BATCH):
        if step in restarts:
            learner.start_task()
        at = range(step * BATCH, (step + 1) * BATCH)
        clips = [(pool.part(stream.parts[schedule[i]]), rows[i]) for i in at]
        stats = learner.step(
            np.stack([part[0][row] for part, row in clips]),
            [[part[1][row]] for part, row in clips],
            [f"{stream.parts[schedule[i]]}-{rows[i]}" for i in at],
        )
        keys.append(np.concatenate([stats.keys_video, stats.keys_text], axis=1).astype(np.float16))
    return np.stack(keys)


def frozen_rows(stream: Stream, pool: Pool) -> Vectors:
    """What the frozen encoders make of the stream, (steps, 32, 2 d)."""
    schedule, rows = stream.schedule(), rows_of(stream)
    out = np.stack([pool.part(stream.parts[part])[2][row] for part, row in zip(schedule, rows, strict=True)])
    return out.reshape(-1, BATCH, out.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("cache", type=Path)
    parser.add_argument("kinds", nargs="*")
    a = parser.parse_args()
    torch.set_num_threads(1)
    for kind in a.kinds:
        pool = Pool(a.cache, tuning=kind.startswith("tuning"))
        for s in streams(kind):
            path = a.cache / f"{s.name}.npy"
            if path.exists():
                continue
            t = time.time()
            keys = learn(s, pool)
            np.save(path, keys)
            print(s.name, s.parts, sum(s.clips), s.boundaries, f"{time.time() - t:.0f} s", flush=True)


if __name__ == "__main__":
    main()
