"""CTP (Zhu et al., ICCV 2023): compatible momentum contrast with topology preservation, for video and text.

From the paper and its public code: in the first task the momentum copy phi follows the encoders as in MoCo; later

    phi <- m phi + (1 - m) / 2 theta + (1 - m) / 2 theta_ref

with theta_ref frozen at the end of the task before and phi restarted from it, so that phi's keys stay compatible with
both; the loss is in-batch InfoNCE, InfoNCE against phi's keys and queue, and the KL divergence of cross-modal and
same-modal similarities in the batch from those of theta_ref; weights 1; queues persist over tasks (here only with
`queue_at_boundary = keep`).

Left out: masked language modelling and its distillation, since the towers here have no such head; the restart of the
optimizer and of its cosine schedule, since a stream has no epochs. Inferred: phi moves after the optimizer's step, not
before the next batch's keys, which is the same but for the first step; the similarities' temperature is the loss's;
the constants (theirs: .995 in the first task, .9 later, at batches of 512) are `local_momentum` and `distill_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from streamlearn.contrast import symmetric_loss
from streamlearn.methods.base import View, parameters, restart
from streamlearn.methods.distill import cross_modal, same_modal
from streamlearn.methods.lwf import Lwf
from streamlearn.momentum import coefficient, follow


class Ctp(Lwf):
    """The rival with three models, as BMU-MoCo has."""

    def loss(self, own: View, views: Mapping[str, View], ids: Tensor) -> Tensor:
        """In-batch and momentum contrast, and topology preservation from the second task on."""
        t = self.settings.temperature
        loss = symmetric_loss(*own, *own, ids, None, t)
        loss = loss + self.against(own, views["local"], ids, self.queues["queue"])
        if "reference" in views:
            topology = cross_modal(own, views["reference"], t) + same_modal(own, views["reference"], t)
            loss = loss + self.settings.distill_weight * topology
        return loss

    def follow(self, clips: int) -> None:
        """The compatible momentum."""
        if "reference" not in self.copies:
            super().follow(clips)
            return
        m = coefficient(self.settings.local_momentum, clips, self.settings.batch_size)
        phi = parameters(self.copies["local"])
        # Two moves that add up to the equation: m = 2 m / (1 + m) * (1 + m) / 2 of phi is left.
        follow(phi, parameters(self.online), 2 * m / (1 + m))
        follow(phi, parameters(self.copies["reference"]), (1 + m) / 2)

    def start_task(self) -> None:
        """The encoders become the reference, and the momentum copy restarts from it."""
        super().start_task()
        restart(self.copies["local"], self.online)
