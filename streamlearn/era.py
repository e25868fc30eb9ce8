"""One era as its writer keeps it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.catalog import Rows
from streamlearn.era_judges import Sealing
from streamlearn.era_maps import Mapped, MappedEncoder, through
from streamlearn.era_merge import Merge, Refusal
from streamlearn.era_readout import Readout
from streamlearn.era_view import QueryEncoder
from streamlearn.era_words import Words
from streamlearn.index import Layout, Partition
from streamlearn.index_lists import Halves
from streamlearn.records import Vectors

log = logging.getLogger(__name__)

SLICE = 8_192  # vectors that are handled at a stretch, where there may be millions: searches want their turn


@dataclass
class Era:
    """The writer's side of one era.

    Attributes:
        number, task, opened_step: what it is called, and when it began.
        partition: its clips' vectors.
        captions: that it knows itself by, as its own text tower says them, without a readout; (m, d). Of an era without
            a pair, as its encoder reads them.
        caption_clips: of the current era, the clips that came with these captions; (m, d).
        caption_rows: of a sealed era, the clips whose captions these are; (m,), or (0,) where it is not known.
        sealed_step: the step of its snapshot; None while it is the current one.
        encoder: how a sealed era is read.
        readout: what was found when it was last decided whether eras are read through readouts; the same in all.
        mapped: where it has no pair of its own.
        pending: rows of a sealed era that await re-encoding.
        into: the era that takes these rows when they are done,
        merge: and why.
        absorbed: eras that were merged into this one, and what was decided about them.
        sealing: whose weights it was sealed with, and why.
        refused: merges with another era that were thought of and not made, and why; the latest of each kind.
        reencoded: rows done, of a partition not yet swapped in, and their vectors in half precision, (d,) each.
        words: of the captions of all clips that were learned in it.
    """

    number: int
    task: str
    opened_step: int
    partition: Partition
    captions: Vectors
    caption_clips: Vectors
    caption_rows: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    sealed_step: int | None = None
    encoder: QueryEncoder | None = None
    readout: Readout | None = None
    mapped: Mapped | None = None
    pending: deque[int] = field(default_factory=deque)
    into: Era | None = None
    merge: Merge | None = None
    absorbed: list[dict[str, Any]] = field(default_factory=list)
    sealing: Sealing | None = None
    refused: list[dict[str, Any]] = field(default_factory=list)
    reencoded: dict[int, Halves] = field(default_factory=dict)
    words: Words = field(default_factory=Words)

    @property
    def known(self) -> Vectors:
        """The captions as its encoder reads them, (m, d)."""
        if isinstance(self.encoder, MappedEncoder) and not self.encoder.borrowed:
            return through(self.captions, self.encoder.of_texts)
        return self.captions

    @property
    def renewing(self) -> bool:
        """Whether a later era of its task takes its clips, which are read well until then: nothing is urgent."""
        return self.merge is not None and self.merge.why == "renewed"

    @property
    def tasks(self) -> set[str]:
        """Names of the tasks whose eras it is."""
        return {self.task, *(one["task"] for one in self.absorbed)}

    def rename(self, old: str, new: str) -> None:
        """A task has another name."""
        self.task = new if self.task == old else self.task
        self.absorbed = [one | {"task": new} if one["task"] == old else one for one in self.absorbed]

    def refuse(self, other: Era, refusal: Refusal) -> None:
        """Note that it does not become one with another."""
        log.info("era %d of %s does not become one with era %d: %s", self.number, self.task, other.number, refusal)
        before = [one for one in self.refused if one["why"] != refusal.why]
        self.refused = [*before, {"other": other.number} | asdict(refusal)]

    def take_in(self, era: Era) -> None:
        """Note that another is part of this one."""
        assert era.merge is not None
        self.words = self.words.plus(era.words)
        facts = era.facts()
        told = {name: facts[name] for name in ("task", "sealing", "refused")}
        self.absorbed = [*self.absorbed, *era.absorbed, asdict(era.merge) | told]

    def holds(self, number: int) -> bool:
        """Whether it is this era, or took it in."""
        return number == self.number or any(number == one["absorb"] for one in self.absorbed)

    @property
    def closing(self) -> bool:
        """Whether something is still to be done with its vectors."""
        return bool(self.pending) or self.into is not None

    @property
    def ready(self) -> bool:
        """Whether that can be done now.

        One that goes into another waits until that is finished: a restart begins the other anew with all of its rows.
        """
        return self.closing and (self.into is None or not self.into.pending)

    def written_by(self, merge_vectors: str) -> Era:
        """Whose pair its vectors will be of: a merged era's too are its own, as they say more (docs/log.md)."""
        anew = merge_vectors == "encode" or (self.merge is not None and self.merge.of_one_task)
        return self.into if self.into is not None and anew else self

    def tensors(self) -> dict[str, Tensor]:
        """What it knows itself by, and the maps through which it is read."""
        out = {
            "captions": self.captions,
            "caption_clips": self.caption_clips,
            "caption_rows": self.caption_rows,
            "words": np.stack([self.words.words, self.words.counts]),
        }
        if isinstance(self.encoder, MappedEncoder):
            out["text_maps"] = self.encoder.of_texts
            if self.encoder.of_clips is not None:
                out["clip_maps"] = self.encoder.of_clips
        if (layout := self.partition.layout) is not None:
            out["fresh"] = layout.fresh
        return {kind: torch.from_numpy(array) for kind, array in out.items()}

    def take_reencoded(self) -> tuple[Rows, Halves]:
        """Rows that were encoded anew and are still there, ascending, and their vectors. Shape: (n,), (n, d)."""
        done = np.fromiter(self.reencoded, np.int64, len(self.reencoded))
        rows = np.sort(done[self.partition.view().holds(done)])
        vectors = np.empty((len(rows), self.partition.dim), np.float16)
        for begin in range(0, len(rows), SLICE):
            some = slice(begin, begin + SLICE)
            vectors[some] = [self.reencoded.pop(row) for row in rows[some].tolist()]  # bit by bit: a million take long
        self.reencoded = {}
        return rows, vectors

    def load(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what `facts` and `tensors` gave, but for what leads to other eras, and encoders."""
        self.absorbed, self.sealed_step = [*facts.get("absorbed", ())], facts["sealed_step"]
        self.captions = tensors["captions"].numpy()
        clips = tensors.get("caption_clips", tensors.get("shown"))  # as format 3 called it at first
        if clips is not None:
            self.caption_clips = clips.numpy()
        elif self.sealed_step is None:  # format 2: they begin anew together
            self.captions = self.caption_clips
        if "caption_rows" in tensors:
            self.caption_rows = tensors["caption_rows"].numpy()
        if "words" in tensors:  # else written before they were counted: it is as familiar as the others are
            words, counts = tensors["words"].numpy()
            self.words = Words(words, counts, facts["told"])
        if facts.get("sealing"):  # else an older version sealed it, or none
            self.sealing = Sealing(**facts["sealing"])
        self.refused = [*facts.get("refused", ())]
        if facts.get("readout"):
            self.readout = Readout(**facts["readout"])

    def layout(self, facts: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Layout | None:
        """How its vectors lay where `facts` and `tensors`, here all of a generation's, are from."""
        if not facts.get("lists"):  # there were none, or an older version wrote it
            return None
        number = f"{self.number:04d}"
        lists = tensors[f"lists/{number}-{facts['lists']}"]
        return Layout(facts["lists"], lambda: lists, tensors["fresh"][number].numpy())

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "number": self.number,
            "task": self.task,
            "opened_step": self.opened_step,
            "sealed_step": self.sealed_step,
            "reencoded": not self.pending,
            "absorbed": self.absorbed,
            "merge": self.merge and asdict(self.merge),
            "sealing": self.sealing and asdict(self.sealing),
            "refused": self.refused,
            "readout": self.readout and asdict(self.readout),
            "mapped": self.mapped and asdict(self.mapped),
            "told": self.words.clips,
            "lists": (layout := self.partition.layout) and layout.name,
        }
