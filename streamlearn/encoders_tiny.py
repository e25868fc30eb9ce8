"""The built-in towers: small enough for two CPU cores, and without anything to download."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamlearn.encoders_frames import resize, spread

_WORD = re.compile(r"\w+|[^\w\s]")


class TinyVideo(nn.Module):
    """Pairs of frames through three convolutions, four of them in order through an MLP; 0.6 M parameters.

    Motion within a pair is seen by the first convolution (6 channels), motion over the clip by the MLP.
    """

    size_px, frames = 32, 8

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(6, 32, 4, 4),
            nn.GroupNorm(4, 32),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GroupNorm(8, 64),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, 1, 1),
            nn.GroupNorm(8, 64),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 192),
            nn.GELU(),
        )
        self.head = nn.Sequential(nn.Linear(4 * 192, 384), nn.GELU(), nn.Linear(384, dim))

    def forward(self, frames: Tensor) -> Tensor:
        """Encode clips. Shape: uint8 (n, T, H, W, 3) -> (n, dim), not normalised."""
        x = resize(spread(frames, self.frames), self.size_px)  # (n, 8, 3, 32, 32) in 0..1
        x = x.sub_(0.5).div_(0.25)
        n = x.shape[0]
        x = self.convolutions(x.reshape(n * 4, 6, self.size_px, self.size_px))  # (4n, 192): pairs of frames
        out: Tensor = self.head(x.reshape(n, 4 * 192))
        return out


class TinyText(nn.Module):
    """A two-layer transformer over hashed words, mean-pooled; 1.1 M parameters, most of them the hash table.

    Words are hashed, not looked up: a stream brings words that no vocabulary of the past has.
    """

    buckets, max_words, width, heads = 8192, 64, 96, 4

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(self.buckets, self.width)
        self.positions = nn.Parameter(torch.randn(self.max_words, self.width) * 0.02)
        self.blocks = nn.ModuleList(Block(self.width, self.heads) for _ in range(2))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, dim)
        nn.init.normal_(self.words.weight, std=0.02)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Words to bucket numbers from 1 up; 0 pads. Shape: n texts -> ids (n, words)."""
        rows = []
        for text in texts:
            words = _WORD.findall(text.lower())[: self.max_words]
            rows.append([1 + zlib.crc32(word.encode()) % (self.buckets - 1) for word in words] or [1])
        ids = torch.zeros(len(rows), max(map(len, rows), default=1), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return {"ids": ids}

    def forward(self, ids: Tensor) -> Tensor:
        """Encode tokens. Shape: (n, words) -> (n, dim), not normalised."""
        mask = ids > 0  # (n, words)
        x = self.words(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x) * mask.unsqueeze(-1)
        out: Tensor = self.head(x.sum(1) / mask.sum(1, keepdim=True))
        return out


class Block(nn.Module):
    """A pre-norm transformer block; positions that the mask leaves out are not attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Shape: (n, t, width) and bool (n, t) -> (n, t, width)."""
        n, t, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])  # (n, heads, t, w / heads)
        x = x + self.out(a.transpose(1, 2).reshape(n, t, w))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
