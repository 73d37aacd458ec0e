"""Blocks of shared memory: none is handed out twice, none is lost, none is used again while anybody holds it."""

import os
import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.core.errors import Overloaded
from isocenter.core.tensor import Array
from isocenter.engine.link.arena import PAGE, Arena, ArenaView, Block
from isocenter.engine.link.figures import make_shared

SIZE = 64 * PAGE


@pytest.fixture
def fd() -> Iterator[int]:
    fd = make_shared("test", SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def arena(fd: int) -> Arena:
    return Arena(fd, SIZE)


def taken(arena: Arena, size: int) -> tuple[Block, Array]:
    block = arena.take(size)
    return block, block.array()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 20 * PAGE)),
        st.tuples(st.sampled_from(["drop", "share", "let go"]), st.integers(0, 1000)),
    ),
    max_size=60,
)


@given(STEPS)
def test_blocks_never_overlap_and_all_room_comes_back(steps: list[tuple[str, int]]) -> None:
    fd = make_shared("test", SIZE)
    arena = Arena(fd, SIZE)
    os.close(fd)
    here: dict[Block, Array] = {}
    there: list[Block] = []
    for what, number in steps:
        if what == "take":
            try:
                block = arena.take(number)
            except Overloaded:
                continue
            here[block] = block.array()  # held by nothing else
        elif what == "drop" and here:
            del here[list(here)[number % len(here)]]
        elif what == "share" and here:
            there.append(chosen := list(here)[number % len(here)])
            chosen.share()
        elif what == "let go" and there:
            there.pop(number % len(there)).let_go()
        held = sorted({(block.offset, block.size) for block in (*here, *there)})
        assert all(at + size <= following for (at, size), (following, _) in pairwise(held))
        assert all(at >= 0 and at + size <= SIZE for at, size in held)
        assert arena.blocks == len(held)
    here.clear()
    for block in there:
        block.let_go()
    assert (arena.blocks, arena.taken_bytes) == (0, 0)
    assert taken(arena, SIZE)[0].size == SIZE


def test_the_block_that_came_back_last_is_used_first(arena: Arena) -> None:
    first, one = taken(arena, 100)
    second, two = taken(arena, 100)
    del one
    del two
    assert taken(arena, 100)[0].offset == second.offset != first.offset


def test_a_view_of_a_view_holds_the_block(arena: Arena) -> None:
    block, array = taken(arena, 1000)
    view = array[:400].view(np.float32).reshape(10, 10)[np.newaxis]
    del array
    assert arena.blocks == 1
    del view
    assert arena.blocks == 0
    assert block.offset == 0


def test_a_block_that_is_shared_waits_for_the_other_side(arena: Arena) -> None:
    block, array = taken(arena, 1000)
    block.share()
    del array
    assert arena.blocks == 1
    block.let_go()
    assert arena.blocks == 0


def test_a_block_that_is_shared_can_be_read_again(arena: Arena) -> None:
    block, array = taken(arena, 1000)
    block.share()
    del array
    again = block.array()
    block.let_go()
    assert arena.blocks == 1
    del again
    assert arena.blocks == 0


def test_a_block_may_be_dropped_on_any_thread(arena: Arena) -> None:
    held = [taken(arena, PAGE)[1] for _ in range(8)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert arena.blocks == 0


def test_a_full_arena_says_how_full_it_is(arena: Arena) -> None:
    _, array = taken(arena, SIZE)
    with pytest.raises(Overloaded, match=rf"{SIZE} bytes of pixels .* the limit is {SIZE}"):
        arena.take(1)
    assert array.size == SIZE


def test_small_blocks_become_room_for_a_large_one(arena: Arena) -> None:
    small = [taken(arena, PAGE)[1] for _ in range(64)]
    small.clear()
    assert taken(arena, SIZE)[0].size == SIZE


def test_both_sides_see_the_same_bytes_and_items_cannot_be_written_to(arena: Arena, fd: int) -> None:
    view = ArenaView(fd, SIZE)
    _, array = taken(arena, 100)
    array[:3] = 1, 2, 3
    item = view.item_bytes(0, 100)
    assert item[:3].tolist() == [1, 2, 3]
    assert not item.flags.writeable
    view.output_bytes(0, 100)[99] = 7
    assert array[99] == 7


def test_a_mapping_outlives_its_arena_as_long_as_anybody_reads(fd: int) -> None:
    view = ArenaView(fd, SIZE)
    item = view.item_bytes(PAGE, 100)
    view.output_bytes(PAGE, 100)[:] = 5
    del view
    assert item.tolist() == [5] * 100
