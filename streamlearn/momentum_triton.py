"""The bidirectional update as one Triton kernel over all tensors: each weight and each copy is read and written once.

`torch._foreach` reads and writes twelve times what this does six times. Addresses go to the device once, in a table;
a program of the grid looks up which part of which tensor is its own. Importing this needs triton, which comes with
CUDA builds of torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _update(  # type: ignore[no-untyped-def]
    addresses, sizes, blocks, tensors, m0, h0, m1, h1,
    THETA: tl.constexpr, COPIES: tl.constexpr, PULL_FIRST: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weights of the lerps: m0, m1 towards the encoders, h0, h1 back. `addresses` is (3, tensors): theta, copies."""
    tensor = tl.load(blocks + 2 * tl.program_id(0))
    start = tl.load(blocks + 2 * tl.program_id(0) + 1) * BLOCK
    size = tl.load(sizes + tensor)
    to = tl.load(addresses + tensor).to(tl.pointer_type(THETA))
    to0 = tl.load(addresses + tensors + tensor).to(tl.pointer_type(tl.float32))
    to1 = tl.load(addresses + 2 * tensors + tensor).to(tl.pointer_type(tl.float32))
    if ALIGNED:  # said of the pointers: said of the numbers it is lost
        to, to0, to1 = tl.multiple_of(to, 16), tl.multiple_of(to0, 16), tl.multiple_of(to1, 16)
    at = start + tl.arange(0, BLOCK)
    to, to0, to1 = to + at, to0 + at, to1 + at
    if start + BLOCK <= size:  # under a mask 16 bytes are moved in four pieces
        _move(to, to0, to1, None, m0, h0, m1, h1, THETA, COPIES, PULL_FIRST)
    else:
        _move(to, to0, to1, at < size, m0, h0, m1, h1, THETA, COPIES, PULL_FIRST)


@triton.jit  # type: ignore[untyped-decorator]
def _move(  # type: ignore[no-untyped-def]
    to, to0, to1, inside, m0, h0, m1, h1,
    THETA: tl.constexpr, COPIES: tl.constexpr, PULL_FIRST: tl.constexpr,
):  # fmt: skip
    theta = tl.load(to, inside).to(tl.float32)
    copy0 = tl.load(to0, inside)
    copy1 = copy0
    if COPIES == 2:
        copy1 = tl.load(to1, inside)
    if PULL_FIRST:
        theta += h0 * (copy0 - theta)
        if COPIES == 2:
            theta += h1 * (copy1 - theta)
    copy0 += m0 * (theta - copy0)
    if COPIES == 2:
        copy1 += m1 * (theta - copy1)
    if not PULL_FIRST:
        theta += h0 * (copy0 - theta)
        if COPIES == 2:
            theta += h1 * (copy1 - theta)
    tl.store(to, theta.to(THETA), inside)
    tl.store(to0, copy0, inside)
    if COPIES == 2:
        tl.store(to1, copy1, inside)


class TritonUpdate:
    """The update of fixed tensors; they must stay where they are in memory.

    Args:
        online: fp32 or bf16, all alike, contiguous.
        copies: one or two, fp32, contiguous, of the same shapes on the same device.
    """

    def __init__(self, online: Sequence[Tensor], copies: Sequence[Sequence[Tensor]]) -> None:
        device = online[0].device
        # Whoever has one copy names it twice; the kernel then never touches the second.
        rows = [[t.data_ptr() for t in part] for part in (online, copies[0], copies[-1])]
        sizes = [t.numel() for t in online]
        blocks = [(i, j) for i, size in enumerate(sizes) for j in range(-(-size // _BLOCK))]
        self._aligned = all(address % 16 == 0 for row in rows for address in row)
        self._addresses = torch.tensor(rows, dtype=torch.int64, device=device)
        self._sizes = torch.tensor(sizes, dtype=torch.int64, device=device)
        self._blocks = torch.tensor(blocks, dtype=torch.int64, device=device)
        self._theta = tl.bfloat16 if online[0].dtype == torch.bfloat16 else tl.float32
        self._copies = len(copies)

    def __call__(self, coefficients: Sequence[tuple[float, float]], *, pull_first: bool) -> None:
        """Apply it once, with (m, mh) of each copy."""
        (m0, h0), (m1, h1) = coefficients[0], coefficients[-1]
        with torch.cuda.device_of(self._addresses):  # type: ignore[no-untyped-call]
            _update[(len(self._blocks),)](
                self._addresses, self._sizes, self._blocks, len(self._sizes), 1 - m0, 1 - h0, 1 - m1, 1 - h1,
                THETA=self._theta, COPIES=self._copies, PULL_FIRST=pull_first, ALIGNED=self._aligned, BLOCK=_BLOCK,
                num_warps=_WARPS,
            )  # fmt: skip
