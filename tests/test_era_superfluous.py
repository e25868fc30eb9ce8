"""Boundaries that were superfluous: the eras on both sides of one become one, and which do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.era_decisions import decisions
from streamlearn.era_maps import Mapped
from streamlearn.era_merge import Merge, Merger, Refusal
from streamlearn.eras import Eras
from streamlearn.records import Vectors
from streamlearn.settings import ModelSettings, load
from streamlearn.warmup import build_towers
from tests.parts import BATCH, Parts, indexed
from tests.test_era_merge import Knows, One, judged
from tests.test_eras import tensors_of

FIRST, SECOND = range(10), range(10, 20)


def agreed(first: One, second: One, *, most_loss: float = 0.1, last: range = SECOND) -> tuple[int, int] | None:
    """(keep, absorb) of two eras, each with ten judges, in either order."""
    eras = [first, second]
    merger = Merger(0.0, "keep")
    asked = judged((first, FIRST), (second, last))
    merge = merger.superfluous(eras, asked, [(first, second), (second, first)], most_loss)
    return (merge.keep, merge.absorb) if isinstance(merge, Merge) else None


def test_eras_agree_where_the_pair_of_one_finds_the_clips_of_both() -> None:
    assert agreed(One(1, *FIRST, *SECOND), One(2, *SECOND)) == (1, 2)
    assert agreed(One(1, *FIRST), One(2, *FIRST, *SECOND)) == (2, 1)
    assert agreed(One(1, *FIRST), One(2, *SECOND)) is None


def test_few_clips_do_not_agree() -> None:
    assert agreed(One(1, *FIRST, *SECOND), One(2, *SECOND), last=range(10, 19)) is None


def test_eras_that_know_nothing_do_not_agree_though_nothing_is_lost() -> None:
    assert agreed(One(1), One(2), most_loss=0.9) is None


def test_what_is_lost_on_some_and_gained_on_others_is_not_agreement_but_chance() -> None:
    # The second knows half of its clips, the first the other half.
    assert agreed(One(1, *FIRST, *range(10, 15)), One(2, *range(15, 20))) is None
    assert agreed(One(1, *FIRST, *SECOND), One(2, *range(15, 20))) == (1, 2)


def test_eras_agree_only_where_the_clips_are_also_told_from_learned_ones() -> None:
    first, second = One(1, *FIRST, *SECOND), One(2, *SECOND, *range(20, 30))
    asked = judged((first, FIRST), (second, SECOND))
    asked[2] = replace(asked[2], learned=second.encoder.texts([str(n) for n in range(20, 30)]))
    merger = Merger(0.0, "keep")
    assert isinstance(merger.superfluous([first, second], asked, [(first, second)], 0.1), Merge)
    plain = first.encoder.texts

    def blurred(texts: Sequence[str]) -> Vectors:
        """What it says of the second's clips is nearer to clips that the second has learned."""
        near = [str(int(text) + 10 * (int(text) in SECOND)) for text in texts]
        return 0.6 * plain(texts) + 0.8 * One(0, *range(30)).encoder.texts(near)

    first.encoder.texts = blurred  # type: ignore[method-assign]
    assert isinstance(merger.superfluous([first, second], asked, [(first, second)], 0.1), Refusal)
    asked[2] = replace(asked[2], learned=asked[2].learned[:0])
    assert isinstance(merger.superfluous([first, second], asked, [(first, second)], 0.1), Merge)


def halves(folder: Path, count: int = 2, **search: Any) -> Parts:
    """One domain with a boundary in its middle; nothing is learned, so that the pairs are alike."""
    given = {"merge_loss": 0.1, "reencode_per_clip": 4 / BATCH, **search}
    parts = Parts(folder, towers=build_towers(ModelSettings(), 0), **given)
    for number in range(2, count + 2):
        parts.learn(12, split="heldout")
        if number <= count:
            parts.boundary(f"t{number}")
            if number < count:
                parts.finish_reencoding()
    return parts


def numbers(eras: Eras) -> list[int]:
    return [era.number for era in eras.eras]


def test_eras_on_both_sides_of_a_superfluous_boundary_become_one_at_one_moment(tmp_path: Path) -> None:
    parts = halves(tmp_path)
    parts.finish_reencoding()
    parts.boundary("t3")
    (absorbed,) = [era for era in parts.eras.eras if era.into is not None]
    kept = absorbed.into
    assert kept is not None
    while parts.eras.stale:
        assert len(indexed(parts, absorbed.number)) in (0, 12)
        assert sorted(row for era in parts.eras.views() for row in era.partition.rows.tolist()) == parts.rows
        parts.eras.reencode()
    assert numbers(parts.eras) == [kept.number, 3]
    assert kept.tasks == {"t1", "t2"}
    assert sorted(indexed(parts, kept.number)) == parts.rows
    (sealed, said, *_) = decisions(parts.eras.state(), absorbed.number)
    assert (sealed["decision"], sealed["pair"], sealed["judges"]) == ("sealed", "served", 12)
    assert (said["decision"], said["into"], said["why"], said["judges"]) == ("merged", kept.number, "agree", 24)


