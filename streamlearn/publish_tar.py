"""Clips of a tar in WebDataset's convention: files of one name up to its first dot, side by side, are one sample.

A sample has a video and its captions in `.txt` (one a line) or `.json` (the clip message's fields); its other files
are passed over. A tar is read once from front to back and nothing of it is unpacked. Its clips have no address that
a daemon could fetch, so they are published inline.
"""

from __future__ import annotations

import base64
import contextlib
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamlearn.connectors.folder_readers import VIDEO_SUFFIXES, parsed, printable, record_of
from streamlearn.publish_rows import Problem, Row, Rows
from streamlearn.records import Position

#: As tar names itself, compressed or not.
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
_SMALLER = "unpack the tar and publish its folder, so that messages name the files"
_SORT = "a sample's files must lie side by side: make the tar with `tar --sort=name`"


def tar_rows(path: Path, *, max_bytes: int) -> Rows:
    """The samples of a tar, uncompressed or compressed by gzip, bzip2 or xz.

    A clip's id is the tar's name and its sample's, "shard-000007/000012", unless its `.json` has a `video_id`.

    Args:
        path: the tar.
        max_bytes: largest message; a larger file is not read.
    """
    opened, read = False, 0
    try:
        with tarfile.open(path, "r:*", tarinfo=_Member) as tar:
            opened = True
            for each in _samples(tar, path, max_bytes):
                read += 1
                yield each
    except _DAMAGED as error:
        if opened:
            said = f"the tar is damaged or ends early ({error}); what comes after its first {read} samples was not read"
        elif isinstance(error, OSError):
            said = f"cannot be read: {error.strerror or error}"
        else:
            said = f"is no tar, or compressed otherwise than by gzip, bzip2 or xz, or damaged ({error})"
        yield Problem(str(path), "unreadable", said)


def count_samples(path: Path) -> int | None:
    """How many samples with a video there are; None where all would have to be decompressed to know."""
    count, last = 0, ""
    with contextlib.suppress(*_DAMAGED), tarfile.open(path, "r:") as tar:
        for member in _members(tar):
            key, suffix = _split(member.name)
            if suffix in VIDEO_SUFFIXES and key != last:
                count, last = count + 1, key
        return count
    return None


class _Member(tarfile.TarInfo):
    """A header. `tarfile` takes a damaged one for the end of the tar, and so would lose clips without a word."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the end mark
                raise
            raise tarfile.ReadError(f"at byte {tarfile_.offset}: {error}") from error


@dataclass
class _Sample:
    key: str
    row: dict[str, Any] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    video: bytes | None = None
    mtime_s: float = 0
    is_clip: bool = False
    problems: list[Problem] = field(default_factory=list)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep all headers
        yield member


def _samples(tar: tarfile.TarFile, path: Path, max_bytes: int) -> Rows:
    current: _Sample | None = None
    seen: set[str] = set()
    for member in _members(tar):
        name = member.name.removeprefix("./")
        key, suffix = _split(name)
        if member.isdir() or not suffix or posixpath.basename(name).startswith("."):
            continue
        where = f"{path}:{name}"
        if (problem := _unsafe(member, name)) is not None:
            yield Problem(where, "media_forbidden", problem)
            continue
        if current is None or key != current.key:
            if current is not None:
                yield from _finished(current, path, len(seen))
            current = _Sample(key)
            if key in seen:
                current.problems.append(
                    Problem(where, "invalid_field", f"comes apart from {key}'s other files; {_SORT}")
                )
            seen.add(key)
        _take(current, tar, member, suffix, where, max_bytes)
    if current is not None:
        yield from _finished(current, path, len(seen))


def _unsafe(member: tarfile.TarInfo, name: str) -> str | None:
    if name.startswith("/") or ".." in name.split("/"):
        return "its name leads out of the tar; pack it with a relative name and without .."
    if not member.isreg():
        return "is a link or a device; only regular files are read: pack with `tar --dereference`"
    return None


def _take(
    sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, where: str, max_bytes: int
) -> None:
    """Add one file to its sample."""
    is_video = suffix in VIDEO_SUFFIXES
    if not is_video and suffix not in (".txt", ".json"):
        return
    sample.is_clip = True
    # Base64 makes four bytes of three.
    size = member.size * 4 // 3 if is_video else member.size
    if size > max_bytes:
        sample.problems.append(
            Problem(
                where,
                "message_too_large",
                f"has {member.size} bytes, {size} of them in a message, which may have {max_bytes}; what is in a tar is"
                f" sent inline: {_SMALLER}, or raise media.max_bytes",
            )
        )
        return
    content = tar.extractfile(member)
    assert content is not None, "a regular file has content"
    data = content.read()
    if is_video:
        if sample.video is not None:
            sample.problems.append(Problem(where, "invalid_field", "is a second video of its sample; keep one"))
        sample.video, sample.mtime_s = data, member.mtime
    elif suffix == ".json":
        row = parsed(data)
        if row is None:
            sample.problems.append(Problem(where, "invalid_json", "is no JSON object"))
        else:
            sample.row |= row
    else:
        try:
            sample.captions += [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            sample.problems.append(
                Problem(where, "invalid_utf8", f"byte {error.start} is not UTF-8; encode it as UTF-8")
            )


def _finished(sample: _Sample, path: Path, number: int) -> Rows:
    where = f"{path}:{sample.key}"
    if sample.problems:
        yield from sample.problems
        return
    if not sample.is_clip:
        return  # a README, or a sample of something else
    row = sample.row
    if sample.video is None and "uri" not in row and row.get("deleted") is not True:
        yield Problem(where, "media_not_found", f"has no video ({' '.join(sorted(VIDEO_SUFFIXES))}); {_SORT}")
        return
    if sample.captions and not {"caption", "captions"} & row.keys():
        row["captions"] = sample.captions
    if "id" not in row:
        row.setdefault("video_id", printable(f"{_stem(path)}/{sample.key}"))
    if sample.video is not None:
        row["media_b64"] = base64.b64encode(sample.video).decode()
    yield Row(where, record_of(row, None, Position(str(path), "", number)), smaller=_SMALLER)


def _split(name: str) -> tuple[str, str]:
    """Key and last suffix of a member: "a/b.c.mp4" is ("a/b", ".mp4")."""
    folder, base = posixpath.split(name.removeprefix("./"))
    stem, dot, suffix = base.partition(".")
    return posixpath.join(folder, stem), "." + suffix.rpartition(".")[2].lower() if dot else ""


def _stem(path: Path) -> str:
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem
