import threading
from collections.abc import Iterable, Sequence

import pytest

from streamlearn.connectors.kafka_handover import Handover
from streamlearn.errors import SourceError
from streamlearn.records import Partition, Position, Record

P0, P1 = Partition("clips", "0"), Partition("clips", "1")


def records(offsets: Iterable[int], partition: Partition = P0, value: bytes = b"v") -> list[Record]:
    return [Record(None, value, Position(*partition, offset)) for offset in offsets]


def taken(handover: Handover, limit: int = 1000) -> list[int]:
    return [record.position.offset for record in handover.take(limit, 0)]


def handover(offsets: dict[Partition, int] | None = None, owned: Sequence[Partition] = (P0,)) -> Handover:
    made = Handover(offsets or {}, max_records=10, max_bytes=1000)
    for partition in owned:
        made.assign(partition)
    return made


def test_a_partition_named_at_the_start_begins_there_and_another_where_the_source_likes() -> None:
    made = handover({P0: 7}, owned=())
    assert made.assign(P0) == 7
    assert made.assign(P1) is None


def test_take_gives_at_most_the_limit_in_order() -> None:
    made = handover()
    made.put(P0, records(range(5)))
    assert taken(made, 3) == [0, 1, 2]
    assert taken(made, 3) == [3, 4]
    assert taken(made, 3) == []


def test_a_revoked_partition_comes_back_after_what_was_handed_over() -> None:
    made = handover()
    made.put(P0, records(range(5)))
    assert taken(made, 2) == [0, 1]
    made.revoke([P0])
    assert taken(made) == []
    assert made.assign(P0) == 2
    made.put(P0, records(range(2, 6)))
    assert taken(made) == [2, 3, 4, 5]


def test_records_of_a_partition_that_is_not_ours_are_not_taken_in() -> None:
    made = handover()
    made.revoke()
    made.put(P0, records(range(5)))
    assert taken(made) == []


def test_a_partition_that_loses_its_records_does_not_take_those_of_others_with_it() -> None:
    made = handover(owned=(P0, P1))
    made.put(P0, records(range(3)))
    made.put(P1, records(range(2), P1))
    made.revoke([P0])
    assert [r.position.partition for r in made.take(10, 0)] == ["1", "1"]


def test_gaps_of_a_compacted_log_are_followed() -> None:
    made = handover({P0: 0})
    made.put(P0, records([3, 8, 9]))
    assert taken(made) == [3, 8, 9]


def test_move_goes_backwards_too() -> None:
    made = handover({P0: 100})
    made.move(P0, 0)
    made.put(P0, records(range(3)))
    assert taken(made) == [0, 1, 2]


@pytest.mark.parametrize(("count", "size", "wants"), [(9, 1, True), (10, 1, False), (2, 499, True), (2, 500, False)])
def test_the_queue_is_bounded_in_records_and_in_bytes(count: int, size: int, wants: bool) -> None:
    made = handover()
    made.put(P0, records(range(count), value=bytes(size)))
    assert made.wants_more is wants
    made.take(1, 0)
    assert made.wants_more


def test_while_paused_nothing_is_handed_over_or_fetched_and_nothing_forgotten() -> None:
    made = handover()
    made.put(P0, records(range(3)))
    made.pause()
    assert taken(made) == []
    assert not made.wants_more
    made.resume()
    assert taken(made) == [0, 1, 2]


def test_trouble_is_raised_once_and_after_the_records_that_are_there() -> None:
    made = handover()
    made.put(P0, records([0]))
    made.report(SourceError("away"))
    assert taken(made) == [0]
    with pytest.raises(SourceError, match="away"):
        taken(made)
    assert taken(made) == []


def test_a_failure_is_raised_for_ever_and_after_the_records_that_are_there() -> None:
    made = handover()
    made.put(P0, records([0]))
    made.fail(SourceError("gone"))
    assert taken(made) == [0]
    for _ in range(2):
        with pytest.raises(SourceError, match="gone"):
            taken(made)


