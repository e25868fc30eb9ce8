"""Pages of one ranking: where the next one begins, and how places far down go on from those before them."""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt

from streamlearn.errors import SearchError
from streamlearn.records import Vectors

_DEEPEST = 100_000  # where a page can begin


def token_of(offset: int) -> str | None:
    """None where no page can begin."""
    if offset > _DEEPEST:
        return None
    return base64.urlsafe_b64encode(f"o{offset}".encode()).decode()


def offset_of(token: str | None) -> int:
    """Where the page begins.

    Raises:
        SearchError: it is no token of ours.
    """
    if token is None:
        return 0
    try:
        text = base64.urlsafe_b64decode(token).decode()
        if not text.startswith("o") or not 0 <= int(text[1:]) <= _DEEPEST:
            raise ValueError(token)
    except ValueError as error:
        raise SearchError("page_token is not one that this server gave; leave it out to begin anew") from error
    return int(text[1:])


def continued(
    first: tuple[Vectors, npt.NDArray[np.int64]], whole: tuple[Vectors, npt.NDArray[np.int64]]
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """The first places as they are, and then whatever else a deeper search finds, in its order.

    A near miss of the first is among these, with a score above theirs: a page that was given is not given anew.

    Args:
        first: scores and rows of one query, (n,) each, -1 where there are no more.
        whole: the same, (m,) each.

    Returns:
        Scores and rows; n + m at most.
    """
    there = first[1] >= 0
    new = ~np.isin(whole[1], first[1][there])
    return np.concatenate([first[0][there], whole[0][new]]), np.concatenate([first[1][there], whole[1][new]])
