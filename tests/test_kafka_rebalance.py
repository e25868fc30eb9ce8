"""Two daemons in one group: what a rebalance takes from one, that one has finished, and the other begins behind it."""

from __future__ import annotations

import base64
import errno
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka.coordinator.assignors.range import RangePartitionAssignor

from streamlearn.app import Daemon
from streamlearn.connectors.kafka import KafkaSource
from streamlearn.connectors.synthetic import encode, render, sample
from streamlearn.records import Clip, Event, Partition
from streamlearn.settings import KafkaSettings, load
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import NewTopic, members, options, send, until

pytestmark = pytest.mark.slow

PARTITIONS, EACH, BATCH = 4, 40, 8
NEVER = 0
WAIT_S = 100.0


@pytest.fixture(scope="module")
def film() -> str:
    rng = np.random.default_rng(0)
    scenes = sample("studio", 1, rng)
    return base64.b64encode(encode(render(scenes, size_px=32, rng=rng)[0])).decode()


class Held:
    """A daemon whose learner stops when it has learned of so many partitions, until it is let go on.

    Attributes:
        learned: the ids it has learned, each as often as it did.
        reached: set when it stands there.
        go_on: to be set.
    """

    def __init__(self, folder: Path, settings: KafkaSettings, *, partitions: int = PARTITIONS) -> None:
        self.learned: list[str] = []
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.source = KafkaSource(settings)
        self.daemon = Daemon(
            load(
                None,
                {
                    "state_dir": folder,
                    "api.port": 0,
                    "model.threads": 1,
                    "learner.batch_size": BATCH,
                    "learner.max_wait_s": 0.3,
                    "media.size_px": 32,
                    "media.workers": 1,
                    "evaluate.heldout_ratio": 0,
                    "drift.detector": "none",
                    "checkpoint.interval_clips": 1_000_000,
                },
            ),
            self.source,
        )
        self._partitions = partitions
        self._process = self.daemon.pipeline.process
        self.daemon.pipeline.process = self.process  # type: ignore[method-assign]

    def process(self, batch: Sequence[Event], **part: Any) -> None:
        self._process(batch, **part)
        self.learned += [event.video_id for event in batch if isinstance(event, Clip)]
        if len({name[0] for name in self.learned}) == self._partitions:
            self.reached.set()
            assert self.go_on.wait(WAIT_S)

    @property
    def idle(self) -> bool:
        """Whether it has learned all there is."""
        return bool(self.daemon.service.status()["state"] == "idle")

    @property
    def of(self) -> set[Partition]:
        """Its partitions."""
        return set(self.source.lag())


@contextmanager
def running(*daemons: Held) -> Iterator[None]:
    with ExitStack() as stack:
        for held in daemons:
            stack.enter_context(held.daemon)
            stack.callback(held.go_on.set)
        yield


class Stage:
    """A topic, and daemons of one group that read it.

    Attributes:
        ids: of the clips in it.
    """

    def __init__(self, broker: KafkaBroker, topic: str, folder: Path, film: str) -> None:
        self.ids: set[str] = set()
        self.group = f"{topic}-group"
        self._broker, self._topic, self._folder, self._film = broker, topic, folder, film

    def fill(self, numbers: range) -> None:
        """Clips of these numbers into every partition."""
        for partition in range(PARTITIONS):
            names = [f"{partition}-{n}" for n in numbers]
            self.ids.update(names)
            messages = [{"video_id": n, "captions": ["a circle"], "media_b64": self._film} for n in names]
            send(self._broker, self._topic, [json.dumps(message).encode() for message in messages], partition)

    def daemon(self, name: str, *, partitions: int = PARTITIONS, **how: Any) -> Held:
        """One with a state directory of this name."""
        return Held(self._folder / name, options(self._broker, self._topic, **how), partitions=partitions)


@pytest.fixture
def stage(kafka: KafkaBroker, new_topic: NewTopic, tmp_path: Path, film: str) -> Stage:
    made = Stage(kafka, new_topic(partitions=PARTITIONS), tmp_path, film)
    made.fill(range(EACH))
    return made


def of(partitions: set[Partition]) -> set[str]:
    """The ids in partitions."""
    return {f"{p.partition}-{n}" for p in partitions for n in range(EACH)}