def test_trouble_that_is_over_is_not_raised() -> None:
    made = handover()
    made.report(SourceError("away"))
    made.report(None)
    assert taken(made) == []


def test_take_wakes_when_a_record_comes() -> None:
    made = handover()
    thread = threading.Thread(target=made.put, args=(P0, records([0])))
    thread.start()
    assert [record.position.offset for record in made.take(1, 30)] == [0]
    thread.join()


def test_lag_counts_what_was_not_handed_over_of_the_partitions_we_own() -> None:
    made = handover({P0: 5, P1: 5})
    assert made.lag({P0: 12, P1: 12}) == {P0: 7}
    made.put(P0, records(range(5, 8)))
    assert made.lag({P0: 12}) == {P0: 7}
    taken(made)
    assert made.lag({P0: 12}) == {P0: 4}
    made.passed(P0, 12)  # a transaction's markers: offsets without records
    assert made.lag({P0: 12}) == {P0: 0}


def test_what_waits_is_not_passed_over() -> None:
    made = handover({P0: 0})
    made.put(P0, records(range(3)))
    made.passed(P0, 3)
    made.revoke([P0])
    assert made.assign(P0) == 0


def test_a_limit_that_cuts_what_came_together_keeps_the_bounds_exact() -> None:
    made = handover()
    made.put(P0, records(range(10), value=b"12345"))
    assert not made.wants_more
    assert taken(made, 1) == [0]
    assert made.wants_more
    made.put(P0, records([10], value=bytes(1000 - 45)))
    assert not made.wants_more
    assert taken(made, 4) == [1, 2, 3, 4]
    assert taken(made) == [5, 6, 7, 8, 9, 10]


def test_a_caller_that_asks_gives_back_what_it_holds_and_its_next_checkpoint_finishes_the_partition() -> None:
    made = handover(owned=(P0, P1))
    made.put(P0, records(range(5)))
    made.put(P1, records(range(5), P1))
    assert made.revoked() == set()
    made.take(10, 0)
    gone = made.revoke([P0])
    made.ask_back(gone)
    assert made.revoked() == {P0}
    made.saved({P0: 1, P1: 2})  # a checkpoint from before it gave back is not of all that it used
    assert not made.finished(gone)
    assert made.give_back({P0: 3}) == {P0}
    assert made.revoked() == set()
    assert not made.finished(gone)
    made.saved({P0: 3, P1: 4})
    assert made.finished(gone)
    assert made.checkpoint(gone) == {P0: 3}
    assert made.assign(P0) == 3  # what it gave back is delivered again


def test_a_partition_that_came_back_before_it_was_given_back_goes_on_behind_what_the_caller_holds() -> None:
    made = handover()
    made.revoked()
    made.put(P0, records(range(5)))
    assert taken(made) == [0, 1, 2, 3, 4]
    made.ask_back(made.revoke())
    assert made.assign(P0) == 5
    assert made.give_back({P0: 2}) == set()
    assert made.assign(P0) == 5


def test_of_which_nothing_is_held_goes_on_where_it_was() -> None:
    made = handover({P0: 7})
    made.revoked()
    made.ask_back(made.revoke())
    assert made.give_back({P0: None}) == {P0}
    assert made.assign(P0) == 7


def test_a_caller_that_never_asked_is_not_waited_for() -> None:
    made = handover()
    gone = made.revoke()
    made.ask_back(gone)
    assert made.finished(gone)
    assert made.revoked() == set()


def test_a_partition_that_goes_a_second_time_before_a_checkpoint_is_waited_for_again() -> None:
    made = handover()
    made.revoked()
    made.ask_back(made.revoke())
    made.give_back({P0: None})
    made.assign(P0)
    assert not made.finished([P0])
    made.ask_back(made.revoke())
    made.saved({P0: 1})
    assert not made.finished([P0])
    made.give_back({P0: None})
    made.saved({P0: 1})
    assert made.finished([P0])
