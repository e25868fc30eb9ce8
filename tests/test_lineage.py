"""Which vectors may meet which weights."""

from __future__ import annotations

import pytest

from streamlearn.errors import StateError
from streamlearn.lineage import Reading, joined


def test_a_new_catalog_takes_the_lineage_that_comes() -> None:
    assert joined([], "a", 7, None) == [("a", 0)]


def test_a_rollback_is_a_branch_and_going_back_before_it_forgets_it() -> None:
    chain = joined([("a", 0)], "b", 5, "a")
    assert chain == [("a", 0), ("b", 5)]
    assert joined(chain, "b", 9, None) == chain
    assert joined(chain, "a", 5, None) == [("a", 0)]
    assert joined(chain, "c", 8, "b") == [*chain, ("c", 8)]
    assert joined(chain, "c", 3, "a") == [("a", 0), ("c", 3)]


@pytest.mark.parametrize(("lineage", "cut", "parent"), [("a", 6, None), ("x", 3, None), ("x", 3, "y"), ("c", 6, "a")])
def test_vectors_of_other_weights_are_refused(lineage: str, cut: int, parent: str | None) -> None:
    """Of generation 6 of lineage a, nothing is left once b left it at 5."""
    with pytest.raises(StateError, match="restore both from the same backup"):
        joined([("a", 0), ("b", 5)], lineage, cut, parent)


WRITTEN = {"media": {"media.frames": 8}, "model": {"model.text vocabulary": "abc"}}


def test_what_is_as_it_was_or_was_never_written_down_passes() -> None:
    assert Reading({"media.frames": 8, "media.new": 1}, {"model.text vocabulary": "abc"}).carried(WRITTEN, "s") == {}
    assert Reading({"media.frames": 9}, {}).carried({}, "s") == {}


def test_other_frames_may_be_carried_over_other_words_never() -> None:
    with pytest.raises(StateError, match=r"media.frames = 9 \(was 8\).*set it back \(media.frames=8\)"):
        Reading({"media.frames": 9}, {}).carried(WRITTEN, "s")
    assert Reading({"media.frames": 9}, {}, carry=True).carried(WRITTEN, "s") == {"media.frames": "8 to 9"}
    with pytest.raises(StateError, match="other files under the same names"):
        Reading({}, {"model.text vocabulary": "xyz"}, carry=True).carried(WRITTEN, "s")
