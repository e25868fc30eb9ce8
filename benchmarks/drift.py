"""The detector of task boundaries and the recognition of tasks that return, on fresh seeds.

    python benchmarks/drift.py render CACHE [KIND ...]     # half an hour of a core, once
    python benchmarks/drift.py replay CACHE [KIND ...]     # seconds, with any settings: --set threshold=5
    python benchmarks/drift.py rates CACHE                 # false alarms asked for and had
    python benchmarks/drift.py cost CACHE                  # of the detector, beside the learner's step
    python benchmarks/drift.py real FOLDER NAME ...        # streams of real clips that return, FOLDER/NAME each

`render` draws clips, lets a learner learn streams of them, and keeps what a detector sees: the keys of every step, and
what the frozen encoders of the start make of each clip. `replay` gives both to detector and judge, as the daemon does.
Seeds of 3000 and more are used nowhere else; kinds that begin with "tuning-" have others, and what was chosen was
chosen on those.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from streamlearn.connectors.scenes import DOMAINS, WORLD, Scene, sample
from streamlearn.connectors.synthetic import render
from streamlearn.decode import decode
from streamlearn.detector import Measured
from streamlearn.drift import MeanShift
from streamlearn.era_view import QueryEncoder
from streamlearn.frames import FrameStore, pack
from streamlearn.judge import Judge
from streamlearn.learner import Learner
from streamlearn.recognition import TaskMemory
from streamlearn.records import Frames, Vectors
from streamlearn.settings import DriftSettings, LearnerSettings, ModelSettings
from streamlearn.tasks import Boundary
from streamlearn.tune import detector_of
from streamlearn.warmup import build_towers

BATCH = 32
_BEFORE, _AFTER = 128, 96  # clips that `real` compares, as the judge does
POOL = 1400  # clips of a part, of which every stream takes its own
KINDS = {"abrupt": 9, "gradual1k": 6, "gradual2k": 6, "stationary": 5, "near": 3, "one-sided": 4}
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
    for i in range(KINDS[plain]):
        seed = (2000 if plain != kind else 3000) + 100 * list(KINDS).index(plain) + i
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
        self._cache, self._seed = cache, 20 if tuning else 30
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
    for name in dict.fromkeys(stream.parts):
        at = np.flatnonzero(names == name)
        rows[at] = np.concatenate([rng.permutation(POOL) for _ in range(-(-len(at) // POOL))])[: len(at)]
    return rows


def learn(stream: Stream, pool: Pool) -> tuple[Vectors, Vectors]:
    """Learn a stream; the keys of every step, (steps, 32, 2 d), and its loss, recall and gradient's norm, (steps, 3).

    The local pair restarts two batches after a boundary, as it does where a boundary is found at once; of a gradual
    one, in the middle.
    """
    learner = Learner(build_towers(ModelSettings(), 0), LearnerSettings(seed=stream.seed))
    restarts = {(at + stream.mixing // 2) // BATCH + 2 for at in stream.boundaries}
    schedule, rows = stream.schedule(), rows_of(stream)
    keys, signals = [], []
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
        signals.append((stats.loss, stats.recall, stats.grad_norm))
    return np.stack(keys), np.array(signals, np.float32)


def frozen_rows(stream: Stream, pool: Pool) -> Vectors:
    """What the frozen encoders make of the stream, (steps, 32, 2 d)."""
    schedule, rows = stream.schedule(), rows_of(stream)
    out = np.stack([pool.part(stream.parts[part])[2][row] for part, row in zip(schedule, rows, strict=True)])
    return out.reshape(-1, BATCH, out.shape[1])


class Replay:
    """The daemon's detector and judge over kept embeddings; a `judge.Clips` itself, its rows the stream's clips."""

    def __init__(self, settings: DriftSettings, frozen: Vectors) -> None:
        self.detector = detector_of(settings)
        self.judge = Judge(
            self,
            frame="",
            batch_size=BATCH,
            clips_per_false_boundary=settings.clips_per_false_boundary,
            revisits=settings.revisits,
        )
        self._frozen, self._judged = frozen.reshape(-1, frozen.shape[-1]), settings.frozen_judge
        self._step = self._start = self.encoded = self.suspected = 0
        self.tasks = ["t1"]  # one a visit
        self.found: list[tuple[int, int]] = []  # clip at which a boundary was found, clip that it is dated to

    def rows(self) -> np.ndarray:
        return np.arange(self._start * BATCH, self._step * BATCH)

    def steps(self, rows: Sequence[int]) -> dict[int, int]:
        return {row: row // BATCH + 1 for row in rows}

    def vectors(self, rows: Sequence[int]) -> dict[int, Vectors]:
        self.encoded += len(rows)
        return {row: self._frozen[row] for row in rows}

    def update(self, keys: Vectors, measured: Measured) -> None:
        """One step, as `streamlearn.pipeline` looks at it."""
        self._step += 1
        self.detector.update(keys, measured)
        if self.detector.drift_detected:
            self._suspect()
        elif (
            self._judged
            and self.judge.wants_glance(self.detector.score, self.detector.threshold, self._step)
            and (boundary := self.judge.glance(self.detector.score, self.tasks[-1], self._step).boundary)
        ):
            self.detector.restart()
            self._begin(boundary)
        elif self._judged and (name := self.judge.recognise_late(self.tasks[-1], self._step)) is not None:
            self.judge.rename(self.tasks[-1], name)
            self.tasks[-1] = name

    def _suspect(self) -> None:
        self.suspected += 1
        boundary: Boundary | None = Boundary("drift", self.detector.score, self.detector.onset_batches_ago)
        if self._judged:
            boundary = self.judge.judge(boundary, self.tasks[-1], self._step).boundary
        if boundary is None:
            self.detector.refuse()
        else:
            self._begin(boundary)

    def _begin(self, boundary: Boundary) -> None:
        since = max(self._step - boundary.onset_steps_ago, self._start)
        if self._judged:
            self.judge.close(self.tasks[-1], since)
            self.judge.begin(boundary, self._step)
        self.tasks.append(boundary.name or f"t{self._step}")
        self.found.append((self._step * BATCH, since * BATCH))
        self._start = since


@dataclass
class Tally:
    """What was found in the streams of a kind."""

    clips: int = 0
    true: int = 0
    false: int = 0
    again: int = 0
    returns: int = 0
    recognised: int = 0
    mistaken: int = 0
    suspected: int = 0
    encoded: int = 0
    delays: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)

    def add(self, stream: Stream, settings: DriftSettings, keys: Vectors, frozen: Vectors, signals: Vectors) -> None:
        replay = Replay(settings, frozen)
        for x, measured in zip(keys, signals, strict=True):
            replay.update(np.asarray(x, np.float32), Measured(*(float(value) for value in measured)))
        found = replay.found
        self.clips += len(keys) * BATCH
        self.suspected += replay.suspected
        self.encoded += replay.encoded
        ends = [*stream.boundaries, len(keys) * BATCH][1:]
        used: set[int] = set()
        tasks = {stream.parts[0]: replay.tasks[0]}
        for part, at, end in zip(stream.parts[1:], stream.boundaries, ends, strict=True):
            self.true += 1
            # Found is found before the next change begins, and within 1.5 times the mixing.
            mine = [i for i, f in enumerate(found) if at < f[0] <= min(end, at + max(1.5 * stream.mixing, 640))]
            self.returns += part in tasks
            if not mine:
                continue
            used |= set(mine)
            self.delays.append(found[mine[0]][0] - at)
            self.errors.append(found[mine[0]][1] - at)
            self.again += len(mine) - 1
            name = replay.tasks[mine[-1] + 1]
            self.recognised += name == tasks.get(part)
            self.mistaken += name in tasks.values() and name != tasks.get(part)
            tasks.setdefault(part, name)
        self.false += len(found) - len(used)

    def __str__(self) -> str:
        late, off = np.array(self.delays or [0]), np.abs(self.errors or [0])
        return (
            f"{self.clips} clips, {len(self.delays)}/{self.true} found, delay mean {late.mean():.0f}"
            f" p90 {np.percentile(late, 90):.0f}, onset off by median {np.median(off):.0f}"
            f" p90 {np.percentile(off, 90):.0f} max {off.max()}, found again {self.again}, false {self.false},"
            f" returns {self.recognised}/{self.returns}, taken for another {self.mistaken},"
            f" suspected {self.suspected}, encoded {self.encoded}"
        )


def false_alarms(pool: Pool, settings: DriftSettings, clips: int) -> tuple[int, int]:
    """False boundaries of detector alone in stationary streams that a frozen encoder sees, and their clips."""
    rng, alarms = np.random.default_rng(7), 0
    steps = clips // BATCH // len(DOMAINS)
    for domain in DOMAINS:
        x = pool.part(domain)[2]
        detector = Replay(settings, x[None]).detector
        for _ in range(steps):
            detector.update(x[rng.integers(0, len(x), BATCH)])
            alarms += detector.drift_detected
    return alarms, steps * len(DOMAINS) * BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("render", "replay", "rates", "cost", "real"))
    parser.add_argument("cache", type=Path)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of DriftSettings")
    parser.add_argument("--frozen", action="store_true", help="`replay`: the detector, too, sees frozen encoders")
    parser.add_argument("--clips", type=int, default=1_000_000, help="of `rates`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.verb == "real":
        real([arguments.cache / kind for kind in arguments.kinds])
        return
    settings = DriftSettings(**dict(pair.split("=", 1) for pair in arguments.set))
    if arguments.verb == "rates":
        for clips in (10_000, 30_000, 100_000):
            asked = settings.model_copy(update={"clips_per_false_boundary": clips})
            alarms, seen = false_alarms(Pool(arguments.cache, tuning=False), asked, arguments.clips)
            print(f"asked for one in {clips}: {alarms} in {seen}, one in {seen / max(alarms, 1):.0f}", flush=True)
        return
    if arguments.verb == "cost":
        cost(Pool(arguments.cache, tuning=False))
        return
    for kind in arguments.kinds:
        pool = Pool(arguments.cache, tuning=kind.startswith("tuning"))
        tally = Tally()
        for stream in streams(kind):
            path = arguments.cache / f"{stream.name}.npy"
            if arguments.verb == "render" and not path.exists():
                start = time.monotonic()
                keys, signals = learn(stream, pool)
                np.save(path.with_suffix(".signals.npy"), signals)
                np.save(path, keys)
                print(f"{stream.name}: {stream.parts}, {time.monotonic() - start:.0f} s", flush=True)
            elif arguments.verb == "replay" and (arguments.frozen or path.exists()):
                frozen = frozen_rows(stream, pool)
                signals = np.zeros((len(frozen), 3)) if arguments.frozen else np.load(path.with_suffix(".signals.npy"))
                tally.add(stream, settings, frozen if arguments.frozen else np.load(path), frozen, signals)
        if arguments.verb == "replay":
            print(f"{kind}: {tally}", flush=True)


def real(folders: list[Path], per_stream: int = 300, rounds: int = 20) -> None:
    """Two visits to each of some streams of real clips, in random halves: is the second one recognised?"""
    frozen, rng, embedded = build_towers(ModelSettings(), 0).frozen_copy(), np.random.default_rng(0), {}
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
        some = [rows[i] for i in rng.permutation(len(rows))[:per_stream]]
        films = [
            decode((folder / row["path"]).read_bytes(), frames=8, size_px=64, sampling="exact", max_pixels=2**24)
            for row in some
        ]
        vectors = []
        for at in range(0, len(films), BATCH):
            with torch.inference_mode():
                video = frozen.encode_video(torch.from_numpy(np.stack(films[at : at + BATCH])))
                text = frozen.encode_text([row["caption"] for row in some[at : at + BATCH]])
            vectors.append(torch.cat([video, text], dim=1).numpy())
        embedded[folder.name] = np.concatenate(vectors)
    found = new = 0
    shifts: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        visits = {name: np.array_split(x[rng.permutation(len(x))], [_BEFORE]) for name, x in embedded.items()}
        for name, (_, second) in visits.items():
            everywhere, elsewhere = TaskMemory(), TaskMemory()
            for other, (first, _) in visits.items():
                everywhere.learn(other, first)
                if other != name:
                    elsewhere.learn(other, first)
            recognised, shift = everywhere.recognise(second[:_AFTER], besides=())
            found += recognised == name
            shifts[True].append(shift)
            recognised, shift = elsewhere.recognise(second[:_AFTER], besides=())
            new += recognised is None
            shifts[False].append(shift)
    total = rounds * len(folders)
    print(f"returns {found}/{total} (largest shift {max(shifts[True]):.1f}), new streams seen as new {new}/{total}")
    print(f"(smallest shift {min(shifts[False]):.1f})")


def cost(pool: Pool, steps: int = 200) -> None:
    """Time of the detector's update, and of a clip that the judge looks at, beside the learner's step; in turn."""
    stream = Stream("cost", 1, ("studio",), (steps * BATCH,))
    rows = rows_of(stream)
    frames, captions, _ = pool.part("studio")
    learner, detector = Learner(build_towers(ModelSettings(), 0), LearnerSettings()), MeanShift()
    spent, folder = np.zeros((3, steps)), TemporaryDirectory()
    store, seeing = FrameStore(Path(folder.name), 2**30), QueryEncoder(pool.frozen)
    for row in range(64):
        store.put(row, pack(frames[row]))
    for step in range(steps):
        chosen = rows[step * BATCH : (step + 1) * BATCH]
        begin = time.perf_counter()
        stats = learner.step(frames[chosen], [[captions[i]] for i in chosen], [str(i) for i in chosen])
        middle = time.perf_counter()
        detector.update(np.concatenate([stats.keys_video, stats.keys_text], axis=1))
        after = time.perf_counter()
        seeing.clips(np.stack([stored for row in range(64) if (stored := store.get(row)) is not None]))
        seeing.texts(captions[:64])
        spent[:, step] = middle - begin, after - middle, (time.perf_counter() - after) / 64
    store.close()
    folder.cleanup()
    step_ms, update_ms, look_ms = 1000 * np.median(spent[:, steps // 2 :], axis=1)
    print(f"step of {BATCH} clips {step_ms:.1f} ms, update {update_ms:.2f} ms: {update_ms / step_ms:.2%}")
    print(f"a clip that the judge looks at {look_ms:.2f} ms: {look_ms * BATCH / step_ms:.1%} of learning one")


if __name__ == "__main__":
    main()
