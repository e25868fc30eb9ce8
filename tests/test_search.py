"""Answers from the published snapshot: order, pages, filters, eras, and what cannot be answered."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from streamlearn.errors import SearchError
from streamlearn.schemas import Query, SearchAnswer
from streamlearn.settings import ModelSettings
from streamlearn.testing import ListSource
from streamlearn.warmup import build_towers
from tests.parts import Parts
from tests.test_daemon import Stream, daemon, settled


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Three eras: 8, 8 and 6 clips, with cameras 0 and 1 in the first two."""
    parts = Parts(tmp_path, max_limit=50)
    parts.learn(8, meta={"cam": 0, "night": False})
    parts.boundary("t2")
    parts.learn(8, meta={"cam": 1, "night": True})
    parts.boundary("t3")
    parts.learn(6)
    parts.finish_reencoding()
    parts.publish()
    return parts


def names(answer: SearchAnswer) -> list[str]:
    return [hit.video_id for hit in answer.results]


def everything(parts: Parts) -> set[str]:
    return {f"v{i}" for i in range(len(parts.rows))}


def test_hits_are_ranked_by_falling_score_and_come_from_every_era(parts: Parts) -> None:
    answer = parts.ask("a red star", limit=50)
    scores = [hit.score for hit in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert all(-1 <= score <= 1 for score in scores)
    assert [hit.rank for hit in answer.results] == list(range(1, 23))
    assert set(names(answer)) == everything(parts)
    assert {hit.task for hit in answer.results} == {"t1", "t2", "t3"}
    assert answer.next_page_token is None


def test_each_era_is_asked_with_its_own_encoder(parts: Parts) -> None:
    answer = parts.ask("a red star", limit=50, include=["vector"])
    by_task = {era.task: era for era in parts.publish().eras}
    weight = parts.settings.familiarity_weight
    for hit in answer.results:
        era = by_task[hit.task]
        (query,) = era.encoder.texts(["a red star"])
        (familiar,) = era.familiarity(query[None])
        assert hit.score == pytest.approx((query @ np.asarray(hit.vector) + weight * familiar) / (1 + weight), abs=1e-5)


def test_in_single_mode_all_eras_are_asked_with_todays_encoder(tmp_path: Path) -> None:
    parts = Parts(tmp_path, mode="single")
    parts.learn(6)
    parts.boundary("t2")
    parts.learn(6)
    parts.publish()
    (today,) = parts.learner.encode_text(["a red star"])
    for hit in parts.ask("a red star", limit=12, include=["vector"]).results:
        assert hit.score == pytest.approx(float(today @ np.asarray(hit.vector)), abs=1e-5)


@pytest.mark.parametrize("empty_current_era", [False, True])
def test_in_single_mode_today_is_the_learners_pair_even_where_its_era_has_no_clip_yet(
    tmp_path: Path, empty_current_era: bool
) -> None:
    parts = Parts(tmp_path, mode="single")
    parts.learn(6)
    parts.learn(6)
    if empty_current_era:
        parts.boundary("t2")
    parts.publish()
    (today,) = parts.learner.encode_text(["a red star"])
    for hit in parts.ask("a red star", limit=12, include=["vector"]).results:
        assert hit.score == pytest.approx(float(today @ np.asarray(hit.vector)), abs=1e-5)


def test_pages_follow_each_other_without_repeats_or_gaps(parts: Parts) -> None:
    whole = names(parts.ask("a red star", limit=50))
    got: list[str] = []
    ranks: list[int] = []
    token, pages = None, 0
    while pages == 0 or token is not None:
        answer = parts.ask("a red star", limit=8, page_token=token)
        got += names(answer)
        ranks += [hit.rank for hit in answer.results]
        token, pages = answer.next_page_token, pages + 1
    assert pages == 3
    assert got == whole
    assert ranks == list(range(1, 23))


def test_the_last_page_that_is_just_full_has_no_next(parts: Parts) -> None:
    answer = parts.ask("a red star", limit=22)
    assert (len(answer.results), answer.next_page_token) == (22, None)
    assert parts.ask("a red star", limit=21).next_page_token is not None


@pytest.mark.parametrize("token", ["x", "", "bzEyMzQ1Njc4OQ==", "LTE=", "bw==", "by0x", "日", "a" * 600])
def test_a_page_token_of_somebody_else_is_refused(parts: Parts, token: str) -> None:
    with pytest.raises(SearchError, match="page_token") as caught:
        parts.ask("a red star", page_token=token)
    assert caught.value.status == 422


def test_a_filter_leaves_only_what_it_names_in_the_same_order(parts: Parts) -> None:
    whole = parts.ask("a red star", limit=50).results
    for wanted, chosen in (
        ({"task": ["t2"]}, [hit for hit in whole if hit.task == "t2"]),
        ({"task": ["t1", "t3"]}, [hit for hit in whole if hit.task != "t2"]),
        ({"meta.cam": [1]}, [hit for hit in whole if hit.meta.get("cam") == 1]),
        ({"meta.night": [True, False]}, [hit for hit in whole if "night" in hit.meta]),
        ({"meta.cam": [1], "task": ["t1"]}, []),
        ({"meta.lens": ["x"]}, []),
    ):
        answer = parts.ask("a red star", limit=50, filter=wanted)
        assert names(answer) == [hit.video_id for hit in chosen], wanted
        assert answer.next_page_token is None


def test_a_filter_is_paged_as_well(parts: Parts) -> None:
    first = parts.ask("a red star", limit=5, filter={"task": ["t1"]})
    second = parts.ask("a red star", limit=5, filter={"task": ["t1"]}, page_token=first.next_page_token)
    assert len(names(first) + names(second)) == len(set(names(first) + names(second))) == 8
    assert second.next_page_token is None


def test_a_limit_beyond_the_largest_is_refused_with_the_setting(parts: Parts) -> None:
    with pytest.raises(SearchError, match=r"search\.max_limit") as caught:
        parts.ask("a", limit=51)
    assert caught.value.status == 422


def test_a_clip_asks_for_clips_like_itself(tmp_path: Path) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), seed=0))
    parts.learn(16)
    parts.boundary("t2")
    parts.finish_reencoding()
    parts.publish()
    for name in ("v0", "v7", "v15"):
        assert names(parts.ask(Query(video_id=name), limit=1)) == [name]


