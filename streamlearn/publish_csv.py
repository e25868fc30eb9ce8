"""Rows of a CSV manifest: a header of the clip message's field names, then a row a clip.

Cells are text; what the message wants as a number or a list is made one where the text is one, and left to the
validation of messages where it is not. It knows nothing of what is done with the rows.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamlearn.connectors.folder_readers import record_of
from streamlearn.publish_rows import Problem, Row, Rows
from streamlearn.records import Position

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_CAPTIONS = ("caption", "captions")
_MEDIA = ("path", "uri", "media_b64", "deleted")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def csv_rows(path: Path) -> Rows:
    """The rows of a `.csv`, or of a `.tsv` with tabs. `path` in a row is relative to the file's folder.

    Columns that the clip message does not know go into its `meta`, as text; an empty cell is an absent field.

    Raises:
        OSError: it cannot be read.
    """
    with _reader(path) as reader:
        start = 1
        try:
            header = [name.strip() for name in next(reader, [])]
            if (problem := _header_problem(path, header)) is not None:
                yield Problem(f"{path}:1", "missing_field", problem)
                return
            start = reader.line_num + 1
            for number, cells in enumerate(reader, 1):
                where = f"{path}:{start}"
                start = reader.line_num + 1
                if cells:
                    yield _row(path, where, number, header, cells)
        except csv.Error as error:
            # Where a quote is missing, what follows may be read shifted: guessing on would publish wrong captions.
            yield Problem(f"{path}:{start}", "unreadable", f"{_reason(error)}; the rows from here on were not read")


def count_csv(path: Path) -> int:
    """How many rows there are after the header, as far as the file can be read."""
    count = -1
    with _reader(path) as reader:
        try:
            for cells in reader:
                count += bool(cells)
        except csv.Error:
            pass
    return max(0, count)


@contextmanager
def _reader(path: Path) -> Iterator[Any]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # Bytes that are not UTF-8 become surrogates, so that each row with some can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield csv.reader(file, delimiter=delimiter, strict=True)


def _header_problem(path: Path, header: Sequence[str]) -> str | None:
    with path.open("rb") as file:
        if file.read(2) in _UTF16:
            return "the file is UTF-16; save it as UTF-8"
    expected = "\t" if path.suffix.lower() == ".tsv" else ","
    if len(header) == 1:
        for other, name in _DELIMITERS.items():
            if other != expected and other in header[0]:
                return (
                    f"the header is one column, {header[0][:80]!r}: it seems to be separated by {name}; save the file"
                    f" with {_DELIMITERS[expected]}" + (", or with tabs as .tsv" if expected == "," else "")
                )
    for number, name in enumerate(header, 1):
        if not _is_text(name):
            return f"the name of column {number} is not UTF-8; save the file as UTF-8"
    if doubled := sorted({name for name in header if name and header.count(name) > 1}):
        return f"the header names {', '.join(map(repr, doubled))} more than once; name each column once"
    has = f"it has {', '.join(header)[:200] or 'none'}; the first row names the columns"
    if not any(name in header for name in _CAPTIONS):
        return f"the header has no column caption or captions: {has}"
    if not any(name in header for name in _MEDIA):
        return f"the header has no column path or uri: {has}"
    return None


def _row(path: Path, where: str, number: int, header: Sequence[str], cells: Sequence[str]) -> Row | Problem:
    if len(cells) != len(header):
        return Problem(
            where,
            "invalid_field",
            f"the row has {len(cells)} cells, the header {len(header)}; put cells that hold the delimiter into quotes",
        )
    row: dict[str, Any] = {}
    for column, (name, text) in enumerate(zip(header, cells, strict=True), 1):
        if not _is_text(text):
            return Problem(where, "invalid_utf8", f"{name}: is not UTF-8; save the file as UTF-8")
        if text.strip():
            if not name:  # spreadsheets leave empty columns behind: these are no harm
                said = f"cell {column} has no name in the header; name its column in line 1, or empty the cell"
                return Problem(where, "invalid_field", said)
            row[name] = _CELLS.get(name, str)(text)
    if isinstance(row.get("deleted"), str):
        return Problem(where, "invalid_field", "deleted: must be true, or empty")
    return Row(where, record_of(row, path.parent, Position(str(path), "", number)))


def _is_text(text: str) -> bool:
    """Whether its bytes were UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def _captions(text: str) -> list[Any]:
    """A JSON array, or a caption a line."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, list):
        return values
    return [line.strip() for line in text.splitlines() if line.strip()]


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _flag(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.strip().lower(), text)


def _reason(error: csv.Error) -> str:
    said = str(error)
    if "field larger than" in said:
        return "a cell is too long for CSV: name videos by path or uri, or close a quote that is open"
    if "unexpected end" in said:
        return "a quote is opened here and never closed"
    return f"this is no CSV ({said}); double the quotes within a quoted cell"


_CELLS: dict[str, Callable[[str], Any]] = {
    "captions": _captions,
    "start_s": _number,
    "end_s": _number,
    "meta": _object,
    "deleted": _flag,
}
