"""The whole daemon in this process, on real clips: what comes in is learned, found, replaced, deleted, resumed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from streamlearn.app import Daemon
from streamlearn.connectors.synthetic import encode, render, sample
from streamlearn.deadletters import read_dead_letters
from streamlearn.era_words import Words
from streamlearn.errors import SettingsError, SourceError, SourceLostError, StateError
from streamlearn.records import Partition, Position, Record, Rejected
from streamlearn.room import Room
from streamlearn.settings import load
from streamlearn.testing import ListSource
from tests.daemon import ask, until
from tests.parts import same_words
from tests.revoking import RevokingSource


class Stream:
    """Records of rendered clips, with offsets that go on."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.offset = 0
        self.captions: dict[str, str] = {}

    def clips(self, domain: str, n: int, **fields: Any) -> list[Record]:
        scenes = sample(domain, n, self._rng)
        frames = render(scenes, size_px=32, rng=self._rng)
        return [
            self.clip(f"{domain}-{self.offset}", scene.caption, encode(film), **fields)
            for scene, film in zip(scenes, frames, strict=True)
        ]

    def clip(self, video_id: str, caption: str, media: bytes, **fields: Any) -> Record:
        self.captions[video_id] = caption
        body = {"video_id": video_id, "captions": [caption], "media_b64": base64.b64encode(media).decode(), **fields}
        return self.raw(video_id.encode(), json.dumps(body).encode())

    def raw(self, key: bytes | None, value: bytes | None) -> Record:
        self.offset += 1
        return Record(key, value, Position("clips", "0", self.offset - 1))


@contextmanager
def daemon(folder: Path, source: ListSource, **changes: Any) -> Iterator[Daemon]:
    settings = load(
        None,
        {
            "state_dir": folder / "state",
            "api.port": 0,
            "model.threads": 1,
            "learner.batch_size": 8,
            "learner.max_wait_s": 0.3,
            "media.size_px": 32,
            "evaluate.heldout_ratio": 0.2,
            "evaluate.interval_clips": 40,
            "checkpoint.interval_clips": 32,
            **{name.replace("__", "."): value for name, value in changes.items()},
        },
    )
    with Daemon(settings, source) as running:
        yield running


def settled(running: Daemon, *states: str) -> dict[str, Any]:
    wanted = states or ("finished",)
    return until(lambda: (s := running.service.status())["state"] in wanted and s, f"the daemon is {wanted}")  # type: ignore[no-any-return]


def ids(running: Daemon, text: str, limit: int = 10) -> list[str]:
    return [
        hit["video_id"] for hit in ask(running.url, "/v1/search", {"query": {"text": text}, "limit": limit})["results"]
    ]


def everything(running: Daemon) -> list[str]:
    return sorted(ids(running, "anything", 200))


@pytest.fixture
def stream() -> Stream:
    return Stream()


def test_clips_are_learned_held_out_and_found_by_their_captions(tmp_path: Path, stream: Stream) -> None:
    with daemon(tmp_path, ListSource(stream.clips("studio", 96))) as running:
        status = settled(running)
        found = [video_id in ids(running, caption) for video_id, caption in stream.captions.items()]
        tasks = httpx.get(f"{running.url}/v1/tasks").json()
        metrics = httpx.get(f"{running.url}/metrics").text
        told = running.state.eras.current.words
        clips = running.catalog.clips(running.catalog.era_vectors(1)[0].tolist()).values()
    assert same_words(told, Words.of([clip.captions for clip in clips if clip.split == "train"]))
    assert status["clips"]["learned"] + status["clips"]["held_out"] == 96
    assert 8 <= status["clips"]["held_out"] <= 32
    assert np.mean(found) > 0.6  # chance is 0.1; held-out clips are asked for like all others
    assert [task["name"] for task in tasks] == ["t1"]
    assert tasks[0]["recall"]["served"]["10"] > 0.4
    for series in ("recall_ratio", "forgetting_ratio"):
        assert f'streamlearn_{series}{{direction="t2v",k="5",task="t1",view="served"}}' in metrics
    assert 'streamlearn_median_rank{direction="v2t",task="t1",view="learner"}' in metrics
    assert f'streamlearn_eval_pairs{{task="t1"}} {float(status["clips"]["held_out"])}' in metrics


