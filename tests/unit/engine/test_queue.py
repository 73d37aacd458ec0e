"""Who is next, who is gone."""

import asyncio
import math
import random
from collections import Counter

import pytest

from isocenter.core.deadline import Deadline
from isocenter.core.reply import Reply
from isocenter.core.request import Request, Result
from isocenter.engine.batch_policy import Waiting
from isocenter.engine.queue import STALE_KEYS, Entry, RequestQueue


def put(
    queue: RequestQueue,
    name: str,
    *,
    now_s: float = 0.0,
    at_s: float = math.inf,
    priority: int = 0,
    group: str = "",
) -> Entry:
    reply: Reply[Result] = Reply(asyncio.get_running_loop())
    return queue.put(Request(name, {}, Deadline(at_s), priority, group), reply, now_s=now_s)


def names(entries: list[Entry]) -> list[str]:
    return [entry.request.id for entry in entries]


async def test_order_is_priority_then_deadline_then_arrival() -> None:
    queue = RequestQueue(10)
    put(queue, "late", at_s=9.0)
    put(queue, "never")
    put(queue, "never, second")
    put(queue, "urgent", priority=-1)
    put(queue, "soon", at_s=5.0)
    put(queue, "background", at_s=1.0, priority=1)
    assert names(queue.take(4)[0]) == ["urgent", "soon", "late", "never"]
    assert names(queue.take(4)[0]) == ["never, second", "background"]
    assert queue.take(1) == ([], [])


async def test_it_is_full_at_its_limit() -> None:
    queue = RequestQueue(2)
    put(queue, "a")
    seen = [queue.full]
    put(queue, "b")
    seen.append(queue.full)
    queue.take(1)
    seen.append(queue.full)
    assert seen == [False, True, False]


async def test_the_expired_leave_and_are_named() -> None:
    queue = RequestQueue(10)
    put(queue, "a", at_s=5.0)
    put(queue, "b", at_s=7.0)
    put(queue, "c")
    assert queue.expire(4.9) == []
    assert names(queue.expire(5.0)) == ["a"]
    assert names(queue.expire(99.0)) == ["b"]
    assert names(queue.take(9)[0]) == ["c"]


async def test_one_who_left_is_gone_once() -> None:
    queue = RequestQueue(10)
    entry = put(queue, "a", at_s=5.0)
    assert queue.discard(entry)
    assert not queue.discard(entry)
    assert (len(queue), queue.expire(99.0), queue.take(1)) == (0, [], ([], []))


async def test_taking_passes_over_those_who_left_a_moment_ago() -> None:
    queue = RequestQueue(10)
    entries = [put(queue, name) for name in "abcd"]
    gone = entries[1].reply
    assert isinstance(gone, Reply)
    gone.fail(TimeoutError())
    gone._future.exception()
    taken, abandoned = queue.take(3)
    assert (names(taken), names(abandoned)) == (["a", "c", "d"], ["b"])


async def test_the_policy_sees_the_oldest_and_the_earliest_of_those_still_there() -> None:
    queue = RequestQueue(10)
    assert queue.waiting() == Waiting(0, math.inf, math.inf)
    first = put(queue, "a", now_s=1.0, at_s=5.0)
    put(queue, "b", now_s=2.0, at_s=4.0)
    put(queue, "c", now_s=3.0)
    assert queue.waiting() == Waiting(3, 1.0, 4.0)
    queue.take(1)
    assert queue.waiting() == Waiting(2, 1.0, 5.0)
    queue.discard(first)
    assert queue.waiting() == Waiting(1, 3.0, math.inf)


async def test_clearing_hands_back_everyone() -> None:
    queue = RequestQueue(10)
    put(queue, "a", at_s=5.0)
    put(queue, "b", priority=-1)
    assert names(queue.clear()) == ["a", "b"]
    assert queue.waiting() == Waiting(0, math.inf, math.inf)


