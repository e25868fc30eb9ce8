"""Answers from the published snapshot: order, pages, filters, eras, and what cannot be answered."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from streamlearn.encoders import Towers
from streamlearn.envelope import parse
from streamlearn.era_scores import HEAD
from streamlearn.era_view import EraView, QueryEncoder
from streamlearn.era_words import familiarity
from streamlearn.errors import SearchError, StreamlearnError
from streamlearn.index import Partition, Sizes
from streamlearn.message import ClipMessage
from streamlearn.paging import offset_of, token_of
from streamlearn.records import Clip, Event, Position, Record, Rejected, Vectors
from streamlearn.schemas import Query, SearchAnswer
from streamlearn.search import Searcher
from streamlearn.settings import ModelSettings, SearchSettings
from streamlearn.testing import ListSource
from streamlearn.warmup import build_towers
from tests.media import video
from tests.parts import BLANK, Parts
from tests.test_daemon import Stream, daemon, settled


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Three eras: 8, 8 and 6 clips, with cameras 0 and 1 in the first two."""
    parts = Parts(tmp_path, max_limit=50)
    parts.learn(8, meta={"cam": 0, "night": False}, time="2026-01-31T10:00:00Z")
    parts.boundary("t2")
    parts.learn(8, meta={"cam": 1, "night": True}, time="2026-01-31T12:30:00+02:00")
    parts.boundary("t3")
    parts.learn(6)
    parts.finish_reencoding()
    parts.publish()
    return parts


def scored(
    text: str, era: EraView, eras: Sequence[EraView], vectors: Vectors, settings: SearchSettings, *, hubs: bool = True
) -> Vectors:
    """Of an era's clips, by the formula of docs/decisions.md. Shape: (n, d) -> (n,)."""
    (query,) = era.encoder.texts([text])
    familiar = familiarity([text], [one.words for one in eras])[[one.number for one in eras].index(era.number), 0]
    near = how_near(era, vectors) if hubs and len(era.captions) >= 64 else 0
    return (vectors @ query - settings.hub_weight * near + settings.familiarity_weight * familiar) / (
        1 + settings.familiarity_weight
    )


def how_near(era: EraView, vectors: Vectors) -> Vectors:
    """Clips to the captions of an era. Shape: (n, d) -> (n,)."""
    near: Vectors = np.log(np.exp(15 * vectors @ era.captions.T).mean(1)) / 15
    return near


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
    eras = parts.publish().eras
    by_task = {era.task: era for era in eras}
    for hit in answer.results:
        (score,) = scored("a red star", by_task[hit.task], eras, np.asarray([hit.vector]), parts.settings)
        assert hit.score == pytest.approx(score, abs=1e-5)


def test_the_era_whose_words_a_text_has_answers_it(tmp_path: Path) -> None:
    """Encoders that were hardly taught: they cannot tell the eras."""
    parts = Parts(tmp_path, familiarity_weight=2)
    for task, domain in (("t1", "studio"), ("t2", "night"), ("t3", "studio")):
        if task != "t1":
            parts.boundary(task)
        parts.learn(64, domain)
    parts.publish()
    asked = parts.catalog.clips(parts.rows[64:128:8]).values()
    for clip in asked:
        assert [hit.task for hit in parts.ask(clip.captions[0]).results] == ["t2"] * 10


def test_in_single_mode_all_eras_are_asked_with_todays_encoder(tmp_path: Path) -> None:
    parts = Parts(tmp_path, mode="single")
    parts.learn(6)
    parts.boundary("t2")
    parts.learn(6)
    parts.publish()
    (today,) = parts.learner.encode_text(["a red star"])
    for hit in parts.ask("a red star", limit=12, include=["vector"]).results:
        assert hit.score == pytest.approx(float(today @ np.asarray(hit.vector)), abs=1e-5)