def test_a_clip_that_is_unknown_or_has_no_frames_left_cannot_ask(parts: Parts) -> None:
    parts.frames.delete([parts.rows[3]])
    for name in ("nobody", "v3"):
        with pytest.raises(SearchError, match=name) as caught:
            parts.ask(Query(video_id=name))
        assert caught.value.status == 404


@pytest.mark.parametrize("query", [Query(uri="https://a/b.mp4"), Query(vector=[1.0] + [0.0] * 15)])
def test_what_this_version_does_not_answer_is_said(parts: Parts, query: Query) -> None:
    with pytest.raises(SearchError, match="use text or video_id"):
        parts.ask(query)


def test_thumbnails_and_vectors_come_only_when_asked_for(parts: Parts) -> None:
    assert all(hit.thumbnail_b64 is None and hit.vector is None for hit in parts.ask("a").results)
    hit = parts.ask("a", include=["thumbnail", "vector"]).results[0]
    assert hit.thumbnail_b64 is not None
    assert np.linalg.norm(hit.vector or ()) == pytest.approx(1, abs=1e-3)  # kept in half precision


def test_deleted_clips_are_left_out_and_the_page_is_full_though_the_snapshot_still_has_them(parts: Parts) -> None:
    whole = names(parts.ask("a red star", limit=50))
    for name in whole[:15]:
        parts.catalog.delete(name)
    answer = parts.ask("a red star", limit=5)
    assert names(answer) == whole[15:20]
    rest = parts.ask("a red star", limit=5, page_token=answer.next_page_token)
    assert names(rest) == whole[20:]
    assert rest.next_page_token is None


def test_a_search_ends_on_the_snapshot_it_began_with(parts: Parts) -> None:
    before = parts.ask("a red star", limit=50)
    parts.learn(8)
    assert names(parts.ask("a red star", limit=50)) == names(before)
    parts.publish()
    assert len(names(parts.ask("a red star", limit=50))) == 30


def test_before_anything_is_published_the_answer_is_503(tmp_path: Path) -> None:
    with pytest.raises(SearchError) as caught:
        Parts(tmp_path).ask("a")
    assert caught.value.status == 503


def test_an_empty_index_answers_with_nothing(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.publish()
    for request in ({}, {"filter": {"task": ["t1"]}}):
        answer = parts.ask("a red star", **request)
        assert (answer.results, answer.next_page_token, answer.staleness.clips) == ([], None, 0)


@pytest.mark.slow
def test_over_http_an_empty_daemon_answers_200_and_wrong_questions_422_or_404(tmp_path: Path) -> None:
    with daemon(tmp_path, ListSource(ends=False)) as running:
        settled(running, "idle")

        def ask(**body: object) -> httpx.Response:
            return httpx.post(f"{running.url}/v1/search", json=body)

        empty = ask(query={"text": "a red star"})
        assert (empty.status_code, empty.json()["results"]) == (200, [])
        assert httpx.get(f"{running.url}/readyz").status_code == 200
        assert ask(query={"text": "a"}, page_token="zzz").status_code == 422
        assert ask(query={"text": "a"}, limit=201).status_code == 422
        assert ask(query={"text": "a"}, limit=200).status_code == 200
        assert ask(query={"video_id": "nobody"}).status_code == 404
        running.feed._source.add(*Stream().clips("studio", 3), end=True)  # type: ignore[attr-defined]
        settled(running)
        assert len(ask(query={"text": "a red star"}).json()["results"]) == 3
