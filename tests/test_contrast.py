"""The queue and InfoNCE against slow references."""

from __future__ import annotations

import math

import pytest
import torch

from streamlearn.contrast import KeyQueue, info_nce, symmetric_loss


def keys(n: int, start: int = 0, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.arange(start, start + n)
    generator = torch.Generator().manual_seed(start)
    video, text = (torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=1) for _ in range(2))
    return video, text, ids


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("batches", [[3, 3, 3], [8], [9, 1], [1] * 20, [5, 0, 7], [20, 3]])
def test_ring_keeps_the_newest_keys_when_ragged_batches_wrap(size: int, batches: list[int]) -> None:
    queue, seen = KeyQueue(size, 4), []
    for n in batches:
        batch = keys(n, start=len(seen))
        queue.push(*batch)
        seen += list(zip(*(part.tolist() for part in batch), strict=True))
    held = list(zip(queue.video.tolist(), queue.text.tolist(), queue.ids.tolist(), strict=True))[: len(queue)]
    assert sorted(held, key=lambda key: key[2]) == seen[-size:]


def test_ring_restored_in_another_size_keeps_its_newest_keys() -> None:
    old, new = KeyQueue(8, 4), KeyQueue(3, 4)
    old.push(*keys(11))
    new.load_state_dict(old.state_dict())
    assert sorted(new.ids.tolist()) == [8, 9, 10]


def test_restored_ring_goes_on_in_the_same_slots() -> None:
    straight, resumed = KeyQueue(5, 4), KeyQueue(5, 4)
    straight.push(*keys(7))
    resumed.load_state_dict(straight.state_dict())
    for queue in (straight, resumed):
        queue.push(*keys(3, start=7))
    assert torch.equal(straight.video, resumed.video)
    assert torch.equal(straight.ids, resumed.ids)


def slow_info_nce(q: torch.Tensor, k: torch.Tensor, queue: torch.Tensor, same: torch.Tensor, t: float) -> float:
    total = 0.0
    every = [*k, *queue]
    for i, query in enumerate(q):
        negatives = sum(
            math.exp(float(query @ key) / t) for j, key in enumerate(every) if j != i and not bool(same[i, j])
        )  # fmt: skip
        positive = math.exp(float(query @ k[i]) / t)
        total -= math.log(positive / (positive + negatives))
    return total / len(q)


@pytest.mark.parametrize("held", [0, 1, 6])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_info_nce_equals_the_slow_sum(n: int, held: int) -> None:
    q, k, _ = keys(n)
    queue, _, _ = keys(held, start=50)
    same = torch.rand(n, n + held, generator=torch.Generator().manual_seed(1)) < 0.3
    assert float(info_nce(q, k, queue, same, 0.5)) == pytest.approx(slow_info_nce(q, k, queue, same, 0.5), abs=1e-5)


def test_a_key_of_the_same_video_is_no_negative() -> None:
    video, text, ids = keys(3)
    queue = KeyQueue(4, 4)
    without = symmetric_loss(video, text, video, text, ids, queue, 0.1)
    queue.push(video, text, ids)  # the very keys of the batch again, as when a clip is seen twice
    own_only = symmetric_loss(video[:1], text[:1], video[:1], text[:1], ids[:1], queue, 0.1)
    queue_of_others = KeyQueue(4, 4)
    queue_of_others.push(video[1:], text[1:], ids[1:])
    assert float(own_only) == pytest.approx(
        float(symmetric_loss(video[:1], text[:1], video[:1], text[:1], ids[:1], queue_of_others, 0.1))
    )
    assert float(without) > 0


def test_unfilled_slots_are_no_negatives() -> None:
    video, text, ids = keys(4)
    empty = symmetric_loss(video, text, video, text, ids, KeyQueue(64, 4), 0.1)
    none = symmetric_loss(video, text, video, text, ids, None, 0.1)
    assert float(empty) == pytest.approx(float(none))
