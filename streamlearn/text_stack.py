"""The built-in text towers of many eras, asked in one pass: their weights lie on top of each other.

One matrix product a layer serves all eras, where asking one after the other spends most of its time between the
operations. It holds no weights twice: each tower's own become views of the stack. Towers of other kinds are asked one
by one; they are large enough for their products to take the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from streamlearn.encoders_tiny import TinyText
from streamlearn.era_view import QueryEncoder


class TextStack:
    """Frozen `TinyText` towers of one output dimension.

    Args:
        encoders: at least one; the weights of their text towers move into the stack, unchanged.
    """

    def __init__(self, encoders: Sequence[QueryEncoder]) -> None:
        self.encoders = tuple(encoders)
        towers = [encoder.towers.text for encoder in encoders]
        first = towers[0]
        assert isinstance(first, TinyText)
        self._first = first
        self._weights: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, _ in first.named_parameters():
                stack = torch.stack([tower.get_parameter(name).detach() for tower in towers])  # (eras, ...)
                self._weights[name] = stack
                for tower, its in zip(towers, stack, strict=True):
                    tower.get_parameter(name).data = its

    def prime(self, texts: Sequence[str]) -> None:
        """Have every encoder know these texts, from one pass; where all know them already it costs nothing."""
        new = list(dict.fromkeys(text for encoder in self.encoders for text in encoder.unknown(texts)))
        if new:
            for encoder, vectors in zip(self.encoders, self.encode(new).cpu().numpy(), strict=True):
                encoder.remember(new, vectors)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """As each tower encodes them. Shape: n texts -> unit rows (eras, n, d)."""
        w, eras, heads = self._weights, len(self.encoders), self._first.heads
        ids = self._first.tokenize(texts)["ids"].to(w["positions"].device)
        n, t = ids.shape
        x = w["words.weight"][:, ids.flatten()] + w["positions"][:, :t].repeat(1, n, 1)  # (eras, n t, width)
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
        return torch.baddbmm(self._weights[name + ".bias"][:, None], x, self._weights[name + ".weight"].mT)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[name + ".weight"][:, None], self._weights[name + ".bias"][:, None]
        return F.layer_norm(x, x.shape[-1:]) * weight + bias


def stacked(encoders: Sequence[QueryEncoder]) -> TextStack | None:
    """A stack of these encoders; None where it gains nothing or their towers do not fit on each other."""
    shapes = {
        tuple(parameter.shape for parameter in encoder.towers.text.parameters())
        if isinstance(encoder.towers.text, TinyText)
        else None
        for encoder in encoders
    }
    return TextStack(encoders) if len(encoders) > 1 and len(shapes) == 1 and None not in shapes else None
