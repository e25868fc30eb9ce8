import json
import logging
import os
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from streamlearn.connectors.folder import FolderSource
from streamlearn.errors import SettingsError, SourceError
from streamlearn.records import Offsets, Partition, Record
from streamlearn.settings import Settings
from streamlearn.source import EndOfStream, Source, load_source_class

STREAMS = Path(__file__).parents[1].parent / "shared" / "streams"
ROWS = [
    {"video_id": "a", "path": "clips/a.mp4", "caption": "one red ball"},
    {"video_id": "ü", "path": "clips/ü b.mp4", "captions": ["ein Würfel", "立方体 🎲"]},
    {"video_id": "c", "path": "clips/c.mp4", "caption": "tail"},
]


def opened(folder: Path, offsets: Offsets | None = None, *, watch: bool = False, max_records: int = 64) -> FolderSource:
    source = FolderSource(folder, watch=watch, poll_interval_s=0.001, max_records=max_records)
    source.start(offsets or {})
    return source


def everything(source: FolderSource) -> list[Record]:
    """All records until the end of the stream."""
    records: list[Record] = []
    while True:
        try:
            records += source.poll(0)
        except EndOfStream:
            return records


def message(record: Record) -> dict[str, Any]:
    assert record.value is not None
    loaded = json.loads(record.value)
    assert isinstance(loaded, dict)
    return loaded


def ids(records: list[Record]) -> list[str]:
    return [message(record)["video_id"] for record in records]


def append(folder: Path, *rows: dict[str, Any]) -> None:
    with (folder / "manifest.jsonl").open("a", encoding="utf-8") as manifest:
        for row in rows:
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")


def add_video(folder: Path, name: str, *, mtime_ns: int, caption: str | None = None) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")
    os.utime(path, ns=(mtime_ns, mtime_ns))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "wild clips"
    path.mkdir()
    return path


def test_source_is_found_by_its_import_string_and_built_from_settings(folder: Path) -> None:
    append(folder, ROWS[0])
    settings = Settings.model_validate({"folder": {"path": folder, "watch": False}})
    source = load_source_class(settings.source).from_settings(settings)
    assert isinstance(source, Source)
    source.start({})
    assert [record.key for record in source.poll(0)] == [b"a"]


@pytest.mark.parametrize("is_file", [False, True])
def test_start_refuses_what_is_no_folder_and_names_the_setting(tmp_path: Path, is_file: bool) -> None:
    path = tmp_path / "clips"
    if is_file:
        path.touch()
    with pytest.raises(SettingsError, match=r"folder\.path = .*clips.* make it or name another"):
        opened(path)


def test_empty_folder_ends_at_once_and_stays_ended(folder: Path) -> None:
    source = opened(folder)
    assert everything(source) == []
    append(folder, ROWS[0])
    with pytest.raises(EndOfStream):
        source.poll(0)


def test_watched_empty_folder_returns_nothing_and_does_not_end(folder: Path) -> None:
    source = opened(folder, watch=True)
    assert source.poll(0) == []
    assert source.poll(0.01) == []


def test_row_becomes_a_clip_message_with_a_file_uri(folder: Path) -> None:
    append(folder, ROWS[1] | {"license": "CC0", "split": "train"})
    (record,) = everything(opened(folder))
    row = message(record)
    uri = urlsplit(row.pop("uri"))
    assert uri.scheme == "file"
    assert Path(unquote(uri.path)) == folder / "clips" / "ü b.mp4"
    assert row == {"video_id": "ü", "captions": ["ein Würfel", "立方体 🎲"], "license": "CC0", "split": "train"}
    assert record.key == "ü".encode()
    assert (record.position.topic, record.position.offset) == ("wild clips", 0)
    assert record.position.partition.startswith("manifest.jsonl#")
    assert record.timestamp_ms is None


