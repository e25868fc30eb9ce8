"""What commits say of who has learned what: nothing that only the reader itself had is ever passed over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain as chained

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.connectors.kafka_stretches import Stretch, Stretches

A, B, C = "a" * 32, "b" * 32, "c" * 32


def of(end: int, *parts: tuple[str, int]) -> Stretches:
    return Stretches("log", tuple(Stretch(*part) for part in parts), end)


def test_they_come_back_from_a_commit_as_they_were_and_are_short() -> None:
    chain = of(10**15, *((f"{n:032}", 10**14 + n) for n in range(16)))
    assert Stretches.read(chain.metadata(), 10**15) == chain
    assert len(chain.metadata()) < 1000


@pytest.mark.parametrize(
    "metadata",
    [
        None, "", "by hand", "7", "[]", "null", "{}", '{"streamlearn":2,"log":null,"read":[["a",0]]}',
        '{"streamlearn":1,"log":null}', '{"streamlearn":1,"log":null,"read":[]}',
        '{"streamlearn":1,"log":3,"read":[["a",0]]}', '{"streamlearn":1,"log":null,"read":[["a"]]}',
        '{"streamlearn":1,"log":null,"read":[["a",5],["b",5]]}', '{"streamlearn":1,"log":null,"read":[["a",-1]]}',
        '{"streamlearn":1,"log":null,"read":[["a",101]]}', '{"streamlearn":1,"log":null,"read":7}',
        '{"streamlearn":1,"log":null,"read":[["a",1e999]]}', "[" * 4096,
    ],
)  # fmt: skip
def test_what_others_write_there_says_nothing(metadata: str | None) -> None:
    assert Stretches.read(metadata, 100) is None


def test_of_many_the_last_ones_are_kept() -> None:
    chain = of(1, (B, 0))
    for offset in range(1, 41):
        chain = replace(chain.gone_on((B, A)[offset % 2], offset), end=offset + 1)
    assert [part.begin for part in chain.parts] == list(range(25, 41))


@pytest.mark.parametrize(
    ("chain", "stands", "goes_on"),
    [
        pytest.param(of(200, (A, 0), (B, 100)), 100, 200, id="another one went on where we ended"),
        pytest.param(of(300, (A, 0), (B, 100), (C, 200)), 100, 300, id="and another one after that"),
        pytest.param(of(300, (A, 0), (B, 100), (C, 200)), 150, 300, id="from within a stretch"),
        pytest.param(of(200, (A, 0), (B, 100)), 50, 50, id="we were rolled back, and had more"),
        pytest.param(of(400, (B, 0), (A, 100), (B, 300)), 40, 100, id="up to what we had, and lost"),
        pytest.param(of(200, (B, 100)), 50, 50, id="what lies before is nobody's"),
        pytest.param(of(200, (B, 100)), 200, 200, id="nothing new"),
        pytest.param(of(200, (B, 100)), 250, 250, id="we are further than the commit"),
    ],
)
def test_a_reader_goes_on_behind_what_only_others_have(chain: Stretches, stands: int, goes_on: int) -> None:
    assert chain.beyond_others(A, stands) == goes_on


@pytest.mark.parametrize(
    ("chain", "stands", "after"),
    [
        pytest.param(of(100, (B, 0)), 100, of(100, (B, 0), (A, 100)), id="takes over"),
        pytest.param(of(100, (B, 0), (A, 40)), 100, of(100, (B, 0), (A, 40)), id="goes on"),
        pytest.param(of(100, (A, 0), (B, 40)), 20, of(20, (A, 0)), id="goes back into its own"),
        pytest.param(of(100, (B, 0), (C, 40)), 20, of(20, (B, 0), (A, 20)), id="goes back into another one's"),
        pytest.param(of(100, (B, 0), (A, 40)), 150, of(150, (B, 0), (A, 40)), id="its last commit did not get through"),
        pytest.param(of(100, (B, 0)), 150, of(150, (A, 150)), id="what lies between is not known"),
    ],
)
def test_a_reader_adds_its_stretch(chain: Stretches, stands: int, after: Stretches) -> None:
    assert chain.gone_on(A, stands) == after


@dataclass
class Reader:
    """One state directory of the group.

    Attributes:
        checkpoints: the next to read, None before the first, and what it has learned.
        ever: all it has learned, also what a rollback undid.
    """

    name: str
    checkpoints: list[tuple[int | None, frozenset[int]]] = field(default_factory=lambda: [(None, frozenset())])
    ever: set[int] = field(default_factory=set)

    def reads(self, records: int, group: tuple[int, str | None], others: set[int]) -> tuple[int, str]:
        """Has the partition for a while; returns what it commits."""
        end, metadata = group
        (stands, learned), known = self.checkpoints[-1], Stretches.read(metadata, end)
        if stands is None:
            own = None if known is None else known.begin_of(self.name)
            goes_on = end if own is None else own
        else:
            goes_on = stands if known is None else known.beyond_others(self.name, stands)
            assert set(range(stands, goes_on)) <= others, "passes over what no other has learned"
        chain = of(goes_on, (self.name, goes_on)) if known is None else known.gone_on(self.name, goes_on)
        mine = range(goes_on, goes_on + records)
        self.checkpoints.append((goes_on + records, learned | set(mine)))
        self.ever |= set(mine)
        return goes_on + records, Stretches("log", chain.parts, goes_on + records).metadata()


turns = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 3)), max_size=15)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(turns=turns, rollbacks=st.booleans())
def test_whoever_reads_when_and_goes_back_how_far_nothing_is_lost(
    turns: list[tuple[str, int, int]], rollbacks: bool
) -> None:
    readers = {name: Reader(name) for name in "abc"}
    group: tuple[int, str | None] = (0, None)
    for name, records, back in turns:
        reader = readers[name]
        if rollbacks:
            del reader.checkpoints[max(1, len(reader.checkpoints) - back) :]
        others = set().union(*(other.ever for other in readers.values() if other is not reader))
        group = reader.reads(records, group, others)
    learned = [sorted(reader.checkpoints[-1][1]) for reader in readers.values()]
    if not rollbacks:  # then each is learned by one
        assert sorted(chained.from_iterable(learned)) == list(range(group[0]))
