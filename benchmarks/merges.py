"""Two eras become one: are the absorbed one's vectors to be encoded anew, or turned into the other space by a map?

    python benchmarks/merges.py CACHE [--seeds 1 2 3] [--clips 800]

A stream of five rendered domains is learned once a seed, boundaries known. Then every era is merged into every other
(20 ordered pairs), and all test clips, 100 a domain, are asked for in one pool, scored as search scores. The maps are
fitted to learned clips of the absorbed era, never to test clips.
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamlearn.bench.corpus import LEARN, Corpus, render_corpus
from streamlearn.bench.gallery import encode_clips, questions
from streamlearn.bench.sealed import SealedEra
from streamlearn.bench.trial import Spec, Trial
from streamlearn.era_merge import mapped
from streamlearn.era_scores import weighed
from streamlearn.era_view import QueryEncoder
from streamlearn.era_words import Words, familiarity
from streamlearn.evaluate import ranks
from streamlearn.records import Vectors

FITTED = (50, 200, 800)  # clips that have frames


def recalls(asked: list[tuple[QueryEncoder, Words, Vectors]], texts: list[str]) -> dict[str, float]:
    """R@1, R@5 and mean reciprocal rank over the pool; of each group its reader, its words and its vectors."""
    cosines = [reader.texts(texts) @ vectors.T for reader, _, vectors in asked]
    scores = weighed(cosines, familiarity(texts, [words for _, words, _ in asked]), 0.5)
    rank = ranks(np.concatenate(scores, axis=1), np.arange(len(texts)))
    return {
        "r1": 100 * float((rank <= 1).mean()),
        "r5": 100 * float((rank <= 5).mean()),
        "mrr": float((1 / rank).mean()),
    }


def merges(corpus: Corpus, eras: list[SealedEra], learned: list[np.ndarray]) -> list[dict[str, Any]]:
    readers = [QueryEncoder(era.pairs[era.chosen]) for era in eras]
    apart = [(readers[i], era.words, era.of(era.tests, era.chosen)) for i, era in enumerate(eras)]
    texts = questions(corpus, np.concatenate([era.tests for era in eras]))
    before = recalls(apart, texts)
    out = []
    for keep, absorb in permutations(range(len(eras)), 2):
        pair, old = eras[keep].pairs[eras[keep].chosen], apart[absorb][2]
        by_old = encode_clips(eras[absorb].pairs[eras[absorb].chosen], corpus, learned[absorb])
        by_new = encode_clips(pair, corpus, learned[absorb])
        ways = {"left as they are": old, "encoded anew": encode_clips(pair, corpus, eras[absorb].tests)}
        ways |= {f"map of {n}": mapped(by_old[:n], by_new[:n], old) for n in FITTED}
        for way, vectors in ways.items():
            groups = list(apart)
            words = eras[keep].words.plus(eras[absorb].words)
            groups[absorb] = (readers[keep], words, vectors)
            groups[keep] = (readers[keep], words, apart[keep][2])
            found = recalls(groups, texts)
            out.append({"keep": keep, "absorb": absorb, "way": way} | {k: found[k] - before[k] for k in found})
    return [{"keep": None, "absorb": None, "way": "apart", **before}, *out]


def main() -> None:
    """Print one JSON object a seed and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--clips", type=int, default=800)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for seed in chosen.seeds:
        folder = render_corpus(
            chosen.cache, seed=seed, clips=chosen.clips, test=100, judges=32, progress=lambda *_: None
        )  # fmt: skip
        trial = Trial(Spec(str(folder), "bmu-local", 4e-4, seed, boundaries="oracle", asked_per_task=1))
        trial.run()
        eras, corpus, rng = trial.eras.eras, trial.corpus, np.random.default_rng(seed)
        learned = [rng.permutation(corpus.rows(LEARN, int(corpus.domain[era.tests[0]])))[: max(FITTED)] for era in eras]
        found = merges(corpus, eras, learned)
        print(json.dumps({"seed": seed, **found[0]}), flush=True)
        for way in dict.fromkeys(line["way"] for line in found[1:]):
            its = [line for line in found if line["way"] == way]
            cheapest = max(its, key=lambda line: line["mrr"])
            means = {f"mean_{k}": round(float(np.mean([line[k] for line in its])), 4) for k in ("r1", "r5", "mrr")}
            print(
                json.dumps({"seed": seed, "way": way, **means, "best_r5": cheapest["r5"], "best": cheapest}), flush=True
            )


if __name__ == "__main__":
    main()
