from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streamlearn.cli import app
from streamlearn.detector import Measured
from streamlearn.drift_log import DriftLog, read_log
from streamlearn.errors import SettingsError, StateError
from streamlearn.records import StepStats, Vectors
from streamlearn.settings import DriftSettings
from streamlearn.tune import mean_shift, plot, replay
from tests.test_drift import World


def stats(keys: Vectors, step: int) -> StepStats:
    return StepStats(keys, keys, 1.5, 0.5, 2.0, step)


def logged(folder: Path, *, outcome: str = "drift") -> list[int]:
    """A stream that changes after 40 batches; returns the steps at which its detector alarmed."""
    world, detector, drift_log, alarms = World(0), mean_shift(DriftSettings()), DriftLog(folder), []
    old, new = world.domain(), world.domain()
    for step in range(1, 81):
        keys = world.batch(old if step <= 40 else new)
        detector.update(keys)
        found = detector.drift_detected
        alarms += [step] * found
        drift_log.append(stats(keys, step), keys, 32 * step, (detector.score, detector.threshold, outcome * found))
    return alarms


def test_a_logged_stream_replayed_with_its_own_settings_alarms_where_it_did(tmp_path: Path) -> None:
    alarms = logged(tmp_path)
    entries = read_log(tmp_path)
    found, scores = replay(entries, DriftSettings())
    assert [s.clips for s in found] == [32 * step for step in alarms] == [32 * 41]
    assert found[0].onset_clips == 32 * 40
    assert found[0].logged == "drift"
    assert scores == pytest.approx([e.score for e in entries], rel=0.02)  # the sums are in half precision


def test_other_settings_find_other_boundaries(tmp_path: Path) -> None:
    logged(tmp_path)
    assert replay(read_log(tmp_path), DriftSettings(threshold=1e6))[0] == []


def test_an_operators_boundary_is_marked_and_begins_the_replayed_detector_anew(tmp_path: Path) -> None:
    world, drift_log = World(0), DriftLog(tmp_path)
    old, new = world.domain(), world.domain()
    for step in range(1, 81):
        keys = world.batch(old if step <= 40 else new)
        drift_log.operator = step == 41
        drift_log.append(stats(keys, step), keys, 32 * step, (1.0, 4.0, ""))
    entries = read_log(tmp_path)
    assert [entry.step for entry in entries if entry.operator] == [41]
    assert entries[0].measured == Measured(1.5, 0.5, 2.0)
    assert replay(entries, DriftSettings())[0] == []


def test_a_boundary_that_the_judge_saw_by_itself_is_listed_and_begins_the_replayed_detector_anew(
    tmp_path: Path,
) -> None:
    world, drift_log = World(0), DriftLog(tmp_path)
    old, new = world.domain(), world.domain()
    for step in range(1, 81):
        keys = world.batch(old if step <= 40 else new)
        drift_log.append(stats(keys, step), keys, 32 * step, (4.0, 0.0, "seen" if step == 40 else ""))
    found, _ = replay(read_log(tmp_path), DriftSettings())
    assert [(s.clips, s.logged) for s in found] == [(32 * 40, "seen")]
    found, _ = replay(read_log(tmp_path), DriftSettings(frozen_judge=False))
    assert [(s.clips, s.logged) for s in found] == [(32 * 41, "")]  # by the detector alone


def test_settings_without_the_frozen_judge_are_replayed_without_its_refusals(tmp_path: Path) -> None:
    world, drift_log = World(0), DriftLog(tmp_path)
    old, new = world.domain(), world.domain()
    for step in range(1, 81):
        keys = world.batch(old if step <= 40 else new)
        drift_log.append(stats(keys, step), keys, 32 * step, (9.0, 4.0, "refused" if step > 40 else ""))
    suspected = [len(replay(read_log(tmp_path), DriftSettings(frozen_judge=judge))[0]) for judge in (True, False)]
    assert suspected[0] > suspected[1] == 1


def test_steps_that_were_learned_again_count_once_and_a_torn_line_not_at_all(tmp_path: Path) -> None:
    logged(tmp_path)
    keys = World(1).batch(World(1).domain())
    DriftLog(tmp_path).append(stats(keys, 70), keys, 9999, (1.0, 4.0, ""))
    with (tmp_path / "drift.jsonl").open("a") as file:
        file.write('{"step": 71, "cli')
    entries = read_log(tmp_path)
    assert [e.step for e in entries] == list(range(1, 71))
    assert entries[-1].clips == 9999


