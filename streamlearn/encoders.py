"""The two towers: frames to vectors and captions to vectors, in one space.

A `Towers` pair knows its architecture and preprocessing (its fingerprint), not how it is trained or which copy of
it is served. Built-in tiny towers need no download; any Hugging Face image or video model beside any text model loads
by name or folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamlearn.encoders_frames import scale, spread
from streamlearn.encoders_pretrained import HuggingFaceText, HuggingFaceVideo, add_adapters, share_projection
from streamlearn.encoders_tiny import TinyText, TinyVideo


class Read(NamedTuple):
    """A batch as far as it is the same to all copies of a pair.

    Attributes:
        video: frames, or what a trunk that does not move makes of them.
        text: tokens, or likewise.
    """

    video: Tensor
    text: Mapping[str, Tensor] | Tensor


class Towers(nn.Module):
    """A video and a text tower with one output space.

    Args:
        video, text: "tiny", or a Hugging Face model by name or folder.
        dim: length of an embedding.
        seed: of the initial weights of everything that is not pretrained.

    Raises:
        SettingsError: a model cannot be loaded.
    """

    def __init__(
        self, video: str = "tiny", text: str = "tiny", dim: int = 128, seed: int = 0, pooling: str = "mean"
    ) -> None:
        super().__init__()
        self.names = {"video": video, "text": text}
        self.dim = dim
        self.fixed: frozenset[str] = frozenset()
        self._still: frozenset[str] = frozenset()  # towers of which all but the head is fixed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.video: nn.Module = TinyVideo(dim) if video == "tiny" else HuggingFaceVideo(video, dim, pooling)
            self.text: nn.Module = TinyText(dim) if text == "tiny" else HuggingFaceText(text, dim)
            if video == text and isinstance(self.video, HuggingFaceVideo) and isinstance(self.text, HuggingFaceText):
                share_projection(self.video, self.text)
        for tower in (self.video, self.text):
            if isinstance(tower, HuggingFaceVideo | HuggingFaceText):
                tower.projection = None  # it has done its work; copies need not carry it

    def train_only(self, what: str, lora_rank: int = 8, seed: int = 0) -> None:
        """Fix all weights but some: fixed ones are shared by all copies and are not part of a state.

        Args:
            what: "all"; "heads" (all but the trunks, which bring their weights); "lora" (heads, and adapters of low
                rank inside the trunks of Hugging Face; Hu et al. 2021).
            lora_rank: of the adapters.
            seed: of their initial weights.

        Raises:
            SettingsError: LoRA is asked for where there is no trunk for it, or without `peft`.
        """
        if what == "all":
            return
        if what == "lora":
            trunks = [t for t in (self.video, self.text) if isinstance(t, HuggingFaceVideo | HuggingFaceText)]
            add_adapters([tower.trunk for tower in trunks], lora_rank, seed)
        else:
            parts = {"video": self.video, "text": self.text}
            self._still = frozenset(n for n, t in parts.items() if isinstance(t, HuggingFaceVideo | HuggingFaceText))
        names = [name for name, _ in self.named_parameters() if _is_trunk(name, self)]
        self.fixed = frozenset(name for name in names if "lora_" not in name)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in self.fixed)

    @property
    def moving(self) -> list[nn.Parameter]:
        """What the optimizer and the momentum update move, in the order of every copy."""
        return [parameter for name, parameter in self.named_parameters() if name not in self.fixed]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """As every module's, without what is fixed."""
        state: dict[str, Tensor] = super().state_dict(*args, **kwargs)
        return {name: t for name, t in state.items() if name not in self.fixed} if self.fixed else state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module's; what is fixed need not be there.

        Raises:
            RuntimeError: another tensor is missing, unknown, or of another shape.
        """
        if not self.fixed:
            return super().load_state_dict(state_dict, strict, assign)
        result = super().load_state_dict(state_dict, False, assign)
        wrong = [*(name for name in result.missing_keys if name not in self.fixed), *result.unexpected_keys]
        if strict and wrong:
            raise RuntimeError(f"missing or unknown weights: {', '.join(wrong[:5])}")
        return result

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides whether two sets of weights live in comparable spaces, but the weights."""
        shapes = {name: list(tensor.shape) for name, tensor in self.state_dict().items()}
        names = {part: Path(name).name for part, name in self.names.items()}  # a folder may move
        facts: dict[str, Any] = {"names": names, "shapes": shapes, "preprocessing": 1}
        if self.fixed:  # they are in no state, so a state must say which it belongs to
            facts["fixed"] = self._fixed_checksum
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _fixed_checksum(self) -> int:
        checksum = 0
        for name, parameter in self.named_parameters():
            if name in self.fixed:
                checksum = zlib.crc32(parameter.detach().cpu().contiguous().numpy().tobytes(), checksum)
        return checksum

    @property
    def size_px(self) -> int:
        """Height and width of the frames that the video tower reads."""
        return int(self.video.size_px)  # type: ignore[arg-type]

    def prepare(self, frames: Tensor) -> Tensor:
        """What the video tower reads of the frames: as many, and not larger.

        Encoding these gives the same vectors. Shape: uint8 (n, T, H, W, 3) -> uint8 (n, T', H', W', 3), on the CPU.
        """
        frames = spread(frames, getattr(self.video, "frames", frames.shape[1]))
        return scale(frames, self.size_px) if min(frames.shape[2:4]) >= self.size_px else frames

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode_video(self, frames: Tensor) -> Tensor:
        """Unit vectors of clips. Shape: uint8 (n, T, H, W, 3) -> float32 (n, dim)."""
        return self.video_of(self.read_video(frames))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of captions or queries. Shape: n texts -> float32 (n, dim)."""
        return self.text_of(self.read_text(texts))

    def shares_trunk(self, other: Towers, part: str) -> bool:
        """Whether the tower `part` ("video", "text") of both has one trunk that does not move, and reads for both."""
        if part not in self._still or part not in other._still:
            return False
        own, its = (next(getattr(pair, part).trunk.parameters()) for pair in (self, other))
        return own is its

    @torch.no_grad()
    def read_video(self, frames: Tensor) -> Tensor:
        """As far as it is the same to all copies. Shape: uint8 (n, T, H, W, 3) -> as it is, or features."""
        features: Tensor = self.video.features(frames) if "video" in self._still else frames  # type: ignore[operator]
        return features

    @torch.no_grad()
    def read_text(self, texts: Sequence[str]) -> Mapping[str, Tensor] | Tensor:
        """As far as it is the same to all copies. Shape: n texts -> tokens by name, or features, (n, hidden)."""
        tokens: dict[str, Tensor] = self.text.tokenize(texts)  # type: ignore[operator]
        tokens = {name: tensor.to(self.device) for name, tensor in tokens.items()}
        return self.text.features(**tokens) if "text" in self._still else tokens  # type: ignore[operator]

    def read(self, frames: Tensor, texts: Sequence[str]) -> Read:
        """Read a batch for this pair and its copies; trunks that do not move, which are nearly all the work, once.

        Args:
            frames: uint8 (n, T, H, W, 3).
            texts: n.
        """
        return Read(self.read_video(frames), self.read_text(texts))

    def encode(self, batch: Read) -> tuple[Tensor, Tensor]:
        """Unit vectors of clips and captions, as `encode_video` and `encode_text`. Shape: float32 (n, dim) twice."""
        return self.video_of(batch.video), self.text_of(batch.text)

    def video_of(self, read: Tensor) -> Tensor:
        """Unit vectors of clips, from what `read_video` returns. Shape: float32 (n, dim)."""
        out = self.video.project(read) if "video" in self._still else self.video(read)  # type: ignore[operator]
        return F.normalize(out.float(), dim=-1)

    def text_of(self, read: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Unit vectors of texts, from what `read_text` returns. Shape: float32 (n, dim)."""
        out = self.text(**read) if isinstance(read, Mapping) else self.text.project(read)  # type: ignore[operator]
        return F.normalize(out.float(), dim=-1)

    def frozen_copy(self) -> Towers:
        """A copy without gradients, in evaluation mode: a momentum pair. What is fixed is shared, not copied."""
        tokenizer = getattr(self.text, "tokenizer", None)  # has no weights, and is slow to copy
        shared: dict[int, Any] = {} if tokenizer is None else {id(tokenizer): tokenizer}
        shared |= {id(p): p for name, p in self.named_parameters() if name in self.fixed}
        return copy.deepcopy(self, shared).eval().requires_grad_(False)


def _is_trunk(name: str, towers: Towers) -> bool:
    """Whether a parameter is of what brings its weights.

    Of a built-in tower all but the head, where both are: beside a pretrained one it begins at random, and is learned.
    """
    part, inner = name.split(".", 2)[:2]
    if isinstance(getattr(towers, part), TinyVideo | TinyText):
        return inner != "head" and set(towers.names.values()) == {"tiny"}
    return inner == "trunk"
