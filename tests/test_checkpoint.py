"""Generations: written aside, verified, published by one rename; whatever a crash or a disk does to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlearn import durable
from streamlearn.checkpoint import FORMAT, Generation, Generations
from streamlearn.errors import NewerStateError, StateError
from streamlearn.records import Partition
from streamlearn.retention import Kept, Retention

OFFSETS = {Partition("clips", "0"): 7, Partition("clips", "1"): 0}


def generation(number: int, *, eras: int = 0) -> Generation:
    tensors: dict[str, dict[str, Tensor]] = {
        "online": {"w": torch.full((3, 2), float(number)), "steps": torch.tensor(number)},
        "queue": {"ids": torch.arange(4), "empty": torch.zeros(0, 5)},
    }
    sealed = {f"eras/{era:04d}": partial(pair, era) for era in range(1, eras + 1)}
    return Generation(number, OFFSETS, {"clips": 10 * number, "tasks": ["a", "日"]}, tensors, sealed)


def pair(era: int) -> dict[str, Tensor]:
    return {"w": torch.full((4,), float(era)).half()}


@pytest.fixture
def generations(tmp_path: Path) -> Generations:
    return Generations(tmp_path, Retention(2))


def checkpoint(generations: Generations, *numbers: int, eras: int = 0) -> None:
    for number in numbers:
        generations.write(generation(number, eras=eras))
        generations.publish(number)


def folder(generations: Generations, number: int) -> Path:
    return generations.folder / f"{number:06d}"


def same(a: Generation, b: Generation) -> bool:
    """Whether what was read is what was written, or the same as something else that was."""
    x, y = ({**g.tensors, **{part: make() for part, make in g.sealed.items()}} for g in (a, b))
    return (a.number, dict(a.offsets), a.state, a.created) == (b.number, dict(b.offsets), b.state, b.created) and all(
        torch.equal(x[part][name], y[part][name]) and x[part].keys() == y[part].keys()
        for part in x.keys() | y.keys()
        for name in x[part]
    )


def test_what_was_written_is_read_back(generations: Generations) -> None:
    written = generation(1, eras=2)
    generations.write(written)
    generations.publish(1)
    read = Generations(generations.state_dir, Retention(2)).newest_good()
    assert read is not None
    assert same(read, written)


def test_a_new_state_directory_has_no_generation_and_asking_makes_nothing(tmp_path: Path) -> None:
    generations = Generations(tmp_path / "state", Retention(2))
    assert (generations.current(), generations.numbers(), generations.newest_good()) == (None, [], None)
    generations.drop_unpublished()
    assert not (tmp_path / "state").exists()


def test_nothing_counts_before_it_is_published(generations: Generations) -> None:
    generations.write(generation(1))
    assert generations.newest_good() is None
    generations.publish(1)
    generations.write(generation(2))
    assert generations.numbers() == [1]
    newest = generations.newest_good()
    assert newest is not None
    assert newest.number == 1


def test_what_a_crash_left_is_swept_away_and_written_over(generations: Generations) -> None:
    checkpoint(generations, 1)
    generations.write(generation(2))  # and not published
    aside = generations.folder / ".writing-000003"
    (aside / "eras").mkdir(parents=True)
    (aside / "online.safetensors").write_bytes(b"half of it")
    (generations.state_dir / ".current").symlink_to("generations/000002")
    generations.drop_unpublished()
    assert [path.name for path in generations.folder.iterdir()] == ["000001"]
    checkpoint(generations, 2)
    newest = generations.newest_good()
    assert newest is not None
    assert newest.number == 2
    assert not (generations.state_dir / ".current").is_symlink()


def test_an_unpublished_generation_of_the_same_number_is_replaced_whole(generations: Generations) -> None:
    checkpoint(generations, 1)
    generations.write(generation(2, eras=1))
    checkpoint(generations, 2)
    assert not (folder(generations, 2) / "eras").exists()
    assert same(generations.read(2), replace(generation(2), created=generations.read(2).created))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda at: flip(at / "online.safetensors"),
    "a missing file": lambda at: (at / "queue.safetensors").unlink(),
    "a truncated file": lambda at: (at / "online.safetensors").write_bytes(b""),
    "no manifest": lambda at: (at / "manifest.json").unlink(),
    "an empty manifest": lambda at: (at / "manifest.json").write_text(""),
    "half a manifest": lambda at: (at / "manifest.json").write_text((at / "manifest.json").read_text()[:99]),
    "a manifest that is a list": lambda at: (at / "manifest.json").write_text("[]"),
    "a manifest without sums": lambda at: (at / "manifest.json").write_text('{"format": 1}'),
    "a manifest of another kind": lambda at: (at / "manifest.json").write_text('{"format": "1"}'),
    "bytes in the manifest": lambda at: (at / "manifest.json").write_bytes(b"\xff\xfe{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_generation_is_passed_over_counted_and_told(
    generations: Generations, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint(generations, 1, 2)
    damage(folder(generations, 2))
    newest = generations.newest_good()
    assert newest is not None
    assert newest.number == 1
    assert generations.rejected == 1
    assert "generation 2 does not verify" in caplog.text
    with pytest.raises(StateError):
        generations.read(2)


def test_state_of_which_no_generation_verifies_is_refused(generations: Generations) -> None:
    checkpoint(generations, 1, 2)
    for number in (1, 2):
        flip(folder(generations, number) / "online.safetensors")
    with pytest.raises(StateError, match="none of the generations"):
        generations.newest_good()


def test_state_whose_generations_are_gone_is_refused_and_not_begun_anew(generations: Generations) -> None:
    checkpoint(generations, 1)
    folder(generations, 1).rename(generations.state_dir / "elsewhere")
    with pytest.raises(StateError, match="backup"):
        generations.newest_good()


def test_a_newer_format_is_refused_with_the_remedy_and_no_older_one_is_taken(generations: Generations) -> None:
    checkpoint(generations, 1, 2)
    path = folder(generations, 2) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    for ask in (generations.newest_good, lambda: generations.read(2), lambda: generations.manifest(2)):
        with pytest.raises(NewerStateError, match="upgrade streamlearn"):
            ask()


def test_pruning_keeps_the_newest_and_says_which_cuts_go_with_them(generations: Generations) -> None:
    checkpoint(generations, 1)
    assert generations.prune() == [1]
    checkpoint(generations, 2, 3, 4)
    assert generations.prune() == [3, 4]
    assert generations.numbers() == [3, 4]
    assert generations.read(3).number == 3


def test_files_of_sealed_eras_are_shared_and_outlive_the_generation_that_wrote_them(generations: Generations) -> None:
    checkpoint(generations, 1, eras=1)
    checkpoint(generations, 2, eras=2)
    first, second = (folder(generations, n) / "eras" / "0001.safetensors" for n in (1, 2))
    assert first.stat().st_ino == second.stat().st_ino
    checkpoint(generations, 3, eras=2)
    generations.prune()
    assert not first.exists()
    read = generations.read(3)
    assert read.tensors["eras/0001"]["w"].tolist() == [1.0] * 4
    assert read.tensors["eras/0002"]["w"].tolist() == [2.0] * 4


def test_a_sealed_part_is_made_once_and_one_of_them_is_verified_at_each_checkpoint(
    generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of a checkpoint does not grow with the eras, and a file that rots is found within so many of them."""
    made: list[int] = []

    def counted(era: int) -> dict[str, Tensor]:
        made.append(era)
        return pair(era)

    read: list[str] = []
    real = durable.sum_of
    monkeypatch.setattr(durable, "sum_of", lambda path: read.append(path.name) or real(path))
    for number in range(1, 7):
        given = generation(number)
        sealed = {f"eras/{era:04d}": partial(counted, era) for era in (1, 2, 3)}
        read.clear()
        generations.write(replace(given, sealed=sealed))
        generations.publish(number)
        if number > 1:
            assert [name for name in read if name.startswith("000")] == [f"{number % 3 + 1:04d}.safetensors"]
    assert made == [1, 2, 3]
    flip(folder(generations, 6) / "eras" / "0002.safetensors")
    for number in range(7, 10):
        generations.write(replace(generation(number), sealed=sealed))
        generations.publish(number)
    assert made == [1, 2, 3, 2]
    assert generations.read(9).tensors["eras/0002"]["w"].tolist() == [2.0] * 4


