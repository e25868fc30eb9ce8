"""In-batch InfoNCE, as CLIP is trained: gradients on both sides, no queue. The local copy is there to be served."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from streamlearn.contrast import symmetric_loss
from streamlearn.methods.base import Method, View


class InBatch(Method):
    """Plain fine-tuning on the stream, the baseline of every comparison."""

    def loss(self, own: View, views: Mapping[str, View], ids: Tensor) -> Tensor:
        """InfoNCE among the batch's own vectors."""
        return symmetric_loss(*own, *own, ids, None, self.settings.temperature)