def test_a_clip_is_found_moments_after_it_arrived_with_the_offsets_it_is_as_of(tmp_path: Path, stream: Stream) -> None:
    source = ListSource(stream.clips("studio", 3), ends=False)
    with daemon(tmp_path, source) as running:
        settled(running, "idle")
        assert len(everything(running)) == 3
        source.add(*stream.clips("studio", 1))
        until(lambda: len(everything(running)) == 4, "the new clip is found")
        answer = httpx.post(f"{running.url}/v1/search", json={"query": {"text": "a circle"}}).json()
        assert answer["as_of"]["offsets"] == {"clips": {"0": 4}}
        clip = httpx.get(f"{running.url}/v1/clips/{answer['results'][0]['video_id']}").json()
        image = httpx.get(f"{running.url}{answer['results'][0]['thumbnail_url']}")
    assert clip["captions"] == answer["results"][0]["captions"]
    assert image.content[8:12] == b"WEBP"


def test_clips_are_found_and_deleted_ones_are_not_before_their_batch_is_full(tmp_path: Path, stream: Stream) -> None:
    source = ListSource(stream.clips("studio", 16), ends=False)
    never = {"learner__max_wait_s": 1000, "learner__max_batch_age_s": 1000, "evaluate__heldout_ratio": 0.0}
    with daemon(tmp_path, source, search__show_after_s=0.01, **never) as running:
        until(lambda: len(everything(running)) == 16, "two batches are learned")
        until(lambda: not running.pipeline.waiting, "and nothing waits")
        assert running.state.learner.steps == 2
        source.add(*stream.clips("studio", 3))
        until(lambda: len(everything(running)) == 19, "what waits for its batch is found")
        source.add(stream.raw(b"studio-3", None), stream.raw(b"studio-17", None), *stream.clips("studio", 2))
        until(lambda: "studio-22" in everything(running), "and so on")
        until(lambda: running.service.status()["clips"]["deleted"] == 2, "the tombstones had their turn")
        assert len(everything(running)) == 19
        assert running.state.learner.steps == 2
        vectors = running.catalog.era_vectors(1)
        assert (len(vectors[0]), max(vectors[2].tolist())) == (19, 2)
        source.add(*stream.clips("studio", 3))
        until(lambda: running.state.learner.steps == 3, "the batch is full")
        until(lambda: len(everything(running)) == 22, "all of it is found")
        counts = running.service.status()["clips"]
        assert (counts["learned"], counts["deleted"], counts["replaced"]) == (24, 2, 0)
        assert running.state.eras.current.words.clips == 24  # those that waited, too, once each
        until(lambda: max(running.catalog.era_vectors(1)[2].tolist()) == 3, "the step's keys are its vectors")
    with daemon(tmp_path, ListSource([], ends=False)) as again:  # what waited when it was stopped was learned
        assert len(everything(again)) == 22


def test_what_was_put_off_neither_waits_for_the_source_nor_keeps_what_it_sends_waiting(
    tmp_path: Path, stream: Stream
) -> None:
    source = ListSource(stream.clips("studio", 24), ends=False)
    never = {"learner__max_wait_s": 1000, "learner__max_batch_age_s": 1000, "evaluate__heldout_ratio": 0.0}
    with daemon(tmp_path, source, search__reencode_per_clip=1e-9, search__show_after_s=0.01, **never) as running:
        until(lambda: len(everything(running)) == 24, "all is learned")
        eras, found = running.state.eras, threading.Event()
        reencode = eras.reencode
        eras.reencode = lambda: reencode() if found.is_set() else 1  # type: ignore[method-assign]
        httpx.post(f"{running.url}/v1/tasks", json={"name": "next"}, timeout=60).raise_for_status()
        running.feed.wake()  # else it would be silent only after 1,000 s
        source.add(*stream.clips("studio", 3))
        until(lambda: len(everything(running)) == 27, "clips that come are found, though there is no end to it")
        found.set()
        source.add(*stream.clips("studio", 5))  # the batch is full
        until(lambda: running.service.status()["stale_clips"] == 0, "all is encoded anew, one after the other")
        assert running.state.learner.steps == 4