def test_any_query_can_be_asked_in_the_other_mode(parts: Parts) -> None:
    snapshot = parts.publish()
    other = Searcher(parts.catalog, parts.frames, SearchSettings(mode="single"), parts.metrics)
    for query in (Query(text="a red star"), Query(video_id="v3")):
        encode = parts.searcher.queries.encoder(query, dim=16, model_version="m")
        texts = [] if query.text is None else [query.text]
        asked = [
            searcher.ask(snapshot, encode, 22, texts=texts, mode=mode)
            for searcher, mode in ((parts.searcher, "single"), (other, None), (other, "eras"), (parts.searcher, None))
        ]
        for one, same in (asked[:2], asked[2:]):
            for found, expected in zip(one, same, strict=True):
                np.testing.assert_array_equal(found, expected)
        assert (asked[0][1] != asked[2][1]).any()


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


def test_pages_are_the_same_at_any_length_beyond_the_clips_that_are_told_apart_once_more(tmp_path: Path) -> None:
    parts = Parts(tmp_path, max_limit=200)
    for task in ("t2", "t3"):
        parts.learn(64)
        parts.boundary(task)
    parts.finish_reencoding()
    parts.publish()
    answer = parts.ask("a red star", limit=200)
    whole, scores = names(answer), [hit.score for hit in answer.results]
    assert len(set(whole)) == len(whole) == 128 > HEAD
    assert scores == sorted(scores, reverse=True)
    for limit in (7, HEAD, HEAD + 1):
        got, token = [], None
        while not got or token is not None:
            answer = parts.ask("a red star", limit=limit, page_token=token)
            got += [(hit.video_id, hit.score) for hit in answer.results]
            token = answer.next_page_token
        assert got == list(zip(whole, scores, strict=True))


@pytest.mark.parametrize("hub_weight", [0.0, 0.5, 1.0])
def test_what_is_near_to_all_captions_counts_against_the_best_for_a_text_and_can_be_let_go(
    tmp_path: Path, hub_weight: float
) -> None:
    parts = Parts(tmp_path, max_limit=50, hub_weight=hub_weight)
    parts.learn(64)
    (era,) = parts.publish().eras
    vectors = era.partition.vectors(era.partition.rows)
    plain = scored("a red star", era, [era], vectors, parts.settings, hubs=False)
    best = scored("a red star", era, [era], vectors[np.argsort(-plain)[:HEAD]], parts.settings)
    found = [hit.score for hit in parts.ask("a red star", limit=HEAD).results]
    assert found == pytest.approx(sorted(best.tolist(), reverse=True), abs=1e-5)


def test_from_clips_of_an_era_that_was_told_little_as_much_is_taken_as_from_the_others_that_pass_the_filter(
    tmp_path: Path,
) -> None:
    parts = Parts(tmp_path)
    parts.learn(61)
    parts.learn(3, meta={"cam": 1})
    parts.boundary("t2")
    parts.finish_reencoding()
    parts.learn(3, meta={"cam": 1})
    expected, asked = dict[int, float](), {"meta.cam": 1}
    old, young = parts.publish().eras
    taken = parts.settings.hub_weight * how_near(old, old.partition.vectors(parts.rows[61:64])).mean()
    for era, rows in ((old, parts.rows[61:64]), (young, parts.rows[64:])):
        scores = scored("a red star", era, [old, young], era.partition.vectors(rows), parts.settings)
        expected |= dict(zip(rows, scores - (era is young) * taken / 1.5, strict=True))
    found = {hit.video_id: hit.score for hit in parts.ask("a red star", filter=asked).results}
    assert found == pytest.approx({f"v{parts.rows.index(row)}": score for row, score in expected.items()}, abs=1e-5)


def test_the_last_page_that_is_just_full_has_no_next(parts: Parts) -> None:
    answer = parts.ask("a red star", limit=22)
    assert (len(answer.results), answer.next_page_token) == (22, None)
    assert parts.ask("a red star", limit=21).next_page_token is not None


def test_no_token_is_given_that_would_be_refused() -> None:
    assert offset_of(token_of(100_000)) == 100_000
    assert token_of(100_001) is None


