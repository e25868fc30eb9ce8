"""Recall as reported is recall as served: the gauges against an independent count, and what may never be learned."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from streamlearn.app import Daemon
from streamlearn.encoders import Towers
from streamlearn.era_maps import MappedEncoder
from streamlearn.era_view import QueryEncoder
from streamlearn.evaluator import Evaluator, Measured
from streamlearn.examiner import Examiner
from streamlearn.heldout import is_heldout
from streamlearn.learner import Learner
from streamlearn.metrics import Metrics
from streamlearn.records import Frames, Position, Record, StepStats
from streamlearn.schemas import Query, SearchRequest
from streamlearn.score_book import ScoreBook
from streamlearn.scoreboard import Scoreboard
from streamlearn.search import Searcher, Snapshot
from streamlearn.settings import EvaluateSettings, ModelSettings, load
from streamlearn.testing import ListSource
from streamlearn.warmup import build_towers
from tests.parts import BLANK, Parts
from tests.test_daemon import Stream, daemon, settled

KS = (1, 5, 10)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Two tasks with 12 and 9 held-out clips, of towers that know something."""
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), seed=0))
    parts.learn(8)
    parts.learn(12, split="heldout")
    parts.learn(5, split="extra")
    parts.boundary("t2")
    parts.learn(8, "night")
    parts.learn(9, "night", split="heldout")
    parts.eras.reencode()
    return parts


class Judge:
    """Measures at once and writes down, without a daemon."""

    def __init__(self, parts: Parts, **settings: Any) -> None:
        self._evaluator = Evaluator(parts.catalog, parts.frames, parts.searcher, EvaluateSettings(**settings))
        self.board = Scoreboard(ScoreBook(), parts.catalog, parts.metrics)

    def run(self, snapshot: Snapshot, tasks: Sequence[str], clips_seen: int) -> dict[str, Measured]:
        found = [self.measure(snapshot, task, clips_seen) for task in tasks]
        self.board.record([one for one in found if one is not None])
        return {one.task: one for one in found if one is not None}

    def measure(self, snapshot: Snapshot, task: str, clips_seen: int) -> Measured | None:
        pairs = self.board.book.forward_pairs(task)
        return self._evaluator.measure(snapshot, task, clips_seen, forward_pairs=pairs)


def gauge(parts: Parts, name: str, **labels: str) -> float | None:
    return parts.registry.get_sample_value(f"streamlearn_{name}", labels)


def recalls(parts: Parts, direction: str, view: str) -> dict[tuple[str, int], float | None]:
    return {
        (task, k): gauge(parts, "recall_ratio", task=task, direction=direction, k=str(k), view=view)
        for task in ("t1", "t2")
        for k in KS
    }


def counted(rank: dict[str, list[int]]) -> dict[tuple[str, int], float]:
    return {(task, k): sum(r <= k for r in of) / len(of) for task, of in rank.items() for k in KS}


def test_served_recall_is_what_a_user_who_asks_with_the_caption_gets(parts: Parts) -> None:
    snapshot = parts.publish()
    Judge(parts).run(snapshot, ["t1", "t2"], 42)
    rank: dict[str, list[int]] = {"t1": [], "t2": []}
    for task, of in rank.items():
        for clip in parts.catalog.heldout(task, 100):
            found = [hit.video_id for hit in parts.ask(clip.captions[0], limit=200).results]
            of.append(found.index(clip.video_id) + 1)
    assert recalls(parts, "t2v", "served") == pytest.approx(counted(rank))
    assert any(0 < value < 1 for value in counted(rank).values())  # or a constant would be equal to it
    for task, of in rank.items():
        assert gauge(parts, "median_rank", task=task, direction="t2v", view="served") == np.median(of)
    assert gauge(parts, "eval_pairs", task="t1") == 12
    assert gauge(parts, "eval_pairs", task="t2") == 9


