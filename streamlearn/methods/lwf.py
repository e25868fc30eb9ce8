"""Learning without Forgetting (Li and Hoiem, 2016), carried over to video and text on top of Base-MoCo.

LwF keeps the old model's answers on the new task's data. Its answers are class probabilities; here they are each
clip's distribution over the captions of the batch, and the reverse, as later work on CLIP does it. That Base-MoCo is
the common base of the paper's comparators is quoted of it; which losses they have there is not known.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from streamlearn.methods.base import View
from streamlearn.methods.distill import cross_modal
from streamlearn.methods.moco import Moco


class Lwf(Moco):
    """Base-MoCo, and from the second task on `distill_weight` times the distillation from the task before."""

    def loss(self, own: View, views: Mapping[str, View], ids: Tensor) -> Tensor:
        """Base-MoCo's and the distillation."""
        loss = super().loss(own, views, ids)
        if "reference" in views:
            distance = cross_modal(own, views["reference"], self.settings.temperature)
            loss = loss + self.settings.distill_weight * distance
        return loss

    def start_task(self) -> None:
        """The encoders as they are now become the reference."""
        super().start_task()
        self._refer()

    def load_state_dict(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of `state_dict`; in the first task there is no reference."""
        if "reference" in parts:
            self._refer()
        else:
            self.copies.pop("reference", None)
            self.needed = ("local",)
        super().load_state_dict(parts)

    def _refer(self) -> None:
        self.copies["reference"] = self.online.frozen_copy()
        self.needed = ("local", "reference")
