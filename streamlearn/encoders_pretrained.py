"""Towers of Hugging Face: any image or video model beside any text model, by name or folder.

As safetensors only and without remote code. Each is a trunk, which brings its weights, and a head, which does not:
a projection to `dim`, and for image towers perhaps a small transformer over the frames.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from streamlearn.encoders_frames import resize, spread
from streamlearn.encoders_tiny import Block
from streamlearn.errors import SettingsError

#: What transformers raises for a folder or name that holds no model, half of one, or one with code of its own.
_UNLOADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


class HuggingFaceVideo(nn.Module):
    """A video tower, or an image tower over the frames that are then pooled over time; and a projection to `dim`.

    Args:
        name: of the model, or its folder.
        dim: length of an embedding.
        pooling: of an image tower's frames: "mean", or "temporal" for a transformer block over them, which starts as
            the mean. A video tower (one with `num_frames`) pools by itself.
    """

    def __init__(self, name: str, dim: int, pooling: str = "mean") -> None:
        super().__init__()
        from transformers.image_processing_base import ImageProcessingMixin

        self.trunk, projection = _pretrained(name, "vision_model", "visual_projection", "model.video")
        config = self.trunk.config
        if not isinstance(getattr(config, "image_size", None), int):
            raise SettingsError(f"model.video = {name!r} reads no square images: name a ViT, CLIP or SigLIP")
        try:
            processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
        except OSError:  # a folder without preprocessor_config.json: the ViT default
            processor = {}
        self.size_px = int(config.image_size)
        self.whole = isinstance(getattr(config, "num_frames", None), int)
        if self.whole:
            self.frames = int(config.num_frames)
        self.register_buffer("mean", torch.tensor(processor.get("image_mean", [0.5] * 3)), persistent=False)
        self.register_buffer("std", torch.tensor(processor.get("image_std", [0.5] * 3)), persistent=False)
        width = int(config.hidden_size)
        self.temporal = _Temporal(width) if pooling == "temporal" and not self.whole else None
        self.head = nn.Linear(width, dim, bias=False)
        self.projection = projection

    def forward(self, frames: Tensor) -> Tensor:
        """Encode clips. Shape: uint8 (n, T, H, W, 3) -> (n, dim), not normalised."""
        return self.project(self.features(frames))

    def features(self, frames: Tensor) -> Tensor:
        """What the trunk makes of clips. Shape: uint8 (n, T, H, W, 3) -> (n, T, hidden), or (n, hidden)."""
        x = resize(spread(frames, self.frames) if self.whole else frames, self.size_px)  # (n, T, 3, S, S)
        n, t = x.shape[:2]
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x = (x - mean[:, None, None]) / std[:, None, None]
        out = self.trunk(pixel_values=x if self.whole else x.flatten(0, 1))
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            # A video model without a pooler has no first token that sums up, but VideoMAE's tokens are all alike.
            pooled = out.last_hidden_state.mean(1) if self.whole else out.last_hidden_state[:, 0]
        features: Tensor = pooled if self.whole else pooled.reshape(n, t, -1)
        return features

    def project(self, features: Tensor) -> Tensor:
        """Pool over time, and project. Shape: as `features` gives -> (n, dim)."""
        if not self.whole:
            features = features.mean(1) if self.temporal is None else self.temporal(features)
        head: Tensor = self.head(features)
        return head


class _Temporal(nn.Module):
    """One transformer block over the frames' vectors, then their mean; it starts as the mean alone."""

    max_frames = 64

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(self.max_frames, width) * 0.02)
        self.block = Block(width, next(heads for heads in (8, 4, 2, 1) if width % heads == 0))
        for last in (self.block.out, self.block.mlp[-1]):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (n, T, width) -> (n, width)."""
        if x.shape[1] > self.max_frames:
            x = spread(x, self.max_frames)
        placed = x + self.positions[: x.shape[1]]
        seen = self.block(placed, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        out: Tensor = (x + seen - placed).mean(1)
        return out


class HuggingFaceText(nn.Module):
    """A text encoder, pooled as it was trained (CLIP, SigLIP) or by the mean of its tokens, and a projection."""

    max_tokens = 64

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        self.trunk, self.projection = _pretrained(name, "text_model", "text_projection", "model.text")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except _UNLOADABLE as error:
            raise SettingsError(f"model.text = {name!r}: its tokenizer cannot be loaded: {_line(error)}") from error
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
        return self.project(self.features(input_ids, attention_mask))

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the trunk makes of tokens, pooled. Shape: (n, tokens) twice -> (n, hidden)."""
        out = self.trunk(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooled:
            pooled = out.pooler_output
        else:
            mask = attention_mask.unsqueeze(-1).to(out.last_hidden_state.dtype)
            pooled = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
        features: Tensor = pooled
        return features

    def project(self, features: Tensor) -> Tensor:
        """Shape: (n, hidden) -> (n, dim)."""
        head: Tensor = self.head(features)
        return head


def share_projection(video: HuggingFaceVideo, text: HuggingFaceText) -> None:
    """Towers of one CLIP or SigLIP model begin in the space that they were trained to share.

    Where `dim` is the model's own, each head is the model's projection; else a rotation into `dim`, the same for both,
    follows: cosines are kept as well as that many dimensions can.
    """
    if video.projection is None or text.projection is None:
        return
    width, dim = len(video.projection), video.head.out_features
    turn = torch.eye(width) if dim == width else nn.init.orthogonal_(torch.empty(dim, width))
    with torch.no_grad():
        video.head.weight.copy_(turn @ video.projection)
        text.head.weight.copy_(turn @ text.projection)


def add_adapters(trunks: Sequence[nn.Module], rank: int, seed: int) -> None:
    """LoRA inside every linear layer of the trunks; their own weights stop learning. It starts as if it were not there.

    Raises:
        SettingsError: there is no trunk, or `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SettingsError("model.trainable = lora needs peft: pip install 'streamlearn[lora]'") from error
    if not trunks:
        raise SettingsError("model.trainable = lora: the tiny towers have no trunk for adapters; use all or heads")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for trunk in trunks:
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), trunk)


def _log_as_we_do() -> None:
    """What these libraries say comes in the form of our log, and once: they bring handlers of their own."""
    for library in ("transformers", "huggingface_hub"):
        logger = logging.getLogger(library)
        logger.handlers.clear()
        logger.propagate = True


def _line(error: BaseException) -> str:
    """What it says, without its line breaks and its full stop: a sentence goes on behind it."""
    return " ".join(str(error).split()).rstrip(".")


def _pretrained(name: str, part: str, projection: str, field: str) -> tuple[Any, Tensor | None]:
    """The `part` of a two-tower model and what projects it into their common space, or the whole of another model."""
    from transformers import AutoModel

    _log_as_we_do()
    try:
        # In full precision, whatever it was saved in: momentum copies move by less than a half can hold.
        model = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    except _UNLOADABLE as error:
        raise SettingsError(
            f"{field} = {name!r} cannot be loaded: {_line(error)}. Name a model on the hub, or a folder with"
            " config.json and model.safetensors"
        ) from error
    if not hasattr(model, part):
        return model, None
    if hasattr(model, projection):  # CLIP
        return getattr(model, part), getattr(model, projection).weight.detach().clone()
    return getattr(model, part), torch.eye(getattr(model, part).config.hidden_size)  # SigLIP: its poolers project
