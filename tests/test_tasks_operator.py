"""What an operator does to the tasks of a running daemon, over HTTP and by the verbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from streamlearn.app import Daemon
from streamlearn.cli import app
from streamlearn.testing import ListSource
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
