"""BMU-MoCo (Gao et al., NeurIPS 2022): the copies follow the encoders, and the encoders are pulled back to the copies.

Two copies: a local one, which restarts at each task, and a global one, which never does. What is known of the paper
and what is inferred is in docs/decisions.md; each inferred choice is a setting of `learner`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from streamlearn.encoders import Towers
from streamlearn.methods.base import View, parameters, restart
from streamlearn.methods.moco import Moco
from streamlearn.momentum import Bidirectional, coefficient
from streamlearn.settings import LearnerSettings


class Bmu(Moco):
    """Base-MoCo with the update in both directions; local alone with `global_pair = false`."""

    def __init__(self, online: Towers, settings: LearnerSettings) -> None:
        super().__init__(online, settings)
        if settings.global_pair:
            self.copies["global"] = online.frozen_copy()
        self._update: Bidirectional | None = None
        if settings.global_loss_weight:
            self.needed = ("local", "global")
            self.queues["queue_global"] = self.new_queue()

    def loss(self, own: View, views: Mapping[str, View], ids: Tensor) -> Tensor:
        """Base-MoCo's, and `global_loss_weight` times the same against the global copy's keys and queue."""
        loss = super().loss(own, views, ids)
        if self.settings.global_loss_weight:
            against_global = self.against(own, views["global"], ids, self.queues["queue_global"])
            loss = loss + self.settings.global_loss_weight * against_global
        return loss

    def update(self, clips: int) -> None:
        """The bidirectional update; in the first clips of a task perhaps forwards only."""
        s = self.settings
        constants = {"local": (s.local_momentum, s.local_pull), "global": (s.global_momentum, s.global_pull)}
        if self._update is None:
            copies = [parameters(self.copies[name]) for name in self.copies]
            self._update = Bidirectional(parameters(self.online), copies)
        pulled = self.task_clips >= s.pull_after_clips
        self._update(
            [
                (
                    coefficient(constants[name][0], clips, s.batch_size),
                    coefficient(constants[name][1], clips, s.batch_size) if pulled else 1.0,
                )
                for name in self.copies
            ],
            pull_first=s.update_order == "pull_first",
        )
        self.task_clips += clips

    def push(self, views: Mapping[str, View], ids: Tensor, new: int) -> None:
        """Each copy's keys enter its own queue."""
        super().push(views, ids, new)
        if "queue_global" in self.queues:
            self.queues["queue_global"].push(*views["global"], ids, new)

    def start_task(self) -> None:
        """The local copy restarts from the encoders, unless it is told to go on; the global one goes on."""
        super().start_task()
        if self.settings.local_at_boundary == "restart":
            restart(self.copies["local"], self.online)
