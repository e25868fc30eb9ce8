"""A rollback of a million vectors in a running daemon that is asked over HTTP: what is answered, and how long it takes.

    python -m benchmarks.rollback [--vectors 1000000] [--eras 1] [--json results.jsonl]

The daemon learns some rendered clips, a task an era; then its catalog is given the vectors of `benchmarks/index.py`, of
256 dimensions, in equal parts to the eras, and a generation is written. Two more follow, in each of which clips come,
are replaced and are deleted by the calls that a batch of the stream makes. Then `POST /v1/generations/N/rollback` goes
back to the first, while other processes ask texts (each once) and vectors, and what they were answered is compared with
what the fixed questions were answered before, near misses of a large index included; pages of 200, for which all lists
are looked into, are compared as well.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Container, Sequence
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import numpy as np

from benchmarks.index import DIM, K, anonymous_mb, clips, draw
from benchmarks.rivals import CHUNK
from streamlearn.app import Daemon
from streamlearn.connectors.synthetic import DOMAINS, write_stream
from streamlearn.settings import Settings, load
from streamlearn.state import State

QUESTIONS, ASKERS, PAUSE_S, AROUND_S = 200, 2, 0.01, 15.0
DEEP, DEEP_QUESTIONS, COMPARED = 200, 50, 150  # some of a page may be deleted later
T = TypeVar("T")
Answers = list[list[tuple[str, float]]]


class Asked(NamedTuple):
    """One query, as its asker saw it; `generation` is the answer's, None where it failed."""

    begin: float
    seconds: float
    question: int  # -1: a text
    generation: int | None
    found: list[tuple[str, float]]


def put(state: State, names: Sequence[str], vectors: np.ndarray) -> None:
    """As a batch of the stream does."""
    with state.catalog.transaction():
        rows, replaced = state.catalog.put(clips(names, state.learner.steps, state.task))
        state.eras.remove(replaced)
        state.eras.upsert(rows, vectors)


def delete(state: State, names: Sequence[str]) -> None:
    with state.catalog.transaction():
        state.eras.remove([row for name in names if (row := state.catalog.delete(name)) is not None])