def test_single_recall_is_what_a_user_gets_who_asks_a_daemon_in_that_mode(parts: Parts) -> None:
    snapshot = parts.publish()
    Judge(parts).run(snapshot, ["t1", "t2"], 42)
    settings = parts.settings.model_copy(update={"mode": "single"})
    other = Searcher(parts.catalog, parts.frames, settings, Metrics.create(CollectorRegistry()))
    other.publish(snapshot)
    rank: dict[str, list[int]] = {"t1": [], "t2": []}
    for task, of in rank.items():
        for clip in parts.catalog.heldout(task, 100):
            answer = other.search(SearchRequest(query=Query(text=clip.captions[0]), limit=200))
            of.append([hit.video_id for hit in answer.results].index(clip.video_id) + 1)
    assert recalls(parts, "t2v", "single") == pytest.approx(counted(rank))
    assert recalls(parts, "t2v", "single") != recalls(parts, "t2v", "served")
    for task, of in rank.items():
        assert gauge(parts, "median_rank", task=task, direction="t2v", view="single") == np.median(of)
    assert set(recalls(parts, "v2t", "single").values()) == {None}


def test_single_ranks_are_looked_up_to_200(parts: Parts) -> None:
    parts.learn(200, "paper", split="extra")
    turned = {name: -t if name.startswith("text.head.") else t for name, t in parts.learner.local.state_dict().items()}
    parts.learner.local.load_state_dict(turned)  # it finds last what it found first
    snapshot, questions = parts.publish(), [clip.asked for clip in parts.catalog.heldout("t1", 100)]
    one = Judge(parts).measure(snapshot, "t1", 242)
    assert one is not None
    _, found, _ = parts.searcher.ask(snapshot, lambda era: era.encoder.texts(questions), 242, mode="single")
    ranks = [row.tolist().index(clip.row) + 1 for row, clip in zip(found, one.clips, strict=True)]
    assert one.ranks["t2v", "single"].tolist() == [min(rank, 201) for rank in ranks]
    assert max(ranks) > 201


def test_where_users_are_answered_in_mode_single_that_view_is_the_served_one_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path, mode="single")
    parts.learn(12, split="heldout")
    parts.boundary("t2")
    parts.learn(9, "night", split="heldout")
    snapshot, asked, ask = parts.publish(), list[int](), Searcher.ask

    def counting(self: Searcher, *args: Any, **options: Any) -> Any:
        asked.append(args[2])
        return ask(self, *args, **options)

    monkeypatch.setattr(Searcher, "ask", counting)
    Judge(parts).run(snapshot, ["t1", "t2"], 21)
    assert recalls(parts, "t2v", "single") == recalls(parts, "t2v", "served")
    assert len(asked) == 2  # once a task