# A fetch brings a few records of each partition, or the first partition would be learned to its end before the second.
IN_TURN = {"max_partition_fetch_bytes": 20_000}
COOPERATIVE: dict[str, Any] = {"client": IN_TURN}
EAGER: dict[str, Any] = {"client": {**IN_TURN, "partition_assignment_strategy": [RangePartitionAssignor]}}
# Long, for a machine that is busy: half a minute to hand over.
PATIENT: dict[str, Any] = {"session_timeout_ms": 60_000, "request_timeout_ms": 60_000}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(COOPERATIVE, COOPERATIVE, id="cooperative"),
        pytest.param(EAGER, EAGER, id="eager"),
        pytest.param({**COOPERATIVE, "group_instance_id": "a"}, {**COOPERATIVE, "group_instance_id": "b"}, id="static"),
    ],
)
def test_a_daemon_that_joins_under_load_learns_no_clip_that_another_one_has(
    stage: Stage, first: dict[str, Any], second: dict[str, Any]
) -> None:
    one = stage.daemon("one", **PATIENT, **first)
    with running(one):
        assert one.reached.wait(WAIT_S)
        two = stage.daemon("two", **PATIENT, **second, partitions=NEVER)
        with running(two):
            until(lambda: len(one.of) < PARTITIONS)  # some are being taken from it, while it is learning
            one.go_on.set()
            until(lambda: (len(one.of), len(two.of)) == (2, 2))
            until(lambda: set(one.learned) | set(two.learned) == stage.ids)
            until(lambda: one.idle and two.idle)
            moved = two.of
    assert Counter(one.learned + two.learned) == Counter(stage.ids)
    assert of(moved) & set(one.learned)  # there was something to hand over
    assert of(moved) & set(two.learned)


@pytest.mark.parametrize("how", [pytest.param(COOPERATIVE, id="cooperative"), pytest.param(EAGER, id="eager")])
def test_partitions_that_come_back_go_on_where_the_other_daemon_ended(stage: Stage, how: dict[str, Any]) -> None:
    one = stage.daemon("one", **PATIENT, **how)
    with running(one):
        assert one.reached.wait(WAIT_S)
        two = stage.daemon("two", **PATIENT, **how, partitions=2)
        with running(two):
            until(lambda: len(one.of) < PARTITIONS)
            one.go_on.set()
            assert two.reached.wait(WAIT_S)
        until(lambda: set(one.learned) | set(two.learned) == stage.ids)
        until(lambda: one.idle)
    assert Counter(one.learned + two.learned) == Counter(stage.ids)


def test_a_learner_that_stalls_keeps_its_place_and_lets_its_partitions_go(
    kafka: KafkaBroker, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    one = stage.daemon("one", **COOPERATIVE)
    with running(one):
        assert one.reached.wait(WAIT_S)
        place = set(members(kafka, stage.group))
        learned = set(one.learned)
        two = stage.daemon("two", **PATIENT, **COOPERATIVE, partitions=NEVER)
        with running(two):
            until(lambda: len(two.of) == 2)
            three = stage.daemon("three", **PATIENT, **COOPERATIVE, partitions=NEVER)
            with running(three):  # which takes another one away, from a member that has not yet answered for the first
                until(lambda: sorted(map(len, (one.of, two.of, three.of))) == [1, 1, 2])
                until(lambda: of(two.of | three.of) <= set(two.learned + three.learned))
                assert place < set(members(kafka, stage.group))
                mine = of(one.of)
                one.go_on.set()
                until(lambda: set(one.learned + two.learned + three.learned) == stage.ids)
                until(lambda: one.idle and two.idle and three.idle)
    assert "no checkpoint within 1.5 s of a rebalance" in caplog.text
    assert one.source.late_handovers > 0
    # Of what went it has learned nothing since, though it held some of it, decoded.
    assert set(one.learned) - learned <= mine
    assert max(Counter(one.learned).values()) == 1


def test_where_no_checkpoint_can_be_made_the_next_owner_begins_at_the_last_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stage.daemon("one", **COOPERATIVE)
    room = threading.Event()
    checkpoint = one.daemon.state.checkpoint

    def refused() -> None:
        if not room.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        checkpoint()

    monkeypatch.setattr(one.daemon.state, "checkpoint", refused)
    with running(one):
        assert one.reached.wait(WAIT_S)
        learned = set(one.learned)
        two = stage.daemon("two", **PATIENT, **COOPERATIVE, partitions=NEVER)
        with running(two):
            until(lambda: one.daemon.feed.wants_checkpoint)
            one.go_on.set()
            until(lambda: len(two.of) == 2)
            moved = of(two.of)
            until(lambda: moved <= set(two.learned))  # also what was learned, and is in no checkpoint
            assert set(one.learned) == learned
            room.set()
            until(lambda: set(one.learned) | set(two.learned) == stage.ids)
            until(lambda: one.idle and two.idle)
    assert set(one.learned) - learned == stage.ids - moved - learned
    assert max(Counter(one.learned).values()) == max(Counter(two.learned).values()) == 1


def test_daemons_that_take_turns_learn_no_clip_that_another_one_has(stage: Stage) -> None:
    """Each goes on from its own checkpoint, which is behind what the other has learned meanwhile."""
    learned: list[str] = []
    for turn, name in enumerate(("one", "two", "one", "two")):
        stage.fill(range(EACH + BATCH * turn, EACH + BATCH * (turn + 1)))
        held = stage.daemon(name, partitions=NEVER)
        with running(held):
            until(lambda: set(learned) | set(held.learned) == stage.ids and held.idle)  # noqa: B023 - called here
        learned += held.learned
    assert Counter(learned) == Counter(stage.ids)