def test_what_was_put_off_writes_no_generation_a_batch_and_lets_no_batch_wait(tmp_path: Path, stream: Stream) -> None:
    source = ListSource(stream.clips("studio", 8), ends=False)
    slow = {"learner__max_wait_s": 0.3, "learner__max_batch_age_s": 1000, "search__show_after_s": 1000}
    with daemon(tmp_path, source, evaluate__heldout_ratio=0.0, checkpoint__interval_clips=1000, **slow) as running:
        settled(running, "idle")
        state, before = running.state, running.state.generations.numbers()
        state.eras.reencode = lambda: 1  # type: ignore[method-assign]  # there is no end to it
        running.pipeline.settings.learner.max_wait_s = 1000
        for steps in range(2, 8):
            source.add(*stream.clips("studio", 8))
            until(lambda steps=steps: state.learner.steps == steps, "a full batch is learned")  # type: ignore[misc]
        assert state.generations.numbers() == before  # the source was not silent for so long
        source.add(*stream.clips("studio", 3))
        until(lambda: state.learner.steps == 8, "what there is after 0.3 s of silence is learned")


def test_replacement_and_tombstone_leave_one_and_none(tmp_path: Path, stream: Stream) -> None:
    first = stream.clips("studio", 4)
    name = "studio-0"
    again = stream.clip(name, "a large plain red circle", encode(np.zeros((8, 32, 32, 3), np.uint8)))
    source = ListSource(first, ends=False)
    with daemon(tmp_path, source) as running:
        settled(running, "idle")
        source.add(again)
        until(lambda: running.service.clip(name)["captions"] == ("a large plain red circle",), "the clip is replaced")  # type: ignore[index]
        until(lambda: len(everything(running)) == 4, "it is found once")
        source.add(stream.raw(name.encode(), None), stream.raw(b"never-seen", None))
        until(lambda: name not in everything(running), "the tombstone has taken it")
        until(lambda: running.service.status()["clips"]["deleted"], "and its turn has come")
        assert httpx.get(f"{running.url}/v1/clips/{name}").status_code == 404
        assert httpx.get(f"{running.url}/v1/clips/{name}/thumbnail").status_code == 404
        counts = running.service.status()["clips"]
    assert (counts["replaced"], counts["deleted"]) == (1, 1)


def test_same_id_and_its_tombstone_within_one_batch_end_as_the_stream_says(tmp_path: Path, stream: Stream) -> None:
    a, b, c = stream.clips("studio", 3)
    again = Record(a.key, a.value, Position("clips", "0", 3))
    tombstone = Record(b.key, None, Position("clips", "0", 4))
    back = Record(b.key, b.value, Position("clips", "0", 5))
    gone = Record(c.key, None, Position("clips", "0", 6))
    with daemon(tmp_path, ListSource([a, b, c, again, tombstone, back, gone])) as running:
        settled(running)
        assert everything(running) == sorted([a.key.decode(), b.key.decode()])  # type: ignore[union-attr]


def test_every_bad_record_is_a_dead_letter_and_the_next_clip_is_learned(tmp_path: Path, stream: Stream) -> None:
    good = stream.clips("studio", 6)
    bad = [
        stream.raw(b"a", b"{"),
        stream.raw(b"b", json.dumps({"captions": ["x"]}).encode()),
        stream.raw(b"c", json.dumps({"captions": [""], "media_b64": "AAAA"}).encode()),
        stream.clip("d", "text for a video", b"#!/bin/sh\necho not a video\n"),
        stream.raw(b"e", json.dumps({"captions": ["x"], "uri": "file:///etc/passwd"}).encode()),
        stream.raw(b"\xff", b"\xff\xfe"),
    ]
    mixed = [record for pair in zip(good, bad, strict=True) for record in pair]
    mixed = [Record(r.key, r.value, Position("clips", "0", i)) for i, r in enumerate(mixed)]
    with daemon(tmp_path, ListSource(mixed)) as running:
        status = settled(running)
        assert everything(running) == sorted(r.key.decode() for r in good)  # type: ignore[union-attr]
    letters = list(read_dead_letters(tmp_path / "state" / "dead_letters.jsonl"))
    assert status["clips"]["dead_lettered"] == 6
    assert [letter.code for letter in letters] == [
        "invalid_json", "missing_field", "invalid_field", "not_a_video", "media_forbidden", "invalid_utf8",
    ]  # fmt: skip
    assert [letter.record.value for letter in letters] == [record.value for record in bad]


