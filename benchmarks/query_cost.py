"""What a query costs with 1, 4 and 16 eras: encoding the text and searching, as the daemon does it, on one thread.

    python benchmarks/query_cost.py [--clips 16000] [--dim 128] [--queries 200] [--text FOLDER] [--trainable heads]

The clips are the same number in all, divided among the eras, large ones in lists; vectors are drawn around 2,000
centres, texts are all different, so no cache
helps. Of ended eras, 4 have a pair of their own (`search.max_encoders`) and the others are read through maps; beside
it, 16 eras with a single pair, and 16 that all have one. `--text` takes another text tower; with `--trainable heads`
all pairs share its trunk. The rounds take turns. Time is that of the
thread's CPU, which a busy machine does not change, and the clock's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from streamlearn.catalog import Catalog, ClipRow
from streamlearn.encoders import Towers
from streamlearn.era_maps import MappedEncoder
from streamlearn.era_view import EraView, QueryEncoder
from streamlearn.era_words import Words
from streamlearn.frames import FrameStore
from streamlearn.index import Partition, configure_faiss
from streamlearn.metrics import Metrics
from streamlearn.schemas import Query, SearchRequest
from streamlearn.search import Searcher, Snapshot
from streamlearn.settings import SearchSettings

CENTRES, SPREAD = 2_000, 0.7


def unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    centres = np.random.default_rng(9).standard_normal((CENTRES, dim)).astype(np.float32)
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors = centres[rng.integers(0, CENTRES, count)] + SPREAD * vectors
    out: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return out


def told(rng: np.random.Generator) -> Words:
    """3,000 words of 1,600 clips."""
    words = rng.choice(2**32, 3_000, replace=False)
    return Words(np.sort(words).astype(np.int64), rng.integers(1, 100, 3_000), 1_600)


class Pairs:
    """Frozen pairs that differ in what was learned."""

    def __init__(self, text: str, trainable: str, dim: int) -> None:
        self._text, self._trainable, self.dim = text, trainable, dim
        self._first = Towers(text=text, dim=dim)
        self._first.train_only(trainable)

    def another(self, seed: int) -> QueryEncoder:
        """Other weights in all that moves."""
        if self._trainable == "all":
            return QueryEncoder(Towers(text=self._text, dim=self.dim, seed=seed).frozen_copy())
        with torch.no_grad():
            for weight in self._first.moving:
                weight.add_(torch.randn_like(weight), alpha=0.01)
        return QueryEncoder(self._first.frozen_copy())


def snapshot(rows: np.ndarray, eras: int, pairs: int, make: Pairs) -> Snapshot:
    """Of so many eras, the current one among them, whose ended ones have so many pairs."""
    rng, dim = np.random.default_rng(0), make.dim
    views = []
    turn = np.concatenate([np.linalg.qr(rng.standard_normal((dim, dim)))[0], np.zeros((1, dim))]).astype(np.float32)
    own: list[QueryEncoder] = []
    for number, part in enumerate(np.array_split(rows, eras), 1):
        partition = Partition(dim)
        partition.replace_all(part, unit(rng, len(part), dim))
        partition.close()
        if number == eras or len(own) < pairs:
            own.append(make.another(number))
            encoder = own[-1] if number == eras else MappedEncoder(own[-1], turn)
        else:
            encoder = MappedEncoder(own[number % pairs], turn, turn)
        views.append(EraView(number, f"t{number}", encoder, partition.view(), unit(rng, 1024, dim), told(rng)))
    return Snapshot(tuple(views), 0, 0, "m", {}, "2026-01-01T00:00:00Z", 0, None)


def main() -> None:
    """Print one JSON object a number of eras."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--text", default="tiny")
    parser.add_argument("--trainable", default="all", choices=("all", "heads"))
    arguments = parser.parse_args()
    make = Pairs(arguments.text, arguments.trainable, arguments.dim)
    configure_faiss()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog(Path(folder) / "catalog.db")
        clip = ClipRow(0, "", *[None] * 3, ("a red ball",), {}, None, "train", "t1", 0, None, "b", "0", 0)
        found, _ = catalog.put([clip.__class__(0, f"v{i}", *tuples(clip)) for i in range(arguments.clips)])
        rows = np.asarray(found, np.int64)
        frames = FrameStore(Path(folder) / "frames", 2**20)
        searchers: dict[tuple[int, int], Searcher] = {}
        for eras, pairs in ((1, 4), (4, 4), (16, 4), (16, 1), (16, 16)):
            searcher = Searcher(catalog, frames, SearchSettings(), Metrics.create(CollectorRegistry()))
            searcher.publish(snapshot(rows, eras, pairs, make))
            searchers[eras, min(pairs, eras - 1)] = searcher
        times: dict[tuple[int, int], list[tuple[float, float]]] = {kind: [] for kind in searchers}
        for number in range(arguments.queries):
            for kind, searcher in searchers.items():
                text = f"a small red ball, number {number} of many, rolls slowly to the left"
                cpu, clock = time.thread_time(), time.perf_counter()
                searcher.search(SearchRequest(query=Query(text=text)))
                times[kind].append((time.thread_time() - cpu, time.perf_counter() - clock))
        catalog.close()
    p50 = {kind: np.median(np.asarray(taken[10:]), axis=0) * 1e3 for kind, taken in times.items()}
    for (eras, pairs), (cpu, clock) in p50.items():
        facts = {"eras": eras, "pairs_of_ended_ones": pairs}
        facts |= {"cpu_p50_ms": round(float(cpu), 3), "clock_p50_ms": round(float(clock), 3)}
        print(json.dumps(facts | {"times_one_era": round(float(cpu / p50[1, 0][0]), 2)}))


def tuples(clip: ClipRow) -> tuple[Any, ...]:
    """All but row and video_id."""
    return tuple(getattr(clip, name) for name in clip.__slots__[2:])


if __name__ == "__main__":
    main()
