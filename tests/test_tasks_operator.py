"""What an operator does to the tasks of a running daemon, over HTTP and by the verbs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from streamlearn.app import Daemon
from streamlearn.cli import app
from streamlearn.testing import ListSource
from tests.daemon import until
from tests.test_daemon import Stream, daemon, settled


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, ListSource(Stream().clips("studio", 48))) as running:
        settled(running)
        yield running


def names(running: Daemon) -> list[tuple[str, str]]:
    return [(task["name"], task["cause"]) for task in httpx.get(f"{running.url}/v1/tasks").json()]


def clips(running: Daemon, task: str) -> int:
    query = {"query": {"text": "anything"}, "limit": 100, "filter": {"task": task}}
    return len(httpx.post(f"{running.url}/v1/search", json=query).json()["results"])


@pytest.mark.slow
def test_an_operator_begins_renames_and_merges_tasks_and_a_restart_knows_it(running: Daemon, tmp_path: Path) -> None:
    url = f"{running.url}/v1/tasks"
    made = httpx.post(url, json={"name": "night"}, timeout=60)
    assert made.status_code == 201
    assert (made.json()["name"], made.json()["cause"], made.json()["started_clips"]) == ("night", "operator", 48)
    assert httpx.post(url, json={}, timeout=60).json()["name"] == "t3"
    assert names(running) == [("t1", "start"), ("night", "operator"), ("t3", "operator")]
    assert clips(running, "t1") == 48

    assert httpx.post(f"{url}/rename", json={"task": "t1", "to": "studio"}, timeout=60).status_code == 204
    assert (clips(running, "t1"), clips(running, "studio")) == (0, 48)
    assert httpx.post(f"{url}/merge", json={"task": "studio", "to": "night"}, timeout=60).status_code == 204
    assert clips(running, "night") == 48
    assert [name for name, _ in names(running)] == ["night", "night", "t3"]
    metrics = httpx.get(f"{running.url}/metrics").text
    assert 'streamlearn_task_info{task="studio"}' not in metrics
    assert 'streamlearn_task_boundaries_total{cause="operator"} 2.0' in metrics

    running.__exit__(None, None, None)
    stream = Stream()
    with daemon(tmp_path, ListSource([*stream.clips("studio", 48), *stream.clips("studio", 16)])) as again:
        assert [name for name, _ in names(again)] == ["night", "night", "t3"]
        assert clips(again, "night") == 48
        settled(again)
        last = httpx.get(f"{again.url}/v1/tasks").json()[-1]
        assert last["position"][2] == 48  # the clip that came after `mark`
        assert last["first_clip"].endswith("48")


@pytest.mark.slow
def test_what_cannot_be_done_to_a_task_is_refused_with_a_sentence_and_changes_nothing(running: Daemon) -> None:
    url = f"{running.url}/v1/tasks"
    for path, body, sentence in (
        ("", {"name": "t1"}, "current task already"),
        ("", {"name": "t1 "}, "current task already"),
        ("", {"name": " "}, "1 to 64 printable"),
        ("/rename", {"task": "t1", "to": "\t"}, "1 to 64 printable"),
        ("", {"name": ""}, "1 to 64 printable"),
        ("/rename", {"task": "absent", "to": "x"}, "no task 'absent'"),
        ("/rename", {"task": "t1", "to": "a\nb"}, "1 to 64 printable"),
        ("/merge", {"task": "t1", "to": "absent"}, "no task 'absent'"),
        ("/merge", {"task": "t1", "to": "t1"}, "exists already"),
    ):
        answer = httpx.post(url + path, json=body, timeout=60)
        assert answer.status_code == 422
        assert sentence in answer.json()["detail"]
    assert names(running) == [("t1", "start")]


@pytest.mark.slow
def test_the_verbs_do_the_same(running: Daemon) -> None:
    run = CliRunner()
    for arguments, said in (
        (["mark", "night"], "task night begins after clip 48"),
        (["rename", "t1", "studio"], "task t1 is now studio"),
        (["merge", "studio", "night"], "task studio is now part of night"),
    ):
        result = run.invoke(app, ["tasks", *arguments, "--url", running.url])
        assert result.exit_code == 0, result.output
        assert said in result.output
    listed = run.invoke(app, ["tasks", "--url", running.url, "--json"])
    assert '"cause": "operator"' in listed.output


class Telling(ListSource):
    """A source with a place for events, which is this list."""

    source = "/streamlearn/test"

    def __init__(self, *records: Any) -> None:
        super().__init__(*records, ends=False)
        self.told: list[Mapping[str, Any]] = []

    def events(self) -> Telling:
        return self

    def deliver(self, events: Sequence[Mapping[str, Any]]) -> None:
        self.told += events

    def started(self) -> list[dict[str, Any]]:
        return [event["data"] for event in self.told if event["type"] == "task.started"]


@pytest.mark.slow
def test_a_boundary_between_two_clips_is_told_with_the_first_clip_once_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream()
    caplog.set_level("INFO")
    source = Telling(stream.clips("studio", 16))
    with daemon(tmp_path, source) as running:
        settled(running, "idle")
        answer = httpx.post(f"{running.url}/v1/tasks", json={"name": " Nacht "}, timeout=60).json()
        until(lambda: [e for e in source.told if e["type"] == "checkpoint.published"], "the checkpoint is told")
        assert (answer["name"], answer["position"], answer["first_clip"]) == ("Nacht", None, None)
        assert [data["task"] for data in source.started()] == ["t1"]
        line = next(record.getMessage() for record in caplog.records if "task Nacht begins" in record.getMessage())
        assert line.endswith("from the next clip on")
        assert "None" not in line
    source = Telling(stream.clips("night", 0))
    with daemon(tmp_path, source) as running:  # a restart between the boundary and its first clip
        settled(running, "idle")
        source.add(*stream.clips("night", 8))
        until(lambda: source.started(), "the task is told")
        settled(running, "idle")
    (data,) = source.started()
    assert (data["task"], data["cause"], data["first_clip"]) == ("Nacht", "operator", "night-16")
    assert data["position"] == {"topic": "clips", "partition": "0", "offset": 16}


@pytest.mark.slow
def test_a_renamed_and_a_merged_task_are_one_series_each_at_once_and_after_the_next_measurement(tmp_path: Path) -> None:
    stream = Stream()
    records = [r for domain in ("studio", "night", "paper") for r in stream.clips(domain, 48, task=domain)]
    with daemon(tmp_path, ListSource(records)) as running:
        settled(running)

        def gauges(name: str) -> dict[str, float]:
            return {
                sample.labels.get("task", "all"): sample.value
                for metric in running.registry.collect()
                for sample in metric.samples
                if sample.name == f"streamlearn_{name}"
                and (sample.labels["direction"], sample.labels["k"], sample.labels["view"]) == ("t2v", "5", "learner")
            }

        before, forward = gauges("recall_ratio"), gauges("forward_transfer_ratio")
        assert set(before) == {"studio", "night", "paper"}
        post(running, "rename", "night", "Nacht")
        assert gauges("recall_ratio")["Nacht"] == before["night"]
        assert gauges("forward_transfer_ratio") == forward
        until(lambda: measured(running, "Nacht"), "it is measured under its new name")
        assert gauges("forward_transfer_ratio") == forward  # as often as there are tasks, not names

        pairs = {task: running.registry.get_sample_value("streamlearn_eval_pairs", {"task": task}) for task in before}
        post(running, "merge", "Nacht", "studio")
        until(lambda: len(measured(running, "studio")) > len(before), "it is measured with the questions of both")
        settled(running)
        values = {score.value for score in measured(running, "studio")[-1:]}
        assert set(gauges("recall_ratio")) == {"studio", "paper"}
        assert {gauges("recall_ratio")["studio"]} == values
        assert gauges("forgetting_ratio")["studio"] == 0  # of these questions nothing has been forgotten
        both = running.registry.get_sample_value("streamlearn_eval_pairs", {"task": "studio"})
        assert both == (pairs["studio"] or 0) + (measured(running, "Nacht")[-1].pairs)


def post(running: Daemon, what: str, task: str, to: str) -> None:
    answer = httpx.post(f"{running.url}/v1/tasks/{what}", json={"task": task, "to": to}, timeout=60)
    assert answer.status_code == 204, answer.text


def measured(running: Daemon, task: str) -> list[Any]:
    return running.state.catalog.matrix.scores(task=task, direction="t2v", k=5, view="learner")