def test_the_log_is_bounded(tmp_path: Path) -> None:
    drift_log, world = DriftLog(tmp_path, max_bytes=20_000), World(0)
    for step in range(100):
        keys = world.batch(world.domain())
        drift_log.append(stats(keys, step), keys, step, (1.0, 4.0, ""))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) < 22_000
    assert read_log(tmp_path)[-1].step == 99


def test_a_disk_that_refuses_costs_the_log_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = World(0).batch(World(0).domain())
    DriftLog(tmp_path / "absent").append(stats(keys, 1), keys, 1, (1.0, 4.0, ""))
    assert "cannot be written" in caplog.text


def test_the_verb_shows_where_boundaries_would_have_been(tmp_path: Path) -> None:
    logged(tmp_path)
    run, arguments = CliRunner(), ["tasks", "tune", "--from-log", "--set", f"state_dir={tmp_path}"]
    shown = run.invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "1312" in shown.output
    assert "a boundary" in shown.output
    (suspicion,) = json.loads(run.invoke(app, [*arguments, "--json"]).output)
    assert (suspicion["clips"], suspicion["onset_clips"]) == (1312, 1280)
    empty = run.invoke(app, ["tasks", "tune", "--from-log", "--set", f"state_dir={tmp_path / 'none'}"])
    assert isinstance(empty.exception, SettingsError)


def test_a_plot_is_drawn_or_the_missing_library_is_named(tmp_path: Path) -> None:
    logged(tmp_path)
    entries = read_log(tmp_path)
    found, scores = replay(entries, DriftSettings())
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(SettingsError, match="matplotlib"):
            plot(entries, scores, found, tmp_path / "drift.png")
    else:
        plot(entries, scores, found, tmp_path / "drift.png")
        assert (tmp_path / "drift.png").stat().st_size > 1000


def rewrite(path: Path, change: Callable[[int, dict[str, Any]], dict[str, Any] | bytes]) -> None:
    """Each line as `change` has it, of its place and what it says."""
    lines = [change(i, json.loads(line)) for i, line in enumerate(path.read_bytes().splitlines())]
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))


@pytest.mark.parametrize(
    "damage",
    [
        {"step": None}, {"step": "30"}, {"clips": "x"}, {"rows": -3}, {"rows": 0}, {"square": float("inf")},
        {"square": None}, {"video_square": float("nan")}, {"outcome": "x"}, {"sums": ""}, {"traces": 7},
        {"score": None},
    ],
)  # fmt: skip
def test_a_damaged_line_is_passed_over_and_counted(
    tmp_path: Path, damage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    logged(tmp_path)
    rewrite(tmp_path / "drift.jsonl", lambda i, row: row | damage if i == 30 else row)
    assert [entry.step for entry in read_log(tmp_path)] == [step for step in range(1, 81) if step != 31]
    assert "passed over lines that cannot be read: 1" in caplog.text


def test_what_is_no_text_or_no_object_is_passed_over(tmp_path: Path) -> None:
    logged(tmp_path)
    garbage = {10: b"\xff\xfe\x80", 20: b"[1]", 30: b"7", 40: b"\0" * 4096}
    rewrite(tmp_path / "drift.jsonl", lambda i, row: garbage.get(i, row))
    assert len(read_log(tmp_path)) == 76
    result = CliRunner().invoke(app, ["tasks", "tune", "--from-log", "--set", f"state_dir={tmp_path}"])
    assert result.exit_code == 0, result.output


def test_a_log_of_two_models_is_refused_with_a_sentence(tmp_path: Path) -> None:
    logged(tmp_path)

    def narrower(i: int, row: dict[str, Any]) -> dict[str, Any]:
        sums = base64.b64decode(row["sums"])
        return row | {"sums": base64.b64encode(sums[: len(sums) // 2]).decode()} if i >= 40 else row

    rewrite(tmp_path / "drift.jsonl", narrower)
    with pytest.raises(StateError, match=r"batches of \d+ and of \d+ numbers, of two models: move it away"):
        read_log(tmp_path)


@pytest.mark.parametrize("name", ["absent/drift.png", "drift.foo"])
def test_a_plot_that_cannot_be_written_is_a_sentence(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    logged(tmp_path)
    entries = read_log(tmp_path)
    found, scores = replay(entries, DriftSettings())
    with pytest.raises(SettingsError, match=f"--plot .*{name}: .*; name another file"):
        plot(entries, scores, found, tmp_path / name)