def test_they_stay_two_where_merging_is_off(tmp_path: Path) -> None:
    parts = halves(tmp_path, merge_loss=0.0)
    parts.finish_reencoding()
    parts.boundary("t3")
    parts.finish_reencoding()
    assert numbers(parts.eras) == [1, 2, 3]


def test_why_two_eras_stay_two_is_told_also_after_a_restart(tmp_path: Path) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), 0), merge_loss=0.05)
    for number, clips in enumerate((12, 9), 2):
        parts.learn(clips, split="heldout")
        parts.boundary(f"t{number}")
        parts.finish_reencoding()
    assert numbers(parts.eras) == [1, 2, 3]
    _, refused, _ = told = decisions(parts.eras.state(), 2)
    assert (refused["decision"], refused["with"], refused["why"]) == ("refused", 1, "agree")
    assert (refused["loss"], refused["judges"]) == (None, 9)
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    assert decisions(again.state(), 2) == told


def test_a_refusal_says_what_would_be_lost_in_the_order_that_is_nearest() -> None:
    first, second = One(1, *FIRST, *range(10, 18)), One(2, *SECOND)
    merger, asked = Merger(0.0, "keep"), judged((first, FIRST), (second, SECOND))
    refusal = merger.superfluous([first, second], asked, [(second, first), (first, second)], 0.05)
    assert isinstance(refusal, Refusal)
    lost = 2 * (1 - 1 / 20) / 20  # of 20 questions two are lost, whose clips come last then
    assert refusal.loss == pytest.approx(lost, abs=0.02)
    assert refusal.at_most is not None
    assert refusal.tolerated is not None
    assert refusal.at_most > refusal.loss > refusal.tolerated > 0
    assert (refusal.judges, refusal.gone) == (20, None)


def test_a_domain_cut_twice_becomes_one_era(tmp_path: Path) -> None:
    parts = halves(tmp_path, 3)
    parts.finish_reencoding()
    assert len(parts.eras.eras) == 2
    parts.boundary("t4")
    parts.finish_reencoding()
    (whole, _) = parts.eras.eras
    assert whole.tasks == {"t1", "t2", "t3"}
    assert sorted(indexed(parts, whole.number)) == parts.rows


def test_a_merge_that_a_restart_cuts_short_ends_alike(tmp_path: Path) -> None:
    parts = halves(tmp_path)
    parts.finish_reencoding()
    parts.boundary("t3")
    parts.eras.reencode()
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    while again.reencode():
        pass
    parts.finish_reencoding()
    assert numbers(parts.eras) == numbers(again)
    assert [facts["absorbed"] for facts in parts.eras.state()] == [facts["absorbed"] for facts in again.state()]
    for old, new in zip(parts.eras.views(), again.views(), strict=True):
        assert old.partition.rows.tolist() == new.partition.rows.tolist()
        rows = old.partition.rows
        np.testing.assert_array_equal(old.partition.vectors(rows), new.partition.vectors(rows))


def test_it_is_asked_when_an_era_ends_and_not_at_a_restart(tmp_path: Path) -> None:
    parts = halves(tmp_path, merge_loss=0.0)
    parts.finish_reencoding()
    parts.boundary("t3")
    settings = parts.settings.model_copy(update={"merge_loss": 0.1})
    again = Eras(parts.learner, parts.catalog, parts.frames, settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    while again.reencode():
        pass
    assert numbers(again) == [1, 2, 3]


@pytest.mark.parametrize("name", ["t2", "lab"])
def test_a_task_that_returns_finds_the_era_that_took_its_own_in(tmp_path: Path, name: str) -> None:
    parts = halves(tmp_path)
    parts.finish_reencoding()
    parts.boundary("t3")
    parts.finish_reencoding()
    whole = parts.eras.eras[0]
    (absorbed,) = whole.tasks - {whole.task}
    if name == "lab":
        for era in parts.eras.eras:
            era.rename(absorbed, name)
        absorbed = name
    parts.settings.merge_loss = 0.0
    parts.learn(12, "night", split="heldout")
    parts.boundary(absorbed)
    parts.finish_reencoding()
    visit = parts.learn(12, split="heldout")
    parts.boundary("t4")
    parts.finish_reencoding()
    assert whole.absorbed[-1]["why"] == "returns"
    assert set(visit) <= set(indexed(parts, whole.number))


def test_eras_that_are_read_by_a_pair_that_goes_are_read_by_the_one_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), 0), merge_loss=0.1, max_encoders=1)
    superfluous = Merger.superfluous

    def into_the_last(merger: Merger, eras: Any, judges: Any, orders: Any, most_loss: float, **read: Any) -> Any:
        orders = [(keep, absorb) for keep, absorb in orders if keep.number == 3]
        if not orders:
            return Refusal("agree", 0)
        return superfluous(merger, eras, judges, orders, most_loss, **read)

    monkeypatch.setattr(Merger, "superfluous", into_the_last)
    parts.learn(8, "night")
    for number, domain in enumerate(("night", "studio", "studio"), 1):
        parts.learn(12, domain, split="heldout")
        before = parts.publish().eras[0].encoder.texts(["a red star"]) if number == 3 else None
        parts.boundary(f"t{number + 1}")
        parts.finish_reencoding()
    assert numbers(parts.eras) == [1, 3, 4]
    first, third, _ = parts.eras.eras
    assert first.mapped is not None
    assert first.mapped.reader == 3
    assert first.encoder is not None
    assert third.encoder is not None
    assert first.encoder.reader is third.encoder.reader
    assert before is not None
    assert float(before[0] @ first.encoder.texts(["a red star"])[0]) > 0.9
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    assert numbers(again) == [1, 3, 4]


