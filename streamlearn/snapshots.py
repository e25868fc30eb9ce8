"""A small ring of past weights, from which an era is sealed as it was before a drift began.

Half precision, and part of every checkpoint: a run that is resumed seals as one that was never interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamlearn.learner import Learner

_PART = "snapshots/"


@dataclass(frozen=True)
class Weights:
    """Half-precision weights of the served pair and of the encoders after a step and so many clips."""

    step: int
    clips: int
    local: Mapping[str, Tensor]
    online: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name, for a file."""
        named = {f"{side}.{name}": t for side in ("local", "online") for name, t in getattr(self, side).items()}
        return named | {"step": torch.tensor(self.step), "clips": torch.tensor(self.clips)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Weights:
        """Inverse of `tensors`."""
        local, online = (
            {name.removeprefix(side): t for name, t in tensors.items() if name.startswith(side)}
            for side in ("local.", "online.")
        )
        return cls(int(tensors["step"]), int(tensors["clips"]), local, online)


class Snapshots:
    """Weights of the current era, oldest first.

    Args:
        learner: whose weights.
        interval_clips: between two of them.
        count: kept at most.
    """

    def __init__(self, learner: Learner, interval_clips: int, count: int) -> None:
        self._learner, self._interval_clips = learner, interval_clips
        self._ring: deque[Weights] = deque(maxlen=count)

    def remember(self) -> None:
        """Take one where it is time; call after each step."""
        if not self._ring or self._learner.clips - self._ring[-1].clips >= self._interval_clips:
            self._ring.append(self.now())

    def now(self) -> Weights:
        """The weights of this moment."""
        learner = self._learner
        return Weights(learner.steps, learner.clips, half(learner.served), half(learner.online))

    def before(self, step: int) -> Weights:
        """The newest that is not of a later step; the oldest where there is none; now where that is before."""
        if step >= self._learner.steps or not self._ring:
            return self.now()
        return next((weights for weights in reversed(self._ring) if weights.step <= step), self._ring[0])

    def clear(self) -> None:
        """An era begins: what came before is not its own."""
        self._ring.clear()

    def sealed(self, era: int) -> dict[str, Callable[[], Mapping[str, Tensor]]]:
        """By part, what makes its tensors; a part never changes."""
        # With the era in its name: a step may have one on either side of a boundary.
        return {f"{_PART}{era:04d}-{weights.step:08d}": weights.tensors for weights in self._ring}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of `sealed`, among other parts."""
        kept = (part for part in sorted(parts) if part.startswith(_PART))
        self._ring = deque((Weights.of(parts[part]) for part in kept), maxlen=self._ring.maxlen)


def half(towers: nn.Module) -> dict[str, Tensor]:
    """The weights as they are frozen: fp16, on the CPU."""
    state = towers.state_dict().items()
    return {name: (t.half() if t.is_floating_point() else t).detach().cpu() for name, t in state}
