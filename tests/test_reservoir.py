"""The reservoir: uniform, deterministic, resumable; and in the daemon nothing held out, deleted or half written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamlearn.reservoir import MemoryClips, Replayed, Reservoir
from streamlearn.stored_clips import StoredClips
from streamlearn.testing import ListSource
from tests.parts import Parts
from tests.test_daemon import Stream, daemon, settled

FILM = np.zeros((2, 4, 4, 3), np.uint8)


def clips(first: int, n: int) -> list[Replayed]:
    return [Replayed(f"v{i}", FILM + i % 250, [f"clip {i}"]) for i in range(first, first + n)]


def ids(drawn: list[Replayed]) -> list[str]:
    return [clip.video_id for clip in drawn]


def fed(reservoir: Reservoir, n: int, batch: int = 4) -> Reservoir:
    for first in range(0, n, batch):
        reservoir.offer(clips(first, min(batch, n - first)))
    return reservoir


def test_a_clip_is_drawn_only_after_the_next_batch_was_offered() -> None:
    reservoir = Reservoir(10, MemoryClips(), 0)
    reservoir.offer(clips(0, 3))
    assert reservoir.draw(3, 0, FILM.shape) == []
    reservoir.offer(clips(3, 3))
    assert sorted(ids(reservoir.draw(9, 1, FILM.shape))) == ["v0", "v1", "v2"]


def test_a_clip_that_was_just_seen_again_waits_too() -> None:
    reservoir = fed(Reservoir(10, MemoryClips(), 0), 8)
    reservoir.offer(clips(0, 2))
    assert sorted(ids(reservoir.draw(9, 1, FILM.shape))) == [f"v{i}" for i in range(2, 8)]


def test_every_clip_has_the_same_chance_to_stay() -> None:
    held = np.zeros(40)
    for seed in range(300):
        reservoir = fed(Reservoir(10, MemoryClips(), seed), 44)  # of which the last batch waits
        held[[int(name[1:]) for name in ids(reservoir.draw(10, 0, FILM.shape))]] += 1
    # Each stays in a quarter of 300 runs: 75, with a standard deviation of 7.5.
    assert held.sum() == 3000
    assert held.min() > 75 - 5 * 7.5
    assert held.max() < 75 + 5 * 7.5
    assert abs(held[:20].sum() - 1500) < 5 * 27  # neither early nor late ones are preferred


def test_memory_holds_what_the_reservoir_holds_and_the_last_batch() -> None:
    store = MemoryClips()
    fed(Reservoir(10, store, 0), 100)
    assert len(store) == 14


def test_a_clip_is_in_the_reservoir_once_however_often_it_comes() -> None:
    reservoir = Reservoir(10, MemoryClips(), 0)
    for _ in range(5):
        fed(reservoir, 8)
    fed(reservoir, 4, batch=2)
    drawn = ids(reservoir.draw(10, 0, FILM.shape))
    assert len(drawn) == len(set(drawn)) == 6


def test_draws_are_the_same_after_a_restart_and_differ_from_step_to_step() -> None:
    store = MemoryClips()
    straight = fed(Reservoir(10, store, 3), 50)
    resumed = Reservoir(10, store, 3)
    resumed.load_state_dict(straight.state_dict())
    for reservoir in (straight, resumed):
        for first in range(50, 90, 4):
            reservoir.offer(clips(first, 4))
    draws = [ids(straight.draw(3, step, FILM.shape)) for step in range(5)]
    assert draws == [ids(resumed.draw(3, step, FILM.shape)) for step in range(5)]
    assert len(set(map(tuple, draws))) > 1


def test_a_smaller_reservoir_keeps_as_many_as_it_can() -> None:
    store = MemoryClips()
    large, small = fed(Reservoir(10, store, 3), 50), Reservoir(4, store, 3)
    small.load_state_dict(large.state_dict())
    assert len(small) == len(small.draw(10, 0, FILM.shape)) == 4


def test_clips_of_another_shape_are_passed_over() -> None:
    reservoir = fed(Reservoir(10, MemoryClips(), 0), 10)
    assert reservoir.draw(3, 0, (2, 8, 8, 3)) == []


@pytest.mark.slow
def test_the_daemon_replays_what_its_frame_store_keeps_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    records = Stream().clips("studio", 64)
    # At 64 px the frames that are kept are larger than those that are learned.
    changes = {"learner__replay_clips": 40, "drift__detector": "none", "media__size_px": 64}
    with daemon(tmp_path, ListSource(records[:40]), **changes) as first:
        settled(first)
    with daemon(tmp_path, ListSource(records), **changes) as second:
        settled(second)
        learner = second.state.learner
        held = {clip.video_id for clip in second.catalog.heldout("t1", 100)}
        drawn = learner.replay.draw(40, 0, (8, 32, 32, 3))  # type: ignore[union-attr]
    assert int(learner.state_dict()["queue"]["enqueued"]) > 1.5 * learner.clips  # what was replayed went in, too
    assert learner.clips + len(held) == 64
    assert len(held) > 5
    assert len(drawn) > 20
    assert not held & set(ids(drawn))


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def test_the_daemons_store_gives_learned_clips_with_their_frames_and_nothing_else(parts: Parts) -> None:
    row, *_ = parts.learn(8)
    parts.learn(4, split="heldout")
    parts.learn(4, split="extra")
    store = StoredClips(parts.catalog, parts.frames, 32)
    got = store.get("v0")
    assert got is not None
    np.testing.assert_array_equal(got.frames, parts.frames.get(row))
    small = StoredClips(parts.catalog, parts.frames, 16).get("v0")
    assert small is not None
    assert small.frames.shape == (8, 16, 16, 3)  # as the decoders scale what is learned
    assert got.captions == parts.catalog.clips([row])[row].captions
    assert [store.get(f"v{i}") for i in range(8, 16)] == [None] * 8
    assert store.get("never seen") is None
    parts.catalog.delete("v0")
    assert store.get("v0") is None
    parts.frames.delete(parts.rows)
    assert store.get("v1") is None


def test_frames_of_a_learned_clip_that_is_now_held_out_are_not_replayed(parts: Parts) -> None:
    row, *_ = parts.learn(8)
    clip = parts.catalog.clips([row])[row]

    parts.catalog.put([replace(clip, split="heldout")])
    assert StoredClips(parts.catalog, parts.frames, 32).get("v0") is None