def fill(state: State, count: int) -> None:
    """Where a restart finds them, in the generation that is then written; the index is made by that restart."""
    eras = state.eras.eras
    for begin in range(0, count, CHUNK):
        size = min(CHUNK, count - begin)
        era = eras[begin * len(eras) // count]
        with state.catalog.transaction():
            rows, _ = state.catalog.put(clips((f"v{begin + i}" for i in range(size)), state.learner.steps, era.task))
            state.catalog.put_vectors(rows, draw(begin + 1, size), era=era.number, step=state.learner.steps)
    state.checkpoint()


def change(state: State, count: int, seed: int) -> None:
    """2 % come, 1 % are replaced, 0.1 % are deleted; and a generation is written."""
    rng = np.random.default_rng(seed)
    old = rng.permutation(count)
    added, replaced, gone = (max(1, count * share // 1000) for share in (20, 10, 1))
    names = [f"new{seed}-{i}" for i in range(added)] + [f"v{i}" for i in old[:replaced]]
    vectors = draw(10**8 + seed, len(names))
    for begin in range(0, len(names), 32):
        put(state, names[begin : begin + 32], vectors[begin : begin + 32])
    delete(state, [f"v{i}" for i in old[replaced : replaced + gone]])
    state.checkpoint()


def settle(state: State) -> None:
    """Wait for the index to be as it stays."""
    for era in state.eras.eras:
        era.partition.close()
        era.partition.view()
    state.publish()


def work(daemon: Daemon, what: Callable[[State], None]) -> None:
    """In the thread that may write."""
    daemon.pipeline.mailbox.ask(lambda: what(daemon.state), 60)


def query(client: httpx.Client, body: dict[str, Any], limit: int) -> tuple[int, list[tuple[str, float]]]:
    answer = client.post("/v1/search", json={"query": body, "limit": limit}).raise_for_status().json()
    return answer["generation"], [(hit["video_id"], hit["score"]) for hit in answer["results"]]


def questions() -> list[dict[str, Any]]:
    return [{"vector": vector} for vector in draw(10**9, QUESTIONS).tolist()]


def fixed(url: str, limit: int = 2 * K, count: int = QUESTIONS) -> Answers:
    with httpx.Client(base_url=url, timeout=60) as client:
        return [query(client, one, limit)[1] for one in questions()[:count]]


def keep_asking(number: int, url: str, stop: Event, out: Queue[list[Asked]]) -> None:
    """Of a process of its own; every other query is a text."""
    asked: list[Asked] = []
    vectors, rng = questions(), np.random.default_rng(number)
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stop.is_set():
            which = int(rng.integers(QUESTIONS)) if len(asked) % 2 else -1
            text = {"text": f"a small red circle, number {len(asked)} of asker {number}, moves to the left"}
            begin = time.monotonic()
            try:
                generation, found = query(client, vectors[which] if which >= 0 else text, 2 * K)
                failed = len(found) < 2 * K
            except httpx.HTTPError:
                generation, found, failed = 0, [], True
            asked.append(Asked(begin, time.monotonic() - begin, which, None if failed else generation, found))
            time.sleep(PAUSE_S)
    out.put(asked)


def among_askers(daemon: Daemon, happens: Callable[[], T]) -> tuple[list[Asked], float, float, T]:
    """What was asked before, during and after something, when that began and ended, and what came of it."""
    spawn = multiprocessing.get_context("spawn")
    stop, out = spawn.Event(), spawn.Queue()
    askers = [spawn.Process(target=keep_asking, args=(i, daemon.url, stop, out)) for i in range(ASKERS)]
    for asker in askers:
        asker.start()
    time.sleep(2 * AROUND_S)  # some of it is their imports
    begin = time.monotonic()
    done = happens()
    end = time.monotonic()
    work(daemon, settle)  # lists are looked at again, beside the queries
    time.sleep(AROUND_S)
    stop.set()
    asked = [one for _ in askers for one in out.get(timeout=120)]  # else one has died
    for asker in askers:
        asker.join()
    return asked, begin, end, done


def told(asked: Sequence[Asked]) -> dict[str, Any]:
    p50, p99 = np.percentile([one.seconds for one in asked], [50, 99]) * 1e3
    failed = sum(one.generation is None for one in asked)
    longest = max(one.seconds for one in asked) * 1e3
    return {"queries": len(asked), "failed": failed, "p50_ms": p50, "p99_ms": p99, "longest_ms": longest}


def by_time(asked: Sequence[Asked], begin: float, end: float) -> list[dict[str, Any]]:
    """What to tell of those that ended before, of those during, and of those that began after."""
    before = [one for one in asked if one.begin + one.seconds < begin]
    after = [one for one in asked if one.begin > end]
    during = [one for one in asked if one.begin + one.seconds >= begin and one.begin <= end]
    return [told(part) for part in (before, during, after)]


def best(answers: Answers, first: int = K, gone: Container[str] = ()) -> Answers:
    """Those of the first that score above the next one, equals in one order; without those that are gone."""
    kept = [[hit for hit in answer if hit[0] not in gone] for answer in answers]
    return [sorted((hit for hit in one if hit[1] > one[first][1]), key=lambda hit: (-hit[1], hit[0])) for one in kept]


def equal(one: Answers, other: Answers) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def prepare(settings: Settings, clips_folder: Path, count: int, eras: int) -> None:
    """A generation with so many vectors in so many eras."""
    each = 128
    write_stream(clips_folder, domains=DOMAINS[:eras], clips_per_domain=each, seed=0, size_px=64)
    manifest = clips_folder / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row | {"task": DOMAINS[i // each]}) + "\n" for i, row in enumerate(rows)))
    with Daemon(settings) as daemon:
        while daemon.service.status()["state"] != "idle" or daemon.state.eras.stale:
            time.sleep(0.1)
        work(daemon, partial(fill, count=count))


def measure(daemon: Daemon, count: int, tell: Callable[[str, dict[str, Any]], None]) -> None:
    begin = time.perf_counter()
    fixed(daemon.url)  # what is asked decides how deep lists are looked into
    work(daemon, settle)
    work(daemon, State.checkpoint)
    goal = daemon.state.generations.current()
    assert goal is not None
    tell("lists are there", {"s": time.perf_counter() - begin, "resident_mb": anonymous_mb()})
    then, deep_then = fixed(daemon.url), fixed(daemon.url, DEEP, DEEP_QUESTIONS)
    for seed in (1, 2):
        begin = time.perf_counter()
        work(daemon, partial(change, count=count, seed=seed))
        work(daemon, settle)
        tell("changed", {"s": time.perf_counter() - begin, "generation": daemon.state.generations.current()})
    last, before = best(fixed(daemon.url)), daemon.state.generations.current()
    gone = set(daemon.catalog.deleted_since(goal))
    url = f"{daemon.url}/v1/generations/{goal}/rollback"
    asked, begin, end, done = among_askers(daemon, lambda: httpx.post(url, timeout=600).raise_for_status().json())
    now, deep_now = fixed(daemon.url), fixed(daemon.url, DEEP, DEEP_QUESTIONS)
    before_it, during, after = by_time(asked, begin, end)
    tell("before", before_it)
    tell("rollback", {"s": end - begin, **during, "kept_deleted": done["kept_deleted"]})
    tell("after", after)
    known = {before: last, done["generation"]: best(now)}
    strange = sum(one.generation not in known for one in asked if one.generation is not None)
    named = [one for one in asked if one.question >= 0 and one.generation in known]
    tell("answers", {
        "as_then": equal(best(then, gone=gone), best(now)), "as_before": equal(last, best(now)), "of": QUESTIONS,
        "deep_as_then": equal(best(deep_then, COMPARED, gone), best(deep_now, COMPARED)),
        "deep": DEEP_QUESTIONS, "of_no_such_generation": strange,
        "as_their_generation": sum(best([one.found])[0] == known[one.generation][one.question] for one in named),
        "asked": len(named), "resident_mb": anonymous_mb(),
    })  # fmt: skip


def reporter(path: Path | None, facts: dict[str, Any]) -> Callable[[str, dict[str, Any]], None]:
    """Prints one JSON object a step, with these facts in each, and appends it to the file."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()

    def tell(step: str, found: dict[str, Any]) -> None:
        all_facts = {"commit": commit, **facts, "step": step, **found, "load": os.getloadavg()[0]}
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in all_facts.items()})
        print(line, flush=True)
        if path:
            with path.open("a") as file:
                file.write(line + "\n")

    return tell


def settings_in(folder: Path) -> Settings:
    """Of a daemon that is told where tasks begin, and writes generations when it is told to."""
    return load(None, {
        "state_dir": folder / "state", "folder.path": folder / "clips", "api.port": 0, "model.dim": DIM,
        "model.threads": 1, "drift.detector": "none", "evaluate.heldout_ratio": 0, "checkpoint.keep": 9,
    })  # fmt: skip


def main() -> None:
    """Roll back, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--eras", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tell = reporter(arguments.json, {"vectors": arguments.vectors, "eras": arguments.eras})
    with tempfile.TemporaryDirectory() as temporary:
        settings = settings_in(Path(temporary))
        prepare(settings, Path(temporary) / "clips", arguments.vectors, arguments.eras)
        with Daemon(settings) as daemon:
            measure(daemon, arguments.vectors, tell)


if __name__ == "__main__":
    main()
