"""The interface between the learner's step and the methods that it can be made of; knows no optimizer and no stream.

A method says which slow copies of the encoders there are, what is minimised, how the copies move after the
optimizer's step, and what a boundary does to them. The step itself is `streamlearn.learner.Learner.step`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from streamlearn.contrast import KeyQueue
from streamlearn.encoders import Towers
from streamlearn.momentum import coefficient, follow
from streamlearn.settings import LearnerSettings


class View(NamedTuple):
    """A batch as one pair of towers sees it: unit rows, twice (n, d)."""

    video: Tensor
    text: Tensor


class Method(ABC):
    """What all methods share: a local copy that follows the encoders, and can be served.

    Args:
        online: the encoders, which the optimizer moves.
        settings: the method's constants.

    Attributes:
        copies: slow or frozen copies of the encoders by name; "local" is always there.
        queues: rings of older keys by the name of their part of a checkpoint.
        needed: copies whose view of the batch the loss or the queue needs.
        task_clips: clips learned since the task began.
    """

    needed: tuple[str, ...] = ()

    def __init__(self, online: Towers, settings: LearnerSettings) -> None:
        self.online, self.settings = online, settings
        self.copies: dict[str, Towers] = {"local": online.frozen_copy()}
        self.queues: dict[str, KeyQueue] = {}
        self.task_clips = 0

    @abstractmethod
    def loss(self, own: View, views: Mapping[str, View], ids: Tensor) -> Tensor:
        """What is minimised.

        Args:
            own: the batch by the encoders, with gradients.
            views: the batch by the copies in `needed`, as they were before the step.
            ids: (n,) numbers of the clips' videos; clips of one video are never each other's negatives.

        Returns:
            A scalar, in nats.
        """

    def update(self, clips: int) -> None:
        """After the optimizer's step on a batch with so many new clips: the copies move."""
        self.follow(clips)
        self.task_clips += clips

    def push(self, views: Mapping[str, View], ids: Tensor, new: int) -> None:  # noqa: B027 -- some have no queue
        """After the update: the batch's keys, the first `new` of new clips, enter the queues, where there are any."""

    def start_task(self) -> None:
        """A boundary: what restarts, restarts."""
        self.task_clips = 0

    def follow(self, clips: int) -> None:
        """The local copy follows the encoders: l <- m l + (1 - m) theta."""
        m = coefficient(self.settings.local_momentum, clips, self.settings.batch_size)
        follow(parameters(self.copies["local"]), parameters(self.online), m)

    def new_queue(self) -> KeyQueue:
        """An empty ring of the settings' size."""
        return KeyQueue(self.settings.queue_size, self.online.dim, self.online.device)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Named tensors by part: every copy and every queue."""
        parts = {name: copy.state_dict() for name, copy in self.copies.items()}
        return parts | {name: queue.state_dict() for name, queue in self.queues.items()}

    def load_state_dict(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of `state_dict`; call after the encoders have their weights.

        A copy that the state lacks (a global pair switched on later) starts from the encoders, a queue empty.

        Raises:
            RuntimeError: the weights are of another architecture.
        """
        for name, copy in self.copies.items():
            copy.load_state_dict(parts.get(name) or self.online.state_dict())
        for name, queue in self.queues.items():
            if name in parts:
                queue.load_state_dict(parts[name])
            else:
                queue.clear()


def parameters(towers: Towers) -> list[Tensor]:
    """What moves of a copy or its original, in pairs."""
    return list(towers.moving)


@torch.no_grad()
def restart(copy: Towers, online: Towers) -> None:
    """The copy becomes its original once more."""
    copy.load_state_dict(online.state_dict())