@pytest.mark.parametrize(("toml", "named"), [("0", 0.0), ("0.02", 0.02)])
def test_it_can_be_switched_off_in_a_file_and_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str, named: float
) -> None:
    file = tmp_path / "streamlearn.toml"
    file.write_text(f"[search]\nmerge_loss = {toml}\n")
    assert load(file, {}).search.merge_loss == named
    monkeypatch.setenv("STREAMLEARN_SEARCH__MERGE_LOSS", toml)
    assert load(None, {}).search.merge_loss == named


def test_boundaries_in_quick_succession_are_asked_about_too(tmp_path: Path) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), 0), merge_loss=0.05, reencode_per_clip=4 / BATCH)
    for number in range(2, 6):
        parts.learn(12, split="heldout")
        parts.boundary(f"t{number}")  # before anything is encoded anew
    parts.finish_reencoding()
    whole, _ = parts.eras.eras
    assert whole.tasks == {"t1", "t2", "t3", "t4"}
    assert sorted(indexed(parts, whole.number)) == parts.rows


def test_the_pair_that_loses_least_stays() -> None:
    # The second one's pair knows all of both, the first one's all but a tenth of the second's.
    first, second = One(1, *FIRST, *range(10, 19)), One(2, *FIRST, *SECOND)
    assert agreed(first, second, most_loss=0.9) == (2, 1)


def test_clips_must_be_told_from_each_other_also_where_all_learned_ones_are_far() -> None:
    first, second = One(1, *FIRST), One(2, *SECOND)
    asked = judged((first, FIRST), (second, SECOND))
    for number, era in ((1, first), (2, second)):  # so many that what is lost among them hides what is lost at all
        asked[number] = replace(asked[number], learned=np.repeat(era.encoder.texts(["99"]), 500, 0))
    merger = Merger(0.0, "keep")
    assert isinstance(merger.superfluous([first, second], asked, [(first, second), (second, first)], 0.05), Refusal)


def test_the_share_is_of_what_the_two_eras_know_and_not_of_what_others_do() -> None:
    others = [One(n, *range(10 * n, 10 * n + 10)) for n in range(3, 8)]
    first, second = One(1, *FIRST, *range(10, 19)), One(2, *SECOND)
    asked = judged(
        (first, FIRST), (second, SECOND), *((era, range(10 * era.number, 10 * era.number + 10)) for era in others)
    )
    merger = Merger(0.0, "keep")
    assert isinstance(merger.superfluous([first, second, *others], asked, [(first, second)], 0.1), Refusal)


def test_eras_read_by_a_pair_that_may_go_are_judged_as_they_are_read_then() -> None:
    first, second, third = One(1, *range(20, 30)), One(2, *FIRST, *SECOND), One(3, *SECOND, *FIRST)
    first.mapped = Mapped(2, 0.0, 10)
    asked = judged((first, range(20, 30)), (second, FIRST), (third, SECOND))
    merger, orders = Merger(0.0, "keep"), [(third, second)]
    eras = [first, second, third]
    assert isinstance(merger.superfluous(eras, asked, orders, 0.05, read={1: first.encoder}), Merge)
    assert isinstance(merger.superfluous(eras, asked, orders, 0.05, read={1: Knows()}), Refusal)


def test_an_era_without_a_pair_of_its_own_takes_none_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = halves(tmp_path)
    parts.finish_reencoding()
    parts.eras.eras[0].mapped = Mapped(9, 0.0, 10)
    seen: list[list[tuple[int, int]]] = []

    def noted(merger: Merger, eras: Any, judges: Any, orders: Any, most_loss: float, **read: Any) -> Refusal:
        seen.append([(keep.number, absorb.number) for keep, absorb in orders])
        return Refusal("agree", 0)

    monkeypatch.setattr(Merger, "superfluous", noted)
    parts.boundary("t3")
    assert seen == [[(2, 1)]]
