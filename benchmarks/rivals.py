r"""Other indices over the vectors of `benchmarks/index.py`, each asked as deep as one likes. It measures nothing.

clip-retrieval serves what autofaiss makes. `python -m benchmarks.index --folder kept --prepare --rivals` leaves the
vectors in `kept/embeddings`; in an environment of its own (`pip install autofaiss "pyarrow<20"`: not a dependency) this
is what `clip-retrieval index` does with its defaults:

    autofaiss build_index --embeddings=kept/embeddings --index_path=kept/autofaiss.index \
        --index_infos_path=kept/autofaiss.json --max_index_memory_usage=4G --current_memory_available=16G

Every `kept/autofaiss*.index` is asked. With a limit of 1G it is an OPQ, IVF, PQ, which autofaiss 2.18 makes only with
faiss-cpu 1.8.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from streamlearn.index_lists import ListsBlock

CHUNK = 20_000

Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
Rival = Callable[[int], Search]  # by depth; the last one made is the one that may be used


def faiss_lists(lists: ListsBlock, rows: np.ndarray, halves: np.ndarray, k: int) -> Rival:
    """A plain IVF, Flat. Training and lists are ours: minutes saved."""
    dim = halves.shape[1]
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(lists.centroids)
    plain = faiss.IndexIVFFlat(quantizer, dim, len(lists.centroids), faiss.METRIC_INNER_PRODUCT)
    plain.is_trained = True
    numbers = lists.lists[lists.find(rows)].astype(np.int64)
    for at in range(0, len(rows), CHUNK):
        part = np.ascontiguousarray(halves[at : at + CHUNK], np.float32)
        its, there = rows[at : at + CHUNK].copy(), numbers[at : at + CHUNK].copy()
        plain.add_core(len(part), *(faiss.swig_ptr(array) for array in (part, its, there)))
    return lambda depth: lambda query: plain.search(query, k, params=faiss.SearchParametersIVF(nprobe=depth))


def hnswlib_graph(folder: Path, rows: np.ndarray, halves: np.ndarray, k: int) -> Rival:
    """From the folder where it was made before."""
    import hnswlib

    graph: Any = hnswlib.Index(space="ip", dim=halves.shape[1])
    kept, facts = folder / "hnswlib.bin", folder / "hnswlib.json"
    if not kept.exists():
        begin = time.perf_counter()
        graph.init_index(max_elements=len(rows), M=16, ef_construction=100)
        for at in range(0, len(rows), CHUNK):
            graph.add_items(halves[at : at + CHUNK].astype(np.float32), rows[at : at + CHUNK], num_threads=2)
        facts.write_text(json.dumps({"build_s": time.perf_counter() - begin}))
        graph.save_index(str(kept))
    else:
        graph.load_index(str(kept))

    def at_depth(depth: int) -> Search:
        graph.set_ef(max(depth, k))
        return lambda query: graph.knn_query(query, k=k, num_threads=1)[::-1]  # type: ignore[no-any-return]

    return at_depth


def autofaiss_index(file: Path, rows: np.ndarray, k: int) -> Rival:
    """It numbers vectors as they lie in its embeddings, which is by row."""
    index = faiss.read_index(str(file))
    parameter = "nprobe" if faiss.try_extract_index_ivf(index) is not None else "efSearch"

    def at_depth(depth: int) -> Search:
        faiss.ParameterSpace().set_index_parameter(index, parameter, depth)

        def search(query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            scores, found = index.search(query, k)
            return scores, np.where(found < 0, -1, rows[found])

        return search

    return at_depth
