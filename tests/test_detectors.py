"""What holds for every detector that settings can name."""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from streamlearn.detector import UNMEASURED, Detector, Measured, NoDetector
from streamlearn.drift_log import DriftLog, read_log
from streamlearn.drift_vote import Vote
from streamlearn.errors import SettingsError
from streamlearn.records import StepStats, Vectors
from streamlearn.settings import DriftSettings
from streamlearn.settings_learning import SignalName
from streamlearn.signals import SIGNALS, Signal
from streamlearn.tail import Summary
from streamlearn.tune import detector_of, replay
from tests.test_drift import World

pytest.importorskip("river")

CHANGE = 60
SETTINGS = [
    {"detector": "mean_shift"},
    *({"detector": name, "signal": "shift"} for name in ("page_hinkley", "adwin", "kswin")),
    *({"detector": "page_hinkley", "signal": signal} for signal in SIGNALS if signal != "shift"),
    {"detector": "vote"},
    {"detector": "vote", "vote": ["mean_shift", "adwin:loss", "kswin:grad_norm"], "vote_quorum": 2},
]
every = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))


def stream(batches: int = 110, *, change: int = CHANGE, seed: int = 3) -> list[tuple[Vectors, Measured]]:
    """Ragged batches of keys whose mean jumps at `change`, where loss, recall and gradients become worse, too."""
    world, rng = World(seed), np.random.default_rng(seed)
    old, new = world.domain(), world.domain()
    out = []
    for i in range(batches):
        changed = i >= change
        noise = rng.normal(size=3)
        measured = Measured(
            loss=1 + 0.1 * noise[0] + changed,
            recall=0.9 + 0.02 * noise[1] - 0.3 * changed,
            grad_norm=float(np.exp(0.1 * noise[2] + changed)),
        )
        out.append((world.batch(new if changed else old, int(rng.integers(20, 40))), measured))
    return out


def run(detector: Detector, batches: Sequence[tuple[Vectors, Measured]]) -> list[tuple[int, int]]:
    alarms = []
    for i, (x, measured) in enumerate(batches):
        detector.update(x, measured)
        if detector.drift_detected:
            alarms.append((i, i + 1 - detector.onset_batches_ago))
    return alarms


class Scripted(NoDetector):
    """Alarms at the given batches, counted from 1, with an onset of 3 batches."""

    def __init__(self, *alarms: int) -> None:
        self._alarms, self._batches = alarms, 0

    def take(self, batch: Summary, measured: Measured = UNMEASURED) -> None:
        self._batches += 1
        self.drift_detected = self._batches in self._alarms
        self.onset_batches_ago = 3 * self.drift_detected


def made(settings: dict[str, Any]) -> Detector:
    return detector_of(DriftSettings(**settings))


@every
def test_a_change_is_found_once_and_dated(settings: dict[str, Any]) -> None:
    ((found, began),) = run(made(settings), stream())
    assert CHANGE <= found < CHANGE + 20
    assert abs(began - CHANGE) <= 2


@every
def test_resuming_at_any_batch_changes_no_bit(settings: dict[str, Any]) -> None:
    whole, resumed = made(settings), made(settings)
    for i, (x, measured) in enumerate(stream()):
        whole.update(x, measured)
        resumed.update(x, measured)
        answers = [(d.score, d.drift_detected, d.onset_batches_ago) for d in (whole, resumed)]
        assert answers[0] == answers[1]
        if i % 7 == 0 or whole.drift_detected:
            state = {name: json.loads(json.dumps(array.tolist())) for name, array in resumed.state_dict().items()}
            shapes = {name: array.shape for name, array in resumed.state_dict().items()}
            resumed = made(settings)
            resumed.load_state_dict({name: np.array(value).reshape(shapes[name]) for name, value in state.items()})


@every
def test_an_alarm_can_be_refused_and_an_empty_batch_is_nothing(settings: dict[str, Any]) -> None:
    detector = made(settings)
    detector.refuse()  # there was none
    for x, measured in stream():
        detector.update(x, measured)
        if detector.drift_detected:
            detector.refuse()
            assert not detector.drift_detected
            assert detector.onset_batches_ago == 0
            break
    else:
        pytest.fail("nothing was found")
    before = detector.state_dict()
    detector.update(np.zeros((0, World.width), np.float32))
    assert not detector.drift_detected
    after = detector.state_dict()
    assert all(np.array_equal(before[n], after[n]) for n in before if "wait" not in n and "pause" not in n)


@every
def test_after_a_restart_what_came_before_is_no_reference(settings: dict[str, Any]) -> None:
    detector, batches = made(settings), stream()
    run(detector, batches[:CHANGE])
    detector.restart()
    assert run(detector, batches[CHANGE:]) == []


def test_after_an_alarm_a_librarys_score_is_zero_until_its_signal_has_a_level_again() -> None:
    detector, batches = made({"detector": "page_hinkley", "signal": "loss"}), stream()
    (alarm,) = [at for at, _ in run(detector, batches[: CHANGE + 10])]
    assert alarm < CHANGE + 9, "nothing comes after it here"
    assert detector.score == 0  # not the alarm's, which would be a hint for the judge at every batch


