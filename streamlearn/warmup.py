"""Makes the warm checkpoint that ships: tiny towers trained on the synthetic world's generic domain.

From random weights nothing can be ranked for the first thousands of clips (docs/log.md). The five domains of the demo
have their own words, colours and backgrounds; none of their clips is seen here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from streamlearn.connectors.synthetic import GENERIC, render, sample
from streamlearn.encoders import Towers
from streamlearn.errors import SettingsError
from streamlearn.evaluate import ranks, recall_at
from streamlearn.learner import Learner
from streamlearn.settings import LearnerSettings, ModelSettings

BUILTIN = Path(__file__).parent / "assets" / "warm.safetensors"


def warm_up(
    out: Path,
    *,
    scenes: int = 48_000,
    epochs: int = 5,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int, int, float], None],
) -> float:
    """Train and write `out`; about ten minutes on one core.

    Args:
        out: a .safetensors file, half precision.
        scenes: distinct clips, each rendered once.
        epochs: passes over them.
        batch_size: clips per step, contrasted with each other.
        learning_rate: at its peak, after a warm-up of 5 % and before a cosine decay.
        seed: of scenes, rendering, order and initial weights.
        progress: called with steps done, steps in all, and the loss.

    Returns:
        Text-to-video R@5 among 400 unseen generic clips.
    """
    rng = np.random.default_rng(seed)
    drawn = sample(GENERIC, scenes + 400, rng)
    captions = [scene.caption for scene in drawn]
    # Both sizes, so that the towers know clips that were scaled down as well as ones drawn small.
    frames = np.empty((len(drawn), 8, 32, 32, 3), np.uint8)
    for start in range(0, len(drawn), 256):
        batch = drawn[start : start + 256]
        if start // 256 % 2:
            frames[start : start + len(batch)] = render(batch, size_px=32, rng=rng)
        else:
            large = render(batch, size_px=64, rng=rng).reshape(len(batch), 8, 32, 2, 32, 2, 3)
            frames[start : start + len(batch)] = large.mean((3, 5)).round()
    settings = LearnerSettings(
        method="inbatch", learning_rate=learning_rate, batch_size=batch_size, local_momentum="6400 clips", seed=seed
    )
    learner = Learner(Towers(seed=seed), settings)
    per_epoch = scenes // batch_size
    total = per_epoch * epochs
    for epoch in range(epochs):
        order = rng.permutation(scenes)
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            warm, decay = min(1.0, (step + 1) / (0.05 * total)), 0.5 * (1 + math.cos(math.pi * step / total))
            learner.optimizer.param_groups[0]["lr"] = learning_rate * warm * decay
            rows = order[i * batch_size : (i + 1) * batch_size]
            stats = learner.step(frames[rows], [[captions[r]] for r in rows], [str(r) for r in rows])
            progress(step + 1, total, stats.loss)
    similarity = learner.encode_text(captions[scenes:]) @ learner.encode_video(frames[scenes:]).T
    recall = recall_at(ranks(similarity, np.arange(400)), 5)
    save_file(
        {name: tensor.half().contiguous() for name, tensor in learner.local.state_dict().items()},
        out,
        {
            "fingerprint": learner.online.fingerprint,
            "recall_at_5": f"{recall:.3f}",
            "pairs_seen": str(total * batch_size),
        },
    )
    return float(recall)


def reading_of(towers: Towers) -> dict[str, Any]:
    """What else decides how pixels and words are read, that a model's files say beside its weights."""
    pixels = {name: buffer.tolist() for name, buffer in towers.video.named_buffers() if name in ("mean", "std")}
    facts: dict[str, Any] = {f"model.video {n}": [round(v, 6) for v in values] for n, values in pixels.items()}
    if (tokenizer := getattr(towers.text, "tokenizer", None)) is not None:
        words = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        facts["model.text vocabulary"] = hashlib.sha256(words).hexdigest()[:16]
    return facts


def build_towers(settings: ModelSettings, seed: int) -> Towers:
    """The towers of the settings, from their warm start.

    Raises:
        SettingsError: the warm start is missing or of another architecture.
    """
    towers = Towers(settings.video, settings.text, settings.dim, seed, settings.pooling)
    _warm_start(towers, settings)
    towers.train_only(settings.trainable, settings.lora_rank, seed)
    return towers


def _warm_start(towers: Towers, settings: ModelSettings) -> None:
    if settings.warm_start == "none":
        return
    builtin = settings.warm_start == "builtin"
    if builtin and (settings.video, settings.text, settings.dim) != ("tiny", "tiny", 128):
        return  # the built-in warm start is the tiny pair's; pretrained towers bring their own weights
    path = BUILTIN if builtin else Path(settings.warm_start)
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("fingerprint")
            if written != towers.fingerprint:
                raise SettingsError(
                    f"model.warm_start = {settings.warm_start!r} was made for other towers ({written}) than"
                    f" model.video, model.text and model.dim name ({towers.fingerprint})"
                )
            towers.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise SettingsError(f"model.warm_start = {settings.warm_start!r} cannot be read: {error}") from error


def device_of(name: str, setting: str = "model.device") -> torch.device:
    """The device a setting names; "auto" takes CUDA where there is one.

    Raises:
        SettingsError: it is not here, or of another kind.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"nothing is learned on {device.type}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"{setting} = {name!r} is not usable here: {error}; use cpu") from error
    return device
