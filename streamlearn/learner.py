"""One `step` per batch, one `start_task` per boundary: BMU-MoCo, or one of its rivals.

Knows nothing of sources, indexes or time. One copy of the encoders is served, the local momentum pair unless the
settings say otherwise: its keys of a batch are returned by `step`, and they are the index entries. What the methods
differ in is in `streamlearn.methods`.
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

from streamlearn.encoders import Towers
from streamlearn.errors import StateError
from streamlearn.evaluate import ranks, recall_at
from streamlearn.methods import METHODS, View
from streamlearn.records import Frames, StepStats, Vectors
from streamlearn.reservoir import ClipStore, MemoryClips, Replayed, Reservoir
from streamlearn.settings import LearnerSettings

log = logging.getLogger(__name__)


def id_hash(video_id: str) -> int:
    """A stable 63-bit number for a video id."""
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest(), "big") >> 1


class Learner:
    """Encoders theta, the method with its copies and queues, the optimizer, perhaps a reservoir.

    Args:
        towers: the encoders at the start of the stream.
        settings: the method and its constants.
        device: where to compute. On CUDA the step runs under bf16 autocast; all copies stay fp32.
        clips: where replayed clips come from; memory where none is named. Not asked without `replay_clips`.
    """

    def __init__(
        self,
        towers: Towers,
        settings: LearnerSettings,
        device: torch.device | str = "cpu",
        clips: ClipStore | None = None,
    ) -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.online = towers.to(self.device).eval()
        self.method = METHODS[settings.method](self.online, settings)
        self.replay: Reservoir | None = None
        if settings.replay_clips:
            store = MemoryClips() if clips is None else clips
            self.replay = Reservoir(settings.replay_clips, store, settings.seed)
        self.optimizer = torch.optim.AdamW(
            self.online.moving,
            settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.steps = 0
        self.clips = 0

    @property
    def copies(self) -> dict[str, Towers]:
        """Everything that could be served: "online", "local" and what else the method keeps."""
        return {"online": self.online, **self.method.copies}

    @property
    def local(self) -> Towers:
        """The local momentum pair."""
        return self.method.copies["local"]

    @property
    def served(self) -> Towers:
        """The pair that writes the index and encodes queries (`learner.serve`)."""
        return self.copies[self.settings.serve]

    def clips_within(self, share: float) -> int:
        """Clips that the served pair encodes in a share of a step's work; at least one, if it is not 0.

        Counted in passes of the video tower, which are nearly all of the work, so that it is the same on every machine.
        Of each clip of a batch that is three by the encoders (there and, twice as dear, back) and one by each copy that
        sees it; one in all where the trunk does not move.
        """
        clips, passes = float(self.settings.batch_size), 3 + len(self._needed_views)
        if self.replay is not None:
            clips /= 1 - self.settings.replay_ratio
        if self.online.shares_trunk(self.served, "video"):
            passes = 1
        return max(round(share * clips * passes), int(share > 0))

    @property
    def _needed_views(self) -> list[str]:
        """Copies whose view of a batch a step needs."""
        return list(dict.fromkeys((*self.method.needed, self.settings.serve)))

    def step(self, frames: Frames, captions: Sequence[Sequence[str]], video_ids: Sequence[str]) -> StepStats:
        """Learn from one batch, and from replayed clips beside it.

        Args:
            frames: (n, T, H, W, 3) uint8.
            captions: n lists; of several captions the steps take turns.
            video_ids: n ids; clips of one video are never each other's negatives.

        Returns:
            Keys of the n clips, as the served pair saw them before this step, and what was measured.
        """
        n = len(video_ids)
        new = [Replayed(*clip) for clip in zip(video_ids, frames, captions, strict=True)]
        clips = new + self._replayed(n, frames.shape[1:])
        films = frames if len(clips) == n else np.stack([clip.frames for clip in clips])
        x = self.online.prepare(torch.from_numpy(films)).to(self.device)
        texts = [clip.captions[self.steps % len(clip.captions)] for clip in clips]
        ids = torch.tensor([id_hash(clip.video_id) for clip in clips], device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            batch = self.online.read(x, texts)
            with torch.no_grad():
                views = {name: View(*self.copies[name].encode(batch)) for name in self._needed_views}
            with self._dropout():
                own = View(*self.online.encode(batch))
        loss = self.method.loss(own, views, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(self.online.moving, self.settings.grad_clip)
        if torch.isfinite(grad_norm):
            self.optimizer.step()
            self.method.update(n)
            self.method.push(views, ids, n)
        else:
            log.warning("step %d: the gradient is not finite; the batch was not learned", self.steps)
        self.optimizer.zero_grad()
        self.steps += 1
        self.clips += n
        if self.replay is not None:
            self.replay.offer(new)
        keys = View(*(view[:n] for view in views[self.settings.serve]))
        return StepStats(
            keys_video=_array(keys.video),
            keys_text=_array(keys.text),
            loss=float(loss.detach()),
            recall=_in_batch_recall(*keys),
            grad_norm=float(grad_norm),
            step=self.steps,
        )

    def _replayed(self, n: int, shape: Sequence[int]) -> list[Replayed]:
        """Clips of the reservoir, so many that they are `replay_ratio` of a batch with n new ones."""
        if self.replay is None:
            return []
        share = self.settings.replay_ratio
        return self.replay.draw(round(n * share / (1 - share)), self.steps, shape)

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """Trunks that move drop out at random: by the step, so that a resumed run draws as an uninterrupted one."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence((self.settings.seed, self.steps)).generate_state(1)[0]))
            self.online.train()
            try:
                yield
            finally:
                self.online.eval()

    def start_task(self) -> None:
        """A task begins: what the method restarts, restarts."""
        self.method.start_task()

    @torch.inference_mode()
    def encode_video(self, frames: Frames) -> Vectors:
        """Served vectors of clips. Shape: uint8 (n, T, H, W, 3) -> (n, d)."""
        return _array(self.served.encode_video(torch.from_numpy(frames).to(self.device)))

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Served vectors of texts. Shape: n -> (n, d)."""
        return _array(self.served.encode_text(texts))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a resumed run needs to be bit-equal, as named tensors by part."""
        optimizer = {
            f"{i}.{name}": torch.as_tensor(value)
            for i, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        counters = {"steps": self.steps, "clips": self.clips, "task_clips": self.method.task_clips}
        parts = {
            "online": self.online.state_dict(),
            **self.method.state_dict(),
            "optimizer": optimizer,
            "counters": {name: torch.tensor(value) for name, value in counters.items()},
        }
        if self.replay is not None:
            parts["replay"] = self.replay.state_dict()
        return parts

    def load_state_dict(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of `state_dict`.

        A part that this method's settings need and the state lacks (a global pair switched on later) starts as at the
        start of a stream, whatever this learner has learned since.

        Raises:
            StateError: the weights are of another architecture.
        """
        try:
            self.online.load_state_dict(parts["online"])
            self.method.load_state_dict(parts)
        except (KeyError, RuntimeError) as error:
            raise StateError(f"the weights do not fit model.video, model.text and model.dim: {error}") from error
        if self.replay is not None:
            self.replay.load_state_dict(parts.get("replay", {}))
        state: dict[int, dict[str, Any]] = {}
        for key, value in parts["optimizer"].items():
            i, name = key.split(".", 1)
            state.setdefault(int(i), {})[name] = value
        # Learning rate and decay come from today's settings, moments from the checkpoint.
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        counters = {name: int(value) for name, value in parts["counters"].items()}
        self.steps, self.clips = counters["steps"], counters["clips"]
        self.method.task_clips = counters.get("task_clips", self.clips)  # older checkpoints do not know

    def describe(self) -> str:
        """The settings that shaped the weights, as JSON, for the manifest."""
        return json.dumps(self.settings.model_dump(), sort_keys=True)


def _array(x: Tensor) -> Vectors:
    return np.asarray(x.float().cpu().numpy(), dtype=np.float32)


def _in_batch_recall(video: Tensor, text: Tensor) -> float:
    scores = _array(video @ text.T)
    own = np.arange(len(scores))
    return recall_at(np.concatenate([ranks(scores, own), ranks(scores.T, own)]), 1)