async def test_keys_of_the_departed_do_not_pile_up() -> None:
    queue = RequestQueue(10)
    put(queue, "patient", at_s=1e9, priority=9)
    for n in range(10_000):
        queue.discard(put(queue, "hasty", at_s=2e9 + n, priority=10))
    assert len(queue._singles.keys) <= STALE_KEYS + 3
    assert len(queue._deadlines) <= STALE_KEYS + 3
    assert names(queue.take(9)[0]) == ["patient"]


@pytest.mark.parametrize("seed", range(20))
async def test_it_agrees_with_a_sorted_list(seed: int) -> None:
    chance = random.Random(seed)
    queue = RequestQueue(10_000)
    there: dict[int, Entry] = {}
    for now in range(300):
        now_s = float(now)
        match chance.choice(["put", "put", "put", "take", "discard", "expire"]):
            case "put":
                at_s = chance.choice([math.inf, now_s + chance.randrange(1, 50)])
                entry = put(queue, str(now), now_s=now_s, at_s=at_s, priority=chance.randrange(3))
                there[entry.arrival] = entry
            case "take":
                size = chance.randrange(1, 5)
                key = lambda e: (e.request.priority, e.request.deadline.at_s, e.arrival)  # noqa: E731
                expected = sorted(there.values(), key=key)[:size]
                assert queue.take(size) == (expected, [])
                for entry in expected:
                    del there[entry.arrival]
            case "discard" if there:
                entry = there.pop(chance.choice(list(there)))
                assert queue.discard(entry)
            case "expire":
                gone = {e.arrival for e in there.values() if e.request.deadline.expired(now_s)}
                assert {e.arrival for e in queue.expire(now_s)} == gone
                there = {arrival: entry for arrival, entry in there.items() if arrival not in gone}
        oldest_s = min((e.enqueued_at_s for e in there.values()), default=math.inf)
        earliest_s = min((e.request.deadline.at_s for e in there.values()), default=math.inf)
        assert queue.waiting() == Waiting(len(there), oldest_s, earliest_s)


def test_a_queue_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 item, not 0"):
        RequestQueue(0)


async def test_a_group_of_many_delays_a_single_item_by_one_turn() -> None:
    queue = RequestQueue(1000)
    for n in range(500):
        put(queue, f"g{n}", at_s=5.0, group="scan")
    assert names(queue.take(3)[0]) == ["g0", "g1", "g2"]
    put(queue, "alone", at_s=9.0)
    assert "alone" in names(queue.take(2)[0])


async def test_groups_take_turns_and_keep_their_own_order() -> None:
    queue = RequestQueue(100)
    for group in "abc":
        for n in range(3):
            put(queue, f"{group}{n}", at_s=5.0, group=group)
    assert names(queue.take(9)[0]) == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


async def test_many_single_callers_do_not_starve_a_group() -> None:
    queue = RequestQueue(1000)
    for n in range(5):
        put(queue, f"g{n}", at_s=100.0, group="scan")
    for n in range(10):
        put(queue, f"s{n}", at_s=50.0)
    taken = []
    for n in range(200):  # a new single caller for each one who is taken
        put(queue, f"t{n}", at_s=50.0)
        taken += names(queue.take(1)[0])
    assert {f"g{n}" for n in range(5)} <= set(taken), "each of about ten callers gets its turn"


@pytest.mark.parametrize("grouped", [False, True], ids=["single", "groups of one"])
async def test_newcomers_without_end_do_not_starve_a_group(grouped: bool) -> None:
    queue = RequestQueue(1000)
    for n in range(40):
        put(queue, f"g{n}", group="scan")
    put(queue, "s", group="user" if grouped else "")
    taken: list[str] = []
    for n in range(120):  # two others wait at any time, and each of them is new
        if not taken or taken[-1].startswith("s"):
            put(queue, f"s{n}", group=f"user {n}" if grouped else "")
        taken += names(queue.take(1)[0])
    assert sum(name.startswith("g") for name in taken) == pytest.approx(120 / 3, abs=3)


