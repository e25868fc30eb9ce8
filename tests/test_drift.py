from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from streamlearn.detector import Detector, NoDetector
from streamlearn.drift import MeanShift
from streamlearn.records import Vectors


class World:
    """Unit embeddings of 256 dimensions whose variance falls off as 1/i, as that of trained encoders does.

    Domains differ by their mean: 0.5 apart from the common one, where the spread of a domain has norm 1.
    """

    width = 256

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        variances = 1 / np.arange(1, self.width + 1)
        self._scales = np.sqrt(variances / variances.sum()).astype(np.float32)
        self._common: Vectors = 0.5 * self._direction()

    def domain(self) -> Vectors:
        return self._common + 0.5 * self._direction()

    def batch(self, mean: Vectors, n: int = 32) -> Vectors:
        rows: Vectors = self._rng.standard_normal((n, self.width), np.float32) * self._scales + mean
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    def mixture(self, old: Vectors, new: Vectors, share: float, n: int = 32) -> Vectors:
        k = int(self._rng.binomial(n, min(share, 1.0)))
        return np.concatenate([self.batch(old, n - k), self.batch(new, k)])

    def _direction(self) -> Vectors:
        v: Vectors = self._rng.standard_normal(self.width).astype(np.float32)
        return v / np.linalg.norm(v)


def feed(detector: Detector, world: World, mean: Vectors, batches: int) -> list[tuple[int, int]]:
    """Batches of one domain; returns (batch, onset_batches_ago) of every alarm."""
    alarms = []
    for i in range(batches):
        detector.update(world.batch(mean))
        if detector.drift_detected:
            alarms.append((i, detector.onset_batches_ago))
    return alarms


def rotated(x: Vectors, angle: float) -> Vectors:
    """What an encoder makes of x that has turned by `angle`: every pair of dimensions (i, i + d/2) turns."""
    a, b = np.split(x, 2, axis=1)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.concatenate([cos * a - sin * b, sin * a + cos * b], axis=1)


@pytest.mark.slow
def test_abrupt_changes_are_found_within_two_batches_and_dated_to_the_batch() -> None:
    for seed in range(50):
        world, detector = World(seed), MeanShift()
        old, new = world.domain(), world.domain()
        assert feed(detector, world, old, 30 + seed) == [], f"seed {seed}"
        detector.update(world.mixture(old, new, share=seed / 50))  # the change falls inside a batch
        found = 0 if detector.drift_detected else None
        onset = detector.onset_batches_ago
        for i in range(1, 3):
            if found is None:
                detector.update(world.batch(new))
                found, onset = (i, detector.onset_batches_ago) if detector.drift_detected else (None, 0)
        assert found is not None, f"seed {seed}"
        assert found <= onset <= found + 1, f"seed {seed}: dated {onset} batches back, {found} after the change"


@pytest.mark.slow
@pytest.mark.parametrize("length", [32, 64])
def test_gradual_changes_are_found_once_within_the_mixing_and_dated_to_their_beginning(length: int) -> None:
    errors, alarms = [], 0
    for seed in range(20):
        world, detector = World(seed), MeanShift()
        old, new = world.domain(), world.domain()
        assert feed(detector, world, old, 60) == []
        first = None
        for i in range(1, int(1.5 * length) + 1):
            detector.update(world.mixture(old, new, share=i / length))
            alarms += detector.drift_detected
            if detector.drift_detected and first is None:
                first = i
                errors.append(abs(detector.onset_batches_ago - i))
        assert first is not None, f"seed {seed}"
        alarms += len(feed(detector, world, new, 60))
    assert np.median(errors) <= 2
    assert max(errors) <= length / 4
    assert alarms <= 20 * 2.5  # nobody judges them here: the rest of a change may be found again