def test_timestamp_is_the_time_of_change_of_the_video(folder: Path) -> None:
    add_video(folder, "clips/a.mp4", mtime_ns=5_000_000_000)
    append(folder, ROWS[0])
    (record,) = everything(opened(folder))
    assert record.timestamp_ms == 5_000


def test_a_row_may_say_that_the_clip_is_deleted(folder: Path) -> None:
    append(folder, {"id": "ü", "deleted": True}, ROWS[0] | {"deleted": False}, {"deleted": True})
    gone, kept, nobody = everything(opened(folder))
    assert (gone.key, gone.value) == ("ü".encode(), None)
    assert message(kept)["deleted"] is False
    assert (nobody.key, nobody.value) == (None, None)


def test_id_is_accepted_for_video_id(folder: Path) -> None:
    append(folder, {"id": "x", "path": "x.mp4", "caption": "y"})
    (record,) = everything(opened(folder))
    assert record.key == b"x"
    assert message(record)["video_id"] == "x"
    assert "id" not in message(record)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("val", "heldout"), ("validation", "heldout"), ("test", "heldout"), ("train", "train"), ("odd", "odd"), ([], [])],
)
def test_usual_names_of_splits_mean_heldout_and_others_pass(folder: Path, given: Any, meant: Any) -> None:
    append(folder, ROWS[0] | {"split": given})
    (record,) = everything(opened(folder))
    assert message(record)["split"] == meant


@pytest.mark.parametrize("path", ["../x.mp4", "clips/../../x.mp4", "/x.mp4"])
def test_path_that_leaves_the_folder_is_passed_on_resolved(folder: Path, path: str) -> None:
    append(folder, {"video_id": "x", "path": path, "caption": "y"})
    (record,) = everything(opened(folder))
    target = (Path("/") if path.startswith("/") else folder.parent) / "x.mp4"
    assert message(record)["uri"] == target.as_uri()


@pytest.mark.parametrize("path", ["nul\0.mp4", "\ud800.mp4", 7, None, ["a.mp4"]])
def test_impossible_path_is_left_for_the_validation_to_reject(folder: Path, path: Any) -> None:
    (folder / "manifest.jsonl").write_text(json.dumps({"video_id": "x", "path": path, "caption": "y"}) + "\n")
    append(folder, ROWS[0])
    bad, good = everything(opened(folder))
    assert message(bad) == {"video_id": "x", "path": path, "caption": "y"}
    assert good.key == b"a"


@pytest.mark.parametrize(
    "line",
    [b"{not json", b"[1, 2]", b'"text"', b"\xff\xfe\xfd", b"[" * 200_000, b'{"a": ' * 200_000, b"9" * 5_000],
    ids=["broken", "list", "string", "not-utf8", "deep-list", "deep-object", "long-number"],
)
def test_line_that_is_no_object_is_passed_on_as_its_bytes(folder: Path, line: bytes) -> None:
    good = json.dumps(ROWS[0]).encode()
    (folder / "manifest.jsonl").write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    before, bad, after = everything(opened(folder))
    assert (bad.key, bad.value) == (None, line)
    assert before.value == after.value


def test_deeply_nested_object_never_stops_the_stream(folder: Path) -> None:
    # Reading may succeed where writing again would not: every depth must give a record.
    depths = [*range(850, 1050), 5_000, 20_000, 60_000]
    lines = [b'{"video_id": "x", "path": "x.mp4", "meta": ' + b"[" * n + b"]" * n + b"}\n" for n in depths]
    (folder / "manifest.jsonl").write_bytes(b"".join(lines))
    assert len(everything(opened(folder))) == len(depths)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""], ids=["newline", "crlf", "cut"])
