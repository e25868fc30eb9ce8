"""An era as readers see it: immutable, and safe to ask from any thread while the pipeline goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from streamlearn.encoders import Towers
from streamlearn.index import PartitionView
from streamlearn.records import Frames, Vectors

_CACHED_TEXTS = 4096
_NEAREST_CAPTIONS = 5
_BATCH = 256  # texts encoded at once


class QueryEncoder:
    """A frozen pair behind a small cache; safe from any thread. Evaluation asks the same captions again and again."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers
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
                found |= dict(zip(batch, self._towers.encode_text(batch).float().cpu().numpy(), strict=True))
            if len(self._texts) + len(new) > _CACHED_TEXTS:
                self._texts = {}  # a new dict: other threads may be reading the old one
            self._texts.update({text: found[text] for text in new})
        return np.stack([found[text] for text in texts])

    @torch.inference_mode()
    def clips(self, frames: Frames) -> Vectors:
        """Shape: uint8 (n, T, H, W, 3) -> (n, d) unit rows."""
        device = next(self._towers.parameters()).device
        out: Vectors = self._towers.encode_video(torch.from_numpy(frames).to(device)).float().cpu().numpy()
        return out


@dataclass(frozen=True)
class EraView:
    """An era as readers see it.

    Attributes:
        encoder: the pair that wrote the partition; for the current era, as it was at publication.
        captions: (m, d) of some clips learned in the era, m at most 256. A query near them is in the era's words.
    """

    number: int
    task: str
    encoder: QueryEncoder
    partition: PartitionView
    captions: Vectors

    def familiarity(self, queries: Vectors) -> Vectors:
        """Mean cosine to the five nearest of the era's captions. Shape: (q, d) -> (q,)."""
        return familiarity(queries, self.captions)


def familiarity(queries: Vectors, captions: Vectors) -> Vectors:
    """Mean cosine to the five nearest captions. Shape: (q, d), (m, d) -> (q,)."""
    if len(captions) == 0:
        return np.ones(len(queries), np.float32)  # nothing is known against it
    nearest = np.sort(queries @ captions.T, axis=1)[:, -_NEAREST_CAPTIONS:]
    mean: Vectors = nearest.mean(1)
    return mean
