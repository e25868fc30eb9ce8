"""The whole daemon finds where tasks begin, and knows one that returns; nobody tells it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamlearn.drift_log import read_log
from streamlearn.tasks import TaskLog
from streamlearn.testing import ListSource
from tests.test_daemon import Stream, daemon, settled


@pytest.mark.slow
def test_a_domain_that_returns_continues_its_task_also_after_a_restart(tmp_path: Path) -> None:
    stream = Stream()
    first = [*stream.clips("studio", 256), *stream.clips("reef", 256)]
    with daemon(tmp_path, ListSource(first), learner__batch_size=16, evaluate__interval_clips=10_000) as running:
        settled(running)
    second = stream.clips("studio", 192)
    source = ListSource([*first, *second])
    with daemon(tmp_path, source, learner__batch_size=16, evaluate__interval_clips=10_000) as running:
        settled(running)
        tasks = running.service.tasks()
        eras = len(running.state.eras.eras)
    assert [(task["name"], task["cause"]) for task in tasks] == [("t1", "start"), ("t2", "drift"), ("t1", "drift")]
    assert eras == 3
    for task, began in zip(tasks[1:], (256, 512), strict=True):
        assert abs(task["position"].offset - began) <= 32
        assert task["first_clip"].endswith(str(task["position"].offset))
        assert task["score"] > task["threshold"]
        assert task["shift"] > 3
    assert tasks[0]["clips"] >= 400  # of both visits
    outcomes = [entry.outcome for entry in read_log(tmp_path / "state")]
    assert outcomes.count("drift") == 2
    generation = json.loads((tmp_path / "state" / "current" / "manifest.json").read_text())
    assert {name for name, *_ in generation["state"]["memory"]["tasks"]} == {"t1", "t2"}


@pytest.mark.slow
def test_a_task_that_turns_out_to_be_a_known_one_is_renamed_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream()
    clips = [*stream.clips("studio", 256), *stream.clips("reef", 256)]
    # Between them something else, for too short a time to be a task: what begins then cannot be known at once.
    clips += [*stream.clips("night", 32), *stream.clips("studio", 192)]
    caplog.set_level("INFO")
    with daemon(tmp_path, ListSource(clips), learner__batch_size=16, evaluate__interval_clips=10_000) as running:
        settled(running)
        tasks, eras = running.service.tasks(), [era.task for era in running.state.eras.eras]
        held, gone = (running.state.catalog.heldout(name, 100) for name in ("t1", "t3"))
        names = {
            sample.labels["task"] for m in running.registry.collect() for sample in m.samples if "task" in sample.labels
        }
    assert "task t3 begins: drift" in caplog.text
    assert "task t3 is now part of t1" in caplog.text
    assert [task["name"] for task in tasks] == ["t1", "t2", "t1"]
    assert eras == ["t1", "t2", "t1"]
    assert {clip.video_id.split("-")[0] for clip in held} >= {"studio"}
    assert max(clip.offset for clip in held) > 544  # of the second visit, too
    assert gone == []
    assert names == {"t1", "t2"}
    with daemon(tmp_path, ListSource(clips), learner__batch_size=16, evaluate__interval_clips=10_000) as running:
        settled(running)
        assert [task["name"] for task in running.service.tasks()] == ["t1", "t2", "t1"]


@pytest.mark.slow
def test_a_task_that_shares_the_last_free_name_is_not_recognised_later_with_all_who_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TaskLog.__init__.__kwdefaults__, "max_tasks", 1)
    stream = Stream()
    clips = [*stream.clips("studio", 256), *stream.clips("reef", 64)]
    changes = {"learner__batch_size": 16, "evaluate__interval_clips": 10_000}
    with daemon(tmp_path, ListSource(clips), **changes) as running:
        settled(running)
        assert [task["name"] for task in running.service.tasks()] == ["t1", "t1"]
        assert running.state.judge is not None
        assert running.state.judge.state_dict()["facts"]["opening"]["looks"] == []


def test_a_detector_of_another_kind_takes_nothing_from_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = Stream().clips("studio", 96)
    page_hinkley = {"drift__detector": "page_hinkley", "drift__signal": "loss"}
    with daemon(tmp_path, ListSource(clips), **page_hinkley) as running:
        settled(running)
        numbers = running.state.detector.state_dict()["values"]
    assert len(numbers) > 0
    for changes, begins_anew in ((page_hinkley, False), ({**page_hinkley, "drift__signal": "grad_norm"}, True)):
        caplog.clear()
        with daemon(tmp_path, ListSource(clips), **changes) as running:
            settled(running)
            again = running.state.detector.state_dict()["values"]
        assert again.tolist() == ([] if begins_anew else numbers.tolist())
        said = "page_hinkley:loss and is page_hinkley:grad_norm: it begins anew"
        assert (said in caplog.text) == begins_anew


def test_a_rollback_to_a_detector_of_another_kind_leaves_nothing_of_the_time_that_was_undone(tmp_path: Path) -> None:
    clips = Stream().clips("studio", 192)
    page_hinkley = {"drift__detector": "page_hinkley", "drift__signal": "loss"}
    with daemon(tmp_path, ListSource(clips[:96]), **page_hinkley) as running:
        settled(running)
        (pinned := running.state.generations).pin(number := pinned.current())
    with daemon(tmp_path, ListSource(clips), **{**page_hinkley, "drift__signal": "grad_norm"}) as running:
        settled(running)
        assert len(running.state.detector.state_dict()["values"]) > 0
        running.pipeline.mailbox.ask(lambda: running.state.roll_back(number, "latest"), timeout_s=60)
        assert len(running.state.detector.state_dict()["values"]) == 0