@pytest.mark.slow
def test_stationary_streams_alarm_at_most_once_in_30_000_rows_and_score_around_one() -> None:
    alarms, scores = 0, []
    for seed in range(5):
        world, detector = World(100 + seed), MeanShift()
        mean = world.domain()
        for i in range(30_000 // 32):
            detector.update(world.batch(mean))
            alarms += detector.drift_detected
            if i >= 10:
                scores.append(detector.score)
    assert alarms <= 5
    assert 0.6 <= np.mean(scores) <= 1.4


@pytest.mark.parametrize("fast", [0.0, 0.05])
def test_a_turning_encoder_is_no_drift_and_hides_none(fast: float) -> None:
    """It turns by 0.01 a step; a learner that meets a new domain turns faster at first."""
    for seed in range(3):
        world, detector, angle = World(seed), MeanShift(windows=[(2, 16)], rows_per_false_alarm=1e6), 0.0
        alarms = []
        for domain in range(4):
            mean = world.domain()
            for i in range(125):
                angle += 0.01 + fast * np.exp(-i / 20)
                detector.update(rotated(world.batch(mean), angle))
                if detector.drift_detected:
                    alarms.append((domain, i))
                    assert detector.onset_batches_ago == i + 1, f"seed {seed}: dated to another batch than the change"
        assert [domain for domain, _ in alarms] == [1, 2, 3], f"seed {seed}: {alarms}"
        assert all(i < 10 for _, i in alarms), f"seed {seed}: {alarms}"


def test_score_is_the_formula_on_the_rows_whatever_the_batch_sizes() -> None:
    rng = np.random.default_rng(0)
    detector = MeanShift(windows=[(3, 5)], warmup_batches=5, threshold=1e9)
    batches: list[Vectors] = []
    for n in (4, 1, 7, 32, 2, 5, 1, 1, 9, 16, 3):
        batches.append(rng.normal(3, 2, size=(n, 6)).astype(np.float32))
        detector.update(batches[-1])
        kept = batches[-8:]
        if len(kept) < 5:
            assert detector.score == 1
            continue
        window, reference = np.concatenate(kept[-3:]).astype(float), np.concatenate(kept[:-3]).astype(float)
        shift = window.mean(0) - reference.mean(0)
        noise = np.trace(np.cov(reference.T)) * (1 / len(window) + 1 / len(reference))
        assert detector.score == pytest.approx(shift @ shift / noise, rel=1e-9)


def stream(batches: int = 150) -> list[Vectors]:
    """Ragged batches; an abrupt change at 60, a gradual one from 110 on."""
    world, rng = World(7), np.random.default_rng(7)
    a, b, c = world.domain(), world.domain(), world.domain()
    out = []
    for i in range(batches):
        n = int(rng.integers(1, 40))
        out.append(world.mixture(b, c, (i - 110) / 32, n) if i >= 110 else world.batch(a if i < 60 else b, n))
    return out


def test_resuming_at_any_batch_changes_no_bit() -> None:
    def answers(detector: Detector) -> tuple[float, bool, int]:
        return detector.score, detector.drift_detected, detector.onset_batches_ago

    whole, resumed = MeanShift(), MeanShift()
    for x in stream():
        whole.update(x)
        resumed.update(x)
        assert answers(resumed) == answers(whole)
        state = {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in resumed.state_dict().items()}
        resumed = MeanShift()
        resumed.load_state_dict(state)
        assert answers(resumed) == answers(whole)


def test_the_stream_of_the_resume_test_alarms_twice() -> None:
    detector = MeanShift()
    found = []
    for i, x in enumerate(stream()):
        detector.update(x)
        if detector.drift_detected:
            found.append(i)
    assert 60 <= found[0] <= 62
    assert 112 <= found[1] <= 140
    assert len(found) <= 3  # the rest of the gradual one may be found again


def test_state_is_a_copy_that_later_batches_leave_alone() -> None:
    world, detector = World(0), MeanShift()
    mean = world.domain()
    feed(detector, world, mean, 20)
    state = detector.state_dict()
    score = detector.score
    feed(detector, world, mean, 20)
    earlier = MeanShift()
    earlier.load_state_dict(state)
    assert earlier.score == score
    assert len(state["rows"]) == 20


def test_a_smaller_memory_resumes_with_the_newest_batches() -> None:
    world, large, small = World(0), MeanShift(), MeanShift(windows=[(2, 8)])
    feed(large, world, world.domain(), 30)
    small.load_state_dict(large.state_dict())
    assert np.array_equal(small.state_dict()["sums"], large.state_dict()["sums"][-20:])


def test_state_whose_arrays_do_not_belong_together_is_refused() -> None:
    world, detector = World(0), MeanShift()
    feed(detector, world, world.domain(), 12)
    state = detector.state_dict()
    with pytest.raises(ValueError, match="state of shapes"):
        MeanShift().load_state_dict({**state, "rows": state["rows"][1:]})
    with pytest.raises(KeyError):
        MeanShift().load_state_dict({"sums": state["sums"]})


def test_alarm_lasts_for_one_update() -> None:
    world, detector = World(0), MeanShift()
    old, new = world.domain(), world.domain()
    feed(detector, world, old, 30)
    detector.update(world.batch(new))
    assert detector.drift_detected
    assert detector.onset_batches_ago == 1
    assert detector.score > 4
    detector.update(np.empty((0, world.width), np.float32))
    assert not detector.drift_detected
    assert detector.onset_batches_ago == 0


def test_nothing_is_found_before_the_reference_is_warm() -> None:
    world, detector = World(0), MeanShift(warmup_batches=8)
    old, new = world.domain(), world.domain()
    assert feed(detector, world, old, 5) == []
    assert feed(detector, world, new, 4) == []
    assert feed(detector, world, new, 1) == [(0, 5)]  # the tenth batch: 2 in the window, 8 before it


@pytest.mark.parametrize("gap", [12, 20, 30])
def test_a_second_change_inside_the_cooldown_is_found_at_once(gap: int) -> None:
    world, detector = World(1), MeanShift(cooldown_batches=40)
    feed(detector, world, world.domain(), 60)
    assert feed(detector, world, world.domain(), gap) == [(0, 1)]
    assert feed(detector, world, world.domain(), 60) == [(0, 1)]


def test_a_refused_alarm_keeps_the_reference_and_comes_again_after_a_pause() -> None:
    world, detector = World(0), MeanShift()
    old, new = world.domain(), world.domain()
    feed(detector, world, old, 30)
    alarms = []
    for i in range(8):
        detector.update(world.batch(new))
        if detector.drift_detected:
            alarms.append((i, detector.onset_batches_ago))
            detector.refuse()
            assert not detector.drift_detected
    assert alarms[:3] == [(0, 1), (1, 2), (5, 6)]  # the second is louder, and does not wait


def test_a_change_right_after_a_refused_alarm_does_not_wait_for_the_pause_to_end() -> None:
    world, detector = World(0), MeanShift()
    old, new = world.domain(), world.domain()
    feed(detector, world, old, 30)
    detector.update(world.mixture(old, new, 0.5))
    assert detector.drift_detected
    detector.refuse()
    assert feed(detector, world, new, 1) == [(0, 2)]


def test_a_ramp_taken_for_the_rest_of_a_change_does_not_blind_the_detector() -> None:
    """It forgets what came before, but not all: a change two batches later is found at once."""
    flushed = 0
    for seed in range(10):
        world, detector = World(seed), MeanShift(cooldown_batches=60)
        a, b, c, d = (world.domain() for _ in range(4))
        feed(detector, world, a, 40)
        feed(detector, world, b, 20)
        for i in range(1, 40):
            before = len(detector.state_dict()["rows"])
            detector.update(world.mixture(b, c, i / 64))
            if detector.drift_detected:
                break
            if len(detector.state_dict()["rows"]) < before:
                flushed += 1
                assert [i for i, _ in feed(detector, world, d, 3)][:1] == [0], f"seed {seed}"
                break
    assert flushed >= 3


def test_refusing_where_there_was_no_alarm_changes_nothing() -> None:
    world, detector = World(0), MeanShift()
    feed(detector, world, world.domain(), 20)
    before = detector.state_dict()
    detector.refuse()
    assert all(np.array_equal(a, before[name]) for name, a in detector.state_dict().items())


@pytest.mark.slow
def test_the_asked_for_rate_of_false_alarms_is_kept_within_a_factor_of_two() -> None:
    rows, alarms = 0, 0
    for seed in range(6):
        world, detector = World(200 + seed), MeanShift(rows_per_false_alarm=3000)
        mean = world.domain()
        alarms += len(feed(detector, world, mean, 1500))
        rows += 1500 * 32
    assert rows / 3000 / 2 <= alarms <= rows / 3000 * 2


def test_a_threshold_given_by_hand_is_known_before_there_is_anything_to_compare() -> None:
    world, detector = World(0), MeanShift(threshold=20.0)
    mean = world.domain()
    for _ in range(6):
        detector.update(world.batch(mean))
        assert detector.threshold == 20.0
    detector.restart()
    assert detector.threshold == 20.0


def test_a_rarer_false_alarm_asks_for_a_higher_threshold() -> None:
    world, often, seldom = World(0), MeanShift(rows_per_false_alarm=3000), MeanShift(rows_per_false_alarm=1e6)
    mean = world.domain()
    for _ in range(40):
        batch = world.batch(mean)
        often.update(batch)
        seldom.update(batch)
    assert 1 < often.threshold < seldom.threshold < 2 * often.threshold


def test_restart_forgets_what_came_before() -> None:
    world, detector = World(0), MeanShift()
    feed(detector, world, world.domain(), 60)
    detector.restart()
    assert detector.score == 1
    assert feed(detector, world, world.domain(), 100) == []


def test_rows_all_alike_are_no_drift_and_leaving_them_is() -> None:
    detector = MeanShift()
    alike = np.full((32, 8), 0.3535, np.float32)
    for _ in range(20):
        detector.update(alike)
        assert not detector.drift_detected
    assert detector.score < 1
    detector.update(-alike)
    assert detector.drift_detected


def test_embeddings_that_are_not_finite_or_of_another_width_are_refused() -> None:
    detector = MeanShift()
    detector.update(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="finite"):
        detector.update(np.array([[0, np.nan, 0, 0]], np.float32))
    with pytest.raises(ValueError, match="5 wide, were 4"):
        detector.update(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: MeanShift(windows=[(0, 16)]),
        lambda: MeanShift(windows=[]),
        lambda: MeanShift(rows_per_false_alarm=0),
        lambda: MeanShift(threshold=1.0),
        lambda: MeanShift(cooldown_batches=-1),
        lambda: MeanShift(warmup_batches=1),
        lambda: MeanShift(warmup_batches=49),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Callable[[], MeanShift]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_no_detector_finds_nothing() -> None:
    world, detector = World(0), NoDetector()
    detectors: list[Detector] = [detector, MeanShift()]  # both are what the pipeline asks for
    assert feed(detectors[0], world, world.domain(), 20) == feed(detectors[0], world, world.domain(), 20) == []
    detector.load_state_dict(detector.state_dict())
    detector.restart()
    assert detector.score == 1


def test_drift_tasks_and_evaluate_import_no_torch() -> None:
    code = (
        "import sys, streamlearn.drift, streamlearn.evaluate, streamlearn.tasks\n"
        "sys.exit(bool({'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
