"""WebDataset tars: what a sample is, what is refused, and that no clip of a damaged one is lost without a word."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from streamlearn.publish import validate
from streamlearn.publish_messages import Rules
from streamlearn.publish_rows import Problem, Row
from streamlearn.publish_tar import count_samples, tar_rows
from tests.published import MEDIA, RULES


def pack(path: Path, files: list[tuple[str, bytes]], mode: Any = "w", links: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for link in links:
            tar.addfile(link)
    return path


def sample(key: str, caption: str = "a cat") -> list[tuple[str, bytes]]:
    return [(f"{key}.mp4", MEDIA + key.encode()), (f"{key}.txt", caption.encode())]


def bodies(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row.record.value or b"") for row in tar_rows(path, max_bytes=10**6) if isinstance(row, Row)]


def problems(path: Path, rules: Rules = RULES) -> list[Problem]:
    return list(validate([path], rules).problems)


@pytest.mark.parametrize(
    ("name", "mode"), [("s7.tar", "w"), ("s7.tar.gz", "w:gz"), ("s7.tgz", "w:gz"), ("s7.tar.xz", "w:xz")]
)
def test_files_of_one_name_are_one_clip_with_its_video_inline(tmp_path: Path, name: str, mode: str) -> None:
    meta = json.dumps({"caption": "from json", "cam": "7", "path": "/once/upon/a.mp4", "nested": {"a": [1]}}).encode()
    path = pack(
        tmp_path / name,
        [
            ("README", b"no sample"),
            ("./0001.mp4", MEDIA),
            ("./0001.txt", b"\xef\xbb\xbfa red ball\nrolls away\n"),
            ("0002.json", meta),
            ("0002.small.webm", b"two"),
            ("0002.txt", b"not this"),
            ("0002.jpg", b"a thumbnail"),
            ("deep/0003.mp4", b"three"),
            ("deep/0003.json", b'{"video_id": "own", "captions": ["c"], "split": "test"}'),
        ],
        mode,
    )
    first, second, third = bodies(path)
    assert first == {
        "video_id": "s7/0001",
        "captions": ["a red ball", "rolls away"],
        "media_b64": base64.b64encode(MEDIA).decode(),
    }
    assert (second["video_id"], second["caption"], second["cam"]) == ("s7/0002", "from json", "7")
    assert (third["video_id"], third["split"]) == ("own", "heldout")
    report = validate([path], RULES)
    assert (report.published, report.problems) == (3, ())
    assert count_samples(path) == (3 if mode == "w" else None)


def test_a_name_that_is_not_utf8_is_an_id_that_can_be_stored(tmp_path: Path) -> None:
    path = pack(tmp_path / "s7.tar", [(os.fsdecode(b"caf\xe9.mp4"), MEDIA), (os.fsdecode(b"caf\xe9.txt"), b"a cat")])
    assert bodies(path)[0]["video_id"] == "s7/caf\\xe9"
    assert problems(path) == []


def test_shards_with_the_same_keys_do_not_replace_each_other(tmp_path: Path) -> None:
    shards = [pack(tmp_path / f"shard-{n}.tar", sample("0")) for n in range(2)]
    assert [bodies(path)[0]["video_id"] for path in shards] == ["shard-0/0", "shard-1/0"]


def test_a_sample_that_lacks_something_is_named(tmp_path: Path) -> None:
    path = pack(
        tmp_path / "s.tar",
        [
            ("a.txt", b"no video"),
            ("b.mp4", MEDIA),
            *sample("c"),
            ("d.mp4", MEDIA),
            ("d.json", b"[]"),
            ("e.mp4", MEDIA),
            ("e.webm", MEDIA),
            ("e.txt", b"two videos"),
            ("f.mp4", MEDIA),
            ("f.txt", b"\xff"),
        ],
    )
    assert [(p.where, p.code) for p in problems(path)] == [
        (f"{path}:a", "media_not_found"),
        (f"{path}:b", "missing_field"),
        (f"{path}:d.json", "invalid_json"),
        (f"{path}:e.webm", "invalid_field"),
        (f"{path}:f.txt", "invalid_utf8"),
    ]
    assert validate([path], RULES).published == 1


def test_files_that_do_not_lie_side_by_side_are_told_how_to_be_sorted(tmp_path: Path) -> None:
    path = pack(tmp_path / "s.tar", [("a.mp4", MEDIA), ("b.mp4", MEDIA), ("a.txt", b"a"), ("b.txt", b"b")])
    found = problems(path)
    assert validate([path], RULES).published == 0
    assert [p.where for p in found] == [f"{path}:{name}" for name in ("a", "b", "a.txt", "b.txt")]
    assert "tar --sort=name" in found[2].message


def test_links_devices_and_ways_out_are_refused_and_the_others_read(tmp_path: Path) -> None:
    links = []
    for name, kind in (("x.mp4", tarfile.SYMTYPE), ("y.mp4", tarfile.LNKTYPE), ("z.mp4", tarfile.FIFOTYPE)):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        links.append(info)
    path = pack(
        tmp_path / "s.tar",
        [("../up.mp4", MEDIA), ("/top.mp4", MEDIA), ("a/../../b.mp4", MEDIA), *sample("c")],
        links=tuple(links),
    )
    assert [(p.where.removeprefix(f"{path}:"), p.code) for p in problems(path)] == [
        (name, "media_forbidden") for name in ("../up.mp4", "/top.mp4", "a/../../b.mp4", "x.mp4", "y.mp4", "z.mp4")
    ]
    assert [body["video_id"] for body in bodies(path)] == ["s/c"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["s.tar"]


def test_what_macos_adds_is_passed_over(tmp_path: Path) -> None:
    path = pack(tmp_path / "s.tar", [("._0.mp4", b"\0"), *sample("0"), (".DS_Store", b"\0")])
    assert problems(path) == []
    assert [body["video_id"] for body in bodies(path)] == ["s/0"]


def test_a_clip_too_large_for_a_message_is_not_read_and_told_to_be_unpacked(tmp_path: Path) -> None:
    path = pack(tmp_path / "s.tar", [("a.mp4", bytes(2_000)), ("a.txt", b"large"), *sample("b")])
    (problem,) = problems(path, Rules(2_500, 1_000))
    assert (problem.where, problem.code) == (f"{path}:a.mp4", "message_too_large")
    assert "unpack the tar" in problem.message
    assert problems(path, Rules(5_000, 1_000)) == []


def test_a_video_in_a_tar_is_sent_by_its_uri_where_its_json_has_one(tmp_path: Path) -> None:
    path = pack(tmp_path / "s.tar", [("a.json", b'{"uri": "https://h/a.mp4", "caption": "far away"}')])
    assert problems(path) == []
    assert bodies(path)[0]["uri"] == "https://h/a.mp4"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_tar_that_was_cut_off_says_so(tmp_path: Path, mode: str, keep: float) -> None:
    path = tmp_path / ("s.tar" if mode == "w" else "s.tar.gz")
    pack(path, [file for n in range(40) for file in sample(f"{n:03}", f"clip {n}" * 30)], mode)
    whole = path.read_bytes()
    data = whole.rstrip(b"\0") if mode == "w" else whole
    path.write_bytes(data[: int(len(data) * keep)])
    report = validate([path], RULES)
    assert report.published < 40
    assert (report.problems[-1].where, report.problems[-1].code) == (str(path), "unreadable")


def test_a_damaged_header_and_a_missing_end_are_no_end(tmp_path: Path) -> None:
    path = pack(tmp_path / "s.tar", sample("0") + sample("1") + sample("2"))
    whole = path.read_bytes()
    header = 2 * 4 * 512  # the third sample's first; each has two headers with a block of data each
    path.write_bytes(whole[:header] + b"\x11" * 100 + whole[header + 100 :])
    report = validate([path], RULES)
    assert report.published == 1  # the second may have had another file
    assert "ends early" in report.problems[-1].message
    path.write_bytes(whole[: 3 * 4 * 512])
    report = validate([path], RULES)
    assert report.problems[-1].code == "unreadable"
    assert report.published >= 2


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"\x28\xb5\x2f\xfd" + bytes(2_000)])
def test_what_is_no_tar_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    (problem,) = problems(path)
    assert (problem.where, problem.code) == (str(path), "unreadable")
    assert "is no tar" in problem.message
