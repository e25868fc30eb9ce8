"""One era as its writer keeps it."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from streamlearn.catalog import Rows
from streamlearn.era_maps import Mapped, MappedEncoder, through
from streamlearn.era_merge import Merge
from streamlearn.era_readout import Readout
from streamlearn.era_view import QueryEncoder
from streamlearn.index import Partition
from streamlearn.records import Vectors


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
        absorbed: eras that were merged into this one, and why.
        reencoded: rows done, of a partition not yet swapped in.
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
    reencoded: dict[int, Vectors] = field(default_factory=dict)

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
            "readout": self.readout and asdict(self.readout),
            "mapped": self.mapped and asdict(self.mapped),
        }
