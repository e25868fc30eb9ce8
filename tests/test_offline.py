"""The gauges of a daemon, worked out again from what it left behind."""

from __future__ import annotations

import json
import math
import re
import shutil
import sqlite3
import statistics
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from streamlearn.app import Daemon
from streamlearn.cli import app
from streamlearn.errors import StateError
from streamlearn.evaluate import median_rank
from streamlearn.offline import Offline, opened
from streamlearn.settings import Settings, load
from streamlearn.testing import ListSource
from tests.daemon import until
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
        assert (offline.differences(measured), offline.not_comparable(measured)) == ([], {})
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


@pytest.mark.slow
def test_every_gauge_over_time_equals_what_the_definitions_say_of_the_stored_rows(tmp_path: Path) -> None:
    """Forgetting, transfer, harmonic mean and any-time minimum by docs/evaluation.md, from the catalog's rows alone.

    Each visit of a domain is asked as it ends and whenever the source is silent, so that which value was measured
    while a task was current follows from the rows. Forward transfer is asked of the restored pairs, by hand.
    """
    stream, source, visits = Stream(5), ListSource(ends=False), ("studio", "night", "paper", "studio")
    with daemon(tmp_path, source, evaluate__pool_clips=60, evaluate__interval_clips=10**9) as running:
        for n, domain in enumerate(visits, start=1):
            source.add(*stream.clips(domain, 48, task=domain))
            until(lambda clips=48 * n: learned(running) == clips, f"visit {n} is learned")  # type: ignore[misc]
            settled(running, "idle")
        shown = gauges(
            httpx.get(f"{running.url}/metrics").text, *OVER_TIME, "recall_ratio", "median_rank", "eval_pairs"
        )
        settings = running.settings
    worked_out = of_rows(settings.state_dir)
    with opened(settings) as offline:
        worked_out |= forward_by_hand(offline)
    assert set(shown) == set(worked_out)
    assert shown == pytest.approx(worked_out, abs=1e-12)
    for name in OVER_TIME:  # a gauge that is always 0 would be equal, too
        assert any(value for labels, value in shown.items() if labels.startswith(f"streamlearn_{name}")), name


OVER_TIME = (
    "forgetting_ratio", "backward_transfer_ratio", "forward_transfer_ratio", "harmonic_mean_ratio",
    "anytime_minimum_ratio",
)  # fmt: skip


def learned(running: Daemon) -> int:
    status = running.service.status()
    return sum(status["clips"].get(outcome, 0) for outcome in ("learned", "held_out")) * (status["state"] == "idle")


def of_rows(state_dir: Path) -> dict[str, float]:
    """Every gauge but forward transfer, from the tables of the catalog and the task log of the last checkpoint."""
    log = json.loads((state_dir / "current" / "manifest.json").read_text())["state"]["tasks"]["tasks"]
    ended = {entry["name"]: entry["ended_clips"] for entry in log}  # the last visit's; None: it is current
    with closing(sqlite3.connect(state_dir / "catalog.db")) as db:
        scores = db.execute("SELECT task, direction, k, view, clips_seen, value FROM scores ORDER BY id").fetchall()
        ranks = db.execute("SELECT task, direction, view, ranks FROM ranks").fetchall()
    series: dict[tuple[str, str, int, str], list[tuple[int, float]]] = {}
    for *of, clips, value in scores:
        series.setdefault(tuple(of), []).append((clips, value))
    found: dict[str, float] = {}
    over_all: dict[tuple[str, int, str], list[tuple[float, float, float | None]]] = {}
    for (task, direction, k, view), course in series.items():
        labels = f'direction="{direction}",k="{k}",task="{task}",view="{view}"'
        values = [value for _, value in course]
        best, now, end = max(values), values[-1], ended[task]
        found[f"streamlearn_recall_ratio{{{labels}}}"] = now
        found[f"streamlearn_forgetting_ratio{{{labels}}}"] = (best - now) / best if best else 0.0
        when = None if end is None else max((i for i, (clips, _) in enumerate(course) if clips <= end), default=0)
        learned = math.nan if when is None else values[when]
        lowest = None if when is None else min(values[when:])
        over_all.setdefault((direction, k, view), []).append((now, learned, lowest))
    for (direction, k, view), tasks in over_all.items():
        labels = f'direction="{direction}",k="{k}",view="{view}"'
        past = [(now, learned, lowest) for now, learned, lowest in tasks if lowest is not None]
        nows = [now for now, *_ in tasks]
        found[f"streamlearn_harmonic_mean_ratio{{{labels}}}"] = 0.0 if 0 in nows else statistics.harmonic_mean(nows)
        found[f"streamlearn_backward_transfer_ratio{{{labels}}}"] = statistics.fmean(now - was for now, was, _ in past)
        found[f"streamlearn_anytime_minimum_ratio{{{labels}}}"] = statistics.fmean(lowest for *_, lowest in past)
    for task, direction, view, packed in ranks:
        of = np.frombuffer(packed, "<i8")
        found[f'streamlearn_median_rank{{direction="{direction}",task="{task}",view="{view}"}}'] = float(np.median(of))
        found[f'streamlearn_eval_pairs{{task="{task}"}}'] = len(of)
    return found


