"""An era as readers see it: immutable, and safe to ask from any thread while the pipeline goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from streamlearn.encoders import Towers
from streamlearn.era_words import Words
from streamlearn.index_view import PartitionView
from streamlearn.records import Frames, Vectors

_CACHED_TEXTS = 4096
_BATCH = 256  # texts encoded at once


class QueryEncoder:
    """A frozen pair behind a small cache; safe from any thread. Evaluation asks the same captions again and again."""

    def __init__(self, towers: Towers) -> None:
        self.towers = towers
        self._texts: dict[str, Vectors] = {}

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """Shape: n -> (n, d) unit rows."""
        known = self._texts  # once: another thread may replace it
        new = [text for text in dict.fromkeys(texts) if text not in known]
        found = {text: known[text] for text in texts if text in known}
        if new:
            for start in range(0, len(new), _BATCH):
                batch = new[start : start + _BATCH]
                found |= dict(zip(batch, self.towers.encode_text(batch).float().cpu().numpy(), strict=True))
            self.remember(new, np.stack([found[text] for text in new]))
        return np.stack([found[text] for text in texts])

    @property
    def reader(self) -> QueryEncoder:
        """The encoder that does the work: this one."""
        return self

    @property
    def borrowed(self) -> bool:
        """Whether another era's pair reads: no, this is a pair of its own."""
        return False

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return sum(weight.nbytes for weight in self.towers.state_dict().values())

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that would have to be encoded."""
        known = self._texts
        return [text for text in texts if text not in known]

    def remember(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Take vectors that this pair has made elsewhere. Shape: n, (n, d)."""
        if len(self._texts) + len(texts) > _CACHED_TEXTS:
            self._texts = {}  # a new dict: other threads may be reading the old one
        self._texts.update(zip(texts, vectors, strict=True))

    def clips(self, frames: Frames) -> Vectors:
        """Shape: uint8 (n, T, H, W, 3) -> (n, d) unit rows."""
        return EncodedClips(frames).by(self)

    def from_reader(self, vectors: Vectors) -> Vectors:
        """What the reader says of clips, as the era would: the same. Shape: (n, d) -> (n, d)."""
        return vectors


class EncodedClips:
    """Clips by whichever pair is asked for; each encodes them once, and a trunk that pairs share reads them once.

    Args:
        frames: uint8 (n, T, H, W, 3).
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = torch.from_numpy(frames)
        self._read: list[tuple[Towers, Tensor]] = []
        self._encoded: dict[QueryEncoder, Vectors] = {}

    @torch.inference_mode()
    def by(self, reader: QueryEncoder) -> Vectors:
        """By this pair. Shape: (n, d) unit rows."""
        if reader not in self._encoded:
            pair = reader.towers
            read = next((read for other, read in self._read if pair.shares_trunk(other, "video")), None)
            if read is None:
                read = pair.read_video(self._frames.to(pair.device))
                self._read.append((pair, read))
            self._encoded[reader] = pair.video_of(read).cpu().numpy()
        return self._encoded[reader]


@dataclass(frozen=True)
class EraView:
    """An era as readers see it.

    Attributes:
        encoder: the pair that wrote the partition, or another's, mostly through a map; for the current era, as it was
            at publication.
        captions: (m, d) of some clips learned in the era, m at most 1,024, as the encoder reads them.
        words: of all captions learned in the era.
        absorbed: tasks of eras that were merged into it.
    """

    number: int
    task: str
    encoder: QueryEncoder
    partition: PartitionView
    captions: Vectors
    words: Words = field(default_factory=Words)
    absorbed: frozenset[str] = frozenset()