def test_a_search_on_an_older_snapshot_brings_no_series_back(parts: Parts) -> None:
    before = parts.publish()
    parts.searcher.publish(replace(before, eras=before.eras[1:]))
    parts.searcher.ask(before, lambda era: era.encoder.texts(["a red star"]), 5)
    shown = parts.registry.get_sample_value("streamlearn_era_search_seconds", {"era": "2"})
    assert shown is not None
    assert parts.registry.get_sample_value("streamlearn_era_search_seconds", {"era": "1"}) is None


def test_a_clip_that_is_being_deleted_is_found_no_more(parts: Parts) -> None:
    parts.searcher.deleting = {"v3"}
    assert set(names(parts.ask("a red star", limit=50))) == everything(parts) - {"v3"}
    with pytest.raises(SearchError, match="is being deleted") as caught:
        parts.ask(Query(video_id="v3"))
    assert caught.value.status == 404


@pytest.mark.parametrize("limit", [10, 70, 150])
def test_pages_of_a_large_era_give_each_clip_once(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in lists: the first places are looked for in some of them, those far down in all."""
    monkeypatch.setattr("streamlearn.index_lists._POINTS_PER_LIST", 8)
    monkeypatch.setattr(
        "streamlearn.eras.Partition", partial(Partition, sizes=Sizes(flat_max=200, fresh_min=50, fresh_max=50))
    )
    monkeypatch.setattr("streamlearn.index_lists._CHOSEN", 200)
    parts, rng = Parts(tmp_path), np.random.default_rng(0)
    vectors = rng.standard_normal((2_020, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    clips = [replace(BLANK, video_id=f"v{i}", task="t1", meta={"third": i % 3}) for i in range(2_000)]
    parts.eras.upsert(parts.catalog.put(clips)[0], vectors[:2_000])
    parts.eras.current.partition.close()
    parts.publish()
    missed = 0
    for vector in vectors[2_000:]:
        for wanted in ({}, {"meta.third": 1}):
            found, token = list[str](), None
            for _ in range(400 // limit):
                answer = parts.ask(Query(vector=vector.tolist()), limit=limit, filter=wanted, page_token=token)
                found += [hit.video_id for hit in answer.results]
                token = answer.next_page_token
            assert len(found) == len(set(found))
            exact = np.argsort(-(vectors[:2_000] @ vector))
            exact = [int(row) for row in exact if not wanted or row % 3 == 1]
            assert len({f"v{row}" for row in exact[: len(found)]} - set(found)) <= len(found) // 8
            missed += len({f"v{row}" for row in exact[:100]} - set(found[:100]))
    assert (missed > 0) == (limit < 150)  # else there would be nothing that a later page could give anew


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
        ({"meta.cam": {"gt": 0}}, [hit for hit in whole if hit.meta.get("cam") == 1]),
        ({"time": {"gte": "2026-01-31T10:00:00Z"}}, [hit for hit in whole if hit.task != "t3"]),
        ({"time": {"gt": "2026-01-31T10:00:00Z"}}, [hit for hit in whole if hit.task == "t2"]),
        ({"time": {"lt": "2026-01-31T11:30:00+01:00"}}, [hit for hit in whole if hit.task == "t1"]),
        ({"time": {"lt": "2026-01-01T00:00:00Z"}}, []),
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


def test_a_clip_finds_itself_first_also_where_another_pair_wrote_it_than_the_one_that_reads_its_era(
    tmp_path: Path,
) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), seed=0), max_eras=3)
    for task, domain in (("t2", "night"), ("t3", "paper"), ("t4", "reef")):
        parts.learn(16, domain)
        parts.boundary(task)
        parts.finish_reencoding()
    (merged,) = [era for era in parts.eras.eras if era.absorbed]
    assert merged.encoder is not None
    other = QueryEncoder(Towers(dim=merged.partition.view().dim, seed=9))
    rows = [row for row, clip in parts.catalog.clips(parts.rows).items() if clip.task != merged.task]
    rows = [row for row in rows if merged.partition.view().holds(np.asarray([row]))[0]]
    merged.partition.upsert(np.asarray(rows), other.clips(parts.stored(rows)))
    parts.publish()
    for clip in parts.catalog.clips(parts.rows).values():
        assert names(parts.ask(Query(video_id=clip.video_id), limit=1)) == [clip.video_id]


def test_in_single_mode_a_clip_of_the_current_era_is_asked_for_as_todays_pair_sees_it(tmp_path: Path) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), seed=0), mode="single")
    rows = parts.learn(8)
    other = QueryEncoder(Towers(dim=parts.eras.current.partition.view().dim, seed=9))
    parts.eras.current.partition.upsert(np.asarray(rows[:1]), other.clips(parts.stored(rows[:1])))
    era = parts.publish().eras[-1]
    asked = era.encoder.reader.clips(parts.stored(rows[:1]))[0]
    scores = {hit.video_id: hit.score for hit in parts.ask(Query(video_id="v0")).results}
    expected = {f"v{i}": float(asked @ vector) for i, vector in enumerate(era.partition.vectors(np.asarray(rows)))}
    assert scores == pytest.approx(expected, abs=1e-3)


def test_a_clip_that_is_unknown_or_has_no_frames_left_cannot_ask(parts: Parts) -> None:
    parts.frames.delete([parts.rows[3]])
    for name in ("nobody", "v3"):
        with pytest.raises(SearchError, match=name) as caught:
            parts.ask(Query(video_id=name))
        assert caught.value.status == 404


def test_a_vector_asks_every_era_as_it_is(parts: Parts) -> None:
    hit = parts.ask("a red star", include=["vector"], limit=1).results[0]
    assert hit.vector is not None
    answer = parts.ask(Query(vector=[3 * number for number in hit.vector], model_version="m"), limit=50)
    assert set(names(answer)) == everything(parts)
    vectors = {hit.video_id: hit.vector for hit in parts.ask("a", limit=50, include=["vector"]).results}
    for other in answer.results:
        assert other.score == pytest.approx(np.dot(hit.vector, vectors[other.video_id]), abs=1e-4)
    assert answer.results[0].video_id == hit.video_id


def test_a_vector_of_another_space_is_refused(parts: Parts) -> None:
    snapshot = replace(parts.publish(), model_version="aaaa-bbbb-7")
    parts.searcher.publish(snapshot)
    vector = [1.0] + [0.0] * 15
    for same in (None, "aaaa-bbbb-7", "aaaa-bbbb-3"):
        assert parts.ask(Query(vector=vector, model_version=same)).results
    for other in ("aaaa-cccc-7", "cccc-bbbb-7", "x", ""):
        with pytest.raises(SearchError, match="cannot be compared") as caught:
            parts.ask(Query(vector=vector, model_version=other))
        assert caught.value.status == 422
    with pytest.raises(SearchError, match="has 3 numbers, vectors here have 16"):
        parts.ask(Query(vector=[1.0, 0.0, 0.0]))
    for outcome, count in (("named", 2), ("unnamed", 1), ("refused", 5)):
        assert parts.registry.get_sample_value("streamlearn_query_vectors_total", {"outcome": outcome}) == count


def answering(parts: Parts, event: Event | Exception | None) -> list[Record]:
    """Decoders that answer with this, or never; returns what they are sent."""
    sent: list[Record] = []

    def submit(record: Record) -> Future[Event]:
        sent.append(record)
        future: Future[Event] = Future()
        if isinstance(event, Exception):
            future.set_exception(event)
        elif event is not None:
            future.set_result(event)
        return future

    parts.searcher = Searcher(
        parts.catalog, parts.frames, parts.settings, parts.metrics, submit=submit, decode_timeout_s=0.01
    )
    parts.publish()
    return sent


def test_a_video_that_is_named_asks_with_what_the_decoders_make_of_it(parts: Parts) -> None:
    (frames,) = parts.stored(parts.rows[3:4])
    sent = answering(parts, Clip("query", frames, b"", ("query",), Position("query", "0", 0)))
    answer = parts.ask(Query(uri="https://a/b.mp4"), limit=50)
    known = {hit.video_id: hit.score for hit in parts.ask(Query(video_id="v3"), limit=50).results}
    assert {hit.video_id: hit.score for hit in answer.results} == pytest.approx(known, abs=0.01)
    assert names(answer)[0] == "v3"
    assert len(sent) == 1
    message = parse(sent[0], max_bytes=10_000, max_caption_chars=100)
    assert isinstance(message, ClipMessage)
    assert message.uri == "https://a/b.mp4"


def test_a_clip_whose_frames_are_gone_asks_with_what_its_uri_still_gives(parts: Parts) -> None:
    (row,) = parts.learn(1, uri="https://a/v.mp4", start_s=1.0, end_s=2.5, sha256="a" * 64)
    (frames,) = parts.stored([row])
    parts.publish()
    known = parts.ask(Query(video_id="v22"), limit=50)
    parts.frames.delete([row])
    sent = answering(parts, Clip("query", frames, b"", ("query",), Position("query", "0", 0)))
    assert [hit.video_id for hit in parts.ask(Query(video_id="v22"), limit=50).results] == [
        hit.video_id for hit in known.results
    ]
    message = parse(sent[0], max_bytes=10_000, max_caption_chars=100)
    assert isinstance(message, ClipMessage)
    assert (message.uri, message.start_s, message.end_s, message.sha256) == ("https://a/v.mp4", 1.0, 2.5, "a" * 64)
    parts.frames.delete(parts.rows[3:4])
    answering(parts, Rejected(sent[0], "media_missing", "fetch", "there is no such file"))
    for video_id, sentence in (("v22", "from its uri: media_missing"), ("v3", "came without a uri: send it again")):
        with pytest.raises(SearchError, match=sentence) as caught:
            parts.ask(Query(video_id=video_id))
        assert caught.value.status == 404


@pytest.mark.parametrize(
    ("code", "asked"), [("fetch_failed", 1), ("decode_timeout", 1), ("media_not_found", 2), ("decode_failed", 2)]
)
def test_a_place_that_kept_a_decoder_waiting_is_not_asked_for_pictures_at_once(
    parts: Parts, code: str, asked: int
) -> None:
    here = parts.learn(2, uri="https://a/v.mp4")
    elsewhere = parts.learn(1, uri="https://b/v.mp4")
    clips = parts.catalog.clips([*here, *elsewhere])
    parts.frames.delete([*here, *elsewhere])
    record = Record(None, None, Position("query", "0", 0))
    sent = answering(parts, Rejected(record, code, "fetch", "not to be had"))

    def look(row: int) -> None:
        if asked == 2:  # it cannot be had any more
            assert parts.searcher.queries.picture(clips[row]) is None
            return
        with pytest.raises(SearchError) as caught:
            parts.searcher.queries.picture(clips[row])
        assert caught.value.status == 503
        assert 50 < (caught.value.retry_after_s or 0) <= 60

    look(here[0])
    look(here[1])
    assert len(sent) == asked
    look(elsewhere[0])
    assert len(sent) == asked + 1
    with pytest.raises(SearchError, match=code):  # who asks by this clip is not put off
        parts.ask(Query(video_id=clips[here[0]].video_id))
    assert len(sent) == asked + 2


def test_a_video_that_cannot_be_had_is_a_sentence(parts: Parts) -> None:
    record = Record(None, None, Position("query", "0", 0))
    for event, status, sentence in (
        (Rejected(record, "media_forbidden", "fetch", "the host is not allowed"), 422, "media_forbidden: the host"),
        (None, 503, "busy"),
        (StreamlearnError("no child"), 503, "no video can be decoded now"),
        (CancelledError(), 503, "no video can be decoded now"),
    ):
        answering(parts, event)
        for _ in range(6):  # a failure keeps no place in the queue
            with pytest.raises(SearchError, match=sentence) as caught:
                parts.ask(Query(uri="https://a/b.mp4"))
            assert caught.value.status == status


def test_a_query_that_gave_up_leaves_the_queue_and_keeps_its_place_only_while_a_decoder_works_for_it(
    parts: Parts,
) -> None:
    futures: list[Future[Event]] = []

    def submit(record: Record) -> Future[Event]:
        futures.append(Future())
        if begun:
            futures[-1].set_running_or_notify_cancel()
        return futures[-1]

    parts.searcher = Searcher(
        parts.catalog, parts.frames, parts.settings, parts.metrics, submit=submit, decode_timeout_s=0.01
    )
    parts.publish()

    def status() -> int:
        with pytest.raises(SearchError) as caught:
            parts.ask(Query(uri="https://a/b.mp4"))
        return caught.value.status

    begun = False
    assert [status() for _ in range(6)] == [503] * 6
    assert all(future.cancelled() for future in futures)
    begun = True
    assert [status() for _ in range(6)] == [503] * 4 + [429] * 2
    (clip,) = parts.catalog.clips(parts.learn(1, uri="https://a/v.mp4")).values()
    parts.frames.delete([clip.row])
    with pytest.raises(SearchError, match="try again") as caught:  # a picture, too, can be had later
        parts.searcher.queries.picture(clip)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    futures[-1].set_result(Rejected(Record(None, None, Position("query", "0", 0)), "timeout", "decode", "too late"))
    assert [status() for _ in range(2)] == [503, 429]


def test_without_decoders_no_video_is_fetched(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.learn(4)
    parts.publish()
    with pytest.raises(SearchError, match="no video is fetched here"):
        parts.ask(Query(uri="https://a/b.mp4"))


@pytest.mark.slow
def test_over_http_a_video_within_the_allowed_roots_is_asked_with_and_others_are_refused(tmp_path: Path) -> None:
    with daemon(tmp_path, ListSource(ends=False), media__allowed_roots=[tmp_path / "open"]) as running:
        (tmp_path / "open").mkdir()
        (tmp_path / "open" / "a.mp4").write_bytes(video(frames=8))
        (tmp_path / "secret.mp4").write_bytes(video(frames=8))
        running.feed._source.add(*Stream().clips("studio", 8), end=True)  # type: ignore[attr-defined]
        settled(running)

        def ask(path: Path) -> httpx.Response:
            return httpx.post(f"{running.url}/v1/search", json={"query": {"uri": path.as_uri()}}, timeout=60)

        assert len(ask(tmp_path / "open" / "a.mp4").json()["results"]) == 8
        for path in (tmp_path / "secret.mp4", tmp_path / "open" / ".." / "secret.mp4", Path("/etc/passwd")):
            refused = ask(path)
            assert refused.status_code == 422
            assert "media_forbidden" in refused.text


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


def test_a_clip_that_was_replaced_since_the_snapshot_is_in_the_answer_with_its_new_facts(parts: Parts) -> None:
    whole = names(parts.ask("a red star", limit=50))
    for name in whole[2:6]:
        old = parts.catalog.clip(name)
        assert old is not None
        parts.catalog.put([replace(old, captions=("told anew",))])
    answer = parts.ask("a red star", limit=50, include=["vector", "thumbnail"])
    assert names(answer) == whole
    assert [hit.captions for hit in answer.results[2:6]] == [["told anew"]] * 4
    parts.catalog.delete(whole[3])
    assert names(parts.ask("a red star", limit=50)) == whole[:3] + whole[4:]


def test_so_it_is_where_the_new_one_passes_the_filter_and_only_there(parts: Parts) -> None:
    wanted = {"meta.cam": [0, 1]}
    whole = names(parts.ask("a red star", limit=50, filter=wanted))
    for name, cam in zip(whole[2:5], (0, 1, 7), strict=True):
        old = parts.catalog.clip(name)
        assert old is not None
        parts.catalog.put([replace(old, meta={"cam": cam})])
    parts.catalog.delete(whole[6])
    assert names(parts.ask("a red star", limit=50, filter=wanted)) == whole[:4] + whole[5:6] + whole[7:]
    (other,) = set(everything(parts)) - {*whole} - {f"v{i}" for i in range(16, 21)}  # of the third era
    old = parts.catalog.clip(other)
    assert old is not None
    parts.catalog.put([replace(old, meta={"cam": 0})])
    assert other in names(parts.ask("a red star", limit=50, filter=wanted))


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


def test_each_era_that_is_served_has_its_memory_and_its_time_on_gauges(parts: Parts) -> None:
    def of(series: str) -> dict[str, float]:
        return {
            sample.labels["era"]: sample.value
            for family in parts.registry.collect()
            for sample in family.samples
            if sample.name == series
        }

    snapshot = parts.publish()
    parts.ask("a red star")
    weights = sum(weight.nbytes for weight in snapshot.eras[0].encoder.towers.parameters())
    # Vectors, rows and bits of 8 clips, twice: as they were written first, and encoded again when the era was sealed.
    assert of("streamlearn_era_bytes")["1"] == weights + 2 * (8 * (16 * 4 + 8) + 1)
    times = of("streamlearn_era_search_seconds")
    assert times.keys() == {"1", "2", "3"}
    assert all(0 < value < 60 for value in times.values())
    parts.searcher.publish(replace(snapshot, eras=snapshot.eras[1:]))
    assert of("streamlearn_era_bytes").keys() == of("streamlearn_era_search_seconds").keys() == {"2", "3"}


def test_answers_over_eras_filters_and_pages_are_those_of_brute_force(parts: Parts) -> None:
    eras = parts.publish().eras
    for number in range(12):
        rng = np.random.default_rng(number)
        text = f"{('a red star moves', 'question', 'at night a blue ring')[number % 3]} {number}"
        cameras = [[], [0], [1], [0, 1]][number % 4]
        tasks = [task for task in ("t1", "t2", "t3") if rng.random() < 0.7]
        wanted = ({"meta.cam": cameras} if cameras else {}) | ({"task": tasks} if tasks else {})
        expected = []
        for era in eras:
            rows = era.partition.rows
            scores = scored(text, era, eras, era.partition.vectors(rows), parts.settings)
            clips = parts.catalog.clips(rows.tolist())
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
                clip = clips[row]
                if (not cameras or clip.meta.get("cam") in cameras) and (not tasks or clip.task in tasks):
                    expected.append((score, clip.video_id))
        found, token, limit = [], None, int(rng.integers(1, 9))
        while True:
            answer = parts.ask(text, limit=limit, filter=wanted, page_token=token)
            found += [(hit.score, hit.video_id) for hit in answer.results]
            token = answer.next_page_token
            if token is None:
                break
        assert [score for score, _ in found] == pytest.approx([s for s, _ in sorted(expected)[::-1]], abs=1e-5)
        assert sorted(name for _, name in found) == sorted(name for _, name in expected)


def test_no_search_fails_or_repeats_a_clip_while_eras_begin_are_encoded_anew_and_merge(tmp_path: Path) -> None:
    parts = Parts(tmp_path, max_limit=50, max_eras=3)
    parts.learn(8, meta={"cam": 0})
    parts.publish()
    over, failures, asked = threading.Event(), list[BaseException](), [0, 0]

    def keep_asking(reader: int) -> None:
        wanted = {"meta.cam": {"lt": 2}} if reader else {}
        try:
            while not over.is_set() or not asked[reader]:
                before = len(parts.searcher.snapshot or ())
                answer = parts.ask(f"a star, {asked[reader]}", limit=50, filter=wanted)
                found = names(answer)
                assert len(found) == len(set(found)), found
                assert reader or len(found) >= min(50, before), "clips were missing"
                assert all(hit.meta["cam"] < 2 for hit in answer.results if reader)
                asked[reader] += 1
        except BaseException as error:  # noqa: BLE001 -- told to the main thread
            failures.append(error)

    readers = [threading.Thread(target=keep_asking, args=(reader,)) for reader in range(2)]
    for thread in readers:
        thread.start()
    for task in ("t2", "t3", "t4", "t5"):
        parts.boundary(task)
        for camera in range(2):
            parts.learn(4, meta={"cam": camera + 1})
            parts.eras.reencode()
            parts.publish()
        parts.finish_reencoding()
        parts.publish()
    over.set()
    for thread in readers:
        thread.join()
    assert not failures, failures[0]
    assert len(parts.eras.eras) == 3
    assert min(asked) > 0