def forward_by_hand(offline: Offline) -> dict[str, float]:
    """Of each task but the first: its questions, answered by the pair from before it, less what chance would."""
    order = [era.task for era in offline.snapshot.eras]
    values: dict[str, list[float]] = {}
    for task in offline.tasks.names()[1:]:
        before = offline.snapshot.eras[order.index(task) - 1].encoder.reader
        clips = offline.catalog.heldout(task, 200)
        frames = [offline.frames.get(clip.row) for clip in clips]
        films = before.clips(np.stack([film for film in frames if film is not None]))
        texts = before.texts([clip.asked for clip in clips])
        for direction, scores in (("t2v", texts @ films.T), ("v2t", films @ texts.T)):
            rank = [1 + int((row > row[i]).sum()) for i, row in enumerate(scores)]
            for k in (1, 5, 10):
                label = f'streamlearn_forward_transfer_ratio{{direction="{direction}",k="{k}",view="learner"}}'
                share = sum(r <= k for r in rank) / len(rank)
                values.setdefault(label, []).append(share - min(1, k / len(rank)))
    return {label: statistics.fmean(of) for label, of in values.items()}


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
    assert (found["differences"], found["not_comparable"]) == ([], [])
    assert found["matrix"]["times"] == [40, 80]
    assert {tuple(s["pairs"]) for s in found["summary"]} == {
        ("harmonic_mean", "backward_transfer", "forward_transfer", "anytime_minimum")
    }
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;studio" in html
    assert "<b>studio" not in html
    assert "data:image/webp;base64," in html
    assert "<polyline" in html
    assert "<th>40</th><th>80</th>" in html
    assert re.search(r'<td title="asked at clip 80, \d+ % to \d+ %, forgotten \d+ %">\d+ % <small>\d+</small>', html)
    assert re.search(r"\d+ % of \d+ pairs", html)
    assert not any(f'{attribute}="http' in html for attribute in ("src", "href"))
    table = CliRunner().invoke(app, ["eval", *flags], catch_exceptions=False).stdout
    assert "\nequal to what was recorded" in table
    assert re.search(r"task +40 +80", table)
    assert re.search(r"<b>night +\d+%", table)  # not asked before it began


@pytest.mark.slow
def test_a_view_that_an_older_version_did_not_record_does_not_differ(state: Settings, tmp_path: Path) -> None:
    shutil.copytree(state.state_dir, tmp_path / "state", symlinks=True)
    with closing(sqlite3.connect(tmp_path / "state" / "catalog.db")) as db, db:
        assert db.execute("DELETE FROM ranks WHERE view = 'single'").rowcount == 2
    with opened(state.model_copy(update={"state_dir": tmp_path / "state"})) as offline:
        found = offline.report(offline.measure())
    assert (found["differences"], found["not_comparable"]) == ([], [])
    assert {value["view"] for task in found["tasks"] for value in task["values"]} >= {"served", "single"}


@pytest.mark.slow
def test_what_was_recorded_before_the_checkpoint_is_not_compared_with_it(state: Settings, tmp_path: Path) -> None:
    """As where a daemon was stopped in the middle of the stream."""
    shutil.copytree(state.state_dir, tmp_path / "state", symlinks=True)
    with closing(sqlite3.connect(tmp_path / "state" / "catalog.db")) as db, db:
        db.execute("UPDATE ranks SET clips_seen = 72, ranks = zeroblob(length(ranks)) WHERE task = '<b>night'")
    flags = ["--state-dir", str(tmp_path / "state"), "--set", "model.threads=1", "--set", "evaluate.heldout_ratio=0.2"]
    said = CliRunner().invoke(app, ["eval", *flags], catch_exceptions=False).stdout
    assert "equal to what was recorded" in said  # of the other
    assert "not equal" not in said
    assert "<b>night: recorded at clip 72, the checkpoint is at clip 80: not comparable" in said
    with closing(sqlite3.connect(tmp_path / "state" / "catalog.db")) as db, db:
        db.execute("UPDATE ranks SET clips_seen = 80")
    said = CliRunner().invoke(app, ["eval", *flags], catch_exceptions=False).stdout
    assert "not equal to what was recorded: <b>night" in said
    assert "not comparable" not in said


@pytest.mark.slow
def test_after_an_operators_boundary_nothing_is_said_to_differ_before_or_after_it_was_measured_anew(
    tmp_path: Path,
) -> None:
    """A boundary changes what is served, though no clip comes; the daemon may stop before it has measured that."""
    stream, source = Stream(3), ListSource(ends=False)
    source.add(*stream.clips("studio", 40), *stream.clips("night", 40))

    def compared(settings: Settings) -> tuple[list[str], list[int | None]]:
        with opened(settings) as offline:
            found = offline.report(offline.measure())
        return found["differences"], [one["recorded_at"] for one in found["not_comparable"]]

    with daemon(tmp_path, source, drift__detector="none") as running:
        settled(running, "idle")
        running.pipeline.settle = lambda: False  # type: ignore[method-assign]  # stopped before it measures anew
        answer = httpx.post(f"{running.url}/v1/tasks", json={"name": "later"}, timeout=60)
        assert answer.status_code == 201, answer.text
    assert compared(running.settings) == ([], [80])
    with daemon(tmp_path, ListSource(ends=False), drift__detector="none") as running:
        settled(running, "idle")
    assert compared(running.settings) == ([], [])


def test_a_page_that_cannot_be_written_is_a_sentence_before_anything_is_measured(tmp_path: Path) -> None:
    page = tmp_path / "absent" / "report.html"
    said = CliRunner().invoke(app, ["eval", "--state-dir", str(tmp_path), "--html", str(page)])
    assert said.exit_code == 2
    assert "is no directory" in said.output


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