def test_a_copy_is_the_other_generation_under_a_new_number_and_takes_no_room(generations: Generations) -> None:
    checkpoint(generations, 1, 2, 3, eras=1)
    generations.copy(1, rolled_back(4, to=1, cut=1))
    generations.publish(4)
    assert generations.numbers() == [1, 2, 3, 4]
    read = generations.read(4)
    assert (read.cut, read.tensors["online"]["steps"]) == (1, 1)
    for file in ("online.safetensors", "eras/0001.safetensors"):
        assert (folder(generations, 1) / file).samefile(folder(generations, 4) / file)
    generations.drop_unpublished()  # what a crash after the publication leaves to do
    assert generations.numbers() == [1, 4]
    checkpoint(generations, 5, eras=1)
    generations.drop_unpublished()
    assert generations.numbers() == [1, 4, 5]
    assert generations.prune() == [1, 5]


def rolled_back(number: int, *, to: int, cut: int) -> Generation:
    wanted = generation(number)
    return replace(wanted, cut=cut, state={**wanted.state, "parent": {"lineage": "a", "generation": to}})


def test_going_back_to_what_a_rollback_made_keeps_that_and_all_before_it_at_the_next_start(
    generations: Generations,
) -> None:
    checkpoint(generations, 1, 2, 3)
    generations.copy(1, rolled_back(4, to=1, cut=1))
    generations.publish(4)
    generations.drop((2, 3))
    checkpoint(generations, 5)
    generations.pin(4)
    generations.copy(4, rolled_back(6, to=4, cut=1))
    generations.publish(6)
    generations.drop_unpublished()
    assert generations.numbers() == [1, 4, 6]


