"""Experience replay: a reservoir of clips that the stream has shown, of which each batch learns some again.

The reservoir holds ids; frames and captions come from a store. In the daemon that is the catalog and the frame store,
so that a clip which was deleted, replaced or held out is not replayed; in an experiment it is memory. Knows nothing of
how clips are learned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from streamlearn.records import Frames

_DRAW, _ADMIT = 1, 2  # streams of random numbers
_TRIES = 4  # clips that are asked for at most, for each that is drawn: those that are gone cost time too


class Replayed(NamedTuple):
    """A clip to be learned once more: (T, H, W, 3) uint8 and its captions."""

    video_id: str
    frames: Frames
    captions: Sequence[str]


class ClipStore(Protocol):
    """Where the clips of a reservoir lie."""

    def keep(self, clip: Replayed) -> None:
        """The clip may be asked for from now on."""

    def drop(self, video_id: str) -> None:
        """It will not be asked for any more."""

    def get(self, video_id: str) -> Replayed | None:
        """The clip; None where it may not be learned (any more) or its frames are gone."""


class MemoryClips:
    """Clips in memory, for experiments: a checkpoint does not hold them."""

    def __init__(self) -> None:
        self._clips: dict[str, Replayed] = {}

    def __len__(self) -> int:
        return len(self._clips)

    def keep(self, clip: Replayed) -> None:
        """Hold it."""
        self._clips[clip.video_id] = clip

    def drop(self, video_id: str) -> None:
        """Let it go."""
        self._clips.pop(video_id, None)

    def get(self, video_id: str) -> Replayed | None:
        """The clip, if it is held."""
        return self._clips.get(video_id)


class Reservoir:
    """A uniform sample of all clips that were ever offered (Vitter's algorithm R, 1985), by id.

    A clip is drawn only once a later batch has been offered: until then its frames may still be on their way to the
    disk, and what is drawn must not depend on that.

    Args:
        size: clips.
        store: has the clips.
        seed: of what is admitted and drawn.
    """

    def __init__(self, size: int, store: ClipStore, seed: int) -> None:
        self.size, self._store, self._seed = size, store, seed
        self._ids: list[str] = []
        self._last: list[str] = []  # of the batch that was offered last
        self._admitted = 0  # or refused: all that had their chance

    def __len__(self) -> int:
        return len(self._ids)

    def draw(self, n: int, step: int, shape: Sequence[int]) -> list[Replayed]:
        """Up to n different clips, the same ones for the same step and reservoir.

        Args:
            n: how many.
            step: of the learner.
            shape: of frames; clips of another shape, as of earlier settings, are passed over.
        """
        drawn: list[Replayed] = []
        for place in self._random(_DRAW, step).permutation(len(self._ids))[: _TRIES * n]:
            if len(drawn) == n:
                break
            video_id = self._ids[place]
            clip = None if video_id in self._last else self._store.get(video_id)
            if clip is not None and clip.frames.shape == tuple(shape):
                drawn.append(clip)
        return drawn

    def offer(self, clips: Sequence[Replayed]) -> None:
        """A batch was learned: it waits, and the one before it is admitted or not."""
        held = set(self._ids)
        for video_id in self._last:
            if video_id not in held:
                self._admit(video_id)
        self._last = list(dict.fromkeys(clip.video_id for clip in clips))
        for clip in clips:
            self._store.keep(clip)

    def _admit(self, video_id: str) -> None:
        self._admitted += 1
        if len(self._ids) < self.size:
            self._ids.append(video_id)
            return
        place = int(self._random(_ADMIT, self._admitted).integers(self._admitted))
        if place < self.size:
            self._ids[place], video_id = video_id, self._ids[place]
        self._store.drop(video_id)

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, purpose, number))

    def state_dict(self) -> dict[str, Tensor]:
        """Which clips there are, as tensors; the clips themselves are the store's."""
        ids = json.dumps([self._ids, self._last]).encode()
        return {
            "ids": torch.frombuffer(bytearray(ids), dtype=torch.uint8),
            "admitted": torch.tensor(self._admitted, dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`; one that has become smaller keeps its first ones, and of no state it is empty."""
        if not state:
            self._ids, self._last, self._admitted = [], [], 0
            return
        self._ids, self._last = json.loads(state["ids"].cpu().numpy().tobytes())
        for video_id in self._ids[self.size :]:
            self._store.drop(video_id)
        self._ids, self._admitted = self._ids[: self.size], int(state["admitted"])