def test_an_operators_task_begins_with_the_clip_that_names_it(tmp_path: Path, stream: Stream) -> None:
    records = stream.clips("studio", 20, task="lab") + stream.clips("night", 12, task="street")
    with daemon(tmp_path, ListSource(records), evaluate__min_pairs=1) as running:
        settled(running)
        tasks = running.service.tasks()
        for name, clips in (("lab", 20), ("street", 12)):
            assert running.state.catalog.counts_by_task()[name] == clips
        hit = httpx.post(
            f"{running.url}/v1/search", json={"query": {"text": "a star"}, "limit": 50, "filter": {"task": ["street"]}}
        ).json()["results"]
    assert [(t["name"], t["cause"], t["started_clips"], t["ended_clips"]) for t in tasks] == [
        ("lab", "start", 0, 20), ("street", "operator", 20, None),
    ]  # fmt: skip
    assert len(hit) == 12
    assert {h["task"] for h in hit} == {"street"}


def test_tasks_that_come_mixed_are_learned_side_by_side_and_keep_their_names(tmp_path: Path, stream: Stream) -> None:
    pairs = [("studio", "lab"), ("night", "street")] * 16
    records = [record for domain, task in pairs for record in stream.clips(domain, 2, task=task)]
    records += stream.clips("studio", 16, task="lab")
    with daemon(tmp_path, ListSource(records)) as running:
        settled(running)
        tasks = running.service.tasks()
        assert running.state.catalog.counts_by_task() == {"lab": 48, "street": 32}
        steps = running.state.learner.steps
    # Each begins with the first clip that names it; that of a batch that names it alone, later.
    assert [(t["name"], t["cause"], t["started_clips"]) for t in tasks] == [
        ("lab", "start", 0), ("street", "operator", 2), ("lab", "operator", 66),
    ]  # fmt: skip
    assert steps <= 2 + 80 / 8


def test_a_task_is_measured_as_it_ends_however_seldom_evaluations_are(tmp_path: Path, stream: Stream) -> None:
    records = stream.clips("studio", 40, task="lab") + stream.clips("night", 8, task="street")
    never = {"evaluate__interval_clips": 10**9, "evaluate__heldout_ratio": 0.3, "evaluate__min_pairs": 1}
    with daemon(tmp_path, ListSource(records), **never) as running:
        settled(running)
        scores = [score for score in running.state.catalog.scores("lab") if score.view == "learner"]
    assert min(score.clips_seen for score in scores) == 40


def test_another_served_copy_is_refused_over_old_vectors(tmp_path: Path, stream: Stream) -> None:
    with daemon(tmp_path, ListSource(stream.clips("studio", 16))) as running:
        settled(running)
    with (
        pytest.raises(StateError, match=r"learner\.serve = 'local'"),
        daemon(tmp_path, ListSource([]), learner__serve="online"),
    ):
        pass


def test_a_restart_goes_on_where_it_stopped(tmp_path: Path, stream: Stream) -> None:
    records = stream.clips("studio", 40)
    with daemon(tmp_path / "a", ListSource(records[:24])) as first:
        settled(first)
        question = "a large plain red circle moving left slowly"
        before = ids(first, question)
    with daemon(tmp_path / "a", ListSource(records[:24])) as again:  # nothing new: nothing is learned
        settled(again)
        assert again.state.learner.steps == first.state.learner.steps
        assert ids(again, question) == before
    with daemon(tmp_path / "a", ListSource(records)) as second:
        settled(second)
        assert len(everything(second)) == 40
    with daemon(tmp_path / "b", ListSource(records)) as straight:
        settled(straight)
    assert second.state.learner.steps == straight.state.learner.steps
    a, b = (running.state.learner.state_dict() for running in (second, straight))
    assert all(np.array_equal(a[part][name], b[part][name]) for part in a for name in a[part])


def test_searches_never_fail_through_boundaries_checkpoints_and_refreshes(tmp_path: Path, stream: Stream) -> None:
    records = [r for i, d in enumerate(("studio", "night", "paper")) for r in stream.clips(d, 40, task=f"task{i}")]
    failures: list[Any] = []
    answered = 0
    stop = threading.Event()
    with daemon(tmp_path, ListSource(records)) as running:

        def keep_asking() -> None:
            nonlocal answered
            with httpx.Client() as client:
                while not stop.is_set():
                    body = {"query": {"text": "a red star"}, "limit": 100}
                    answer = client.post(f"{running.url}/v1/search", json=body)
                    found = [hit["video_id"] for hit in answer.json().get("results", [])]
                    if answer.status_code != 200 or len(found) != len(set(found)):
                        failures.append(answer.text)
                    answered += 1

        thread = threading.Thread(target=keep_asking)
        thread.start()
        settled(running)
        until(lambda: running.service.status()["stale_clips"] == 0, "sealed eras are re-encoded")
        stop.set()
        thread.join()
        assert len(everything(running)) == 120
    assert failures == []
    assert answered > 20


