"""In which order a corpus' clips arrive, and where tasks begin: pure arithmetic on row numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streamlearn.bench.corpus import JUDGE, LEARN, TEST, Corpus, Ints
from streamlearn.errors import SettingsError

#: All domains shuffled into one: no tasks, no forgetting; joint training, the ceiling.
IID = "iid"
#: How a learner comes to know where a task begins: nobody says so, somebody says so, or somebody says so badly.
BOUNDARIES = ("detector", "oracle", "doubled", "halved", "late25", "late50", "none")


@dataclass(frozen=True)
class Schedule:
    """A stream.

    Attributes:
        rows: corpus rows to learn from, as they arrive.
        starts: where each task begins, in clips learned before it; 0 is the first.
        tasks: the domain of each task.
        place: (n,) of every corpus row, how many clips were learned when it arrived. Clips that are only asked for
            arrive evenly over their domain's visits.
    """

    rows: Ints
    starts: tuple[int, ...]
    tasks: tuple[int, ...]
    place: Ints

    def batches(self, size: int, cuts: frozenset[int] = frozenset()) -> Iterator[Ints]:
        """Rows of each batch; a batch ends where one of `cuts` lies, as the daemon's do where a task is announced."""
        edges = sorted({0, len(self.rows), *(cut for cut in cuts if cut < len(self.rows))})
        for start, end in itertools.pairwise(edges):
            for at in range(start, end, size):
                yield self.rows[at : min(at + size, end)]


def order_of(name: str, domains: int) -> tuple[int, ...]:
    """Domains in the order that a name stands for: forward, reverse, iid, or the digits of some, such as 20413.

    A digit that is there more than once stands for equal shares of its domain's clips: in 000120 the first domain is
    learned from three quarters of its clips, and comes back with the last.

    Raises:
        SettingsError: it names something else.
    """
    if name in ("forward", IID):
        return tuple(range(domains))
    if name == "reverse":
        return tuple(reversed(range(domains)))
    digits = [str(i) for i in range(domains)]
    if name and set(name) <= set(digits):
        return tuple(map(int, name))
    raise SettingsError(f"order {name!r}: must be forward, reverse, iid, or digits from 0 to {domains - 1}")


def make_schedule(corpus: Corpus, *, order: str, seed: int, mixing_clips: int = 0, passes: int = 1) -> Schedule:
    """Lay a corpus out as a stream.

    Args:
        corpus: the clips.
        order: as for `order_of`.
        seed: of the order of clips within a domain.
        mixing_clips: over about so many clips one domain gives way to the next; 0: at once.
        passes: how often a domain's clips are gone through before the next begins; 1 is a stream.
    """
    rng = np.random.default_rng((seed, 1))
    visits = _visits(order_of(order, len(corpus.domains)))
    tasks = tuple(domain for domain, *_ in visits)
    learned = []
    for domain, *share in visits:
        mine = _share(corpus.rows(LEARN, domain), *share)
        learned.append(np.concatenate([rng.permutation(mine) for _ in range(passes)]))
    rows = np.concatenate(learned)
    edges = np.cumsum([0, *map(len, learned)])
    never = len(rows)  # the place of what no visit brings: beyond the stream's end
    places = np.full(len(corpus.domain), np.inf)
    for start, end, (domain, *share) in zip(edges, edges[1:], visits, strict=False):
        for part in (JUDGE, TEST):
            mine = rng.permutation(_share(corpus.rows(part, domain), *share))
            places[mine] = start + (np.arange(len(mine)) + 0.5) / max(len(mine), 1) * (end - start)
    if order == IID:
        rows = rng.permutation(rows)
        return Schedule(rows, (0,), (0,), np.zeros(len(corpus.domain), np.int64))
    if mixing_clips:
        # Sorting jittered places mixes neighbours across a boundary and keeps every domain's count.
        rows = rows[np.argsort(np.arange(len(rows)) + rng.uniform(-0.5, 0.5, len(rows)) * mixing_clips)]
        places += rng.uniform(-0.5, 0.5, len(places)) * mixing_clips
    places[rows[::-1]] = np.arange(len(rows))[::-1]  # of several passes the first counts
    placed = np.where(np.isinf(places), never, places.clip(0, never - 1)).astype(np.int64)
    return Schedule(rows, tuple(edges[:-1].tolist()), tasks, placed)


def _visits(domains: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Of each visit to a domain: the domain, the first and the last share of its clips, and how many shares it has."""
    met: dict[int, int] = {}
    visits = []
    for domain, mine in itertools.groupby(domains):
        first = met.get(domain, 0)
        met[domain] = first + len(list(mine))
        visits.append((domain, first, met[domain], domains.count(domain)))
    return visits


def _share(rows: Ints, first: int, last: int, shares: int) -> Ints:
    return rows[first * len(rows) // shares : last * len(rows) // shares]


def announced(schedule: Schedule, boundaries: str, batch_size: int) -> frozenset[int]:
    """Where a task is said to begin, in clips learned before it; nowhere where the detector has to find it.

    Raises:
        SettingsError: `boundaries` is none of `BOUNDARIES`.
    """
    starts, total = schedule.starts[1:], len(schedule.rows)
    match boundaries:
        case "oracle":
            return frozenset(starts)
        case "doubled":
            edges = [*schedule.starts, total]
            middles = [(a + b) // 2 for a, b in itertools.pairwise(edges)]
            return frozenset([*starts, *middles])
        case "halved":
            return frozenset(starts[1::2])
        case "late25" | "late50":
            return frozenset(start + int(boundaries[4:]) * batch_size for start in starts)
        case "detector" | "none":
            return frozenset()
    raise SettingsError(f"boundaries {boundaries!r}: must be one of {', '.join(BOUNDARIES)}")
