"""CSV manifests: what cells become, and where it is said what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamlearn.publish import validate
from streamlearn.publish_csv import count_csv, csv_rows
from streamlearn.publish_rows import Problem, Row
from tests.published import MEDIA, RULES


def write(folder: Path, text: str | bytes, name: str = "clips.csv") -> Path:
    (folder / "a.mp4").write_bytes(MEDIA)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path) -> list[Problem]:
    return list(validate([path], RULES).problems)


def bodies(path: Path) -> list[dict[str, object]]:
    rows = list(csv_rows(path))
    assert all(isinstance(row, Row) for row in rows)
    return [json.loads(row.record.value or b"null") for row in rows if isinstance(row, Row)]


def test_columns_become_fields_and_unknown_ones_meta(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "video_id,path,captions,start_s,end_s,cam,split,meta\n"
        'v1,a.mp4,"[""a cat"", ""a dog""]",1.5,2,007,val,"{""lens"": 35}"\n'
        'v2,a.mp4,"one line\nanother",,,,,\n',
    )
    assert bodies(path) == [
        {"video_id": "v1", "captions": ["a cat", "a dog"], "start_s": 1.5, "end_s": 2.0, "cam": "007"}
        | {"split": "heldout", "meta": {"lens": 35}, "uri": (tmp_path / "a.mp4").as_uri()},
        {"video_id": "v2", "captions": ["one line", "another"], "uri": (tmp_path / "a.mp4").as_uri()},
    ]
    report = validate([path], RULES)
    assert (report.published, report.problems) == (2, ())


def test_a_caption_is_one_text_whatever_is_in_it(tmp_path: Path) -> None:
    path = write(tmp_path, 'id,path,caption\nv1,a.mp4,"[a cat], ""quoted"""\n')
    assert bodies(path)[0]["caption"] == '[a cat], "quoted"'


def test_a_row_is_named_by_the_line_where_it_begins(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'video_id,path,caption\nv1,a.mp4,"over\nthree\nlines"\n\nv2,gone.mp4,a cat\nv3,a.mp4,a,b\nv4,a.mp4,\n'
        "v5,a.mp4,a dog\nv6,a.mp4\n",
    )
    assert [(p.where, p.code) for p in problems(path)] == [
        (f"{path}:6", "media_not_found"),
        (f"{path}:7", "invalid_field"),
        (f"{path}:8", "missing_field"),
        (f"{path}:10", "invalid_field"),
    ]
    assert validate([path], RULES).published == 2
    assert count_csv(path) == 6


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_name(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbfvideo_id,path,caption\r\nv1,a.mp4,a cat\r\nv2,nowhere.mp4,a dog\r\n")
    assert [p.where for p in problems(path)] == [f"{path}:3"]
    assert bodies(path)[0]["video_id"] == "v1"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("clips.csv", "video_id;path;caption\nv1;a.mp4;a cat\n", "separated by semicolons"),
        ("clips.csv", "video_id\tpath\tcaption\nv1\ta.mp4\ta cat\n", "separated by tabs"),
        ("clips.tsv", "video_id,path,caption\nv1,a.mp4,a cat\n", "separated by commas"),
        ("clips.csv", "v1,a.mp4,a cat\n", "no column caption or captions: it has v1, a.mp4, a cat"),
        ("clips.csv", "video_id,caption\nv1,a cat\n", "no column path or uri"),
        ("clips.csv", "caption,path,caption\na,b,c\n", "names 'caption' more than once"),
        ("clips.csv", "video_id,path,caption\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("clips.csv", "", "it has none"),
        ("clips.csv", b"video_id,path,caption,caf\xe9\nv1,a.mp4,a cat,x\n", "name of column 4 is not UTF-8"),
    ],
)
def test_a_header_that_names_no_columns_is_one_sentence(
    tmp_path: Path, name: str, text: str | bytes, said: str
) -> None:
    path = write(tmp_path, text, name)
    (problem,) = problems(path)
    assert problem.where == f"{path}:1"
    assert said in problem.message


def test_a_column_without_a_name_may_be_there_and_must_be_empty(tmp_path: Path) -> None:
    path = write(tmp_path, "video_id,path,caption, ,\nv1,a.mp4,a cat,,\nv2,a.mp4,a dog,,lost\nv3,a.mp4,a bird, ,\n")
    (problem,) = problems(path)
    assert (problem.where, problem.code) == (f"{path}:3", "invalid_field")
    assert "cell 5" in problem.message
    assert "name its column in line 1" in problem.message
    assert bodies(write(tmp_path, "video_id,path,caption,\nv1,a.mp4,a cat,\n"))[0].keys() == {
        "video_id",
        "uri",
        "caption",
    }


def test_tabs_separate_a_tsv(tmp_path: Path) -> None:
    path = write(tmp_path, "video_id\tpath\tcaption\nv1\ta.mp4\ta cat, and a dog\n", "clips.tsv")
    assert bodies(path)[0]["caption"] == "a cat, and a dog"


def test_numbers_that_are_none_and_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        b'video_id,path,caption,start_s\nv1,a.mp4,a cat,nan\nv2,a.mp4,caf\xe9,\nv3,a.mp4,a dog,"1,5"\nv4,a.mp4,a,0\n',
    )
    found = problems(path)
    assert [(p.where, p.code) for p in found] == [
        (f"{path}:2", "invalid_field"),
        (f"{path}:3", "invalid_utf8"),
        (f"{path}:4", "invalid_field"),
    ]
    assert "start_s" in found[0].message
    assert "caption" in found[1].message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('v2,a.mp4,"a cat\nv3,a.mp4,a dog\n', "never closed"),
        ('v2,a.mp4,"a "big" cat"\nv3,a.mp4,a dog\n', "double the quotes"),
        (f"v2,a.mp4,{'a' * 200_000}\nv3,a.mp4,a dog\n", "too long for CSV"),
    ],
)
def test_nothing_is_guessed_after_quotes_went_wrong(tmp_path: Path, row: str, said: str) -> None:
    path = write(tmp_path, f"video_id,path,caption\nv1,a.mp4,a bird\n{row}")
    report = validate([path], RULES)
    assert report.published == 1
    (problem,) = report.problems
    assert (problem.where, problem.code) == (f"{path}:3", "unreadable")
    assert said in problem.message


def test_a_row_deletes_its_clip_and_an_unclear_one_does_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "video_id,path,caption,deleted\nv1,,,TRUE\nv2,a.mp4,a cat,false\nv3,a.mp4,a dog,perhaps\n")
    rows = list(csv_rows(path))
    assert isinstance(rows[0], Row)
    assert (rows[0].record.key, rows[0].record.value) == (b"v1", None)
    assert isinstance(rows[1], Row)
    assert isinstance(rows[2], Problem)
    assert "deleted" in rows[2].message
