"""Base-MoCo: InfoNCE against the keys of a slow local copy, those of the batch and a queue of older ones.

MoCo (He et al. 2020) across two modalities, which is what the paper of BMU-MoCo (Gao et al., NeurIPS 2022) calls its
base. Nothing restarts at a boundary but, as the settings say, the queue.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from streamlearn.contrast import KeyQueue, symmetric_loss
from streamlearn.encoders import Towers
from streamlearn.methods.base import Method, View
from streamlearn.settings import LearnerSettings


class Moco(Method):
    """Queries by the encoders, keys by the local copy."""

    needed: tuple[str, ...] = ("local",)

    def __init__(self, online: Towers, settings: LearnerSettings) -> None:
        super().__init__(online, settings)
        self.queues["queue"] = self.new_queue()

    def loss(self, own: View, views: Mapping[str, View], ids: Tensor) -> Tensor:
        """InfoNCE of the encoders' vectors against keys of the batch and of the queue."""
        return self.against(own, views["local"], ids, self.queues["queue"])

    def against(self, own: View, keys: View, ids: Tensor, queue: KeyQueue) -> Tensor:
        """InfoNCE against one copy's keys."""
        return symmetric_loss(*own, *keys, ids, queue, self.settings.temperature)

    def push(self, views: Mapping[str, View], ids: Tensor, new: int) -> None:
        """The local copy's keys enter the queue."""
        self.queues["queue"].push(*views["local"], ids, new)

    def start_task(self) -> None:
        """Keys of the task before are forgotten, kept, or kept as far as they are recent."""
        super().start_task()
        for queue in self.queues.values():
            if self.settings.queue_at_boundary == "clear":
                queue.clear()
            elif self.settings.queue_at_boundary == "age_limit":
                queue.keep_last(self.settings.queue_max_age_clips)
