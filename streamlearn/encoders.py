"""The two towers: frames to vectors and captions to vectors, in one space.

A `Towers` pair knows its architecture and preprocessing (its fingerprint), not how it is trained or which copy of
it is served. Built-in tiny towers need no download; any Hugging Face ViT, CLIP or SigLIP beside any BERT-like, CLIP
or SigLIP text model loads by name or folder, as safetensors only and without remote code.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from streamlearn.errors import SettingsError

#: What transformers raises for a folder or name that holds no model, half of one, or one with code of its own.
_UNLOADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)
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
        x = _resize(_spread(frames, self.frames), self.size_px)  # (n, 8, 3, 32, 32) in 0..1
        x = (x - 0.5) / 0.25
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
        self.blocks = nn.ModuleList(_Block(self.width, self.heads) for _ in range(2))
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


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])  # (n, heads, t, w / heads)
        x = x + self.out(a.transpose(1, 2).reshape(n, t, w))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class HuggingFaceVideo(nn.Module):
    """An image tower over the frames, mean-pooled over time, and a projection to `dim`."""

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        from transformers.image_processing_base import ImageProcessingMixin

        self.trunk = _pretrained(name, "vision_model", "model.video")
        config = self.trunk.config
        if not isinstance(getattr(config, "image_size", None), int):
            raise SettingsError(f"model.video = {name!r} reads no square images: name a ViT, CLIP or SigLIP")
        try:
            processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
        except OSError:  # a folder without preprocessor_config.json: the ViT default
            processor = {}
        self.size_px = int(config.image_size)
        self.register_buffer("mean", torch.tensor(processor.get("image_mean", [0.5] * 3)), persistent=False)
        self.register_buffer("std", torch.tensor(processor.get("image_std", [0.5] * 3)), persistent=False)
        self.head = nn.Linear(int(config.hidden_size), dim, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode clips. Shape: uint8 (n, T, H, W, 3) -> (n, dim), not normalised."""
        x = _resize(frames, self.size_px)  # (n, T, 3, S, S)
        n, t = x.shape[:2]
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x = (x - mean[:, None, None]) / std[:, None, None]
        out = self.trunk(pixel_values=x.flatten(0, 1))
        pooled = getattr(out, "pooler_output", None)
        pooled = out.last_hidden_state[:, 0] if pooled is None else pooled  # (n T, hidden)
        head: Tensor = self.head(pooled.reshape(n, t, -1).mean(1))
        return head


