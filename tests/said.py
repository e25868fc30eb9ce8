"""What the fixture `say` returns: a verb's exit code and what it printed."""

from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    code: int
    out: str
    err: str


Say = Callable[..., Said]
