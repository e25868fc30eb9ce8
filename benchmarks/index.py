"""The index at a million vectors, as the daemon uses it: start-up, memory, recall, and latency while it is written to.

    python -m benchmarks.index [--vectors 1000000] [--seconds 60] [--rivals] [--json results.jsonl]
    python -m benchmarks.index --folder kept --prepare [--rivals]   # what takes minutes and is not reported, beforehand
    python -m benchmarks.index --folder kept --device cuda          # on a GPU

Vectors are clustered (2,000 centres in 32 dimensions, bent and projected to 256, with noise) and queries are drawn as
they are; neither is a real embedding. `--rivals` builds hnswlib (pip install hnswlib: not a dependency) and a plain
FAISS IVF, Flat, on the same vectors, and asks them as deep as is needed for the same recall, and likewise indices of
autofaiss that lie in the folder (`benchmarks/rivals.py` says how they come there); all take their turn within the same
seconds. Everything is asked single queries on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from safetensors.torch import load_file, save_file

from benchmarks.rivals import CHUNK, Rival, Search, autofaiss_index, faiss_lists, hnswlib_graph
from streamlearn import allocator
from streamlearn.catalog import Catalog, ClipRow
from streamlearn.index import Layout, Partition, PartitionView, configure_faiss
from streamlearn.index_lists import ListsBlock

DIM, K = 256, 10
CENTRES = np.random.default_rng(7).standard_normal((2_000, 32)).astype(np.float32)
BEND = np.random.default_rng(8).standard_normal((32, DIM)).astype(np.float32)

Tell = Callable[[str, dict[str, Any]], None]


def draw(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    inner = CENTRES[rng.integers(0, len(CENTRES), count)] + 0.7 * rng.standard_normal((count, 32)).astype(np.float32)
    vectors = np.tanh(inner) @ BEND / 6 + 0.25 * rng.standard_normal((count, DIM)).astype(np.float32)
    out: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return out


def anonymous_mb(process: int | str = "self") -> float:
    """Memory of a process, by its number, that is no file's."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def clips(names: Iterable[str], step: int, task: str = "t1") -> list[ClipRow]:
    return [ClipRow(0, name, *[None] * 3, ("a",), {}, None, "train", task, step, None, "b", "0", 0) for name in names]