def test_no_pair_encodes_a_question_twice(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, encoded, encode_text = parts.publish(), Counter[tuple[int, str]](), Towers.encode_text

    def counting(self: Towers, texts: list[str]) -> Any:
        encoded.update((id(self), text) for text in texts)
        return encode_text(self, texts)

    monkeypatch.setattr(Towers, "encode_text", counting)
    assert Judge(parts).measure(snapshot, "t1", 42) is not None
    assert set(encoded.values()) == {1}


def test_an_evaluation_is_not_in_what_users_searches_took(parts: Parts) -> None:
    snapshot = parts.publish()
    Judge(parts).run(snapshot, ["t1", "t2"], 42)
    for stage in ("encode", "index"):
        assert gauge(parts, "search_seconds_count", stage=stage) is None
    assert gauge(parts, "era_search_seconds", era="1") is None
    parts.ask("a red star")
    for stage in ("encode", "index"):
        assert gauge(parts, "search_seconds_count", stage=stage) == 1
    assert gauge(parts, "era_search_seconds", era="1") is not None


def test_a_book_from_before_there_was_a_view_has_none_of_it_until_it_is_measured(parts: Parts) -> None:
    judge = Judge(parts)
    judge.run(parts.publish(), ["t1", "t2"], 42)
    judge.board.book.close_task("t1")
    state = judge.board.book.state_dict()
    state["series"] = [one for one in state["series"] if one[3] != "single"]
    later = Judge(parts)
    later.board.book.load_state_dict(state)
    later.board.restart()
    assert set(recalls(parts, "t2v", "single").values()) == {None}
    assert recalls(parts, "t2v", "served")["t1", 5] is not None
    later.run(parts.publish(), ["t1", "t2"], 43)
    assert None not in recalls(parts, "t2v", "single").values()
    labels = {"direction": "t2v", "k": "5", "view": "single"}
    assert gauge(parts, "forgetting_ratio", task="t1", **labels) == 0
    assert gauge(parts, "backward_transfer_ratio", **labels) == 0


def test_served_video_to_text_asks_the_stored_vectors_for_all_held_out_captions(parts: Parts) -> None:
    snapshot = parts.publish()
    Judge(parts).run(snapshot, ["t1", "t2"], 42)
    clips = {task: parts.catalog.heldout(task, 100) for task in ("t1", "t2")}
    captions = [clip.captions[0] for task in clips for clip in clips[task]]
    rank = {}
    for (task, of), era, first in zip(clips.items(), snapshot.eras, (0, 12), strict=True):
        vectors = era.partition.vectors([clip.row for clip in of])
        scores = vectors @ era.encoder.texts(captions).T
        rank[task] = [1 + int((row > row[first + i]).sum()) for i, row in enumerate(scores)]
    assert recalls(parts, "v2t", "served") == pytest.approx(counted(rank))


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_learner_recall_ranks_each_tasks_own_clips_by_todays_encoders(parts: Parts, direction: str) -> None:
    Judge(parts).run(parts.publish(), ["t1", "t2"], 42)
    rank = {}
    for task in ("t1", "t2"):
        clips = parts.catalog.heldout(task, 100)
        texts = parts.learner.encode_text([clip.captions[0] for clip in clips])
        films = parts.learner.encode_video(parts.stored([clip.row for clip in clips]))
        scores = texts @ films.T if direction == "t2v" else films @ texts.T
        rank[task] = [1 + int((row > row[i]).sum()) for i, row in enumerate(scores)]
    assert recalls(parts, direction, "learner") == pytest.approx(counted(rank))


def test_scores_are_kept_with_the_clips_and_step_they_were_measured_at(parts: Parts) -> None:
    Judge(parts).run(parts.publish(), ["t1", "t2"], 42)
    scores = parts.catalog.scores()
    assert Counter((s.task, s.direction, s.view) for s in scores) == Counter(
        {(t, d, v): 3 for t in ("t1", "t2") for d in ("t2v", "v2t") for v in ("served", "learner")}
        | {(t, "t2v", "single"): 3 for t in ("t1", "t2")}
    )
    assert {(s.clips_seen, s.step, s.pairs) for s in scores if s.task == "t1"} == {(42, parts.learner.steps, 12)}
    for s in scores:
        labels = {"task": s.task, "direction": s.direction, "k": str(s.k), "view": s.view}
        assert gauge(parts, "recall_ratio", **labels) == s.value


def test_forgetting_is_measured_against_the_best_so_far(parts: Parts) -> None:
    judge = Judge(parts)
    judge.run(parts.publish(), ["t1", "t2"], 42)
    before = recalls(parts, "t2v", "learner")["t1", 5]
    assert before
    with_noise = {name: t + 0.5 * t.std() if t.ndim > 1 else t for name, t in parts.learner.local.state_dict().items()}
    parts.learner.local.load_state_dict(with_noise)  # a pair that has lost its way
    parts.learner.steps += 1  # as weights change by nothing else
    judge.run(parts.publish(), ["t1", "t2"], 43)
    after = recalls(parts, "t2v", "learner")["t1", 5]
    assert after is not None
    assert after < before
    labels = {"task": "t1", "direction": "t2v", "k": "5", "view": "learner"}
    assert gauge(parts, "forgetting_ratio", **labels) == pytest.approx((before - after) / before)
    best: dict[tuple[str, int, str], float] = {}
    for score in parts.catalog.scores("t1"):  # the same at each time, and of every series
        assert score.value is not None
        of = score.direction, score.k, score.view
        best[of] = max(score.value, best.get(of, 0.0))
        assert score.forgetting == pytest.approx((best[of] - score.value) / best[of] if best[of] else 0.0)
    judge.board.book.merge("t2", "t1")  # other questions: whatever they are answered now is the best so far
    judge.run(parts.publish(), ["t1"], 44)
    assert {score.forgetting for score in parts.catalog.scores("t1") if score.clips_seen == 44} == {0.0}


def test_what_was_known_of_a_task_before_it_began_is_measured_with_the_pair_of_before(parts: Parts) -> None:
    judge = Judge(parts)
    judge.run(parts.publish(), ["t1", "t2"], 42)
    before = parts.eras.eras[0].encoder
    assert before is not None
    clips = parts.catalog.heldout("t2", 100)
    texts, films = before.texts([c.asked for c in clips]), before.clips(parts.stored([c.row for c in clips]))
    rank = [1 + int((row > row[i]).sum()) for i, row in enumerate(texts @ films.T)]
    for k in KS:
        expected = np.mean([r <= k for r in rank]) - min(1, k / len(clips))
        got = gauge(parts, "forward_transfer_ratio", direction="t2v", k=str(k), view="learner")
        assert got == pytest.approx(expected)
    assert judge.board.book.forward_pairs("t1") == 0  # nothing came before the first task
    assert gauge(parts, "forward_transfer_ratio", direction="t2v", k="5", view="served") is None
    again = judge.measure(parts.publish(), "t2", 43)
    assert again is not None
    assert again.forward == {}  # until there are four times as many pairs
    parts.learn(27, "night", split="heldout")
    later = judge.measure(parts.publish(), "t2", 44)
    assert later is not None
    assert later.forward
    before_t2 = parts.eras.eras[0]
    now = parts.eras.views()[-1].encoder
    before_t2.encoder = MappedEncoder(now, np.eye(129, 128, dtype=np.float32), np.eye(129, 128, dtype=np.float32))
    through = judge.measure(parts.publish(), "t2", 45)
    assert through is not None
    assert through.forward == {}  # a pair that has learned the task since reads for it


def test_the_pool_view_is_recall_among_so_many_clips_drawn_from_all(parts: Parts) -> None:
    snapshot = parts.publish()
    assert len(snapshot) == 42
    one = Judge(parts, pool_clips=20).measure(snapshot, "t1", 42)
    assert one is not None
    rng, served = np.random.default_rng(1), one.ranks["t2v", "served"]
    drawn = []
    for _ in range(400):
        pools = [rng.permutation(41)[:19] for _ in served]  # places of the others, as they rank without the answer
        drawn.append([(1 + (pool < rank - 1).sum()) <= 5 for pool, rank in zip(pools, served, strict=True)])
    assert one.hits["t2v", "pool", 5].mean() == pytest.approx(np.mean(drawn), abs=0.02)
    assert one.hits["t2v", "pool", 5].mean() >= one.hits["t2v", "served", 5].mean() - 1e-9
    small = Judge(parts, pool_clips=43).measure(snapshot, "t1", 42)  # the index is not that large yet
    assert small is not None
    assert {view for _, view, _ in small.hits} == {"served", "single", "learner"}


def test_scores_have_intervals_and_medians_come_back_after_a_restart(parts: Parts) -> None:
    judge = Judge(parts)
    judge.run(parts.publish(), ["t1", "t2"], 42)
    for score in parts.catalog.scores():
        assert score.low is not None
        assert score.high is not None
        assert score.value is not None
        assert 0 <= score.low <= score.value <= score.high <= 1
        assert score.low < score.high or score.value in (0, 1)
        assert score.median_rank == gauge(
            parts, "median_rank", task=score.task, direction=score.direction, view=score.view
        )
        assert score.median_low is not None
        assert score.median_high is not None
        assert 1 <= score.median_low <= (score.median_rank or 0) <= score.median_high
    labels = {"task": "t2", "direction": "v2t", "view": "served"}
    before = gauge(parts, "median_rank", **labels), gauge(parts, "eval_pairs", task="t2")
    registry = CollectorRegistry()
    Scoreboard(judge.board.book, parts.catalog, Metrics.create(registry)).export()
    assert registry.get_sample_value("streamlearn_median_rank", labels) == before[0]
    assert registry.get_sample_value("streamlearn_eval_pairs", {"task": "t2"}) == before[1]


def test_what_was_not_measured_yet_is_no_number(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    for name in ("train_loss", "index_staleness_ratio", "prequential_recall_ratio"):
        value = gauge(parts, name)
        assert value is not None
        assert math.isnan(value)
    Judge(parts).run(parts.publish(), ["t1"], 0)
    assert gauge(parts, "backward_transfer_ratio", direction="t2v", k="5", view="served") is None


def test_each_era_is_asked_for_a_bounded_number_of_captions(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 held-out clips of other tasks: the first era is asked for 1,000 captions in all, its own among them."""
    parts.catalog.put(
        [
            replace(BLANK, video_id=f"x{i}", captions=(f"caption {i}",), split="heldout", task=f"o{i % 20}")
            for i in range(2000)
        ]
    )
    asked: list[int] = []
    texts = QueryEncoder.texts

    def counting(self: QueryEncoder, captions: Sequence[str]) -> np.ndarray:
        asked.append(len(captions))
        return texts(self, captions)

    snapshot = parts.publish()
    monkeypatch.setattr(QueryEncoder, "texts", counting)
    one = Judge(parts).measure(snapshot, "t1", 42)
    assert one is not None
    assert max(asked) == 1000
    assert one.ranks["v2t", "served"].max() <= 1000


def test_a_task_with_too_few_pairs_has_no_gauges_and_one_with_too_many_asks_a_sample(parts: Parts) -> None:
    Judge(parts, min_pairs=10, heldout_max_per_task=11).run(parts.publish(), ["t1", "t2"], 42)
    assert gauge(parts, "eval_pairs", task="t1") == 11
    assert gauge(parts, "eval_pairs", task="t2") is None
    assert recalls(parts, "t2v", "served")["t2", 5] is None


def test_a_held_out_clip_without_frames_is_not_found_and_one_not_yet_served_is_not_asked(parts: Parts) -> None:
    snapshot = parts.publish()
    parts.learn(3, "night", split="heldout")
    gone = [clip.row for clip in parts.catalog.heldout("t1", 100)]
    parts.frames.delete(gone)
    Judge(parts).run(snapshot, ["t1", "t2"], 42)
    # Vectors of zeros tie with all others: in the middle of twelve, as chance has it.
    assert gauge(parts, "median_rank", task="t1", direction="t2v", view="learner") == 7
    assert gauge(parts, "eval_pairs", task="t2") == 9


def test_staleness_is_zero_for_vectors_of_today_and_grows_as_the_pair_moves(parts: Parts) -> None:
    judge = Judge(parts)
    fresh = judge.run(parts.publish(), ["t1", "t2"], 42)["t2"].staleness_ratio
    for _ in range(10):
        parts.learn(8, "night")
    stale = judge.run(parts.publish(), ["t1", "t2"], 43)["t2"].staleness_ratio
    assert fresh is not None
    assert stale is not None
    assert -1e-3 < fresh < 0.01  # JPEG
    assert stale > fresh + 1e-3


def test_nothing_held_out_is_nothing_to_measure(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    assert Judge(parts).run(parts.publish(), [], 0) == {}
    parts.learn(8)
    assert Judge(parts).run(parts.publish(), ["t1"], 8) == {}
    assert parts.catalog.scores() == []


# --- what may never be learned, in the whole daemon


class WatchedLearner(Learner):
    """Remembers which clips it has learned from."""

    seen: Counter[str]

    @classmethod
    def watch(cls, learner: Learner) -> Counter[str]:
        learner.__class__ = cls
        assert isinstance(learner, WatchedLearner)
        learner.seen = Counter()
        return learner.seen

    def step(self, frames: Frames, captions: Sequence[Sequence[str]], video_ids: Sequence[str]) -> StepStats:
        self.seen.update(video_ids)
        return super().step(frames, captions, video_ids)


@contextmanager
def watched(folder: Path, records: Sequence[Record], **changes: Any) -> Iterator[tuple[Daemon, Counter[str]]]:
    overrides = {
        "state_dir": folder / "state", "api.port": 0, "model.threads": 1, "learner.batch_size": 8,
        "learner.max_wait_s": 0.3, "media.size_px": 32, "evaluate.heldout_ratio": 0.3, "evaluate.interval_clips": 16,
        "checkpoint.interval_clips": 16, "drift.detector": "none", **changes,
    }  # fmt: skip
    records = [replace(record, position=Position("clips", "0", i)) for i, record in enumerate(records)]
    running = Daemon(load(None, overrides), ListSource(records))
    seen = WatchedLearner.watch(running.pipeline.learner)
    with running:
        settled(running)
        yield running, seen


def as_split(record: Record, split: str) -> Record:
    return replace(record, value=json.dumps({**json.loads(record.value or b""), "split": split}).encode())


def heldout_ids(running: Daemon) -> set[str]:
    return {clip.video_id for task in running.state.tasks.names() for clip in running.state.catalog.heldout(task, 999)}


@pytest.mark.slow
def test_clips_held_out_by_their_id_are_never_learned_however_often_they_come(tmp_path: Path) -> None:
    records = Stream().clips("studio", 24)
    held = {r.key.decode() for r in records if r.key and is_heldout(r.key.decode(), 0.3)}
    assert 3 < len(held) < 16
    again = records + records[:12]
    with watched(tmp_path, again) as (running, first):
        assert heldout_ids(running) == held
        steps = running.state.learner.steps
    with watched(tmp_path, again + records) as (running, second):  # a restart, and all of them once more
        assert heldout_ids(running) == held
        assert running.state.learner.steps > steps
    assert not held & (first + second).keys()
    assert (first + second).keys() == {r.key.decode() for r in records if r.key} - held


@pytest.mark.slow
def test_a_clip_that_was_learned_is_never_a_question_whatever_is_said_later(tmp_path: Path) -> None:
    a, b, c, *rest = (as_split(record, "train") for record in Stream().clips("studio", 16))
    turned = [as_split(record, "heldout") for record in (a, b, c)]
    # a turns within its batch; b turns later, twice; c turns after a restart.
    first = [a, b, c, turned[0], *rest[:8], turned[1], *rest[8:], turned[1], turned[1]]
    with watched(tmp_path, first) as (running, seen):
        learned = set(seen)
        assert {r.key.decode() for r in (a, b, c) if r.key} <= learned
        assert not heldout_ids(running) & learned
    with watched(tmp_path, [*first, turned[2], turned[0], turned[2]]) as (running, seen):
        assert not heldout_ids(running) & (learned | set(seen))


@pytest.mark.slow
def test_more_held_out_clips_than_a_task_is_evaluated_with_are_not_learned_either(tmp_path: Path) -> None:
    records = [as_split(record, "heldout") for record in Stream().clips("studio", 20)]
    with watched(tmp_path, records, **{"evaluate.heldout_max_per_task": 6}) as (running, seen):
        assert running.registry.get_sample_value("streamlearn_eval_pairs", {"task": "t1"}) == 6
        assert running.state.catalog.count() == 20
    assert not seen


@pytest.mark.slow
def test_a_larger_ratio_after_a_restart_asks_nothing_that_was_learned(tmp_path: Path) -> None:
    records = Stream().clips("studio", 24)
    with watched(tmp_path, records, **{"evaluate.heldout_ratio": 0.1}) as (_, seen):
        learned = set(seen)
    with watched(tmp_path, records + records, **{"evaluate.heldout_ratio": 0.5}) as (running, seen):
        assert not heldout_ids(running) & (learned | set(seen))


@pytest.mark.slow
def test_a_stream_that_ends_while_a_task_is_being_asked_is_finished_once_all_are_asked_of_what_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_for = threading.Event()  # the answer of then, by the loop, which has nothing else to do
    measure, collect = Evaluator.measure, Examiner.collect

    def slow(self: Evaluator, *args: Any, **kwargs: Any) -> Measured | None:
        assert waited_for.wait(60)
        return measure(self, *args, **kwargs)

    def collecting(self: Examiner, wait_s: float | None = 0.0) -> tuple[bool, list[Measured]]:
        if not wait_s:
            return collect(self, wait_s)
        waited_for.set()
        return collect(self, None)  # a slow machine does not decide this

    monkeypatch.setattr(Evaluator, "measure", slow)
    monkeypatch.setattr(Examiner, "collect", collecting)
    changes = {"evaluate__heldout_ratio": 0.3, "evaluate__interval_clips": 16, "evaluate__min_pairs": 1}
    with daemon(tmp_path, ListSource(Stream().clips("studio", 48, task="lab")), **changes) as running:
        settled(running)
        seen = [score.clips_seen for score in running.state.catalog.scores("lab")]
    assert min(seen) < 48  # it was being asked as the stream ended
    assert seen[-1] == 48
