"""The bidirectional momentum update of BMU-MoCo (Gao et al., NeurIPS 2022), on lists of tensors.

After the optimizer's step, with encoders theta, local copy l and global copy g:

    l     <- m l + (1 - m) theta              momentum encoders follow the encoders
    g     <- m_g g + (1 - m_g) theta
    theta <- mh theta + (1 - mh) l            and the encoders are pulled back towards them
    theta <- mh_g theta + (1 - mh_g) g

`Bidirectional` does this in one of four ways with one contract: the equations in fp32 (or better), the encoders
rounded once. `reference` is the equations; `foreach` PyTorch's multi-tensor operations, four passes over memory;
`blocked` the same operations on pieces that stay in a CPU's cache, one pass; `triton` one kernel, one pass.

What is known of the paper and what is inferred is said in docs/decisions.md. In the long run the encoders move at
1 / (1 + sum of (1 - mh) / (1 - m)) of the speed of plain training: part of the update's effect is a smaller
learning rate, and every comparison needs that control.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from streamlearn.settings_learning import Momentum, momentum_horizon
from streamlearn.settings_learning import speed as speed

log = logging.getLogger(__name__)

How = Literal["auto", "reference", "foreach", "blocked", "triton"]

_BLOCK = 1 << 16  # elements: three fp32 blocks fill a third of an L2 cache of 2 MiB


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


class Bidirectional:
    """The whole update of fixed tensors, in place; they must stay where they are in memory.

    Args:
        online: the encoders' tensors, fp32 or bf16.
        copies: for each momentum copy its tensors, fp32 (float64 for the reference), in the same order.
        how: "auto" takes triton on CUDA where it is installed and compiles, blocked on the CPU, else foreach.

    Raises:
        ValueError: these tensors cannot be updated in the way that is named.
    """

    def __init__(self, online: Sequence[Tensor], copies: Sequence[Sequence[Tensor]], how: How = "auto") -> None:
        self._online, self._copies = list(online), [list(copy) for copy in copies]
        every = [*self._online, *(tensor for copy in self._copies for tensor in copy)]
        plain = all(t.is_contiguous() for t in every) and all(t.dtype == torch.float32 for c in self._copies for t in c)
        kernel = plain and _fits_kernel(self._online, self._copies)
        self.how = _best(self._online, plain, kernel) if how == "auto" else how
        self._blocks: list[tuple[Tensor, list[Tensor]]] = []
        self._kernel: Callable[..., None] | None = None
        if self.how in ("blocked", "triton") and not plain:
            raise ValueError(f"{self.how} needs contiguous tensors, and copies in fp32")
        if self.how == "triton" and not kernel:
            raise ValueError(
                "triton needs encoders in fp32 or bf16, and one or two copies of the same shapes beside them"
            )
        if self.how == "blocked":
            pieces = [
                [piece for t in part for piece in torch.split(t.detach().view(-1), _BLOCK)] for part in self._parts()
            ]
            self._blocks = [(theta, list(rest)) for theta, *rest in zip(*pieces, strict=True)]
        elif self.how == "triton":
            from streamlearn.momentum_triton import TritonUpdate

            self._kernel = TritonUpdate(self._online, self._copies)

    def _parts(self) -> list[list[Tensor]]:
        return [self._online, *self._copies]

    @torch.no_grad()
    def __call__(self, coefficients: Sequence[tuple[float, float]], *, pull_first: bool = False) -> None:
        """Apply it once.

        Args:
            coefficients: (m, mh) of each copy; mh of 1 leaves the encoders alone.
            pull_first: the encoders move before the copies follow them.
        """
        if self._kernel is not None:
            self._kernel(coefficients, pull_first=pull_first)
        elif self.how == "reference":
            _reference(self._online, self._copies, coefficients, pull_first)
        elif self.how == "blocked":
            for theta, copies in self._blocks:
                _lerps([theta], [[copy] for copy in copies], coefficients, pull_first)
        else:
            _lerps(self._online, self._copies, coefficients, pull_first)


def _fits_kernel(online: list[Tensor], copies: list[list[Tensor]]) -> bool:
    """Whether the kernel, which knows addresses alone, would touch nothing but these tensors."""
    laid = [(t.shape, t.device) for t in online]
    alike = all([(t.shape, t.device) for t in copy] == laid for copy in copies)
    of_one_kind = len({(t.dtype, t.device) for t in online}) == 1
    return alike and of_one_kind and online[0].dtype in (torch.float32, torch.bfloat16) and len(copies) in (1, 2)


def _best(online: list[Tensor], plain: bool, kernel: bool) -> How:
    if not plain or len({t.dtype for t in online}) > 1:
        return "foreach"
    if kernel and online[0].is_cuda and importlib.util.find_spec("triton") is not None and compiles(online[0]):
        return "triton"
    return "blocked" if online[0].device.type == "cpu" and online[0].dtype == torch.float32 else "foreach"


def compiles(like: Tensor) -> bool:
    """Whether the kernel can be had for tensors like this one; a warning says why not.

    Triton compiles when it is first asked, by a C compiler and with Python's headers: many an image has neither.
    """
    one = torch.zeros(1, dtype=like.dtype, device=like.device)
    try:
        Bidirectional([one], [[one.float()]], "triton")([(1.0, 1.0)])
    except Exception as error:  # noqa: BLE001 - of the compiler, the driver, the linker or the file system
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        log.warning("the momentum update goes without its Triton kernel, which is slower: %s", why)
        return False
    return True


def _lerps(
    online: list[Tensor], copies: Sequence[list[Tensor]], coefficients: Sequence[tuple[float, float]], pull_first: bool
) -> None:
    full = [t if t.dtype == c.dtype else t.to(c.dtype) for t, c in zip(online, copies[0], strict=True)]
    pulls = [(copy, mh) for copy, (_, mh) in zip(copies, coefficients, strict=True)]
    if pull_first:
        for copy, mh in pulls:
            pull(full, copy, mh)
    for copy, (m, _) in zip(copies, coefficients, strict=True):
        follow(copy, full, m)
    if not pull_first:
        for copy, mh in pulls:
            pull(full, copy, mh)
    for tensor, wide in zip(online, full, strict=True):
        if tensor is not wide:
            tensor.copy_(wide)


def _reference(
    online: list[Tensor], copies: Sequence[list[Tensor]], coefficients: Sequence[tuple[float, float]], pull_first: bool
) -> None:
    for i, theta in enumerate(online):
        own = [copy[i] for copy in copies]
        wide = theta.to(own[0].dtype)
        if pull_first:
            for copy, (_, mh) in zip(own, coefficients, strict=True):
                wide = mh * wide + (1 - mh) * copy
        for copy, (m, _) in zip(own, coefficients, strict=True):
            copy.copy_(m * copy + (1 - m) * wide)
        if not pull_first:
            for copy, (_, mh) in zip(own, coefficients, strict=True):
                wide = mh * wide + (1 - mh) * copy
        theta.copy_(wide)
