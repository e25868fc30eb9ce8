"""Going back to an older generation: a new one is published that equals it, and what came between is gone.

Numbers are not used twice, so a generation's number names one thing for ever. The publication is the commit point:
before it nothing has happened, after it a restart completes what is left to do (`State.restore`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from streamlearn.catalog import Catalog
from streamlearn.checkpoint import Generation, Generations
from streamlearn.errors import StateError
from streamlearn.records import Offsets, Partition

log = logging.getLogger(__name__)

ResumeFrom = Literal["generation", "latest"]


@dataclass(frozen=True)
class Rollback:
    """What was done.

    Attributes:
        went_back_to: the generation asked for.
        generation: the new one, which equals it.
        dropped: generations that are gone.
        resume_from: where learning goes on: at the generation's offsets, or after what was last read.
        undone_clips: processed after it; they are read again, or skipped.
        kept_deleted: clips that are in it and were deleted since: they stay deleted.
    """

    went_back_to: int
    generation: int
    dropped: tuple[int, ...]
    resume_from: ResumeFrom
    undone_clips: int
    kept_deleted: int

    def __str__(self) -> str:
        again = "skipped" if self.resume_from == "latest" else "read again"
        return (
            f"rolled back to generation {self.went_back_to}, as generation {self.generation}:"
            f" {self.undone_clips} clips are {again}, {len(self.dropped)} generations gone"
        )


def prepare(
    generations: Generations,
    catalog: Catalog,
    number: int,
    resume_from: ResumeFrom,
    *,
    offsets: Offsets,
    began: Offsets,
    memo: Any,
    clips: int,
) -> tuple[Generation, Rollback]:
    """Verify the generation, and write what is to be published in its place; nothing is changed.

    Args:
        number: of the generation to go back to.
        resume_from: where learning goes on.
        generations: those of the state directory.
        catalog: likewise.
        offsets: the next to read after what was last processed.
        began: where reading of each partition began.
        memo: of the source, of these offsets.
        clips: processed so far.

    Raises:
        StateError: there is no such generation, it is damaged, or a newer one is pinned.
    """
    numbers = generations.numbers()
    if number not in numbers:
        raise StateError(f"there is no generation {number} in {generations.folder}")
    target = generations.read(number)  # all of it, with its sums
    dropped = tuple(n for n in numbers if n > number)
    _refuse_pinned(generations, dropped)
    before = target.state.get("deleted", ()) if target.cut != target.number else ()
    deleted = sorted({*catalog.deleted_since(target.cut), *before})
    undone = clips - target.state["clips"]
    done = Rollback(number, max(numbers) + 1, dropped, resume_from, undone, len(deleted))
    counts = dict(target.state["counts"])
    counts["deleted"] = counts.get("deleted", 0) + len(deleted)
    if resume_from == "latest":
        counts["skipped"] = counts.get("skipped", 0) + undone
    met = _least(began, _met(generations))
    published = replace(
        target,
        number=done.generation,
        offsets=dict(offsets) if resume_from == "latest" else {**met, **target.offsets},
        state={
            **target.state,
            "lineage": uuid4().hex,
            "parent": {"lineage": target.state["lineage"], "generation": number},
            "began": [[*partition, offset] for partition, offset in met.items()],  # the next rollback asks for it, too
            "memo": memo if resume_from == "latest" else target.state.get("memo"),
            "deleted": deleted,
            "counts": counts,
            "rollback": asdict(done),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        generations.copy(number, published)
    except OSError as error:
        raise StateError(f"generation {number} cannot be linked: {error}; nothing was changed") from error
    _refuse_pinned(generations, dropped)  # once more, as late as can be: an operator may pin meanwhile
    return published, done


def _refuse_pinned(generations: Generations, numbers: Iterable[int]) -> None:
    for number in numbers:
        if generations.describe(number).pinned:
            raise StateError(
                f"generation {number} is newer and pinned, and would be gone:"
                f" `streamlearn generations unpin {number}` first"
            )


def read_on(generations: Generations, generation: Generation) -> Offsets:
    """Where to read on after going back to a generation: partitions that it has not met are read from where that began.

    Without that the source would begin them where it likes: Kafka at what a later generation has committed.
    """
    return {**_met(generations), **generation.offsets}


def _met(generations: Generations) -> Offsets:
    met: Offsets = {}
    for number in generations.numbers():
        with suppress(StateError, LookupError, TypeError, ValueError):  # damaged
            met = _least(met, beginnings(generations.manifest(number)["state"]))
    return met


def _least(one: Offsets, other: Offsets) -> Offsets:
    return {p: min(each[p] for each in (one, other) if p in each) for p in {**one, **other}}


def beginnings(facts: Mapping[str, Any]) -> dict[Partition, int]:
    """Where reading of each partition began, by what a generation says; older versions' do not."""
    return {Partition(topic, partition): offset for topic, partition, offset in facts.get("began", ())}


def told_by(generation: Generation) -> Rollback | None:
    """The rollback that a generation was made by, if it was: an older version's does not say."""
    facts = generation.state.get("rollback") if generation.cut != generation.number else None
    return None if facts is None else Rollback(**{**facts, "dropped": tuple(facts["dropped"])})


def publish(generations: Generations, generation: Generation, done: Rollback) -> None:
    """The commit point, and the folders that are gone."""
    generations.publish(generation.number)
    generations.drop(done.dropped)  # before the catalog is cut: a generation without its rows must not be there


def roll_back_offline(generations: Generations, number: int, resume_from: ResumeFrom) -> Rollback:
    """Roll back a state directory that no daemon uses, which the caller has made sure of.

    Raises:
        StateError: as `prepare`.
    """
    current = generations.newest_good()
    if current is None:
        raise StateError(f"there is no generation {number} in {generations.folder}")
    with closing(Catalog(generations.state_dir / "catalog.db")) as catalog:
        # What was written after the last checkpoint is read again: it never happened.
        rewind(catalog, current)
        facts: Mapping[str, Any] = current.state
        began, memo, clips = beginnings(facts), facts.get("memo"), facts["clips"]
        generation, done = prepare(
            generations, catalog, number, resume_from, offsets=current.offsets, began=began, memo=memo, clips=clips
        )
        publish(generations, generation, done)
        rewind(catalog, generation)
        catalog.sync()
    log.info("%s", done)
    return done


def rewind(catalog: Catalog, generation: Generation) -> list[int]:
    """Cut the catalog to a generation; returns rows whose clips are gone for good."""
    state = generation.state
    branched = generation.cut != generation.number
    return catalog.rewind(
        generation.cut,
        working=generation.number + 1,
        forget=state.get("deleted", ()) if branched else (),
        lineage=state["lineage"],
        parent=state["parent"]["lineage"] if branched else None,
    )
