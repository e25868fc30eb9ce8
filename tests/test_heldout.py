"""What is held out is never learned, what was learned is never asked, and no question can be looked up as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.catalog import ClipRow
from streamlearn.deadletters import FileDeadLetters
from streamlearn.frames import pack
from streamlearn.heldout import Footage, is_heldout, lot
from streamlearn.ledger import Ledger
from streamlearn.records import Clip, Event, Position, Tombstone
from tests.parts import Parts

FRAMES = np.zeros((2, 8, 8, 3), np.uint8)
AUTO_HELD = next(f"h{i}" for i in range(99) if is_heldout(f"h{i}", 0.5))
AUTO_TRAIN = next(f"h{i}" for i in range(99) if not is_heldout(f"h{i}", 0.5))


class Stream:
    """A ledger over a real catalog, fed batch by batch as the pipeline does it."""

    def __init__(self, folder: Path) -> None:
        self.parts = Parts(folder)
        letters = FileDeadLetters(folder / "dead.jsonl")
        self.ledger = Ledger(
            self.parts.catalog, self.parts.frames, self.parts.eras, letters, self.parts.metrics, heldout_ratio=0.5
        )

    def take(self, *events: Event) -> list[str]:
        """The splits of the batch's clips, in order, once it is written."""
        clips = {i: event for i, event in enumerate(events) if isinstance(event, Clip)}
        splits = dict(zip(clips, self.ledger.splits(list(clips.values())), strict=True))
        vectors = {i: np.full(16, 0.25, np.float32) for i in clips}
        self.ledger.write(events, splits, vectors, tasks=dict.fromkeys(range(len(events)), "t1"), step=1)
        self.ledger.settle()
        return list(splits.values())

    def live(self, video_id: str) -> ClipRow:
        found = self.parts.catalog.clip(video_id)
        assert found is not None
        return found


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path)


def clip(video_id: str, split: str = "auto", *, captions: Sequence[str] = ("a ball",), **facts: Any) -> Clip:
    return Clip(video_id, FRAMES, pack(FRAMES), tuple(captions), Position("t", "0", 0), split=split, **facts)


def gone(video_id: str) -> Tombstone:
    return Tombstone(video_id, Position("t", "0", 0))


def test_a_learned_clip_is_no_question_after_its_tombstone_in_whatever_batch_it_comes(stream: Stream) -> None:
    assert stream.take(clip("a", "train"), clip("b", "train")) == ["train", "train"]
    assert stream.take(gone("a")) == []
    assert stream.take(clip("a", "heldout")) == ["extra"]
    assert stream.take(clip("c", "train"), gone("c"), clip("c", "heldout")) == ["train", "extra"]


def test_a_learned_clip_is_no_question_after_pruning_and_is_one_after_a_rewind(stream: Stream) -> None:
    catalog = stream.parts.catalog
    catalog.begin(2)
    stream.take(clip("a", "train"))
    stream.take(gone("a"))
    catalog.begin(3)
    catalog.prune([3])
    assert stream.take(clip("a", "heldout")) == ["extra"]
    catalog.rewind(0)  # the weights are back too: they have never seen it
    assert stream.take(clip("a", "heldout")) == ["heldout"]


def test_a_held_out_clip_stays_so_when_it_comes_again_with_its_split_left_open(stream: Stream) -> None:
    assert stream.take(clip(AUTO_TRAIN, "heldout")) == ["heldout"]
    assert stream.take(clip(AUTO_TRAIN)) == ["heldout"]
    assert stream.take(clip(AUTO_TRAIN), clip(AUTO_TRAIN)) == ["heldout", "heldout"]
    assert stream.take(clip(AUTO_TRAIN, "train")) == ["train"]  # said in so many words
    assert stream.take(clip(AUTO_TRAIN, "heldout")) == ["extra"]


@pytest.mark.parametrize("together", [True, False])
def test_the_same_file_under_another_id_is_not_learned_beside_its_question(stream: Stream, together: bool) -> None:
    question, twin = clip("a", "heldout", sha256="ff"), clip("b", "train", sha256="ff", captions=("a ball", "b"))
    got = stream.take(question, twin) if together else stream.take(question) + stream.take(twin)
    assert got == ["heldout", "extra"]
    assert stream.live("b").searchable_captions == ()
    assert stream.take(clip("c", "heldout", sha256="ff")) == ["extra"]  # one question is enough
    assert stream.take(question) == ["heldout"]


@pytest.mark.parametrize("together", [True, False])
def test_a_file_that_was_learned_is_no_question_under_another_id(stream: Stream, together: bool) -> None:
    learned, twin = clip("a", "train", sha256="ff"), clip(AUTO_HELD, sha256="ff")
    got = stream.take(learned, twin) if together else stream.take(learned, gone("a")) + stream.take(twin)
    assert got == ["train", "extra"]


def test_parts_of_one_file_are_the_same_only_where_they_overlap(stream: Stream) -> None:
    def part(name: str, split: str, start_s: float | None, end_s: float | None) -> Clip:
        return clip(name, split, sha256="ff", start_s=start_s, end_s=end_s)

    assert stream.take(part("a", "heldout", 0, 10)) == ["heldout"]
    assert stream.take(part("b", "train", 10, 20), part("c", "train", 9, 11)) == ["train", "extra"]
    assert stream.take(part("d", "heldout", 20, None), part("e", "heldout", 19, 30)) == ["heldout", "extra"]
    assert stream.take(clip("whole", "train", sha256="ff")) == ["extra"]


def test_clips_of_unknown_files_share_nothing() -> None:
    assert not Footage.of(None, None, None).shares(Footage.of(None, None, None))


def test_the_question_of_a_held_out_clip_is_stored_nowhere_text_is_searched(stream: Stream) -> None:
    stream.take(
        clip("many", "heldout", captions=("asked", "other", "asked")),
        clip("one", "heldout", captions=("asked alone",)),
        clip("learned", "train", captions=("x", "y")),
    )
    many, one, learned = (stream.live(name) for name in ("many", "one", "learned"))
    assert (many.question, many.captions, many.searchable_captions) == ("asked", ("other",), ("other",))
    assert (one.question, one.captions, one.searchable_captions) == ("asked alone", ("asked alone",), ())
    assert (learned.question, learned.asked, learned.searchable_captions) == (None, "x", ("x", "y"))


def test_the_set_of_a_long_task_is_a_fair_sample_in_any_order_of_arrival(tmp_path: Path) -> None:
    """2,000 held-out clips, 100 asked: each tenth of the stream gives about ten of them, and order does not matter."""
    names = [f"clip-{i}" for i in range(2000)]
    sets = []
    for order in (names, names[::-1]):
        (tmp_path / order[0]).mkdir()
        catalog = Parts(tmp_path / order[0]).catalog
        catalog.put([ClipRow(0, n, None, None, None, ("c",), {}, None, "heldout", "t1", 0, None, "t", "0", 0)
                     for n in order])  # fmt: skip
        sets.append([c.video_id for c in catalog.heldout("t1", 100)])
        dropped = sets[-1][0]
        catalog.delete(dropped)  # a tombstone: the next lot takes the place
        assert [c.video_id for c in catalog.heldout("t1", 100)][:99] == sets[-1][1:]
        catalog.close()
    assert sets[0] == sets[1] == sorted(names, key=lot)[:100]
    tenths = np.bincount([names.index(n) // 200 for n in sets[0]], minlength=10)
    # Each tenth's share is binomial with mean 10 and deviation 3; the first hundred would give it all to one.
    assert tenths.min() >= 2
    assert tenths.max() <= 20
