"""Distillation of similarities: the encoders should rank a batch as an earlier copy of them did.

Vectors of two models cannot be compared where their spaces differ; the similarities within a batch can.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from streamlearn.methods.base import View


def distil(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean KL divergence of softmax rows: KL(teacher || student), in nats. Shape: twice (n, k) -> scalar."""
    return F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )


def cross_modal(own: View, reference: View, temperature: float) -> Tensor:
    """Video to text and text to video, averaged. Shape: four times (n, d) -> scalar."""
    student, teacher = own.video @ own.text.T, reference.video @ reference.text.T
    return 0.5 * (distil(student, teacher, temperature) + distil(student.T, teacher.T, temperature))


def same_modal(own: View, reference: View, temperature: float) -> Tensor:
    """Video to video and text to text, averaged; the diagonal, 1 for every model, counts too. Shape: -> scalar."""
    return 0.5 * (
        distil(own.video @ own.video.T, reference.video @ reference.video.T, temperature)
        + distil(own.text @ own.text.T, reference.text @ reference.text.T, temperature)
    )