@pytest.mark.parametrize("seed", range(25))
async def test_each_group_delays_whoever_comes_by_one_item_at_most(seed: int) -> None:
    chance = random.Random(seed)
    queue = RequestQueue(10_000)
    waits: dict[str, Counter[str]] = {}  # who asks for one item: items of each group that went before, since it came
    for n in range(600):
        for group in ("a", "b")[: chance.choice([1, 2])]:
            if chance.random() < 0.02:
                for index in range(chance.choice([2, 30, 500])):
                    put(queue, f"{group}/{n}.{index}", group=group)
        if chance.random() < chance.choice([0.05, 0.5, 0.9]):
            name = f"alone {n}"
            waits[name] = Counter()
            put(queue, name, group=chance.choice(["", "", name]))
        for name in names(queue.take(chance.choice([0, 1, 1, 2, 8]))[0]):
            if waits.pop(name, None) is None:
                for seen in waits.values():
                    seen[name.partition("/")[0]] += 1
                    assert seen.total() == len(seen), f"a second item of one group goes first: {seen}"


async def test_a_group_has_not_saved_up_turns_while_a_sooner_priority_had_them_all() -> None:
    queue = RequestQueue(1000)
    for n in range(9):
        put(queue, f"l{n}", group="later", priority=1)
        put(queue, f"m{n}", group="much later", priority=1)
    for n in range(50):
        put(queue, f"n{n}", group="now")
    queue.take(50)
    put(queue, "alone", priority=1)
    assert "alone" in names(queue.take(3)[0])
    assert names(queue.take(6)[0]) == ["l1", "m1", "l2", "m2", "l3", "m3"]


async def test_single_items_keep_to_their_deadlines_beside_a_group() -> None:
    queue = RequestQueue(100)
    put(queue, "g0", at_s=1.0, group="scan")
    put(queue, "g1", at_s=1.0, group="scan")
    for name, at_s in (("late", 9.0), ("soon", 3.0), ("later", 11.0)):
        put(queue, name, at_s=at_s)
    order = [name for name in names(queue.take(9)[0]) if not name.startswith("g")]
    assert order == ["soon", "late", "later"]


async def test_priority_goes_before_turns() -> None:
    queue = RequestQueue(100)
    for n in range(3):
        put(queue, f"g{n}", group="stat", priority=-1)
    put(queue, "routine", at_s=1.0)
    assert names(queue.take(9)[0]) == ["g0", "g1", "g2", "routine"]


async def test_an_entry_that_was_not_run_goes_back_to_its_place() -> None:
    queue = RequestQueue(10)
    for name in "abc":
        put(queue, name)
    first = queue.take(2)[0]
    assert queue.backlog.total == 1
    for entry in first:
        queue.put_back(entry, now_s=0.0)
    assert names(queue.take(3)[0]) == ["a", "b", "c"]
    assert queue.backlog.total == 0


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_the_backlog_counts_who_waits(seed: int) -> None:
    chance = random.Random(seed)
    queue = RequestQueue(10_000)
    inside: list[Entry] = []
    now_s = 0.0
    for n in range(400):
        now_s += chance.random() * 0.1
        match chance.choices(["put", "take", "leave", "expire", "back"], [8, 2, 3, 1, 1])[0]:
            case "put":
                group = chance.choice(["", "", "", "a", "b"])
                at_s = chance.choice([math.inf, now_s + 0.5, now_s + 5.0])
                inside.append(
                    put(queue, str(n), now_s=now_s, at_s=at_s, group=group, priority=chance.choice([0, 0, 1]))
                )
            case "take":
                taken, _ = queue.take(chance.randrange(1, 5))
                inside = [entry for entry in inside if entry not in taken]
            case "leave" if inside:
                gone = inside.pop(chance.randrange(len(inside)))
                assert [queue.discard(gone), queue.discard(gone)] == [True, False]
            case "back":
                taken, _ = queue.take(2)
                for entry in taken:
                    queue.put_back(entry, now_s=now_s)
            case "expire":
                expired = queue.expire(now_s)
                inside = [entry for entry in inside if entry not in expired]
        assert len(queue) == len(inside) == queue.backlog.total
    assert sorted(names(queue.clear())) == sorted(names(inside))
    assert (len(queue), queue.backlog.total) == (0, 0)
