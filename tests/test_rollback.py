"""Going back to a generation, in the whole daemon: what it answers, how it goes on, and what a crash leaves of it."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest

import streamlearn.index
from streamlearn.app import Daemon
from streamlearn.checkpoint import Generations
from streamlearn.cut import Cut
from streamlearn.errors import SearchError, SettingsError, StateError
from streamlearn.index import Partition as IndexPartition
from streamlearn.index import Sizes
from streamlearn.records import Offsets, Partition, Position, Record
from streamlearn.rollback import ResumeFrom, roll_back_offline
from streamlearn.schemas import Query, SearchRequest
from streamlearn.settings import load
from streamlearn.source import EventSink
from streamlearn.testing import ListSource
from tests.daemon import until
from tests.parts import BLANK
from tests.remembering import RememberingSource
from tests.test_daemon import Stream, settled
from tests.test_daemon import daemon as stream_daemon

CLIPS = 72
QUESTIONS = ("a large plain red circle moving left slowly", "a small star at night", "paper", "anything at all")
SETTINGS: dict[str, Any] = {
    "api.port": 0,
    "model.threads": 1,
    "learner.batch_size": 8,
    "learner.max_wait_s": 0.2,
    "learner.max_batch_age_s": 60,
    "media.size_px": 32,
    "evaluate.heldout_ratio": 0.2,
    "evaluate.min_pairs": 1,
    "evaluate.interval_clips": 24,
    "checkpoint.interval_clips": 16,
    "checkpoint.keep": 99,
    "search.snapshot_interval_clips": 8,
    "search.reencode_per_clip": 8,  # at once: what waits at a generation is encoded anew soon after going back to it
    "source": "tests.test_rollback:Replay",
}

Answer = list[tuple[str, float]]


DELETED = "studio-5"  # by a tombstone in the third task


@cache
def records() -> tuple[Record, ...]:
    """Three tasks, named; a clip of the first is replaced in the second, and one deleted in the third."""
    stream = Stream()
    out = stream.clips("studio", CLIPS // 3, task="studio")
    night = stream.clips("night", CLIPS // 3, task="night")
    again = json.loads(night[10].value or b"") | {"video_id": "studio-3"}
    night[10] = replace(night[10], key=b"studio-3", value=json.dumps(again).encode())
    paper = stream.clips("paper", CLIPS // 3, task="paper")
    return (*out, *night, *paper[:9], stream.raw(DELETED.encode(), None), *paper[9:])


class Replay(ListSource):
    """All of it, as often as it is opened."""

    @classmethod
    def from_settings(cls, settings: Any) -> Replay:
        return cls([replace(r, position=Position("clips", "0", i)) for i, r in enumerate(records())])


class Recorder:
    """What the daemon answers at each generation, and after each rollback, before anything else happens."""

    def __init__(self, daemon: Daemon) -> None:
        self.answers: dict[int, list[Answer]] = {}
        state, self.daemon = daemon.state, daemon
        daemon.searcher.deleting = ()  # what a tombstone hides that is read ahead is in the generation all the same
        checkpoint, roll_back = state.checkpoint, state.roll_back

        def recorded_checkpoint() -> None:
            checkpoint()
            self.note()

        def recorded_roll_back(*arguments: Any) -> Any:
            done = roll_back(*arguments)
            self.note()
            return done

        state.checkpoint, state.roll_back = recorded_checkpoint, recorded_roll_back  # type: ignore[method-assign]

    def note(self) -> None:
        current = self.daemon.state.generations.current()
        assert current is not None
        self.answers[current] = [self.ask(question) for question in QUESTIONS]

    def ask(self, question: str) -> Answer:
        found = self.daemon.service.search(SearchRequest(query=Query(text=question), limit=200))
        assert found.generation == self.daemon.state.generations.current()
        return [(hit.video_id, hit.score) for hit in found.results]


def same(a: list[Answer], b: list[Answer]) -> bool:
    return all(
        [name for name, _ in x] == [name for name, _ in y]
        and np.allclose([score for _, score in x], [score for _, score in y], atol=2e-6)
        for x, y in zip(a, b, strict=True)
    )


@contextmanager
def daemon(work: Path, **changes: Any) -> Iterator[tuple[Daemon, Recorder]]:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    one = Daemon(load(None, {**SETTINGS, "state_dir": work / "state", **named}))
    recorder = Recorder(one)
    with one:
        yield one, recorder


def finished(running: Daemon) -> dict[str, Any]:
    return until(lambda: (s := running.service.status())["state"] == "finished" and s, "it is finished")  # type: ignore[no-any-return]


def weights(running: Daemon) -> dict[str, np.ndarray]:
    parts = running.state.learner.state_dict()
    return {
        f"{part}/{name}": tensor.numpy().copy()
        for part in parts
        if part != "counters"
        for name, tensor in parts[part].items()
    }


def roll_back(running: Daemon, number: int, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{running.url}/v1/generations/{number}/rollback", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


@pytest.mark.slow
def test_it_answers_as_it_did_then_and_reading_on_from_there_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    with daemon(tmp_path) as (running, recorder):
        end, last = finished(running), running.state.generations.current()
        before, then = weights(running), dict(recorder.answers)
        assert last is not None
        chosen = [number for number in (4, 2, 1) if number < last]
        assert len({str(then[number]) for number in (last, *chosen)}) == 4
        for number in chosen:
            newest = running.state.generations.current()
            assert newest is not None
            done = roll_back(running, number)
            assert (done["generation"], done["went_back_to"]) == (newest + 1, number)
            assert same(without(then[number], DELETED), recorder.answers[newest + 1])
            assert done["kept_deleted"] == (then[number] != without(then[number], DELETED))
            until(
                lambda: (s := running.service.status())["state"] == "finished" and s["clips"] == end["clips"],
                "the stream is read again to its end",
            )
            after = weights(running)
            assert all(np.array_equal(before[name], after[name]) for name in before)
            assert [(t["name"], t["clips"]) for t in running.service.tasks()] == [
                ("studio", 22), ("night", 24), ("paper", 24),
            ]  # fmt: skip
        rows = httpx.get(f"{running.url}/v1/generations").json()
    assert [row["number"] for row in rows if row["rolled_back_to"]] == [newest + 1]
    assert len({row["lineage"] for row in rows}) == 2  # the first run's, up to the generation, and the last one's


def without(answers: list[Answer], video_id: str) -> list[Answer]:
    return [[(name, score) for name, score in answer if name != video_id] for answer in answers]


@pytest.mark.slow
def test_searches_see_all_of_it_or_nothing_and_resuming_from_the_latest_skips_what_came_between(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []
    stop, asked = threading.Event(), threading.Semaphore(0)
    with daemon(tmp_path) as (running, recorder):
        finished(running)
        now = [recorder.ask(question) for question in QUESTIONS]
        then = without(recorder.answers[2], DELETED)

        def keep_asking() -> None:
            with httpx.Client() as client:
                while not stop.is_set():
                    for i, question in enumerate(QUESTIONS):
                        body = {"query": {"text": question}, "limit": 200}
                        answer = client.post(f"{running.url}/v1/search", json=body, timeout=60)
                        assert answer.status_code == 200, answer.text
                        seen.append((i, [(hit["video_id"], hit["score"]) for hit in answer.json()["results"]]))
                        asked.release()

        with ThreadPoolExecutor(3) as pool:
            askers = [pool.submit(keep_asking) for _ in range(3)]
            for _ in range(12):
                asked.acquire()
            done = roll_back(running, 2, resume_from="latest")
            for _ in range(12):
                asked.acquire()
            stop.set()
            for asker in askers:
                asker.result()
        status = finished(running)
        offsets = dict(running.state.offsets)
        text = httpx.get(f"{running.url}/metrics").text
    old = sum(same([now[i]], [answer]) for i, answer in seen)
    new = sum(same([then[i]], [answer]) for i, answer in seen)
    assert old > 0
    assert new > 0
    assert old + new == len(seen)
    assert status["clips"]["skipped"] == done["undone_clips"] > 0
    assert f'clips_total{{outcome="skipped"}} {float(done["undone_clips"])}' in text
    assert offsets == {Partition("clips", "0"): len(records())}
    assert f"{done['undone_clips']} clips are skipped" in caplog.text
    with daemon(tmp_path) as (again, recorder):  # and so it stays
        finished(again)
        assert same(then, [recorder.ask(question) for question in QUESTIONS])


@pytest.mark.slow
def test_what_cannot_be_done_is_a_sentence_and_changes_nothing(tmp_path: Path) -> None:
    with daemon(tmp_path) as (running, _):
        finished(running)
        current = running.state.generations.current()
        url = f"{running.url}/v1/generations"
        assert httpx.put(f"{url}/3/pin").status_code == 204
        refused = {
            "999/rollback": 404,
            "0/rollback": 422,
            "2/rollback": 409,
            "999/pin": 404,
        }
        for path, status in refused.items():
            answer = httpx.put(f"{url}/{path}") if path.endswith("pin") else httpx.post(f"{url}/{path}")
            assert answer.status_code == status, answer.text
        assert "unpin 3" in httpx.post(f"{url}/2/rollback").json()["detail"]
        assert httpx.post(f"{url}/2/rollback", json={"resume_from": "there"}).status_code == 422
        assert httpx.delete(f"{url}/3/pin").status_code == 204
        weights_file = tmp_path / "state" / "generations" / "000002" / "online.safetensors"
        weights_file.write_bytes(weights_file.read_bytes()[:-1])
        assert "differs from what was written" in httpx.post(f"{url}/2/rollback").json()["detail"]
        assert running.state.generations.current() == current
        assert finished(running)["state"] == "finished"
        assert httpx.get(f"{url}/3").json()["number"] == 3
        found = httpx.get(f"{url}/1/diff/3").json()
        assert found["index"]["clips_added"] == found["clips"]["learned"] + found["clips"]["held_out"]
        assert found["index"]["clips_removed"] == found["clips"]["replaced"] == 1
        assert httpx.put(f"{url}/1/pin").status_code == 204
        (tmp_path / "state" / "generations" / "000001" / "manifest.json").write_text("{")
        for damaged in (httpx.get(f"{url}/1"), httpx.post(f"{url}/1/rollback"), httpx.get(f"{url}/1/diff/3")):
            assert (damaged.status_code, "cannot be read" in damaged.json()["detail"]) == (409, True)
        assert httpx.delete(f"{url}/1/pin").status_code == 204
        assert httpx.get(f"{url}/998").status_code == 404


@pytest.mark.slow
def test_a_source_that_cannot_be_read_again_is_rolled_back_to_the_latest_only(tmp_path: Path) -> None:
    settings = load(None, {**SETTINGS, "state_dir": tmp_path / "state"})
    with Daemon(settings, Replay.from_settings(None)) as running:
        finished(running)
        refused = httpx.post(f"{running.url}/v1/generations/1/rollback")
        assert (refused.status_code, "resume from latest" in refused.text) == (409, True)
        assert roll_back(running, 1, resume_from="latest")["went_back_to"] == 1


@pytest.mark.slow
def test_a_disk_that_is_full_refuses_a_rollback_and_learning_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemon(tmp_path) as (running, _):
        finished(running)

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Generations, "copy", full)
        url = f"{running.url}/v1/generations/1/rollback"
        refused = httpx.post(url, json={"resume_from": "latest"})
        assert (refused.status_code, "No space left" in refused.text) == (409, True)
        monkeypatch.undo()
        assert roll_back(running, 1, resume_from="latest")["went_back_to"] == 1


@pytest.mark.slow
def test_a_newer_generation_that_is_pinned_meanwhile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemon(tmp_path) as (running, _):
        finished(running)
        url, copy = f"{running.url}/v1/generations", Generations.copy
        newest = running.state.generations.current()

        def while_an_operator_pins(generations: Generations, of: int, generation: Any) -> None:
            assert httpx.put(f"{url}/{newest}/pin").status_code == 204
            copy(generations, of, generation)

        monkeypatch.setattr(Generations, "copy", while_an_operator_pins)
        refused = httpx.post(f"{url}/1/rollback", json={"resume_from": "latest"})
        assert (refused.status_code, f"unpin {newest}" in refused.text) == (409, True)
        assert httpx.get(f"{url}/{newest}").json()["number"] == running.state.generations.current() == newest
        monkeypatch.undo()
        assert httpx.delete(f"{url}/{newest}/pin").status_code == 204
        assert roll_back(running, 1, resume_from="latest")["went_back_to"] == 1


@pytest.mark.slow
def test_it_answers_so_until_a_clip_is_learned_and_makes_no_generation_meanwhile(tmp_path: Path) -> None:
    small = {"learner.batch_size": 2, "checkpoint.interval_clips": CLIPS // 3, "search.refresh_share": 0.125}
    settings = load(None, {**SETTINGS, **small, "state_dir": tmp_path / "state"})
    one = Daemon(settings, ListSource(list(records()[: CLIPS // 3])))
    recorder = Recorder(one)
    with one as running:
        finished(running)  # 24 clips in 12 steps: the first vectors are old enough for a refresh
        done = roll_back(running, 1, resume_from="latest")
        settled = running.pipeline.mailbox.ask(lambda: [running.pipeline.settle() for _ in range(5)], 60)
        assert settled[-1]
        assert same([recorder.ask(question) for question in QUESTIONS], recorder.answers[done["generation"]])
        assert running.state.generations.current() == done["generation"]


@pytest.mark.slow
def test_an_index_in_lists_answers_as_it_did_near_misses_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlearn.index_lists._POINTS_PER_LIST", 8)
    sizes = Sizes(flat_max=200, fresh_min=50, fresh_max=50)
    monkeypatch.setattr("streamlearn.eras.Partition", partial(IndexPartition, sizes=sizes))
    rng = np.random.default_rng(0)

    def put(state: Any, names: range) -> None:
        """As a batch of the stream does."""
        vectors = rng.standard_normal((len(names), state.learner.online.dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        clips = [replace(BLANK, video_id=f"more-{name}", step=state.learner.steps, task="studio") for name in names]
        with state.catalog.transaction():
            rows, replaced = state.catalog.put(clips)
            state.eras.remove(replaced)
            state.eras.upsert(rows, vectors)

    settings = load(None, {**SETTINGS, "drift.detector": "none", "state_dir": tmp_path / "state"})
    with Daemon(settings, ListSource(list(records()[: CLIPS // 3]))) as running:
        finished(running)
        state, queries = running.state, rng.standard_normal((40, running.state.learner.online.dim)).tolist()

        def answers() -> list[list[tuple[str, float]]]:
            asked = [SearchRequest(query=Query(vector=query), limit=10) for query in queries]
            return [[(hit.video_id, hit.score) for hit in running.service.search(one).results] for one in asked]

        def change(names: range) -> Any:
            put(state, names)
            state.eras.current.partition.close()
            state.checkpoint()  # swaps in what was compacted
            return state.generations.current(), state.eras.current.partition.layout, answers()

        def work(what: Callable[[], Any]) -> Any:
            return running.pipeline.mailbox.ask(what, 60)

        work(lambda: change(range(800)))
        work(lambda: change(range(790, 830)))  # some wait, beside the lists, and ten are of clips that there were
        then = work(lambda: change(range(825, 840)))
        later = work(lambda: change(range(500, 1_500)))
        assert then[1].name != later[1].name
        assert then[2] != later[2]
        roll_back(running, then[0], resume_from="latest")
        assert answers() == then[2]
        assert work(lambda: state.eras.current.partition.layout.name) == then[1].name
    with Daemon(settings, ListSource()) as running:
        state = running.state
        assert answers() == then[2]
        view = state.eras.views()[-1].partition
        exact = view.vectors(view.rows) @ np.array(queries, np.float32).T
        best = {tuple(sorted(view.rows[np.argsort(-scores)[:10]].tolist())) for scores in exact.T}
        found = {tuple(sorted(rows.tolist())) for rows in view.search(np.array(queries, np.float32), 10)[1]}
        assert best != found  # there are near misses


@pytest.mark.slow
def test_an_idle_daemon_waits_for_lists_and_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlearn.index_lists._POINTS_PER_LIST", 4)
    sizes = Sizes(flat_max=10, at_once_max=10, fresh_min=50, fresh_max=50)
    monkeypatch.setattr("streamlearn.eras.Partition", partial(IndexPartition, sizes=sizes))
    go, made = threading.Event(), streamlearn.index.compacted

    def compacted(*arguments: Any, **named: Any) -> Any:
        assert go.wait(60)
        return made(*arguments, **named)

    monkeypatch.setattr("streamlearn.index.compacted", compacted)
    settings = load(None, {**SETTINGS, "state_dir": tmp_path / "state", "evaluate.heldout_ratio": 0.0})
    with Daemon(settings, ListSource(list(records()[: CLIPS // 2]), ends=False)) as running:
        until(lambda: len(running.service.tasks()) == 2, "a task has ended")
        until(lambda: running.service.status()["stale_clips"] == 0, "its era is encoded anew")
        go.set()
        until(lambda: running.service.status()["state"] == "idle", "all is done")
        state = running.pipeline.mailbox.ask(lambda: running.state, 60)
        layout, current = state.eras.eras[0].partition.layout, state.generations.current()
        assert layout is not None
        assert state.generations.manifest(current)["state"]["eras"][0]["lists"] == layout.name


def template(tmp_path: Path) -> tuple[Path, list[list[Answer]]]:
    """A state directory of a daemon that has ended, and its answers then and at generation 2."""
    with daemon(tmp_path / "template") as (running, recorder):
        finished(running)
        until(lambda: running.service.status()["stale_clips"] == 0, "sealed eras are re-encoded")
    answers = recorder.answers
    with daemon(tmp_path / "template", drift__detector="none") as (running, recorder):
        return tmp_path / "template" / "state", [[recorder.ask(q) for q in QUESTIONS], without(answers[2], DELETED)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt-get install strace")
def test_killed_at_any_durable_step_of_it_the_state_is_that_of_before_or_after(tmp_path: Path) -> None:
    state, (before, after) = template(tmp_path)
    outcomes = []
    for call, instants in (("rename,renameat,renameat2", (1, 2)), ("fsync", (6, 7)), ("fdatasync", (4,))):
        for nth in instants:
            work = tmp_path / f"{call[:6]}-{nth}"
            shutil.copytree(state, work / "state", symlinks=True)
            killed = subprocess.run(
                ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}",
                 "-e", f"inject={call}:signal=SIGKILL:when={nth}", sys.executable, "-m", "streamlearn",
                 "generations", "rollback", "2", "--resume-from", "latest", "--set", f"state_dir={work / 'state'}"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert killed.returncode != 0, f"{call} {nth} was not reached"
            with daemon(work) as (running, recorder):
                finished(running)
                answers = [recorder.ask(question) for question in QUESTIONS]
            assert same(answers, before) != same(answers, after)
            outcomes.append(same(answers, after))
            shutil.rmtree(work)
    assert set(outcomes) == {False, True}


class Told(ListSource):
    """The first task, and a sink that keeps the events of every daemon."""

    events_told: ClassVar[list[Mapping[str, Any]]]

    @classmethod
    def from_settings(cls, settings: Any) -> Told:
        return cls(records()[: CLIPS // 3])

    def events(self) -> EventSink:
        return ListedEvents(self.events_told)


class ListedEvents:
    source = "/streamlearn/test"

    def __init__(self, told: list[Mapping[str, Any]]) -> None:
        self.deliver, self.close = told.extend, lambda: None


@pytest.mark.slow
def test_a_rollback_without_a_daemon_is_told_by_the_next_one_until_it_has_a_generation_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Mapping[str, Any]] = []
    monkeypatch.setattr(Told, "events_told", told, raising=False)
    monkeypatch.setitem(SETTINGS, "source", "tests.test_rollback:Told")
    with daemon(tmp_path) as (running, _):
        finished(running)
        generations = running.state.generations
    done = roll_back_offline(generations, 1, "generation")
    told.clear()
    for _ in range(2):
        with daemon(tmp_path) as (running, _):
            finished(running)
    backs = [event for event in told if event["type"] == "rollback.done"]
    assert [event["subject"] for event in backs] == [str(done.generation)]
    assert backs[0]["data"] == {**asdict(done), "model_version": backs[0]["data"]["model_version"]}
    assert told.index(backs[0]) == 0  # before what was published because of it


class Starts(ListSource):
    """Notes where it was started."""

    def start(self, offsets: Offsets) -> None:
        self.offsets = dict(offsets)
        super().start(offsets)


def of_two_partitions() -> Starts:
    """The second one is met after the first checkpoints, and begins late in its log."""
    clips = Stream().clips("studio", 48)
    return Starts([
        Record(clip.key, clip.value, Position("clips", "0", i) if i < 24 else Position("clips", "1", 100 + i))
        for i, clip in enumerate(clips)
    ])  # fmt: skip


LATER = Partition("clips", "1")
ON = {"checkpoint__interval_clips": 8, "checkpoint__keep": 99}


@pytest.mark.slow
def test_partitions_that_a_generation_has_not_met_are_read_from_where_they_began(tmp_path: Path) -> None:
    with stream_daemon(tmp_path, of_two_partitions(), **ON) as running:
        settled(running)
        generations = running.state.generations
        first = next(n for n in generations.numbers() if generations.read(n).offsets)
        assert LATER not in generations.read(first).offsets
    roll_back_offline(generations, first, "generation")
    back = generations.newest_good()
    assert back is not None
    assert back.offsets == {**generations.read(first).offsets, LATER: 124}


@pytest.mark.parametrize("resume_from", ["generation", "latest"])
def test_and_so_they_are_after_a_second_rollback(tmp_path: Path, resume_from: ResumeFrom) -> None:
    """The generations that had met them are gone with the first one."""
    with stream_daemon(tmp_path, of_two_partitions(), **ON) as running:
        settled(running)
        generations = running.state.generations
        first, second, *_ = (n for n in generations.numbers() if LATER not in generations.read(n).offsets)
    roll_back_offline(generations, second, resume_from)
    roll_back_offline(generations, first, "generation")
    back = generations.newest_good()
    assert back is not None
    assert back.offsets == {**generations.read(first).offsets, LATER: 124}


def test_of_a_log_that_was_made_anew_meanwhile_that_is_the_lowest_offset_that_was_read(tmp_path: Path) -> None:
    """An offset of the log that is gone would leave out what the new one holds before it."""
    source = of_two_partitions()
    with stream_daemon(tmp_path, source, **ON) as running:
        settled(running)
        generations = running.state.generations
        first = next(n for n in generations.numbers() if generations.read(n).offsets)
    clips = Stream().clips("night", 24)
    anew = [Record(clip.key, clip.value, Position("clips", "1", 3 + i)) for i, clip in enumerate(clips)]
    with stream_daemon(tmp_path, Anew(anew), **ON) as running:
        settled(running)
    roll_back_offline(generations, first, "generation")
    back = generations.newest_good()
    assert back is not None
    assert back.offsets[LATER] == 3


class Anew(Starts):
    """Its second partition is another log than what the checkpoint has: read from its beginning."""

    def start(self, offsets: Offsets) -> None:
        super().start({partition: offset for partition, offset in offsets.items() if partition != LATER})


def test_so_are_those_that_only_damaged_generations_have_met(tmp_path: Path) -> None:
    with stream_daemon(tmp_path, of_two_partitions(), **ON) as running:
        settled(running)
        everything = running.service.status()["clips"]
        generations = running.state.generations
    newer = [n for n in generations.numbers() if LATER in generations.read(n).offsets]
    for number in newer:
        (tmp_path / "state" / "generations" / f"{number:06d}" / "online.safetensors").write_bytes(b"")
    source = of_two_partitions()
    with stream_daemon(tmp_path, source, **ON) as running:
        settled(running)
        assert running.service.status()["clips"] == everything
    assert source.offsets[LATER] == 124


class Kept(RememberingSource):
    """Two batches, as often as it is opened; the one opened last is `opened`."""

    opened: ClassVar[Kept]

    @classmethod
    def from_settings(cls, settings: Any) -> Kept:
        cls.opened = cls(records()[:16])
        return cls.opened


CLIPS_0 = Partition("clips", "0")


def test_each_generation_hands_back_what_the_source_kept_beside_its_offsets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "source", "tests.test_rollback:Kept")
    monkeypatch.setitem(SETTINGS, "checkpoint.interval_clips", 8)
    with daemon(tmp_path) as (running, _):
        assert Kept.opened.began == (None, {})
        finished(running)
        generations = running.state.generations
        first = next(n for n in generations.numbers() if generations.read(n).offsets == {CLIPS_0: 8})
        roll_back(running, first)
        assert Kept.opened.began == ([[*CLIPS_0, 8]], {CLIPS_0: 8})
        until(lambda: running.state.clips == 16, "the rest is read again")
        roll_back(running, first, resume_from="latest")  # whose offsets are those of the present, and so is the memo
    with daemon(tmp_path):
        assert Kept.opened.began == ([[*CLIPS_0, 16]], {CLIPS_0: 16})
    for resume_from, offset in (("latest", 16), ("generation", 8)):
        roll_back_offline(generations, first, resume_from)  # type: ignore[arg-type]
        with daemon(tmp_path):
            assert Kept.opened.began == ([[*CLIPS_0, offset]], {CLIPS_0: offset})


class Once(ListSource):
    """It can be started the first time it is opened."""

    opened = 0

    @classmethod
    def from_settings(cls, settings: Any) -> Once:
        cls.opened += 1
        return cls(records()[:16])

    def start(self, offsets: Offsets) -> None:
        if self.opened > 1:
            raise SettingsError("there is no such folder")
        super().start(offsets)


def test_a_source_that_cannot_be_read_after_a_rollback_is_no_rollback_that_was_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a daemon that waits for ever for a source that was not started."""
    monkeypatch.setattr(Once, "opened", 0)
    monkeypatch.setitem(SETTINGS, "source", "tests.test_rollback:Once")
    monkeypatch.setitem(SETTINGS, "checkpoint.interval_clips", 8)
    with daemon(tmp_path) as (running, _):
        finished(running)
        current = running.state.generations.current()
        answer = httpx.post(f"{running.url}/v1/generations/1/rollback", timeout=120)
        assert answer.status_code == 500
        status = until(lambda: (s := running.service.status())["state"] == "stopped" and s, "it says so")
        assert status["generation"] == current + 1
        assert "rolled back to generation 1, but nothing can be read: there is no such folder" in status["detail"]


