"""Frames to what a tower reads: how many, how large, in which range. Tensors in, tensors out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spread(frames: Tensor, count: int) -> Tensor:
    """Exactly `count` frames, evenly spaced, repeated where there are fewer."""
    have = frames.shape[1]
    if have == count:
        return frames
    return frames[:, torch.linspace(0, have - 1, count, device=frames.device).round().long()]


def scale(frames: Tensor, size_px: int) -> Tensor:
    """Shape: uint8 (n, T, H, W, 3) -> uint8 (n, T, size_px, size_px, 3), both channels last in memory.

    On a CPU, bytes in this layout are scaled seven times faster than floats; CUDA knows floats only.
    """
    n, t, h, w, c = frames.shape
    if (h, w) == (size_px, size_px):
        return frames
    if h == w and h % size_px == 0:
        return _mean_of_squares(frames, h // size_px)
    x = frames.reshape(n * t, h, w, c).permute(0, 3, 1, 2)  # (n T, 3, H, W)
    x = x if x.device.type == "cpu" else x.float()
    x = F.interpolate(x, (size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
    x = x if x.dtype == torch.uint8 else x.round().to(torch.uint8)
    return x.permute(0, 2, 3, 1).reshape(n, t, size_px, size_px, c)


def _mean_of_squares(frames: Tensor, side: int) -> Tensor:
    """Shape: uint8 (n, T, H, W, 3) -> uint8 (n, T, H / side, W / side, 3)."""
    total = sum(frames[:, :, i::side, j::side].int() for i in range(side) for j in range(side))
    assert isinstance(total, Tensor)
    return ((2 * total + side * side) // (2 * side * side)).to(torch.uint8)  # half up, as Pillow


def resize(frames: Tensor, size_px: int) -> Tensor:
    """Shape: uint8 (n, T, H, W, 3) -> float (n, T, 3, size_px, size_px) in 0..1."""
    # Turned while it is bytes, a quarter of the memory to move; floats are then changed in place.
    return scale(frames, size_px).permute(0, 1, 4, 2, 3).contiguous().float().div_(255)
