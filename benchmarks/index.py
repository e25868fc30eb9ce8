"""The index at a million vectors, as the daemon uses it: start-up, memory, recall, and latency while it is written to.

    python benchmarks/index.py [--vectors 1000000] [--seconds 120] [--rivals] [--json results.jsonl]

Vectors are clustered (2,000 centres in 32 dimensions, bent and projected to 256, with noise) and queries are drawn as
they are; neither is a real embedding. `--rivals` builds hnswlib (pip install hnswlib: not a dependency) and a plain
FAISS IVF, Flat, what clip-retrieval serves from, on the same vectors, and asks them as deep as is needed for the same
recall. Everything is asked single queries on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from streamlearn.catalog import Catalog, ClipRow
from streamlearn.index import Partition, PartitionView, configure_faiss
from streamlearn.index_lists import ListsBlock

DIM, K, CHUNK = 256, 10, 20_000
CENTRES = np.random.default_rng(7).standard_normal((2_000, 32)).astype(np.float32)
BEND = np.random.default_rng(8).standard_normal((32, DIM)).astype(np.float32)

Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def draw(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    inner = CENTRES[rng.integers(0, len(CENTRES), count)] + 0.7 * rng.standard_normal((count, 32)).astype(np.float32)
    vectors = np.tanh(inner) @ BEND / 6 + 0.25 * rng.standard_normal((count, DIM)).astype(np.float32)
    out: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return out


def anonymous_mb() -> float:
    """Memory of this process that is no file's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def store(path: Path, count: int) -> None:
    catalog = Catalog(path)
    for begin in range(0, count, CHUNK):
        clips = [
            ClipRow(0, f"v{begin + i}", *[None] * 3, ("a",), {}, None, "train", "t1", begin // 32, None, "b", "0", 0)
            for i in range(min(CHUNK, count - begin))
        ]  # fmt: skip
        with catalog.transaction():
            rows, _ = catalog.put(clips)
            catalog.put_vectors(rows, draw(begin + 1, len(rows)), era=1, step=begin // 32)
    catalog.close()


def truth(path: Path, queries: np.ndarray) -> np.ndarray:
    """The exact first ten rows."""
    catalog = Catalog(path)
    rows, halves, _ = catalog.era_vectors(1)
    catalog.close()
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


def start(path: Path, hints: Path) -> tuple[Partition, dict[str, float]]:
    """What a daemon does with one era when it starts."""
    before, begin = anonymous_mb(), time.perf_counter()
    catalog = Catalog(path)
    catalog.rewind(catalog.generation)
    rows, halves, _ = catalog.era_vectors(1)
    read = time.perf_counter()
    partition = Partition(DIM, hints=hints)
    partition.replace_all(rows, halves)
    partition.view().search(draw(0, 1), K)
    ready = time.perf_counter()
    catalog.close()
    del rows, halves
    partition.close()
    partition.view()
    tuned = time.perf_counter()
    facts = {"read_s": read - begin, "ready_s": ready - begin, "background_s": tuned - ready}
    return partition, facts | {"resident_mb": anonymous_mb() - before}


def ask(search: Search, queries: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Recall and latency of single queries."""
    hits, times = 0, []
    for query, right in zip(queries, exact, strict=True):
        begin = time.perf_counter()
        _, found = search(query[None])
        times.append(time.perf_counter() - begin)
        hits += len(set(found[0].tolist()) & set(right.tolist()))
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return {"recall": hits / exact.size, "p50_ms": float(p50), "p99_ms": float(p99)}


class Writer(threading.Thread):
    """200 upserts a second in batches of 8, half of them of new rows, and 10 removals, each batch published at once."""

    def __init__(self, partition: Partition, count: int, seconds: float) -> None:
        super().__init__()
        self.partition, self.count, self.seconds = partition, count, seconds
        self.view, self.newest, self.swaps, self.late_s = partition.view(), (0, draw(0, 1)), 0, 0.0

    def run(self) -> None:
        rng, pool, begin = np.random.default_rng(3), draw(5, 8_000), time.monotonic()
        block = self.view._layers[0].block
        for number in range(int(self.seconds * 25)):
            rows = np.concatenate([self.count + 4 * number + np.arange(1, 5), rng.integers(1, self.count, 4)])
            at = rng.integers(0, len(pool), 8)
            self.partition.upsert(rows, pool[at])
            if number % 5 == 0:
                self.partition.remove(rng.integers(1, self.count, 2))
            self.view = self.partition.view()
            self.newest = (int(rows[3]), pool[at[3:4]])
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


def rivals(path: Path, lists: ListsBlock, queries: np.ndarray, exact: np.ndarray, recall: float) -> dict[str, Any]:
    """Each at the least depth that reaches the recall."""
    import hnswlib

    catalog = Catalog(path)
    rows, halves, _ = catalog.era_vectors(1)
    catalog.close()
    out: dict[str, Any] = {}
    faiss.omp_set_num_threads(1)
    quantizer = faiss.IndexFlatIP(DIM)
    quantizer.add(lists.centroids)  # the training is the same: half a minute saved
    plain = faiss.IndexIVFFlat(quantizer, DIM, len(lists.centroids), faiss.METRIC_INNER_PRODUCT)
    plain.is_trained = True
    faiss.omp_set_num_threads(2)
    before, begin = anonymous_mb(), time.perf_counter()
    for at in range(0, len(rows), CHUNK):
        plain.add_with_ids(halves[at : at + CHUNK].astype(np.float32), rows[at : at + CHUNK])
    facts = {"build_s": time.perf_counter() - begin, "resident_mb": anonymous_mb() - before}
    faiss.omp_set_num_threads(1)

    def at_depth(nprobe: int, index: Any = plain) -> Search:
        return lambda query: index.search(query, K, params=faiss.SearchParametersIVF(nprobe=nprobe))

    out["faiss IVF, Flat"] = facts | enough(at_depth, queries, exact, recall)
    plain.reset()
    before, begin = anonymous_mb(), time.perf_counter()
    graph = hnswlib.Index(space="ip", dim=DIM)
    graph.init_index(max_elements=len(rows), M=16, ef_construction=100)
    for at in range(0, len(rows), CHUNK):
        graph.add_items(halves[at : at + CHUNK].astype(np.float32), rows[at : at + CHUNK], num_threads=2)
    facts = {"build_s": time.perf_counter() - begin, "resident_mb": anonymous_mb() - before}

    def with_ef(ef: int) -> Search:
        graph.set_ef(max(ef, K))
        return lambda query: graph.knn_query(query, k=K, num_threads=1)[::-1]  # type: ignore[no-any-return]

    out["hnswlib"] = facts | enough(with_ef, queries, exact, recall)
    return out


def enough(at_depth: Callable[[int], Search], queries: np.ndarray, exact: np.ndarray, recall: float) -> dict[str, Any]:
    for depth in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024):
        found = ask(at_depth(depth), queries, exact)
        if found["recall"] >= recall:
            break
    return {"depth": depth, **found}


def main() -> None:
    """Print one JSON object a step, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    configure_faiss()
    queries = draw(10**9, 500)

    def tell(step: str, facts: dict[str, Any]) -> None:
        told = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
        line = json.dumps({"commit": commit, "vectors": arguments.vectors, "step": step, **told})
        print(line, flush=True)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(line + "\n")

    with tempfile.TemporaryDirectory() as folder:
        path, hints = Path(folder) / "catalog.db", Path(folder) / "hints.safetensors"
        begin = time.perf_counter()
        store(path, arguments.vectors)
        tell("stored", {"s": time.perf_counter() - begin})
        exact = truth(path, queries)
        partition, facts = start(path, hints)
        tell("first start", facts)
        view: PartitionView = partition.view()
        block = view._layers[0].block
        depth = block.depth._asdict() if isinstance(block, ListsBlock) else {}
        quiet = ask(lambda query, view=view: view.search(query, K), queries, exact)  # type: ignore[misc]
        tell("quiet", depth | quiet)
        tell("200 upserts/s", ask_while_written(partition, queries, arguments.vectors, arguments.seconds))
        del view, partition
        partition, facts = start(path, hints)
        facts["hints_mb"] = hints.stat().st_size / 2**20 if hints.exists() else 0.0
        tell("second start", facts)
        again = partition.view()
        tell("quiet", ask(lambda query: again.search(query, K), queries, exact))
        if arguments.rivals and isinstance(block, ListsBlock):
            for name, facts in rivals(path, block, queries, exact, quiet["recall"]).items():
                tell(name, facts)


if __name__ == "__main__":
    main()
