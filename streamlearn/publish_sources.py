"""What a path names that can be published, and its rows: the one place that knows all forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from streamlearn.connectors.folder_readers import MANIFEST
from streamlearn.errors import SettingsError
from streamlearn.publish_csv import count_csv, csv_rows
from streamlearn.publish_rows import Problem, Rows, count_lines, count_videos, jsonl_rows, video_rows
from streamlearn.publish_tar import SUFFIXES, count_samples, tar_rows


class _Source(NamedTuple):
    path: Path
    rows: Callable[[], Rows]
    size: Callable[[], int | None]


def rows_of(paths: Sequence[Path], *, max_bytes: int) -> Rows:
    """The rows of all paths, in their order; a wrong path is said before the first row is read.

    Args:
        paths: folders (with a manifest.jsonl, or videos with sidecars), and files: .jsonl, .csv, .tsv, .tar.
        max_bytes: largest message.

    Raises:
        SettingsError: a path is none of these.
    """
    return _rows_of([_source(path, max_bytes) for path in paths])


def count(paths: Sequence[Path]) -> int | None:
    """About how many rows there are, for a bar; None where only reading them tells.

    Raises:
        SettingsError: a path is none that can be published.
    """
    total = 0
    for source in [_source(path, 0) for path in paths]:
        try:
            number = source.size()
        except OSError:
            number = 0  # reading it says why
        if number is None:
            return None
        total += number
    return total


def _rows_of(sources: Sequence[_Source]) -> Rows:
    for source in sources:
        found = False
        try:
            for row in source.rows():
                found = True
                yield row
        except OSError as error:
            found = True
            yield Problem(str(source.path), "unreadable", f"cannot be read: {error.strerror or error}")
        if not found:
            said = "holds no row"
            if source.path.is_dir():
                said = f"holds no {MANIFEST} and no video file; name .jsonl, .csv and .tar files themselves"
            yield Problem(str(source.path), "no_clips", said)


def _source(path: Path, max_bytes: int) -> _Source:
    if not path.exists():
        raise SettingsError(f"{path}: there is no such file or folder")
    if path.is_dir() and not (path / MANIFEST).exists():
        return _Source(path, partial(video_rows, path), partial(count_videos, path))
    file = path / MANIFEST if path.is_dir() else path
    name = file.name.lower()
    if name.endswith((".jsonl", ".ndjson")):
        return _Source(file, partial(jsonl_rows, file), partial(count_lines, file))
    if name.endswith((".csv", ".tsv")):
        return _Source(file, partial(csv_rows, file), partial(count_csv, file))
    if name.endswith(SUFFIXES):
        return _Source(file, partial(tar_rows, file, max_bytes=max_bytes), partial(count_samples, file))
    raise SettingsError(
        f"{path}: name a folder of videos with sidecars or with a {MANIFEST}, or a manifest: .jsonl, .csv, .tsv, .tar"
    )