def test_two_daemons_do_not_share_a_state_directory(tmp_path: Path) -> None:
    with daemon(tmp_path, ListSource()), pytest.raises(SettingsError, match="in use by another daemon"):
        with daemon(tmp_path, ListSource()):
            pass


def test_an_index_device_that_is_not_there_is_refused_by_the_name_of_its_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"search\.index_device = 'cuda:99'"):
        with daemon(tmp_path, ListSource([]), search__index_device="cuda:99"):
            pass
    with pytest.raises(SettingsError, match=r"search\.index_device"):
        with daemon(tmp_path, ListSource([]), search__index_device="gpu"):
            pass


def test_state_of_another_model_is_refused_by_name(tmp_path: Path, stream: Stream) -> None:
    with daemon(tmp_path, ListSource(stream.clips("studio", 8))) as running:
        settled(running)
    with pytest.raises(StateError, match="another state_dir"):
        with daemon(tmp_path, ListSource(), model__dim=64):
            pass


def test_a_damaged_generation_is_passed_over_for_the_one_before_and_the_log_is_read_again(
    tmp_path: Path, stream: Stream
) -> None:
    records = stream.clips("studio", 40)
    with daemon(tmp_path, ListSource(records), checkpoint__interval_clips=16) as running:
        settled(running)
    number = running.state.generations.current()
    weights = tmp_path / "state" / "generations" / f"{number:06d}" / "online.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with daemon(tmp_path, ListSource(records), checkpoint__interval_clips=16) as running:
        settled(running)
        assert len(everything(running)) == 40
        assert "streamlearn_generations_rejected_total 1.0" in httpx.get(f"{running.url}/metrics").text


class NoRoom(Room):
    """A disk that is full until `emptied`."""

    def __init__(self) -> None:
        self.emptied = threading.Event()
        self.asked = threading.Event()

    def trouble(self) -> str | None:
        self.asked.set()
        return None if self.emptied.is_set() else "the disk is full: nothing is learned until there is room"


def test_with_a_full_disk_learning_waits_with_a_sentence_and_goes_on_when_there_is_room(
    tmp_path: Path, stream: Stream
) -> None:
    source = ListSource(stream.clips("studio", 16), ends=False)
    with daemon(tmp_path, source) as running:
        settled(running, "idle")
        steps, room = running.state.learner.steps, NoRoom()
        running.pipeline.room = room
        source.add(*stream.clips("studio", 8))
        assert room.asked.wait(60)
        until(lambda: running.service.status()["detail"], "it says why")
        assert "the disk is full" in running.service.status()["detail"]
        assert "streamlearn_learner_ok 0.0" in httpx.get(f"{running.url}/metrics").text
        assert httpx.get(f"{running.url}/readyz").status_code == 200
        assert (len(everything(running)), running.state.learner.steps) == (16, steps)
        room.emptied.set()
        until(lambda: len(everything(running)) == 24, "what came meanwhile is learned")
        assert running.service.status()["detail"] is None
        assert "streamlearn_learner_ok 1.0" in httpx.get(f"{running.url}/metrics").text