class HuggingFaceText(nn.Module):
    """A text encoder, pooled as it was trained (CLIP, SigLIP) or by the mean of its tokens, and a projection."""

    max_tokens = 64

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        self.trunk = _pretrained(name, "text_model", "model.text")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except _UNLOADABLE as error:
            raise SettingsError(f"model.text = {name!r}: its tokenizer cannot be loaded: {error}") from error
        config = self.trunk.config
        if not hasattr(config, "vocab_size"):
            raise SettingsError(f"model.text = {name!r} reads no text: name a BERT, CLIP or SigLIP")
        # Where its files are missing, transformers makes an empty one, to which every word is the same unknown.
        if len(self.tokenizer) < config.vocab_size // 2:
            raise SettingsError(
                f"model.text = {name!r}: its tokenizer knows {len(self.tokenizer)} tokens, the model"
                f" {config.vocab_size}; is tokenizer.json missing?"
            )
        self.max_tokens = min(self.max_tokens, int(getattr(config, "max_position_embeddings", self.max_tokens)))
        # SigLIP pools the last position and was trained without a mask: its texts are always padded to the full.
        self.padded = config.model_type.startswith("siglip")
        self.pooled = self.padded or config.model_type.startswith("clip")
        self.head = nn.Linear(int(config.hidden_size), dim, bias=False)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Shape: n texts -> input_ids and attention_mask, both (n, tokens)."""
        out = self.tokenizer(
            list(texts), padding="max_length" if self.padded else True, truncation=True, max_length=self.max_tokens,
            return_tensors="pt", return_attention_mask=True,
        )  # fmt: skip
        mask = torch.ones_like(out["attention_mask"]) if self.padded else out["attention_mask"]
        return {"input_ids": out["input_ids"], "attention_mask": mask}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode tokens. Shape: (n, tokens) twice -> (n, dim), not normalised."""
        out = self.trunk(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooled:
            pooled = out.pooler_output
        else:
            mask = attention_mask.unsqueeze(-1).to(out.last_hidden_state.dtype)
            pooled = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
        head: Tensor = self.head(pooled)
        return head


class Towers(nn.Module):
    """A video and a text tower with one output space.

    Args:
        video, text: "tiny", or a Hugging Face model by name or folder.
        dim: length of an embedding.
        seed: of the initial weights of everything that is not pretrained.

    Raises:
        SettingsError: a model cannot be loaded.
    """

    def __init__(self, video: str = "tiny", text: str = "tiny", dim: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.names = {"video": video, "text": text}
        self.dim = dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.video: nn.Module = TinyVideo(dim) if video == "tiny" else HuggingFaceVideo(video, dim)
            self.text: nn.Module = TinyText(dim) if text == "tiny" else HuggingFaceText(text, dim)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides whether two sets of weights live in comparable spaces, but the weights."""
        shapes = {name: list(tensor.shape) for name, tensor in self.state_dict().items()}
        names = {part: Path(name).name for part, name in self.names.items()}  # a folder may move
        facts = {"names": names, "shapes": shapes, "preprocessing": 1}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def size_px(self) -> int:
        """Height and width of the frames that the video tower reads."""
        return int(self.video.size_px)  # type: ignore[arg-type]

    def prepare(self, frames: Tensor) -> Tensor:
        """What the video tower reads of the frames: as many, and not larger.

        Encoding these gives the same vectors. Shape: uint8 (n, T, H, W, 3) -> uint8 (n, T', H', W', 3), on the CPU.
        """
        frames = _spread(frames, getattr(self.video, "frames", frames.shape[1]))
        return _scale(frames, self.size_px) if min(frames.shape[2:4]) >= self.size_px else frames

    def encode_video(self, frames: Tensor) -> Tensor:
        """Unit vectors of clips. Shape: uint8 (n, T, H, W, 3) -> float32 (n, dim)."""
        return F.normalize(self.video(frames).float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of captions or queries. Shape: n texts -> float32 (n, dim)."""
        tokens: dict[str, Tensor] = self.text.tokenize(texts)  # type: ignore[operator]
        device = next(self.text.parameters()).device
        return F.normalize(self.text(**{k: v.to(device) for k, v in tokens.items()}).float(), dim=-1)

    def frozen_copy(self) -> Towers:
        """A copy without gradients, in evaluation mode: a momentum pair."""
        tokenizer = getattr(self.text, "tokenizer", None)  # has no weights, and is slow to copy
        shared = {} if tokenizer is None else {id(tokenizer): tokenizer}
        return copy.deepcopy(self, shared).eval().requires_grad_(False)


def _pretrained(name: str, part: str, field: str) -> Any:
    """The `part` ("vision_model" or "text_model") of a two-tower model, or the whole of a one-tower model."""
    from transformers import AutoModel

    try:
        # In full precision, whatever it was saved in: momentum copies move by less than a half can hold.
        model = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    except _UNLOADABLE as error:
        raise SettingsError(
            f"{field} = {name!r} cannot be loaded: {error}. Name a model on the hub, or a folder with config.json and"
            " model.safetensors"
        ) from error
    return getattr(model, part, model)


def _spread(frames: Tensor, count: int) -> Tensor:
    """Exactly `count` frames, evenly spaced, repeated where there are fewer."""
    have = frames.shape[1]
    if have == count:
        return frames
    return frames[:, torch.linspace(0, have - 1, count, device=frames.device).round().long()]


def _scale(frames: Tensor, size_px: int) -> Tensor:
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


def _resize(frames: Tensor, size_px: int) -> Tensor:
    """Shape: uint8 (n, T, H, W, 3) -> float (n, T, 3, size_px, size_px) in 0..1."""
    return (_scale(frames, size_px).float() / 255).permute(0, 1, 4, 2, 3)