def test_a_source_without_a_memo_leaves_that_of_another_one_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a replay learns into the state directory of a daemon, which goes on afterwards."""
    monkeypatch.setitem(SETTINGS, "checkpoint.interval_clips", 8)
    for source in ("Kept", "Replay", "Kept"):
        monkeypatch.setitem(SETTINGS, "source", f"tests.test_rollback:{source}")
        with daemon(tmp_path) as (running, _):
            finished(running)
            if source == "Replay":
                roll_back(running, running.state.generations.numbers()[-2], resume_from="latest")
    assert Kept.opened.began[0] == [[*CLIPS_0, 16]]


def test_a_generation_of_an_older_version_has_nothing_to_hand_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = Cut.facts
    monkeypatch.setattr(Cut, "facts", lambda cut: {name: v for name, v in facts(cut).items() if name != "memo"})
    monkeypatch.setitem(SETTINGS, "source", "tests.test_rollback:Kept")
    with daemon(tmp_path) as (running, _):
        finished(running)
    with daemon(tmp_path):
        assert Kept.opened.began == (None, {CLIPS_0: 16})


def test_generations_of_another_state_directory_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with daemon(tmp_path / name) as (running, _):
            finished(running)
    shutil.copy(tmp_path / "a" / "state" / "catalog.db", tmp_path / "b" / "state" / "catalog.db")
    with pytest.raises(StateError, match=r"vectors of lineage .* restore both from the same backup"):
        with daemon(tmp_path / "b"):
            pass


@pytest.mark.slow
def test_vectors_of_other_media_settings_are_refused_or_carried_over_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with daemon(tmp_path) as (running, _):
        finished(running)
        clips = running.service.status()["searchable"]
        ask = SearchRequest(query=Query(text="a star"), limit=1, include=["vector"])
        before = running.service.search(ask)
    with pytest.raises(StateError, match=r"media.frames = 4 \(was 8\).*media.frames=8.*--on-mismatch carry"):
        with daemon(tmp_path, media__frames=4):
            pass
    with daemon(tmp_path, media__frames=4, checkpoint__on_mismatch="carry") as (running, _):
        finished(running)
        assert f"streamlearn_index_carried_clips {float(clips)}" in httpx.get(f"{running.url}/metrics").text
        assert f"{clips} clips keep vectors that were made otherwise" in caplog.text
        vector = Query(vector=before.results[0].vector, model_version=before.model_version)
        with pytest.raises(SearchError, match="cannot be compared"):  # of a client that kept it
            running.service.search(SearchRequest(query=vector))
        running.pipeline.mailbox.ask(running.state.checkpoint, 60)
    with daemon(tmp_path, media__frames=4) as (running, _):  # from now on these are the state's
        finished(running)
        assert running.state.carried_clips() == clips