def store(path: Path, count: int) -> None:
    with closing(Catalog(path)) as catalog:
        for begin in range(0, count, CHUNK):
            with catalog.transaction():
                rows, _ = catalog.put(clips((f"v{i}" for i in range(begin, min(begin + CHUNK, count))), begin // 32))
                catalog.put_vectors(rows, draw(begin + 1, len(rows)), era=1, step=begin // 32)


def truth(path: Path, queries: np.ndarray) -> np.ndarray:
    """The exact first ten rows."""
    rows, halves = vectors_of(path)
    best = np.full((len(queries), K), -np.inf, np.float32)
    best_rows = np.full((len(queries), K), -1, np.int64)
    for begin in range(0, len(rows), 100_000):
        scores = queries @ halves[begin : begin + 100_000].astype(np.float32).T
        at = np.argpartition(-scores, K, axis=1)[:, :K]
        both = np.hstack([best, np.take_along_axis(scores, at, 1)])
        both_rows = np.hstack([best_rows, rows[begin + at]])
        order = np.argsort(-both, axis=1)[:, :K]
        best, best_rows = np.take_along_axis(both, order, 1), np.take_along_axis(both_rows, order, 1)
    return best_rows


def start(path: Path, lists: Path, device: str | None = None) -> tuple[Partition, dict[str, float]]:
    """What a daemon does with one era when it starts."""
    before, begin = anonymous_mb(), time.perf_counter()
    catalog = Catalog(path)
    catalog.rewind(catalog.generation)
    rows, halves, _ = catalog.era_vectors(1)
    read = time.perf_counter()
    partition = Partition(DIM, device=device)
    layout = Layout("kept", partial(load_file, lists), np.empty(0, np.int64)) if lists.exists() else None
    partition.replace_all(rows, halves, layout)
    partition.view().search(draw(0, 1), K)
    ready = time.perf_counter()
    catalog.close()
    del rows, halves
    partition.close()
    for _ in range(2):  # swapped in; and, the old block being nobody's, memory is given back
        partition.view()
    tuned = time.perf_counter()
    facts = {"read_s": read - begin, "ready_s": ready - begin, "background_s": tuned - ready}
    return partition, facts | {"resident_mb": anonymous_mb() - before}


def ask(search: Search, queries: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Recall and latency of single queries; by the clock, and by this thread's processor time."""
    hits, times = 0, []
    for query, right in zip(queries, exact, strict=True):
        begin = time.perf_counter(), time.thread_time()
        _, found = search(query[None])
        times.append((time.perf_counter() - begin[0], time.thread_time() - begin[1]))
        hits += len(set(found[0].tolist()) & set(right.tolist()))
    clock, cpu = np.asarray(times).T * 1e3
    p50, p99 = np.percentile(clock, [50, 99])
    return {"recall": hits / exact.size, "p50_ms": p50, "p99_ms": p99, "cpu_p50_ms": float(np.median(cpu))}


class Writer(threading.Thread):
    """200 upserts a second in batches of 8, half of them of new rows, and 10 removals, each batch published at once."""

    def __init__(self, partition: Partition, count: int, seconds: float) -> None:
        super().__init__()
        self.partition, self.count, self.seconds = partition, count, seconds
        self.view, self.newest, self.swaps, self.late_s = partition.view(), (0, draw(0, 1)), 0, 0.0

    def run(self) -> None:
        rng, batches = np.random.default_rng(3), int(self.seconds * 25)
        pool = draw(5, 8 * batches)  # each once: of ten equals and one more the newest need not be among the best ten
        begin = time.monotonic()
        block = self.view._layers[0].block
        for number in range(batches):
            rows = np.concatenate([self.count + 4 * number + np.arange(1, 5), rng.integers(1, self.count, 4)])
            vectors = pool[8 * number : 8 * number + 8]
            self.partition.upsert(rows, vectors)
            if number % 5 == 0:
                self.partition.remove(rng.integers(1, self.count, 2))
            self.view = self.partition.view()
            self.newest = (int(rows[3]), vectors[3:4])
            if self.view._layers[0].block is not block:
                block, self.swaps = self.view._layers[0].block, self.swaps + 1
            ahead = begin + (number + 1) / 25 - time.monotonic()
            self.late_s = max(self.late_s, -ahead)
            if ahead > 0:
                time.sleep(ahead)


def ask_while_written(partition: Partition, queries: np.ndarray, count: int, seconds: float) -> dict[str, Any]:
    writer = Writer(partition, count, seconds)
    writer.start()
    times, failed, missed = [], 0, 0
    while writer.is_alive():
        row, vector = writer.newest
        for i, query in enumerate(
            [*queries[np.random.default_rng(len(times)).integers(0, len(queries), 9)], vector[0]]
        ):
            begin = time.perf_counter()
            try:
                _, found = writer.view.search(query[None], K)
            except Exception:  # noqa: BLE001 -- counted
                failed += 1
                continue
            times.append(time.perf_counter() - begin)
            failed += (found < 0).any()
            missed += i == 9 and row > 0 and row not in found[0]  # it was published before it was asked for
            time.sleep(0.002)
    p50, p99, p999 = np.percentile(times, [50, 99, 99.9]) * 1e3
    return {
        "queries": len(times), "p50_ms": float(p50), "p99_ms": float(p99), "p99.9_ms": float(p999),
        "max_ms": max(times) * 1e3, "failed": int(failed), "fresh_not_found": int(missed), "swaps": writer.swaps,
        "writer_late_s": writer.late_s,
    }  # fmt: skip


def rivals(path: Path, folder: Path, ours: PartitionView, queries: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Each at the least depth that reaches our recall; then all of them in turns."""
    lists = ours._layers[0].block
    assert isinstance(lists, ListsBlock)
    rows, halves = vectors_of(path)
    faiss.omp_set_num_threads(1)
    makers: dict[str, Callable[[], Rival]] = {
        "faiss IVF, Flat": lambda: faiss_lists(lists, rows, halves, K),
        "hnswlib": lambda: hnswlib_graph(folder, rows, halves, K),
    }
    for file in sorted(folder.glob("autofaiss*.index")):
        makers[file.stem] = partial(autofaiss_index, file, rows, K)
    wanted = ask(lambda query: ours.search(query, K), queries, exact)["recall"]
    chosen: dict[str, Search] = {"ours": lambda query: ours.search(query, K)}
    facts: dict[str, dict[str, Any]] = {"ours": {"depth": lists.depth.probes}}
    for name, make in makers.items():
        before = anonymous_mb()
        at_depth = make()
        memory, depth = anonymous_mb() - before, enough(at_depth, queries, exact, wanted)
        chosen[name], facts[name] = at_depth(depth), {"depth": depth, "resident_mb": memory}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for part in np.array_split(np.arange(len(queries)), 10):
        for name, search in chosen.items():
            rounds[name].append(ask(search, queries[part], exact[part]))
    means = {name: {key: float(np.mean([r[key] for r in found])) for key in found[0]} for name, found in rounds.items()}
    return {name: facts[name] | means[name] for name in means}


def vectors_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with closing(Catalog(path)) as catalog:
        rows, halves, _ = catalog.era_vectors(1)
    return rows, halves


def enough(at_depth: Callable[[int], Search], queries: np.ndarray, exact: np.ndarray, recall: float) -> int:
    """The least depth with this recall."""
    depths = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256, 384, 512, 1024)
    return next((depth for depth in depths if ask(at_depth(depth), queries, exact)["recall"] >= recall), depths[-1])


def prepare(folder: Path, count: int, queries: np.ndarray, *, rivals: bool) -> np.ndarray:
    """What is missing in the folder: catalog, exact answers, trained lists, and the rival's graph."""
    if not (folder / "exact.npy").exists():
        store(folder / "catalog.db", count)
        np.save(folder / "exact.npy", truth(folder / "catalog.db", queries))
    if not (folder / "lists.safetensors").exists():
        partition, _ = start(folder / "catalog.db", folder / "lists.safetensors")
        if partition.layout is not None:
            save_file(partition.layout.lists(), folder / "lists.safetensors")  # as a generation does
    if rivals:
        rows, halves = vectors_of(folder / "catalog.db")
        hnswlib_graph(folder, rows, halves, K)
        (folder / "embeddings").mkdir(exist_ok=True)
        np.save(folder / "embeddings" / "vectors.npy", halves)  # for autofaiss
    found: np.ndarray = np.load(folder / "exact.npy")
    return found


def measure(folder: Path, exact: np.ndarray, queries: np.ndarray, chosen: argparse.Namespace, tell: Tell) -> None:
    path, lists, before = folder / "catalog.db", folder / "lists.safetensors", anonymous_mb()
    partition, facts = start(path, lists, chosen.device)
    tell("start", facts)
    view: PartitionView = partition.view()
    block = view._layers[0].block
    depth = block.depth._asdict() if isinstance(block, ListsBlock) else {}
    tell("quiet", depth | ask(lambda query, view=view: view.search(query, K), queries, exact))  # type: ignore[misc]
    if chosen.rivals and isinstance(block, ListsBlock):
        for name, facts in rivals(path, folder, view, queries, exact).items():
            tell(name, facts)
    del view, block
    if chosen.seconds:
        tell("200 upserts/s", ask_while_written(partition, queries, chosen.vectors, chosen.seconds))
        for _ in range(2):
            partition.view()
        tell("afterwards", {"resident_mb": anonymous_mb() - before})


def main() -> None:
    """Print one JSON object a step, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--device", help="where a large block lies, as search.index_device; else in lists, here")
    parser.add_argument("--folder", type=Path, help="keeps what was prepared; else it is made anew, and removed")
    parser.add_argument("--prepare", action="store_true", help="make what is missing in the folder, and stop")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    configure_faiss()
    allocator.tune()
    queries = draw(10**9, 500)

    def tell(step: str, facts: dict[str, Any]) -> None:
        told = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
        line = json.dumps({"commit": commit, "vectors": arguments.vectors, "step": step, **told})
        print(line, flush=True)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(line + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        exact = prepare(folder, arguments.vectors, queries, rivals=arguments.rivals)
        tell("prepared", {"s": time.perf_counter() - begin})
        if not arguments.prepare:
            measure(folder, exact, queries, arguments, tell)


if __name__ == "__main__":
    main()