def test_resume_at_every_offset_equals_the_tail_of_a_full_read(folder: Path, end: bytes) -> None:
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
    lines[1:1] = [b"", b"no json", b"   "]
    content = (end or b"\n").join(lines) + end
    (folder / "manifest.jsonl").write_bytes(content)
    full = everything(opened(folder))
    assert len(full) == 4
    partition = Partition(*full[0].position[:2])
    for offset in range(len(content) + 1):
        for known_as in (partition, Partition("wild clips", "manifest.jsonl")):  # now, and in older checkpoints
            resumed = everything(opened(folder, {known_as: offset}, max_records=2))
            assert resumed == [record for record in full if record.position.offset >= offset]


def test_a_folder_that_was_moved_goes_on_where_it_was(folder: Path) -> None:
    append(folder, *ROWS)
    (first,) = opened(folder, max_records=1).poll(0)
    (folder.parent / "elsewhere").mkdir()
    moved = folder.rename(folder.parent / "elsewhere" / folder.name)
    assert ids(everything(opened(moved, {Partition(*first.position[:2]): first.position.offset + 1}))) == ["ü", "c"]


def test_another_folder_of_the_same_name_is_read_from_its_beginning(folder: Path) -> None:
    append(folder, ROWS[0])
    offsets = {Partition(*r.position[:2]): r.position.offset + 1 for r in everything(opened(folder))}
    another = folder.parent / "other" / folder.name
    another.mkdir(parents=True)
    append(another, *[row | {"video_id": f"other-{i}"} for i, row in enumerate(ROWS)])
    assert ids(everything(opened(another, offsets))) == ["other-0", "other-1", "other-2"]
    assert ids(everything(opened(folder, offsets))) == []


def test_another_folder_of_the_same_name_with_older_files_of_the_same_names_is_read(folder: Path) -> None:
    add_video(folder, "a.mp4", mtime_ns=10, caption="new")
    offsets = {Partition(*r.position[:2]): r.position.offset + 1 for r in everything(opened(folder))}
    another = folder.parent / "other" / folder.name
    add_video(another, "a.mp4", mtime_ns=5, caption="old")
    (another / "a.mp4").write_bytes(b"another video")
    os.utime(another / "a.mp4", ns=(5, 5))
    (record,) = everything(opened(another, offsets))
    assert message(record)["captions"] == ["old"]
    assert everything(opened(folder, offsets)) == []


def test_files_of_an_older_checkpoint_are_not_read_again(folder: Path) -> None:
    for name, mtime_ns in (("a.mp4", 3), ("b.mp4", 4)):
        add_video(folder, name, mtime_ns=mtime_ns, caption="x")
    assert ids(everything(opened(folder, {Partition("wild clips", "a.mp4"): 4}))) == ["b"]