@pytest.mark.parametrize("name", ["page_hinkley", "adwin", "kswin"])
def test_a_loss_that_falls_is_no_change(name: str) -> None:
    rng = np.random.default_rng(0)
    batches = [
        (np.zeros((32, 8), np.float32), Measured(loss=5 * np.exp(-i / 40) + 0.05 * rng.normal())) for i in range(300)
    ]
    assert run(made({"detector": name, "signal": "loss"}), batches) == []


def test_what_a_librarys_detector_remembers_is_bounded_and_the_bound_is_met_alike_after_a_restart() -> None:
    rng = np.random.default_rng(0)
    whole, resumed = (made({"detector": "adwin", "signal": "loss"}) for _ in range(2))
    sizes = []
    for _ in range(1200):
        one = (np.zeros((2, 8), np.float32), Measured(loss=float(rng.normal())))
        for detector in (whole, resumed):
            detector.update(*one)
        sizes.append(len(whole.state_dict()["values"]))
        if len(sizes) % 100 == 0:
            state, resumed = resumed.state_dict(), made({"detector": "adwin", "signal": "loss"})
            resumed.load_state_dict(state)
        assert (whole.score, whole.drift_detected) == (resumed.score, resumed.drift_detected)
    assert max(sizes) == 512


def test_a_measurement_that_is_missing_or_not_finite_is_passed_over() -> None:
    rng = np.random.default_rng(0)
    detector = made({"detector": "page_hinkley", "signal": "loss"})
    values = [float("nan"), float("inf"), *rng.normal(size=30), float("nan"), *(9 + rng.normal(size=20))]
    assert run(detector, [(np.zeros((2, 8), np.float32), Measured(loss=float(v))) for v in values]) != []
    assert Signal("recall_error").of(Summary.of(np.zeros((1, 8), np.float32)), Measured(recall=1.0)) is None


@pytest.mark.parametrize(("side", "other"), [("video_shift", "text_shift"), ("text_shift", "video_shift")])
def test_a_change_of_one_side_alone_is_seen_on_that_side(side: str, other: str) -> None:
    world = World(5)
    old, new = world.domain(), world.domain()
    halves = [world.batch(old), world.batch(old)]
    batches = []
    for i in range(110):
        halves = [world.batch(new if i >= CHANGE and which == side else old) for which in ("video_shift", "text_shift")]
        batches.append((np.concatenate(halves, axis=1), Measured()))
    assert len(run(made({"detector": "page_hinkley", "signal": side}), batches)) == 1
    assert run(made({"detector": "page_hinkley", "signal": other}), batches) == []
    assert len(run(made({"detector": "mean_shift"}), batches)) == 1


def test_a_vote_counts_alarms_that_come_within_the_window_and_forgets_those_that_do_not() -> None:
    def voters() -> Vote:
        return Vote([Scripted(5, 30), Scripted(8), Scripted(50)], quorum=2, window_batches=4)

    batches = [(np.eye(4, dtype=np.float32), Measured())] * 60
    assert run(voters(), batches) == [(7, 4)]  # dated 3 batches back each, one of them 3 batches ago
    vote = voters()
    for x, measured in batches[:8]:
        vote.update(x, measured)
    assert (vote.score, vote.threshold) == (2, 1.5)
    vote.refuse()
    assert (vote.score, vote.drift_detected) == (0, False)
    assert vote.kind == "vote(none, none, none)"
    with pytest.raises(KeyError, match="votes of 3"):
        Vote([Scripted()], quorum=1, window_batches=4).load_state_dict(vote.state_dict())
    with pytest.raises(ValueError, match="quorum"):
        Vote([Scripted()], quorum=2, window_batches=4)


@pytest.mark.parametrize("settings", [SETTINGS[2], SETTINGS[5], SETTINGS[-1]], ids=["adwin", "text", "vote"])
def test_a_logged_stream_can_be_replayed_to_any_of_them(settings: dict[str, Any], tmp_path: Any) -> None:
    log = DriftLog(tmp_path)
    batches = stream()
    for i, (x, measured) in enumerate(batches):
        half = World.width // 2
        stats = StepStats(x[:, :half], x[:, half:], measured.loss, measured.recall, measured.grad_norm, i + 1)
        log.append(stats, x, 32 * (i + 1), (1.0, 0.0, ""))
    found, _ = replay(read_log(tmp_path), DriftSettings(**settings))
    assert [s.clips for s in found] == [32 * (i + 1) for i, _ in run(made(settings), batches)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"detector": "ddm"}, "page_hinkley"),
        ({"signal": "accuracy"}, "recall_error"),
        ({"vote": ["mean_shift", "ddm:loss"]}, "ddm:loss"),
        ({"vote": ["mean_shift", "mean_shift"]}, "different"),
        ({"detector": "vote", "vote_quorum": 4}, "may not exceed"),
    ],
)
def test_settings_that_name_no_detector_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DriftSettings(**settings)


def test_without_river_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "river":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"pip install 'streamlearn\[river\]'"):
        made({"detector": "adwin"})


@pytest.mark.parametrize("name", ["shift", "video_shift", "text_shift"])
def test_a_shift_has_no_number_until_there_is_something_to_compare(name: SignalName) -> None:
    signal, world = Signal(name), World(0)
    mean = world.domain()
    numbers = [signal.of(Summary.of(world.batch(mean)), UNMEASURED) for _ in range(6)]
    assert [number is None for number in numbers] == [True, True, True, False, False, False]
    signal.restart()
    assert signal.of(Summary.of(world.batch(mean)), UNMEASURED) is None
