from __future__ import annotations

import json

import numpy as np
import pytest

from streamlearn.recognition import Statistics, TaskMemory
from streamlearn.records import Vectors
from tests.test_drift import World


def sample(world: World, mean: Vectors, n: int = 192) -> Vectors:
    return world.batch(mean, n)


def memory_of(world: World, domains: int = 5) -> tuple[TaskMemory, list[Vectors]]:
    memory, means = TaskMemory("frame"), [world.domain() for _ in range(domains)]
    for i, mean in enumerate(means):
        memory.learn(f"t{i}", sample(world, mean))
    return memory, means


def test_a_task_that_returns_is_known_and_a_new_one_is_not() -> None:
    for seed in range(10):
        world = World(seed)
        memory, means = memory_of(world)
        for i, mean in enumerate(means):
            name, shift = memory.recognise(sample(world, mean, 64), besides=("t9",))
            assert name == f"t{i}"
            assert shift < 3
        name, shift = memory.recognise(sample(world, world.domain(), 64), besides=("t9",))
        assert name is None
        assert shift > 5


def test_the_task_that_just_ended_is_left_out() -> None:
    world = World(0)
    memory, means = memory_of(world)
    assert memory.recognise(sample(world, means[2], 64), besides=("t2",))[0] is None


def test_an_empty_memory_knows_nothing() -> None:
    assert TaskMemory().recognise(sample(World(0), World(0).domain(), 8), besides=()) == (None, float("inf"))


def test_shift_is_one_on_average_within_a_task_and_its_limit_is_rarely_exceeded() -> None:
    world = World(3)
    mean = world.domain()
    known = Statistics.of(sample(world, mean, 256))
    shifts = [known.shift(sample(world, mean, 64).mean(0), 64) for _ in range(300)]
    assert 0.7 <= np.mean(shifts) <= 1.4
    assert np.mean(np.array(shifts) > known.limit(0.01)) <= 0.04


def test_statistics_of_two_visits_are_those_of_all_their_clips() -> None:
    world = World(1)
    a, b = sample(world, world.domain(), 100), sample(world, world.domain(), 50)
    joined, whole = Statistics.of(a).joined(Statistics.of(b)), Statistics.of(np.concatenate([a, b]))
    assert joined.rows == 150
    assert np.allclose(joined.mean, whole.mean)
    assert joined.trace == pytest.approx(whole.trace, rel=0.02)


def test_a_renamed_task_is_known_by_its_new_name_and_a_merged_one_by_both_visits() -> None:
    world = World(2)
    memory, means = memory_of(world, 2)
    memory.rename("t0", "night")
    assert memory.names() == ("t1", "night")
    assert memory.recognise(sample(world, means[0], 64), besides=())[0] == "night"
    memory.rename("t1", "night")
    assert memory.names() == ("night",)
    memory.rename("absent", "t5")
    assert memory.names() == ("night",)


def test_memory_survives_json_bit_by_bit_and_is_refused_in_another_frame() -> None:
    world = World(4)
    memory, means = memory_of(world)
    state = memory.state_dict()
    facts = json.loads(json.dumps(state["facts"]))
    again = TaskMemory("frame")
    assert again.load_state_dict(facts, state["means"])
    x = sample(world, means[1], 64)
    assert again.recognise(x, besides=()) == memory.recognise(x, besides=())
    assert again.state_dict()["facts"] == state["facts"]
    other = TaskMemory("another")
    assert not other.load_state_dict(facts, state["means"])
    assert other.names() == ()