def test_a_pinned_generation_stays_until_it_is_unpinned_and_the_pin_survives_a_restart(
    generations: Generations,
) -> None:
    checkpoint(generations, 1, 2)
    generations.pin(1)
    checkpoint(generations, 3, 4, 5)
    again = Generations(generations.state_dir, Retention(2))
    assert again.prune() == [1, 4, 5]
    assert again.read(1).number == 1
    again.pin(1, pinned=False)
    again.pin(4, pinned=False)  # was never pinned
    assert again.prune() == [4, 5]
    for pinned in (True, False):
        with pytest.raises(StateError, match="there is no generation 3"):
            again.pin(3, pinned=pinned)


def test_a_generation_that_is_pinned_while_others_are_pruned_stays(generations: Generations) -> None:
    class Late(Retention):
        """An operator pins one after it was looked at."""

        def choose(self, found: Sequence[Kept]) -> set[int]:
            Generations(generations.state_dir, Retention(1)).pin(2)
            return super().choose(found)

    checkpoint(generations, 1, 2, 3, 4)
    late = Generations(generations.state_dir, Late(1))
    assert late.prune() == [2, 4]
    assert late.numbers() == [2, 4]
    assert late.read(2).number == 2


def test_a_pin_is_refused_while_generations_are_being_deleted(
    generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(generations, 1, 2, 3, 4)
    refused, rmtree = [], shutil.rmtree

    def slowly(path: Path, **named: Any) -> None:
        if path.exists():  # an operator, meanwhile
            for number in (2, 3):
                with pytest.raises(StateError, match=f"there is no generation {number}"):
                    generations.pin(number)
                refused.append(number)
        rmtree(path, **named)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    generations.drop((2, 3))
    assert refused == [2, 3, 2, 3]
    assert generations.numbers() == [1, 4]


def test_a_pin_that_comes_too_late_is_told_that_there_is_no_such_generation(
    generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(generations, 1, 2)
    monkeypatch.setattr(Generations, "numbers", lambda _: [1, 2, 3])  # as it was looked at
    for pinned in (True, False):
        with pytest.raises(StateError, match="there is no generation 3"):
            generations.pin(3, pinned=pinned)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_an_era_file_that_rots_is_written_anew_and_not_carried_along(generations: Generations, damage: Any) -> None:
    checkpoint(generations, 1, eras=1)
    damage(folder(generations, 1) / "eras" / "0001.safetensors")
    checkpoint(generations, 2, eras=1)
    assert same(generations.read(2), replace(generation(2, eras=1), created=generations.read(2).created))


def test_going_back_to_an_older_generation_is_one_publication(generations: Generations) -> None:
    checkpoint(generations, 1, 2)
    generations.publish(1)
    assert generations.numbers() == [1]
    generations.drop_unpublished()
    assert [path.name for path in generations.folder.iterdir()] == ["000001"]


def test_generations_without_the_link_that_names_the_current_one_are_refused_and_kept(generations: Generations) -> None:
    checkpoint(generations, 1, 2, 3)
    (generations.state_dir / "current").unlink()
    with pytest.raises(StateError, match="ln -s generations/NUMBER current"):
        generations.newest_good()
    assert folder(generations, 3).is_dir()


def test_what_else_lies_beside_the_generations_is_nobodys_business(generations: Generations) -> None:
    checkpoint(generations, 1, 2)
    shutil.copytree(folder(generations, 2), generations.folder / "000002.bak")  # as an operator does
    (generations.folder / "2 is the good one.txt").touch()
    again = Generations(generations.state_dir, Retention(1))
    newest = again.newest_good()
    assert newest is not None
    assert newest.number == 2
    again.drop_unpublished()
    assert again.prune() == [2]
    assert sorted(path.name for path in again.folder.iterdir()) == ["000002", "000002.bak", "2 is the good one.txt"]


def test_a_generation_that_is_dropped_is_gone_at_once_for_whoever_looks(
    generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    remove = shutil.rmtree

    def rmtree(path: Path, **how: bool) -> None:
        if path.exists():
            seen.append(generations.numbers())
        remove(path, **how)

    checkpoint(generations, 1, 2, 3, 4)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert generations.prune() == [3, 4]
    generations.drop([4])
    assert seen == [[3, 4], [3, 4], [3]]
