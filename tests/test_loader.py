"""The decode pool: every record gets its answer, whatever its neighbours do to their decoders."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from PIL import Image

from streamlearn.loader import Loader
from streamlearn.records import Clip, Record, Rejected, Tombstone
from tests.media import load_options, load_or_misbehave, raw_record, record, sound, video

TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def loader(clips: Path) -> Iterator[Loader]:
    pool = Loader(load_options(allowed_roots=(clips,)), workers=1, task=load_or_misbehave)
    yield pool
    pool.close()


def test_clip_has_everything_the_message_said(loader: Loader, clips: Path) -> None:
    media = video()
    (clips / "a.mp4").write_bytes(media)
    uri = (clips / "a.mp4").as_uri()
    message = {
        "video_id": "v1",
        "uri": uri,
        "captions": ["one", "two"],
        "start_s": 0.5,
        "end_s": 1.5,
        "meta": {"cam": "7"},
        "fps": 10,
        "time": "2026-11-21T10:00:00Z",
        "split": "train",
        "task": "kitchen",
    }
    source = record(message, offset=42)

    clip = loader.submit(source).result(TIMEOUT_S)

    assert isinstance(clip, Clip)
    assert clip.frames.shape == (4, 16, 16, 3)
    with Image.open(io.BytesIO(clip.kept)) as tall:
        assert tall.size == (32, 4 * 32)
    assert (clip.video_id, clip.captions, clip.uri) == ("v1", ("one", "two"), uri)
    assert (clip.start_s, clip.end_s, clip.meta) == (0.5, 1.5, {"fps": 10, "cam": "7"})
    assert (clip.time, clip.split, clip.task) == ("2026-11-21T10:00:00Z", "train", "kitchen")
    assert clip.position == source.position
    assert clip.sha256 == hashlib.sha256(media).hexdigest()


def test_media_may_travel_in_the_record(loader: Loader) -> None:
    media = video("libvpx", "webm")
    inside = {"media_b64": base64.b64encode(media).decode(), "caption": "c"}
    for source in (record(inside), raw_record(media)):
        clip = loader.submit(source).result(TIMEOUT_S)
        assert isinstance(clip, Clip)
        assert (clip.video_id, clip.uri) == ("clip-1", None)


def test_null_value_becomes_a_tombstone(loader: Loader) -> None:
    source = record(None, key=b"gone")
    assert loader.submit(source).result(TIMEOUT_S) == Tombstone("gone", source.position)


@pytest.mark.parametrize(
    ("source", "stage", "code"),
    [
        (record(b"not json"), "validate", "invalid_json"),
        (record({"uri": "file:///etc/hostname", "caption": "c"}), "fetch", "media_forbidden"),
        (raw_record(b"#!/bin/sh\n" * 99), "decode", "not_a_video"),
        (raw_record(sound()), "decode", "no_video_stream"),
        (record({"media_b64": "", "caption": "c"}), "fetch", "media_empty"),
        (record(json.dumps({"caption": "x" * 2**20, "uri": "s3://a"}).encode()), "validate", "invalid_field"),
    ],
)
def test_bad_record_is_rejected_with_itself(loader: Loader, source: Record, stage: str, code: str) -> None:
    rejected = loader.submit(source).result(TIMEOUT_S)
    assert isinstance(rejected, Rejected)
    assert (rejected.stage, rejected.code) == (stage, code)
    assert rejected.record is source


def test_unforeseen_error_costs_that_record_alone(loader: Loader) -> None:
    rejected = loader.submit(record({}, key=b"bug")).result(TIMEOUT_S)
    assert isinstance(rejected, Rejected)
    assert (rejected.code, "LookupError" in rejected.message) == ("decode_failed", True)


def test_interrupt_from_the_terminal_does_not_reach_the_children(loader: Loader) -> None:
    source = raw_record(video(frames=2), key=b"interrupt")
    assert isinstance(loader.submit(source).result(TIMEOUT_S), Clip)


def test_child_that_died_of_something_else_costs_nothing(loader: Loader, tmp_path: Path) -> None:
    source = record(str(tmp_path / "marker").encode(), key=b"kill once")
    assert loader.submit(source).result(TIMEOUT_S) == Tombstone("kill once", source.position)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_crashing_clips_cost_themselves_alone_among_fifty(workers: int) -> None:
    media = video(frames=4)
    keys = [b"good-%d" % i for i in range(50)]
    keys[7], keys[30] = b"kill", b"abort"
    pool = Loader(load_options(), workers=workers, task=load_or_misbehave)
    futures = [pool.submit(raw_record(media, key=key, offset=i)) for i, key in enumerate(keys)]
    events = [future.result(TIMEOUT_S) for future in futures]
    pool.close()

    bad = {i: event for i, event in enumerate(events) if not isinstance(event, Clip)}
    assert sorted(bad) == [7, 30]
    assert all(isinstance(e, Rejected) and (e.stage, e.code) == ("decode", "decoder_crashed") for e in bad.values())
    assert [event.position.offset for event in events] == list(range(50))


@pytest.mark.slow
def test_hanging_clip_is_given_up_after_its_time() -> None:
    pool = Loader(load_options(timeout_s=0.5), workers=1, task=load_or_misbehave)
    hanging = pool.submit(record({}, key=b"hang"))
    after = pool.submit(record(None, key=b"after"))
    rejected = hanging.result(TIMEOUT_S)
    assert isinstance(rejected, Rejected)
    assert (rejected.stage, rejected.code, "0.5 s" in rejected.message) == ("decode", "decode_timeout", True)
    assert isinstance(after.result(TIMEOUT_S), Tombstone)
    pool.close()


def test_close_cancels_what_is_outstanding_and_takes_no_more() -> None:
    pool = Loader(load_options(), workers=1, task=load_or_misbehave)
    assert isinstance(pool.submit(record(None)).result(TIMEOUT_S), Tombstone)
    futures = [pool.submit(record({}, key=b"hang")) for _ in range(3)]
    pool.close()
    pool.close()
    for future in [*futures, pool.submit(record(None))]:
        with pytest.raises(CancelledError):
            future.result(TIMEOUT_S)


@pytest.mark.slow
def test_children_of_a_console_script_with_torch_threads_import_nothing_heavy(tmp_path: Path) -> None:
    # A script of its own, since a child imports its parent's main module: pytest's would be counted too.
    root = Path(__file__).parent.parent
    script = tmp_path / "streamlearn-script"
    script.write_text(
        "from streamlearn.loader import Loader\n"
        "from tests.media import imported_modules, load_options, record\n"
        "if __name__ == '__main__':\n"
        "    import torch\n"
        "    torch.ones(512, 512) @ torch.ones(512, 512)\n"
        "    pool = Loader(load_options(), workers=1, task=imported_modules)\n"
        "    print(pool.submit(record(None)).result(100).video_id)\n"
        "    pool.close()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {"av", "numpy", "streamlearn"} <= imported
    assert not {"torch", "transformers", "faiss", "decord"} & imported


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed: the extra `decord`")
def test_decord_that_crashes_on_half_a_file_costs_that_file(clips: Path) -> None:
    whole = video(frames=200, gop=10)
    pool = Loader(load_options(decoder="decord"), workers=1)
    cuts = [pool.submit(raw_record(whole[: len(whole) * part // 10])) for part in range(1, 10)]
    good = pool.submit(raw_record(whole))
    assert all(isinstance(cut.result(TIMEOUT_S), Clip | Rejected) for cut in cuts)
    assert isinstance(good.result(TIMEOUT_S), Clip)
    pool.close()
