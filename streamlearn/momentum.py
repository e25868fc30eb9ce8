"""The bidirectional momentum update of BMU-MoCo (Gao et al., NeurIPS 2022), on lists of tensors.

After the optimizer's step, with encoders theta, local copy l and global copy g:

    l     <- m l + (1 - m) theta              momentum encoders follow the encoders
    g     <- m_g g + (1 - m_g) theta
    theta <- mh theta + (1 - mh) l            and the encoders are pulled back towards them
    theta <- mh_g theta + (1 - mh_g) g

What is known of the paper and what is inferred is said in docs/decisions.md. In the long run the encoders move at
1 / (1 + sum of (1 - mh) / (1 - m)) of the speed of plain training: part of the update's effect is a smaller
learning rate, and every comparison needs that control.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from streamlearn.settings_learning import Momentum, momentum_horizon
from streamlearn.settings_learning import speed as speed


class Pair(NamedTuple):
    """A momentum copy with the coefficients of one step.

    Attributes:
        copy: its tensors, in the order of the encoders'.
        m: of the forward update; 1 freezes the copy.
        mh: of the reverse update; 1 leaves the encoders alone.
    """

    copy: list[Tensor]
    m: float
    mh: float


def coefficient(value: Momentum, clips: int, batch_size: int) -> float:
    """The coefficient m for a batch of `clips`: exp(-clips / horizon), so that ragged batches move copies alike.

    >>> round(coefficient("640 clips", 32, 32), 4), coefficient(0.95, 32, 32), coefficient(1.0, 32, 32)
    (0.9512, 0.95, 1.0)
    """
    if not isinstance(value, str) and clips == batch_size:
        return value
    return math.exp(-clips / momentum_horizon(value, batch_size))


@torch.no_grad()
def follow(copy: Sequence[Tensor], online: Sequence[Tensor], m: float) -> None:
    """Forward update, in place: copy <- m copy + (1 - m) online."""
    torch._foreach_lerp_(list(copy), list(online), 1 - m)


@torch.no_grad()
def pull(online: Sequence[Tensor], copy: Sequence[Tensor], mh: float) -> None:
    """Reverse update, in place: online <- mh online + (1 - mh) copy."""
    if mh < 1:
        torch._foreach_lerp_(list(online), list(copy), 1 - mh)


def bidirectional(
    online: Sequence[Tensor], pairs: Sequence[Pair], order: Literal["follow_first", "pull_first"]
) -> None:
    """The whole update, in place: all copies follow and the encoders are pulled to one after the other, or reversed."""
    if order == "pull_first":
        for pair in pairs:
            pull(online, pair.copy, pair.mh)
    for pair in pairs:
        follow(pair.copy, online, pair.m)
    if order == "follow_first":
        for pair in pairs:
            pull(online, pair.copy, pair.mh)
