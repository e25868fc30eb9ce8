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


@pytest.mark.parametrize("newest", [1, 2, 6, 7, 8])
@pytest.mark.parametrize("pushed", [0, 1, 6, 7, 8, 20])
def test_ring_cut_to_its_newest_keys_is_a_ring_that_saw_only_those(pushed: int, newest: int) -> None:
    cut, fresh = KeyQueue(7, 4), KeyQueue(7, 4)
    seen = keys(pushed)
    cut.push(*seen)
    cut.keep_last(newest)
    kept = min(newest, pushed, 7)
    fresh.push(*(part[pushed - kept :] for part in seen))
    for queue in (cut, fresh):
        queue.push(*keys(5, start=100))
    assert len(cut) == len(fresh)
    assert torch.equal(cut.ids[: len(cut)], fresh.ids[: len(fresh)])
    assert torch.equal(cut.text[: len(cut)], fresh.text[: len(fresh)])


def test_ring_cut_by_age_counts_new_clips_and_keeps_what_was_replayed_beside_them() -> None:
    queue = KeyQueue(16, 4)
    for first in range(0, 60, 6):
        queue.push(*keys(6, start=first), new=4)  # 54 to 57 are the last new clips, 58 and 59 were replayed
    restored = KeyQueue(16, 4)
    restored.load_state_dict(queue.state_dict())
    for ring in (queue, restored):
        ring.keep_last(6)
        assert sorted(ring.ids[: len(ring)].tolist()) == [50, 51, 52, 53, *range(54, 60)]
        ring.keep_last(4)
        assert sorted(ring.ids[: len(ring)].tolist()) == list(range(54, 60))
        ring.push(*keys(6, start=60), new=4)
        ring.keep_last(5)
        assert sorted(ring.ids[: len(ring)].tolist()) == list(range(57, 66))
    assert all(torch.equal(queue.state_dict()[name], tensor) for name, tensor in restored.state_dict().items())


def test_ring_of_an_older_checkpoint_takes_each_key_for_a_clip() -> None:
    old, new = KeyQueue(7, 4), KeyQueue(7, 4)
    old.push(*keys(9))
    new.load_state_dict({name: tensor for name, tensor in old.state_dict().items() if name != "came"})
    new.push(*keys(1, start=9))
    new.keep_last(3)
    assert sorted(new.ids[: len(new)].tolist()) == [7, 8, 9]


@pytest.mark.parametrize("batches", [[3, 3, 3, 3], [8, 1, 1], [1] * 20, [20, 3]])
def test_no_key_is_ever_older_than_the_ring_is_long(batches: list[int]) -> None:
    queue, seen = KeyQueue(7, 4), 0
    for n in batches:
        queue.push(*keys(n, start=seen))
        seen += n
        assert int(queue.ids[: len(queue)].min()) >= seen - 7  # ids count clips


def test_a_cleared_ring_holds_no_trace_of_its_keys() -> None:
    queue = KeyQueue(7, 4)
    queue.push(*keys(9))
    queue.clear()
    assert len(queue) == 0
    assert not queue.state_dict()["video"].any()


@pytest.mark.parametrize("held", [0, 1, 6, 9])
@pytest.mark.parametrize("n", [1, 3])
def test_the_symmetric_loss_over_a_ragged_ring_equals_the_slow_sum(n: int, held: int) -> None:
    queue = KeyQueue(7, 4)
    for first in range(0, held, 2):
        queue.push(*keys(min(2, held - first), start=first))
    video, text, ids = keys(n, start=max(0, held - 2))  # of which some are in the ring already
    video_k, text_k, _ = keys(n, start=77)
    kept = len(queue)
    same = ids[:, None] == torch.cat([ids, queue.ids[:kept]])[None]
    expected = 0.5 * (
        slow_info_nce(video, text_k, queue.text[:kept], same, 0.3)
        + slow_info_nce(text, video_k, queue.video[:kept], same, 0.3)
    )
    assert float(symmetric_loss(video, text, video_k, text_k, ids, queue, 0.3)) == pytest.approx(expected, abs=1e-5)


def test_ring_restored_in_another_size_keeps_its_newest_keys() -> None:
    old, new = KeyQueue(8, 4), KeyQueue(3, 4)
    old.push(*keys(11))
    new.load_state_dict(old.state_dict())
    assert sorted(new.ids.tolist()) == [8, 9, 10]


def test_restored_ring_goes_on_in_the_same_slots() -> None:
    straight, resumed = KeyQueue(5, 4), KeyQueue(5, 4)
    straight.push(*keys(7))
    resumed.load_state_dict(straight.state_dict())
    resumed.load_state_dict(resumed.state_dict())  # which holds the very tensors that it writes
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
