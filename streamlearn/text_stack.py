"""The text towers of many eras, asked in one pass.

Built-in towers lie on top of each other: one matrix product a layer serves all eras, where asking one after the other
spends most of its time between the operations. Towers of Hugging Face with one trunk that does not move
(`model.trainable = heads`) differ in their heads alone: the trunk reads once. Where such trunks learn, they are asked
one by one: of one short text their time is that of reading their weights, which are as many.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from streamlearn.encoders_tiny import TinyText
from streamlearn.era_view import QueryEncoder

_TABLE = "words.weight"


class TextStack(ABC):
    """Frozen text towers of one output dimension; immutable.

    Args:
        encoders: at least one.
    """

    def __init__(self, encoders: Sequence[QueryEncoder]) -> None:
        self.encoders = tuple(encoders)

    def prime(self, texts: Sequence[str]) -> None:
        """Have every encoder know a few texts, from one pass; where all know them already it costs nothing."""
        new = list(dict.fromkeys(text for encoder in self.encoders for text in encoder.unknown(texts)))
        if new:
            for encoder, vectors in zip(self.encoders, self.encode(new).cpu().numpy(), strict=True):
                encoder.remember(new, vectors)

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensor:
        """As each tower encodes them. Shape: n texts -> unit rows (eras, n, d)."""


class HeadStack(TextStack):
    """Heads over one trunk that does not move."""

    def __init__(self, encoders: Sequence[QueryEncoder]) -> None:
        super().__init__(encoders)
        self._first = encoders[0].towers
        self._heads = torch.stack([encoder.towers.text.get_parameter("head.weight").detach() for encoder in encoders])

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """As each tower encodes them. Shape: n texts -> unit rows (eras, n, d)."""
        features = self._first.read_text(texts)
        assert isinstance(features, Tensor)  # (n, hidden)
        return F.normalize(features @ self._heads.mT, dim=-1)


class TinyStack(TextStack):
    """Built-in towers.

    It has copies of all but the word tables, which are most of a tower and are read where they are; so no tower changes
    under a search that is under way in it.

    Args:
        encoders: at least one.
        below: a stack of the first of these encoders, to copy from.
    """

    def __init__(self, encoders: Sequence[QueryEncoder], below: TinyStack | None = None) -> None:
        super().__init__(encoders)
        towers = [_tower(encoder) for encoder in encoders]
        known = 0 if below is None else len(below.encoders)
        self._first = towers[0]
        self._tables = [tower.words.weight.detach() for tower in towers]
        self._weights: dict[str, Tensor] = {}
        for name, _ in self._first.named_parameters():
            if name != _TABLE:
                own = [_laid(name, tower.get_parameter(name).detach()) for tower in towers[known:]]
                parts = [] if below is None else [below._weights[name]]
                self._weights[name] = torch.cat([*parts, torch.stack(own)]) if own else parts[0]  # (eras, ...)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """As each tower encodes them. Shape: n texts -> unit rows (eras, n, d)."""
        w, eras, heads = self._weights, len(self.encoders), self._first.heads
        ids = self._first.tokenize(texts)["ids"].to(w["positions"].device)
        n, t = ids.shape
        flat = ids.flatten()
        words = torch.stack([table.index_select(0, flat) for table in self._tables])
        x = words + w["positions"][:, :t].repeat(1, n, 1)  # (eras, n t, width)
        mask = (ids > 0).repeat(eras, 1)  # (eras n, t)
        for i in range(len(self._first.blocks)):
            block = f"blocks.{i}."
            qkv = self._linear(self._norm(x, block + "norm1"), block + "qkv")  # (eras, n t, 3 width)
            q, k, v = qkv.reshape(eras * n, t, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (eras n, heads, t, width / heads)
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
            x = x + self._linear(a.transpose(1, 2).reshape(x.shape), block + "out")
            hidden = F.gelu(self._linear(self._norm(x, block + "norm2"), block + "mlp.0"))
            x = x + self._linear(hidden, block + "mlp.2")
        x = self._norm(x, "norm").reshape(eras, n, t, -1) * mask.reshape(eras, n, t, 1)
        pooled = x.sum(2) / mask.reshape(eras, n, t).sum(2, keepdim=True)  # (eras, n, width)
        return F.normalize(self._linear(pooled, "head"), dim=-1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        """Shape: (eras, m, in) -> (eras, m, out)."""
        return torch.baddbmm(self._weights[name + ".bias"][:, None], x, self._weights[name + ".weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[name + ".weight"][:, None], self._weights[name + ".bias"][:, None]
        return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), weight)


def stacked(encoders: Sequence[QueryEncoder], before: TextStack | None = None) -> TextStack | None:
    """A stack of these encoders; None where it gains nothing or their towers do not fit on each other.

    Args:
        encoders: in the order of the stack.
        before: an older stack; what both begin with is taken from it.
    """
    if len(encoders) < 2:
        return None
    towers = [encoder.towers for encoder in encoders]
    if all(pair.dim == towers[0].dim and pair.shares_trunk(towers[0], "text") for pair in towers):
        return HeadStack(encoders)
    if not all(isinstance(pair.text, TinyText) for pair in towers):
        return None
    if len({tuple(parameter.shape for parameter in pair.text.parameters()) for pair in towers}) > 1:
        return None
    if isinstance(before, TinyStack) and before.encoders == tuple(encoders[: len(before.encoders)]):
        return TinyStack(encoders, before)
    return TinyStack(encoders)


def _tower(encoder: QueryEncoder) -> TinyText:
    tower = encoder.towers.text
    assert isinstance(tower, TinyText)
    return tower


def _laid(name: str, weight: Tensor) -> Tensor:
    """As it lies in the stack: matrices (in, out), with which a product of few rows is twice as quick."""
    return weight.mT if name.endswith(".weight") and weight.ndim == 2 else weight
