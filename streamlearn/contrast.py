"""InfoNCE against the keys of the batch and a queue of older ones (MoCo, He et al. 2020; cross-modal as in ALBEF).

The queue is a ring: it wraps at ragged batches, loses nothing, masks what is not filled, and is part of the
checkpoint. A key of the same video is never a negative: a clip may be seen again, or have many captions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyQueue:
    """The last `size` keys of both modalities, with the id of their video and when it came.

    Args:
        size: keys kept per modality.
        dim: length of a key.
        device: where they live.
    """

    def __init__(self, size: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self.video = torch.zeros(size, dim, device=device)
        self.text = torch.zeros(size, dim, device=device)
        self.ids = torch.zeros(size, dtype=torch.int64, device=device)
        self.came = torch.zeros(size, dtype=torch.int64, device=device)  # the value of `clips` when a key was written
        self.enqueued = 0  # keys ever written since the last clear
        self.clips = 0  # new clips since the last clear: fewer than keys where some were replayed

    def __len__(self) -> int:
        return min(self.enqueued, self.size)

    def push(self, video: Tensor, text: Tensor, ids: Tensor, new: int | None = None) -> None:
        """Write keys over the oldest. Shape: (n, dim), (n, dim), (n,) for any n.

        The first `new` of them, all by default, are of clips that came now; the others were replayed beside these.
        """
        new = len(ids) if new is None else new
        came = self.clips + torch.arange(1, len(ids) + 1, device=self.came.device).clamp(max=new)
        self.clips += new
        self._write(video, text, ids, came)

    def _write(self, video: Tensor, text: Tensor, ids: Tensor, came: Tensor) -> None:
        n = len(ids)
        # Of more keys than there are slots only the newest survive, each in the slot it would have ended in.
        keep = slice(max(0, n - self.size), n)
        slots = (torch.arange(n, device=self.ids.device)[keep] + self.enqueued) % self.size
        self.video[slots], self.text[slots], self.ids[slots] = video[keep], text[keep], ids[keep]
        self.came[slots] = came[keep]
        self.enqueued += n

    def clear(self) -> None:
        """Forget every key, also in what a checkpoint writes."""
        self.enqueued = self.clips = 0
        for held in (self.video, self.text, self.ids, self.came):
            held.zero_()

    def keep_last(self, clips: int) -> None:
        """Forget all keys but those that came with the last so many new clips, their own and replayed ones."""
        order, now = torch.tensor(self._in_order(), dtype=torch.int64, device=self.came.device), self.clips
        young = order[self.came[order] > now - clips]
        kept = self.video[young], self.text[young], self.ids[young], self.came[young]
        self.clear()
        self.clips = now
        self._write(*kept)

    def _in_order(self) -> list[int]:
        """The slots that hold a key, oldest first."""
        return [n % self.size for n in range(self.enqueued - len(self), self.enqueued)]

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that bring back exactly this queue."""
        return {
            "video": self.video, "text": self.text, "ids": self.ids, "came": self.came,
            "enqueued": torch.tensor(self.enqueued, dtype=torch.int64),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`.

        A queue of another size keeps its newest keys: `learner.queue_size` may change between runs.
        """
        enqueued, size = int(state["enqueued"]), len(state["ids"])
        held = min(enqueued, size)
        order = (torch.arange(enqueued - held, enqueued) % size).tolist()  # oldest first
        video, text, ids = (state[name][order] for name in ("video", "text", "ids"))
        # Older checkpoints do not know when keys came: a clip each.
        came = state["came"][order] if "came" in state else torch.arange(1, held + 1)
        self.clear()  # not before: the state may be this queue's own
        if size == self.size:
            self.enqueued = enqueued - held  # the same slots again, so that the resumed run is bit-equal
        self.clips = int(came[-1]) if held else 0
        self._write(video.to(self.video), text.to(self.text), ids.to(self.ids.device), came.to(self.came.device))


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query finding its own key.

    L_i = -log( exp(q_i k_i / t) / (exp(q_i k_i / t) + sum over other keys of exp(q_i k_j / t)) )

    Args:
        queries: (n, d) unit rows.
        keys: (n, d) unit rows, the i-th being the positive of the i-th query.
        queue: (K, d) older keys, negatives for all; K may be 0.
        same: (n, n + K) bool, true where a key belongs to the query's own video: no negative.
        temperature: t.

    Returns:
        The mean over queries, a scalar in nats.
    """
    logits = queries @ torch.cat([keys, queue]).T / temperature  # (n, n + K)
    positive = torch.arange(len(queries), device=queries.device)
    mask = same.clone()
    mask[positive, positive] = False
    return F.cross_entropy(logits.masked_fill(mask, float("-inf")), positive)


def symmetric_loss(
    query_video: Tensor,
    query_text: Tensor,
    key_video: Tensor,
    key_text: Tensor,
    ids: Tensor,
    queue: KeyQueue | None,
    temperature: float,
) -> Tensor:
    """Mean of video-to-text and text-to-video InfoNCE.

    Shape: four times (n, d) and ids (n,) -> scalar. Without a queue, negatives come from the batch alone.
    """
    held = 0 if queue is None else len(queue)
    old_video, old_text = (
        (query_video[:0], query_text[:0]) if queue is None else (queue.video[:held], queue.text[:held])
    )
    old_ids = ids[:0] if queue is None else queue.ids[:held]
    same = ids[:, None] == torch.cat([ids, old_ids])[None, :]  # (n, n + K)
    return 0.5 * (
        info_nce(query_video, key_text, old_text, same, temperature)
        + info_nce(query_text, key_video, old_video, same, temperature)
    )
