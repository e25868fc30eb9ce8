"""What is found at the end of a stream with all of the eras' text encoders, and with fewer.

With fewer encoders than eras, some eras are read through maps by the pairs of others, as the daemon does it: each time
an era has ended, held-out clips, none of them a test clip, say which pair is missed least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlearn.bench.corpus import TEST, Corpus, Ints
from streamlearn.bench.gallery import KS, Recalls, both_ways, encode_clips, encode_texts, questions, summary, thinned
from streamlearn.bench.sealed import SealedEra
from streamlearn.era_maps import Captions, Mapped, MappedEncoder, choose
from streamlearn.era_readout import judged, through_readout
from streamlearn.era_scores import hubness, less_hubness, weighed
from streamlearn.era_view import EraView, QueryEncoder
from streamlearn.era_words import Words, familiarity
from streamlearn.evaluate import Ranks, hits_in_pool, ranks
from streamlearn.index import Partition
from streamlearn.records import Vectors
from streamlearn.settings import SearchSettings

_MAPPED = 256  # captions that an era is mapped by, as in the daemon
#: Encoders kept, as a share of the curve; "all" is one per era.
KEPT = ("1", "2", "4", "all")


@dataclass
class _Reading:
    """How one era is read."""

    number: int
    encoder: QueryEncoder
    words: Words
    said: Captions
    known: Vectors  # captions as the encoder reads them
    mapped: Mapped | None = None


class Curve:
    """Asks sealed eras.

    Args:
        corpus: the clips.
        eras: of the whole stream.
        settings: how eras are asked.
    """

    def __init__(self, corpus: Corpus, eras: Sequence[SealedEra], settings: SearchSettings) -> None:
        self.eras = eras
        self._corpus, self._settings = corpus, settings

    def measured(self, seed: int) -> dict[str, Any]:
        """Recall over the pooled test clips against the number of encoders kept.

        Returns:
            By sealing rule ("judged": as the daemon does, "local": always the momentum pair, "plain": as the daemon but
            without readouts) and number of encoders (of `KEPT`, where there are that many eras): "t2v", "v2t", "among"
            (t2v among all clips, those that were learned, too), "cosine" (t2v by cosine alone) and, with all encoders,
            "thinned" (t2v, four tenths of the words missing) and what `_forgotten` returns. And under "single" what
            `_single` returns.
        """
        eras = [era for era in self.eras if len(era.rows)]
        out: dict[str, Any] = {}
        for rule in ("judged", "local", "plain"):
            chosen = ["local" if rule == "local" else era.chosen for era in eras]
            out[rule] = {}
            for kept in KEPT:
                count = len(eras) if kept == "all" else int(kept)
                if count > len(eras):
                    continue
                readings = self._readings(eras, chosen, count, readouts=rule != "plain")
                views = [
                    _view(reading.encoder, era, era.rows, era.vectors[name], reading.known)
                    for reading, era, name in zip(readings, eras, chosen, strict=True)
                ]
                out[rule][kept] = self._asked(views, seed if kept == "all" else None)
        out["single"] = self._single(eras)
        return out

    def _single(self, eras: Sequence[SealedEra]) -> dict[str, Recalls]:
        """What `search.mode = single` finds: the same stored vectors, asked with today's text encoder, by cosine alone.

        The last era is open in the daemon: its clips and its queries are of the momentum pair.

        Returns:
            "t2v" and "v2t", over the pool, and "among".
        """
        *sealed, last = eras
        rows = np.concatenate([era.rows for era in eras])
        stored = np.concatenate([*(era.vectors[era.chosen] for era in sealed), last.vectors["local"]])
        tests = self._tests(rows)
        scores = encode_texts(last.pairs["local"], questions(self._corpus, rows[tests])) @ stored.T
        return both_ways(scores[:, tests]) | {"among": summary(ranks(scores, tests))}

    def _tests(self, rows: Ints) -> Ints:
        """Where test clips are among rows."""
        return np.flatnonzero(self._corpus.part[rows] == TEST)

    def ranks_with(self, moved: Ints, target: int) -> dict[int, int]:
        """The rank of each clip for its caption, by row, had some clips been encoded by another era's pair.

        Without readouts.

        Args:
            moved: rows of test clips.
            target: the index of the era that would hold them instead.
        """
        rows, views = [], []
        for number, era in enumerate(self.eras):
            pair, held = era.pairs[era.chosen], era.tests[~np.isin(era.tests, moved)]
            vectors = era.of(held, era.chosen)
            if number == target:
                held = np.concatenate([held, moved])
                vectors = np.concatenate([vectors, encode_clips(pair, self._corpus, moved)])
            if len(held):
                views.append(_view(QueryEncoder(pair), era, held, vectors, encode_texts(pair, era.captions)))
                rows.append(views[-1].partition.rows)
        gallery = np.concatenate(rows)
        merged = self._scores(views, questions(self._corpus, gallery))[1]
        rank = ranks(merged, np.arange(len(gallery)))
        return dict(zip(gallery.tolist(), rank.tolist(), strict=True))

    def _reading(self, number: int, era: SealedEra, name: str) -> _Reading:
        known = encode_texts(era.pairs[name], era.captions)
        some = slice(None, None, _every(known))
        asked, clips = questions(self._corpus, era.judges), era.of(era.judges, name)
        said = Captions(era.captions[some], known[some], asked, clips, era.of(era.told[some], name))
        return _Reading(number, QueryEncoder(era.pairs[name]), era.words, said, known)

    def _readings(
        self, eras: Sequence[SealedEra], chosen: Sequence[str], most: int, *, readouts: bool
    ) -> list[_Reading]:
        """How each era is read at the end, were no more pairs kept than this."""
        weight = self._settings.familiarity_weight
        out: list[_Reading] = []
        for i, (era, name) in enumerate(zip(eras, chosen, strict=True)):
            out.append(self._reading(i, era, name))
            if readouts:
                self._read_out(out, eras, chosen)
            said = {reading.number: reading.said for reading in out}
            while (choice := choose(out, said, range(i + 1), most, weight)) is not None:
                for number, matrix in choice.maps.items():
                    out[number].encoder = MappedEncoder(out[choice.mapped.reader].encoder.reader, matrix, matrix)
                    out[number].mapped = choice.mapped
        return out

    def _read_out(self, readings: Sequence[_Reading], eras: Sequence[SealedEra], chosen: Sequence[str]) -> None:
        """As the daemon does when an era's vectors are final."""
        plain, read_out = dict[int, QueryEncoder](), dict[int, QueryEncoder]()
        for reading, era, name in zip(readings, eras, chosen, strict=False):
            if era.captions and reading.mapped is None:
                pair = plain[reading.number] = reading.encoder.reader
                read_out[reading.number] = through_readout(pair, pair.texts(era.captions), era.of(era.told, name))
        said = {reading.number: reading.said for reading in readings}
        readout = judged(readings, said, plain, read_out, self._settings.familiarity_weight)
        decided = read_out if readout is not None and readout.helps else plain
        for reading in readings:
            if reading.number in decided:
                reading.encoder = decided[reading.number]
                reading.known = reading.encoder.texts(eras[reading.number].captions)
                reading.said = replace(reading.said, vectors=reading.known[:: _every(reading.known)])

    def _asked(self, views: Sequence[EraView], thin_seed: int | None) -> dict[str, Any]:
        rows = np.concatenate([view.partition.rows for view in views])  # (n,), the gallery
        tests = self._tests(rows)  # (q,), what is asked for
        texts, own = questions(self._corpus, rows[tests]), np.arange(len(tests))
        all_cosines, all_scores = self._scores(views, texts)
        cosine, merged = all_cosines[:, tests], all_scores[:, tests]
        out = {"t2v": summary(ranks(merged, own)), "cosine": summary(ranks(cosine, own))}
        # A clip asks with its vector, and captions answer as its era's reader sees them.
        out["v2t"] = summary(ranks(cosine.T, own))
        out["among"] = summary(ranks(all_scores, tests))
        if thin_seed is not None:
            thin = self._scores(views, thinned(texts, thin_seed))[1]
            out["thinned"] = summary(ranks(thin[:, tests], own))
            ends = np.cumsum([len(view.partition.rows) for view in views])
            out |= self._forgotten(merged, rows[tests], np.unique(np.searchsorted(tests, ends)))
        return out

    def _forgotten(self, merged: Vectors, rows: Ints, ends: Ints) -> dict[str, dict[str, float]]:
        """What users lost since each era was sealed: percent of the best recall so far, mean over past domains.

        Vectors and encoders of a sealed era never change, so that what was found at an era's end is a corner of the
        scores at the end of the stream: but for readouts, which are those of the end throughout.

        Args:
            merged: (n, n) scores of all questions and test clips, in the order of eras.
            rows: (n,) theirs.
            ends: of each era, how many clips there are up to it.

        Returns:
            "forgetting": by k, in the pool as it was then and as it is now, so that its growth counts as loss;
            "forgetting_pool": the same, were the pool always as large as the first era's.
        """
        domain = self._corpus.domain[rows]
        found: dict[str, dict[int, list[npt.NDArray[np.float64]]]] = {"forgetting": {}, "forgetting_pool": {}}
        for end in ends[ends > 0]:
            rank: Ranks = ranks(merged[:end, :end], np.arange(end))
            for k in KS:
                found["forgetting"].setdefault(k, []).append((rank <= k).astype(np.float64))
                found["forgetting_pool"].setdefault(k, []).append(
                    hits_in_pool(rank, k, candidates=int(end), pool=int(ends[ends > 0][0]))
                )
        past = [d for d in dict.fromkeys(domain.tolist()) if d != domain[-1]]
        out: dict[str, dict[str, float]] = {}
        for name, by_k in found.items():
            for k, courses in by_k.items():
                lost = []
                for d in past:
                    course = [hits[domain[: len(hits)] == d].mean() for hits in courses if d in domain[: len(hits)]]
                    best = max(course)
                    lost.append((best - course[-1]) / best if best else 0.0)
                if lost:
                    out.setdefault(name, {})[str(k)] = 100 * float(np.mean(lost))
        return out

    def _scores(self, views: Sequence[EraView], texts: Sequence[str]) -> tuple[Vectors, Vectors]:
        """Cosines, and the scores that the daemon ranks by: (q, n) each. It corrects for hubs only among the best."""
        clips = [view.partition.vectors(view.partition.rows) for view in views]
        cosine = [view.encoder.texts(texts) @ vectors.T for view, vectors in zip(views, clips, strict=True)]
        weight, hub_weight = self._settings.familiarity_weight, self._settings.hub_weight
        near = np.concatenate([hubness(vectors, view.captions) for view, vectors in zip(views, clips, strict=True)])
        merged = np.concatenate(weighed(cosine, familiarity(texts, [view.words for view in views]), weight), axis=1)
        scores = less_hubness(merged, near[None], hub_weight=hub_weight, familiarity_weight=weight)
        return np.concatenate(cosine, axis=1), scores


def _view(reader: QueryEncoder, era: SealedEra, rows: Ints, vectors: Vectors, known: Vectors) -> EraView:
    partition = Partition(vectors.shape[1])
    partition.upsert(rows, vectors)
    return EraView(0, "", reader, partition.view(), known, era.words)


def _every(known: Vectors) -> int:
    return max(1, -(-len(known) // _MAPPED))