def test_a_manifest_that_is_replaced_by_another_while_it_is_followed_is_read_anew(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append(folder, ROWS[0])
    source = opened(folder, watch=True)
    assert ids(list(source.poll(0))) == ["a"]
    (folder / "manifest.jsonl").unlink()
    append(folder, ROWS[1], ROWS[2], ROWS[0])  # longer than before
    with caplog.at_level(logging.WARNING):
        assert ids(list(source.poll(10))) == ["ü", "c", "a"]
    assert "it was replaced" in caplog.text


def test_one_more_than_the_position_is_the_next_offset(folder: Path) -> None:
    append(folder, *ROWS)
    source = opened(folder, max_records=1)
    (first,) = source.poll(0)
    rest = everything(opened(folder, {Partition(*first.position[:2]): first.position.offset + 1}))
    assert ids(rest) == ["ü", "c"]


def test_appended_rows_are_followed(folder: Path) -> None:
    append(folder, ROWS[0])
    source = opened(folder, watch=True)
    assert ids(list(source.poll(0))) == ["a"]
    assert source.poll(0) == []
    append(folder, *ROWS[1:])
    assert ids(list(source.poll(10))) == ["ü", "c"]


def test_waiting_poll_returns_when_a_row_comes(folder: Path) -> None:
    append(folder, ROWS[0])
    source = opened(folder, watch=True)
    source.poll(0)
    writer = Thread(target=append, args=(folder, ROWS[1]))
    writer.start()
    assert ids(list(source.poll(60))) == ["ü"]
    writer.join()


def test_incomplete_last_line_waits_for_its_end_in_a_watched_folder(folder: Path) -> None:
    append(folder, ROWS[0])
    line = json.dumps(ROWS[2]).encode()
    manifest = folder / "manifest.jsonl"
    source = opened(folder, watch=True)
    with manifest.open("ab") as file:
        file.write(line[:10])
    assert ids(list(source.poll(0))) == ["a"]
    assert source.poll(0.01) == []
    with manifest.open("ab") as file:
        file.write(line[10:])
    assert source.poll(0.01) == []
    with manifest.open("ab") as file:
        file.write(b"\n")
    assert ids(list(source.poll(10))) == ["c"]


def test_resume_inside_an_unfinished_line_goes_on_with_the_next(folder: Path) -> None:
    (folder / "manifest.jsonl").write_bytes(json.dumps(ROWS[0]).encode())
    source = opened(folder, {Partition("wild clips", "manifest.jsonl"): 1}, watch=True)
    assert source.poll(0.01) == []
    with (folder / "manifest.jsonl").open("ab") as file:
        file.write(b"\n")
    append(folder, ROWS[1])
    assert ids(list(source.poll(10))) == ["ü"]


def test_manifest_that_appears_later_is_followed(folder: Path) -> None:
    source = opened(folder, watch=True)
    assert source.poll(0) == []
    append(folder, *ROWS)
    assert ids(list(source.poll(10))) == ["a", "ü", "c"]


@pytest.mark.parametrize("watch", [True, False])
def test_manifest_that_became_shorter_was_replaced_and_is_read_from_its_beginning_with_a_warning(
    folder: Path, watch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    append(folder, ROWS[0])
    source = opened(folder, {Partition("wild clips", "manifest.jsonl"): 10_000}, watch=watch)
    with caplog.at_level(logging.WARNING):
        assert ids(list(source.poll(0)) if watch else everything(source)) == ["a"]
        assert "fewer than the 10000 already read" in caplog.text
    if watch:
        append(folder, ROWS[1])
        assert ids(list(source.poll(10))) == ["ü"]
    assert len(caplog.records) == 1


def test_manifest_wins_over_video_files(folder: Path) -> None:
    add_video(folder, "z.mp4", mtime_ns=1, caption="not named by the manifest")
    append(folder, ROWS[0])
    assert ids(everything(opened(folder))) == ["a"]


def test_poll_hands_over_no_more_than_max_records(folder: Path) -> None:
    append(folder, *ROWS)
    source = opened(folder, max_records=2)
    assert [len(source.poll(0)), len(source.poll(0))] == [2, 1]


def test_text_sidecar_gives_a_caption_a_line(folder: Path) -> None:
    add_video(folder, "day 1/a.MP4", mtime_ns=1_000_000, caption="\ufeffeins \n\n  zwei 🎲\n")
    (record,) = everything(opened(folder))
    assert record.key == b"day 1/a"
    size = (folder / "day 1/a.MP4").stat().st_size
    assert record.position == ("wild clips", f"day 1/a.MP4#{size}", 1_000_000)
    assert record.timestamp_ms == 1
    assert message(record) == {
        "video_id": "day 1/a",
        "uri": (folder / "day 1" / "a.MP4").as_uri(),
        "captions": ["eins", "zwei 🎲"],
    }


@pytest.mark.parametrize(("given", "video_id"), [({}, "a"), ({"id": "x"}, "x"), ({"video_id": "y"}, "y")])
def test_json_sidecar_is_a_clip_message_without_media(folder: Path, given: dict[str, str], video_id: str) -> None:
    add_video(folder, "a.webm", mtime_ns=1)
    (folder / "a.json").write_text(json.dumps(given | {"captions": ["c"], "meta": {"cam": "7"}, "split": "val"}))
    (record,) = everything(opened(folder))
    assert record.key == video_id.encode()
    assert message(record) == {
        "video_id": video_id,
        "captions": ["c"],
        "meta": {"cam": "7"},
        "split": "heldout",
        "uri": (folder / "a.webm").as_uri(),
    }


@pytest.mark.parametrize(("name", "content"), [("a.json", b"{broken"), ("a.json", b"[]"), ("a.txt", b"caf\xe9")])
def test_sidecar_that_cannot_be_understood_is_passed_on_as_its_bytes(folder: Path, name: str, content: bytes) -> None:
    add_video(folder, "a.mp4", mtime_ns=1)
    (folder / name).write_bytes(content)
    (record,) = everything(opened(folder))
    assert (record.key, record.value) == (b"a", content)


def test_video_without_sidecar_is_delivered_without_captions_when_not_watching(folder: Path) -> None:
    add_video(folder, "a.mp4", mtime_ns=1)
    (record,) = everything(opened(folder))
    assert message(record) == {"video_id": "a", "uri": (folder / "a.mp4").as_uri()}


def test_video_waits_for_its_sidecar_in_a_watched_folder(folder: Path) -> None:
    add_video(folder, "late.mp4", mtime_ns=1)
    add_video(folder, "b.mp4", mtime_ns=2, caption="here")
    source = opened(folder, watch=True)
    assert ids(list(source.poll(0))) == ["b"]
    assert source.poll(0.01) == []
    (folder / "late.txt").write_text("now too")
    assert ids(list(source.poll(10))) == ["late"]


def test_files_come_in_the_order_of_their_change_then_of_their_names(folder: Path) -> None:
    for name, mtime_ns in (("b.mp4", 7), ("sub/z.mkv", 3), ("a.mp4", 7), ("c.gif", 5)):
        add_video(folder, name, mtime_ns=mtime_ns, caption="x")
    assert ids(everything(opened(folder, max_records=1))) == ["sub/z", "c", "a", "b"]


def test_other_and_hidden_files_are_no_videos(folder: Path) -> None:
    for name in ("readme.md", ".a.mp4.part", ".hidden.mp4", ".trash/a.mp4", "a.mp4.part"):
        add_video(folder, name, mtime_ns=1, caption="x")
    (folder / "folder.mp4").mkdir()
    (folder / "broken link.mp4").symlink_to(folder / "nowhere.mp4")
    assert everything(opened(folder)) == []


def test_replaced_file_is_read_again(folder: Path) -> None:
    add_video(folder, "a.mp4", mtime_ns=1, caption="old")
    add_video(folder, "b.mp4", mtime_ns=2, caption="stays")
    source = opened(folder, watch=True)
    assert ids(list(source.poll(0))) == ["a", "b"]
    add_video(folder, "a.mp4", mtime_ns=3, caption="new")
    (record,) = source.poll(10)
    assert message(record)["captions"] == ["new"]
    assert record.position.offset == 3


def test_resume_after_every_file_equals_the_tail_of_a_full_read(folder: Path) -> None:
    for i, name in enumerate(("c.mp4", "a.mp4", "ü/b.mp4")):
        add_video(folder, name, mtime_ns=10 + i, caption=name)
    full = everything(opened(folder))
    for done in range(len(full) + 1):
        offsets = {Partition(*r.position[:2]): r.position.offset + 1 for r in full[:done]}
        assert everything(opened(folder, offsets)) == full[done:]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has file names that are no text")
def test_file_name_that_is_not_utf8_gets_an_id_that_can_be_stored(folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        add_video(folder, name, mtime_ns=1, caption="x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (record,) = everything(opened(folder))
    assert message(record)["video_id"] == "caf\\xe9"
    assert record.position.partition.startswith("caf\\xe9.mp4#")
    assert message(record)["uri"].endswith("caf%E9.mp4")


@pytest.fixture(params=["manifest", "files"])
def filled(folder: Path, request: pytest.FixtureRequest) -> Path:
    if request.param == "manifest":
        append(folder, *ROWS)
    else:
        for i, name in enumerate("abc"):
            add_video(folder, f"{name}.mp4", mtime_ns=1 + i, caption=name)
    return folder


def test_pause_holds_everything_and_resume_loses_nothing(filled: Path) -> None:
    expected = everything(opened(filled))
    assert len(expected) == 3
    source = opened(filled, max_records=1)
    first = list(source.poll(0))
    source.pause()
    assert [source.poll(0), source.poll(0.01)] == [[], []]
    source.resume()
    assert first + everything(source) == expected


def test_lag_counts_what_is_known_and_not_delivered(filled: Path) -> None:
    source = opened(filled, max_records=1)
    counts = []
    for _ in range(3):
        source.poll(0)
        counts.append(source.lag())
    assert counts == [{Partition("wild clips", "0"): n} for n in (2, 1, 0)]
    source.commit({})


def test_lag_of_a_manifest_follows_appends_and_resumes(folder: Path) -> None:
    append(folder, *ROWS)
    source = opened(folder, {Partition("wild clips", "manifest.jsonl"): 1}, watch=True)
    (key,) = source.lag()
    assert source.lag()[key] == 2
    append(folder, *ROWS)
    assert source.lag()[key] == 5
    source.poll(0)
    assert source.lag()[key] == 0
    append(folder, ROWS[0])
    assert source.lag()[key] == 1


def test_close_from_another_thread_ends_a_waiting_poll(folder: Path) -> None:
    source = FolderSource(folder, watch=True, poll_interval_s=3600)
    source.start({})
    polled: list[Any] = []
    waiting = Thread(target=lambda: polled.append(source.poll(3600)))
    waiting.start()
    source.close()
    waiting.join(timeout=60)
    assert polled == [[]]
    source.close()


def test_a_source_that_is_told_to_look_does_so_before_its_next_time(folder: Path) -> None:
    source = FolderSource(folder, watch=True, poll_interval_s=3600)
    source.start({})
    append(folder, ROWS[0])
    assert ids(list(source.poll(0))) == ["a"]
    assert source.poll(0) == []
    append(folder, ROWS[1])
    assert source.poll(0) == []
    source.look()
    assert ids(list(source.poll(0))) == ["ü"]
    polled: list[str] = []
    waiting = Thread(target=lambda: polled.extend(ids(list(source.poll(3600)))))
    waiting.start()
    append(folder, ROWS[2])
    source.look()
    waiting.join(timeout=60)
    assert polled == ["c"]


def test_a_paused_source_that_is_told_to_look_does_so_when_it_resumes(folder: Path) -> None:
    source = FolderSource(folder, watch=True, poll_interval_s=3600)
    source.start({})
    assert source.poll(0) == []
    source.pause()
    append(folder, ROWS[0])
    source.look()
    assert source.poll(0.01) == []
    source.resume()
    assert ids(list(source.poll(0))) == ["a"]


def test_folder_that_vanishes_is_a_source_that_may_come_back(folder: Path) -> None:
    source = opened(folder, watch=True)
    folder.rename(folder.parent / "away")
    with pytest.raises(SourceError, match="is gone") as caught:
        source.poll(0)
    assert caught.value.retriable
    (folder.parent / "away").rename(folder)
    append(folder, ROWS[0])
    assert ids(list(source.poll(10))) == ["a"]


@pytest.mark.skipif(
    not STREAMS.is_dir(), reason="the research streams are not beside this repository (../shared/streams)"
)
def test_every_real_stream_is_read_whole() -> None:
    for manifest in sorted(STREAMS.glob("*/manifest.jsonl")):
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        messages = [message(record) for record in everything(opened(manifest.parent))]
        assert [m["video_id"] for m in messages] == [row["id"] for row in rows]
        assert all(Path(unquote(urlsplit(m["uri"]).path)).is_file() for m in messages)
