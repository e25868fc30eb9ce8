"""The gauges of a daemon, worked out again from what it left behind."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from streamlearn.cli import app
from streamlearn.errors import StateError
from streamlearn.evaluate import median_rank
from streamlearn.offline import opened
from streamlearn.settings import Settings, load
from streamlearn.testing import ListSource
from tests.test_daemon import Stream, daemon, settled

DOMAINS = ("studio", "night", "paper")


def gauges(text: str, *names: str) -> dict[str, float]:
    lines = (
        line.rpartition(" ") for line in text.splitlines() if line.startswith(tuple(f"streamlearn_{n}" for n in names))
    )
    return {name: float(value) for name, _, value in lines}


@pytest.mark.slow
def test_every_gauge_equals_what_is_worked_out_anew_from_the_state_directory(tmp_path: Path) -> None:
    stream = Stream()
    records = [record for domain in DOMAINS for record in stream.clips(domain, 60, task=domain)]
    changes = {"evaluate__pool_clips": 100, "evaluate__interval_clips": 20, "evaluate__budget_ratio": 0.5}
    with daemon(tmp_path, ListSource(records), **changes) as running:
        settled(running)
        shown = gauges(httpx.get(f"{running.url}/metrics").text, "recall_ratio", "median_rank", "eval_pairs")
        points = httpx.get(f"{running.url}/v1/scores?view=served&direction=t2v&k=5").json()["points"]
        settings = running.settings
    with opened(settings) as offline:
        measured = offline.measure()
        assert offline.differences(measured) == []
    worked_out = {}
    for one in measured:
        worked_out[f'streamlearn_eval_pairs{{task="{one.task}"}}'] = len(one)
        for (direction, view, k), hits in one.hits.items():
            labels = f'direction="{direction}",k="{k}",task="{one.task}",view="{view}"'
            worked_out[f"streamlearn_recall_ratio{{{labels}}}"] = float(np.mean(hits))
        for (direction, view), ranks in one.ranks.items():
            labels = f'direction="{direction}",task="{one.task}",view="{view}"'
            worked_out[f"streamlearn_median_rank{{{labels}}}"] = median_rank(ranks)
    assert shown == worked_out
    assert len({value for name, value in shown.items() if "recall" in name}) > 10  # they are not all alike
    assert any('view="pool"' in name for name in shown)
    assert {point["task"] for point in points} == set(DOMAINS)
    assert all(point["low"] <= point["value"] <= point["high"] for point in points)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """What a daemon left that learned two tasks."""
    folder, stream = tmp_path_factory.mktemp("state"), Stream(3)
    records = [record for domain in DOMAINS[:2] for record in stream.clips(domain, 40, task=f"<b>{domain}")]
    with daemon(folder, ListSource(records)) as running:
        settled(running)
        return running.settings


@pytest.mark.slow
def test_the_command_reads_a_state_directory_and_writes_one_file_that_needs_nothing_else(
    state: Settings, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    flags = ["--state-dir", str(state.state_dir), "--set", "model.threads=1", "--set", "evaluate.heldout_ratio=0.2"]
    said = CliRunner().invoke(app, ["eval", *flags, "--json", "--html", str(page)], catch_exceptions=False)
    assert said.exit_code == 0
    found = json.loads(said.stdout)
    assert [task["name"] for task in found["tasks"]] == ["<b>studio", "<b>night"]
    assert found["differences"] == []
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;studio" in html
    assert "<b>studio" not in html
    assert "data:image/webp;base64," in html
    assert "<polyline" in html
    assert not any(f'{attribute}="http' in html for attribute in ("src", "href"))
    table = CliRunner().invoke(app, ["eval", *flags], catch_exceptions=False).stdout
    assert "equal" in table


@pytest.mark.slow
def test_nothing_is_evaluated_beside_a_running_daemon_or_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    with daemon(
        tmp_path,
        ListSource(),
    ) as running:
        said = CliRunner().invoke(app, ["eval", "--state-dir", str(running.settings.state_dir)])
        assert "in use by another daemon" in str(said.exception)
    with pytest.raises(StateError, match="no checkpoint"), opened(load(None, {"state_dir": tmp_path / "none"})):
        pass


@pytest.mark.slow
def test_another_model_than_the_states_is_refused_by_name(state: Settings) -> None:
    other = load(None, {"state_dir": state.state_dir, "model.dim": 64, "model.warm_start": "none"})
    with pytest.raises(StateError, match="the daemon's own"), opened(other):
        pass