def test_a_checkpoint_that_the_disk_does_not_take_is_made_up_for(
    tmp_path: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills within the checkpoint itself: in its files, and after its publication."""
    fails = [("write", 1), ("begin", 1)]
    source = ListSource(stream.clips("studio", 16), ends=False)
    with daemon(tmp_path, source) as running:
        for owner, (name, times) in zip((running.state.generations, running.catalog), fails, strict=True):
            left, real = [OSError(28, "No space left on device")] * times, getattr(owner, name)

            def full(*arguments: Any, left: list[OSError] = left, real: Any = real) -> Any:
                if left:
                    raise left.pop()
                return real(*arguments)

            monkeypatch.setattr(owner, name, full)
        settled(running, "idle")
        until(lambda: running.state.generations.current() is not None, "the checkpoint was made up for")
        until(lambda: source.committed, "the source was told")
        source.add(*stream.clips("studio", 8))
        until(lambda: len(everything(running)) == 24, "and learning goes on")
        assert running.service.status()["state"] != "stopped"
    with daemon(tmp_path, ListSource()) as again:
        assert len(everything(again)) == 24


def test_partitions_that_go_to_another_reader_go_with_a_checkpoint_of_all_that_was_learned(
    tmp_path: Path, stream: Stream
) -> None:
    clips = Partition("clips", "0")
    source = RevokingSource(stream.clips("studio", 12), ends=False)
    with daemon(tmp_path, source, learner__max_wait_s=1000, learner__max_batch_age_s=1000) as running:
        until(lambda: running.state.clips == 8, "a batch is learned, and four clips are not")
        source.revoke(clips)
        assert source.was_committed.wait(60)
        assert source.given_back == {clips: 8}
        assert source.commits == [{clips: 8}]
        generation = running.state.generations.current()
        assert generation is not None
        # Nothing new: no other checkpoint is needed for the next one.
        source.was_committed.clear()
        source.revoke(clips)
        assert source.was_committed.wait(60)
        assert source.commits == [{clips: 8}] * 2
        assert running.state.generations.current() == generation
    with daemon(tmp_path, ListSource()) as again:
        assert len(everything(again)) == 8


class LostSource(ListSource):
    """Delivers, and then finds that the rest is gone."""

    def poll(self, timeout_s: float) -> Sequence[Record]:
        records = super().poll(timeout_s)
        if not records and not self.paused:
            raise SourceLostError("clips/0: offsets 20 to 59 are lost")
        return records


def test_where_the_source_has_lost_what_comes_next_learning_ends_with_a_checkpoint_and_its_sentence(
    tmp_path: Path, stream: Stream
) -> None:
    source = LostSource(stream.clips("studio", 20), ends=False)
    with daemon(tmp_path, source) as running:
        status = settled(running, "stopped")
        assert "offsets 20 to 59 are lost" in status["detail"]
        assert len(everything(running)) == 20
        assert running.state.generations.current() is not None
        assert running.state.offsets == {Partition("clips", "0"): 20}


class RefusedOnce:
    """Dead letters that cannot be delivered until `allowed`."""

    def __init__(self) -> None:
        self.allowed = threading.Event()
        self.asked = threading.Event()
        self.letters: list[Rejected] = []
        self.delivered: list[Rejected] = []

    def write(self, rejected: Rejected) -> None:
        self.letters.append(rejected)

    def flush(self) -> None:
        self.asked.set()
        if self.letters and not self.allowed.is_set():
            raise SourceError("the dead-letter topic is away")
        self.delivered, self.letters = self.delivered + self.letters, []

    def close(self) -> None:
        pass


class SourceWithRefusedLetters(ListSource):
    def __init__(self, records: Sequence[Record], letters: RefusedOnce) -> None:
        super().__init__(records)
        self._letters = letters

    def dead_letters(self) -> RefusedOnce:
        return self._letters


def test_no_offset_passes_a_dead_letter_that_is_not_delivered_and_search_goes_on(
    tmp_path: Path, stream: Stream
) -> None:
    letters = RefusedOnce()
    source = SourceWithRefusedLetters([*stream.clips("studio", 4), stream.raw(b"bad", b"{")], letters)
    with daemon(tmp_path, source) as running:
        assert letters.asked.wait(60)
        until(lambda: len(everything(running)) == 4, "clips are found all the while")
        assert running.service.status()["detail"] == "the dead-letter topic is away"
        assert running.state.generations.current() is None
        letters.allowed.set()
        until(lambda: running.state.generations.current() is not None, "the checkpoint was made up for")
        until(lambda: running.service.status()["detail"] is None, "nothing is wrong any more")
        until(lambda: source.committed, "the source was told")
    assert [letter.code for letter in letters.delivered] == ["invalid_json"]


class FullLetters(RefusedOnce):
    @property
    def full(self) -> bool:
        return bool(self.letters)


def test_nothing_is_learned_beyond_dead_letters_that_are_too_many_to_keep(tmp_path: Path, stream: Stream) -> None:
    letters, clips = FullLetters(), stream.clips("studio", 12)
    source = SourceWithRefusedLetters([stream.raw(b"bad", b"{"), *clips], letters)
    with daemon(tmp_path, source, learner__batch_size=4, checkpoint__interval_clips=1000) as running:
        assert letters.asked.wait(60)
        until(lambda: running.service.status()["detail"] == "the dead-letter topic is away", "it says so")
        assert running.service.status()["clips"]["learned"] + running.service.status()["clips"]["held_out"] == 4
        letters.allowed.set()
        until(lambda: len(everything(running)) == 12, "it goes on")
    assert [letter.code for letter in letters.delivered] == ["invalid_json"]
