"""BMU-MoCo on a stream: one `step` per batch, one `start_task` per boundary, no replay memory.

Knows nothing of sources, indexes or time. The local momentum pair is the one that is served: its keys of a batch
are returned by `step`, and they are the index entries.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamlearn.contrast import KeyQueue, symmetric_loss
from streamlearn.encoders import Towers
from streamlearn.errors import StateError
from streamlearn.evaluate import ranks, recall_at
from streamlearn.momentum import coefficient, follow, pull
from streamlearn.records import Frames, StepStats, Vectors
from streamlearn.settings import LearnerSettings

log = logging.getLogger(__name__)


def id_hash(video_id: str) -> int:
    """A stable 63-bit number for a video id."""
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest(), "big") >> 1


class Learner:
    """Encoders theta, their local and global momentum copies, the queues and the optimizer.

    Args:
        towers: the encoders at the start of the stream.
        settings: the method and its constants.
        device: where to compute. On CUDA the step runs under bf16 autocast; all copies stay fp32.
    """

    def __init__(self, towers: Towers, settings: LearnerSettings, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.online = towers.to(self.device).train()
        self.local = towers.frozen_copy()
        # inbatch and moco have no reverse update; a global copy would be carried along unread.
        self.global_ = towers.frozen_copy() if settings.method == "bmu" and settings.global_pair else None
        self.queue = None
        if settings.method != "inbatch":
            self.queue = KeyQueue(settings.queue_size, towers.dim, self.device)
        self.optimizer = torch.optim.AdamW(
            self.online.parameters(),
            settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.steps = 0
        self.clips = 0

    def step(self, frames: Frames, captions: Sequence[Sequence[str]], video_ids: Sequence[str]) -> StepStats:
        """Learn from one batch.

        Args:
            frames: (n, T, H, W, 3) uint8.
            captions: n lists; of several captions the steps take turns.
            video_ids: n ids; clips of one video are never each other's negatives.

        Returns:
            Keys of the batch, as the local momentum pair saw it before this step, and what was measured.
        """
        x = self.online.prepare(torch.from_numpy(frames)).to(self.device)
        texts = [options[self.steps % len(options)] for options in captions]
        ids = torch.tensor([id_hash(v) for v in video_ids], device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            with torch.no_grad():
                key_video, key_text = self.local.encode_video(x), self.local.encode_text(texts)
            with self._dropout():
                query_video, query_text = self.online.encode_video(x), self.online.encode_text(texts)
        # Without a queue the encoders contrast with themselves, gradients on both sides.
        against = (query_video, query_text) if self.queue is None else (key_video, key_text)
        loss = symmetric_loss(query_video, query_text, *against, ids, self.queue, self.settings.temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(self.online.parameters(), self.settings.grad_clip)
        if torch.isfinite(grad_norm):
            self.optimizer.step()
            self._momentum(len(texts))
            if self.queue is not None:
                self.queue.push(key_video, key_text, ids)
        else:
            log.warning("step %d: the gradient is not finite; the batch was not learned", self.steps)
        self.optimizer.zero_grad()
        self.steps += 1
        self.clips += len(texts)
        return StepStats(
            keys_video=_array(key_video),
            keys_text=_array(key_text),
            loss=float(loss.detach()),
            recall=_in_batch_recall(key_video, key_text),
            grad_norm=float(grad_norm),
            step=self.steps,
        )

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """Pretrained towers drop out at random: by the step, so that a resumed run draws as an uninterrupted one."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence((self.settings.seed, self.steps)).generate_state(1)[0]))
            yield

    def _momentum(self, clips: int) -> None:
        s = self.settings
        theta, local = list(self.online.parameters()), list(self.local.parameters())
        follow(local, theta, coefficient(s.local_momentum, clips, s.batch_size))
        if self.global_ is not None:
            follow(list(self.global_.parameters()), theta, coefficient(s.global_momentum, clips, s.batch_size))
        if s.method == "bmu":
            pull(theta, local, coefficient(s.local_pull, clips, s.batch_size))
        if self.global_ is not None:
            pull(theta, list(self.global_.parameters()), coefficient(s.global_pull, clips, s.batch_size))

    def start_task(self) -> None:
        """A task begins: the local pair restarts from the encoders, the global one goes on."""
        if self.settings.method == "bmu":
            self.local.load_state_dict(self.online.state_dict())
        if self.queue is not None and self.settings.queue_at_boundary == "clear":
            self.queue.clear()

    @torch.inference_mode()
    def encode_video(self, frames: Frames) -> Vectors:
        """Served vectors of clips. Shape: uint8 (n, T, H, W, 3) -> (n, d)."""
        return _array(self.local.encode_video(torch.from_numpy(frames).to(self.device)))

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Served vectors of texts. Shape: n -> (n, d)."""
        return _array(self.local.encode_text(texts))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a resumed run needs to be bit-equal, as named tensors by part."""
        optimizer = {
            f"{i}.{name}": torch.as_tensor(value)
            for i, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        parts = {
            "online": self.online.state_dict(),
            "local": self.local.state_dict(),
            "optimizer": optimizer,
            "counters": {"steps": torch.tensor(self.steps), "clips": torch.tensor(self.clips)},
        }
        if self.global_ is not None:
            parts["global"] = self.global_.state_dict()
        if self.queue is not None:
            parts["queue"] = self.queue.state_dict()
        return parts

    def load_state_dict(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of `state_dict`.

        A part that this method's settings need and the state lacks (a global pair switched on later) starts from
        the encoders, as at the start of a stream.

        Raises:
            StateError: the weights are of another architecture.
        """
        try:
            self.online.load_state_dict(parts["online"])
            self.local.load_state_dict(parts["local"])
            if self.global_ is not None:
                self.global_.load_state_dict(parts.get("global", parts["online"]))
        except (KeyError, RuntimeError) as error:
            raise StateError(f"the weights do not fit model.video, model.text and model.dim: {error}") from error
        if self.queue is not None and "queue" in parts:
            self.queue.load_state_dict(parts["queue"])
        state: dict[int, dict[str, Any]] = {}
        for key, value in parts["optimizer"].items():
            i, name = key.split(".", 1)
            state.setdefault(int(i), {})[name] = value
        # Learning rate and decay come from today's settings, moments from the checkpoint.
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.steps, self.clips = int(parts["counters"]["steps"]), int(parts["counters"]["clips"])

    def describe(self) -> str:
        """The settings that shaped the weights, as JSON, for the manifest."""
        return json.dumps(self.settings.model_dump(), sort_keys=True)


def _array(x: Tensor) -> Vectors:
    return np.asarray(x.float().cpu().numpy(), dtype=np.float32)


def _in_batch_recall(video: Tensor, text: Tensor) -> float:
    scores = _array(video @ text.T)
    own = np.arange(len(scores))
    return recall_at(np.concatenate([ranks(scores, own), ranks(scores.T, own)]), 1)
