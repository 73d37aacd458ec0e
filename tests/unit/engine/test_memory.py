"""What fits is planned, and what is given up is decided, by figures alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.engine.memory import (
    Footprint,
    Level,
    MemoryPlan,
    ModelCost,
    PressureRules,
    bytes_in_words,
    decide_pressure,
    plan,
)

MIB, GIB = 2**20, 2**30
RULES = PressureRules()


def cost(name: str = "a", *, session: int = 100, peaks: dict[int, int] | None = None, instances: int = 1) -> ModelCost:
    return ModelCost(name, 1, instances, Footprint(session, peaks or {1: 10, 2: 20, 4: 40, 8: 80}))


def batches(found: MemoryPlan) -> list[int]:
    """Batch per user of each model; 0 where none fits."""
    return [model.batch_per_user if model.fits else 0 for model in found.models]


@pytest.mark.parametrize(
    ("users", "memory", "batch", "total", "headroom"),
    [
        (1, 1000, 8, 180, 720),
        (8, 1000, 8, 740, 160),
        (9, 1000, 8, 820, 80),
        (10, 1000, 8, 900, 0),
        (11, 1000, 4, 540, 360),
        (80, 1000, 1, 900, 0),
        (81, 1000, 0, 910, -10),
    ],
    ids=["one", "eight", "nine", "to the byte", "one too many for 8", "the most", "one too many"],
)
def test_the_largest_batch_at_which_all_users_stay_inside(
    users: int, memory: int, batch: int, total: int, headroom: int
) -> None:
    found = plan([cost()], users=users, memory_bytes=memory)
    assert (batches(found), found.total_bytes, found.headroom_bytes) == ([batch], total, headroom)


def test_every_instance_and_the_process_itself_are_counted() -> None:
    found = plan([cost(instances=3), cost("b", session=7)], users=2, memory_bytes=10_000, base_bytes=1_000)
    assert (found.base_bytes, found.resident_bytes, found.total_bytes) == (1_000, 307, 1_467)
    assert [model.resident_bytes for model in found.models] == [300, 7]


def test_a_plan_holds_whichever_model_each_user_is_at() -> None:
    heavy = cost("heavy", peaks={1: 50, 2: 100, 4: 200})
    found = plan([heavy, cost("light")], users=4, memory_bytes=1000)
    assert batches(found) == [2, 8]
    # 200 idle, three at the heavy one, one at the light one.
    assert 200 + 3 * 100 + 80 <= found.total_bytes <= 900


def test_what_does_not_fit_is_told_with_what_it_needs() -> None:
    found = plan([cost(session=2 * GIB, peaks={1: GIB, 2: 2 * GIB})], users=4, memory_bytes=6 * GIB)
    (model,) = found.models
    assert not found.fits
    assert (model.batch_per_user, model.bytes_per_user) == (1, GIB)
    assert model.problem == "does not fit: needs 6.7 GiB, has 6.0 GiB"


def test_one_that_does_not_fit_leaves_the_others_their_batches() -> None:
    found = plan([cost("heavy", peaks={1: 900}), cost("light")], users=2, memory_bytes=1000)
    assert batches(found) == [0, 8]
    assert not found.fits


@pytest.mark.parametrize(
    "wrong", [{"users": 0}, {"reserve": 1.0}, {"reserve": -0.1}, {"models": []}], ids=lambda wrong: next(iter(wrong))
)
def test_a_plan_for_nobody_or_nothing_is_a_mistake(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"models": [cost()], "users": 1, "memory_bytes": 1000, **wrong}
    with pytest.raises(ValueError, match=r"at least one|reserve"):
        plan(**arguments)  # type: ignore[arg-type]


costs = st.builds(
    lambda session, steps, instances: ModelCost(
        "m", 1, instances, Footprint(session, {2**n: sum(steps[: n + 1]) for n in range(len(steps))})
    ),
    st.integers(0, 4 * GIB),
    st.lists(st.integers(0, GIB), min_size=1, max_size=6),
    st.integers(1, 4),
)
models = st.lists(costs, min_size=1, max_size=5)
users = st.integers(1, 64)
amounts = st.integers(1, 256 * GIB)


@given(models, users, amounts, amounts, st.integers(0, GIB))
def test_more_memory_never_gives_a_smaller_batch(
    models: list[ModelCost], users: int, one: int, other: int, base: int
) -> None:
    less = plan(models, users=users, memory_bytes=min(one, other), base_bytes=base)
    more = plan(models, users=users, memory_bytes=max(one, other), base_bytes=base)
    assert all(a <= b for a, b in zip(batches(less), batches(more), strict=True))


@given(models, users, users, amounts)
def test_more_users_never_get_a_larger_batch(models: list[ModelCost], one: int, other: int, memory: int) -> None:
    few = plan(models, users=min(one, other), memory_bytes=memory)
    many = plan(models, users=max(one, other), memory_bytes=memory)
    assert all(a >= b for a, b in zip(batches(few), batches(many), strict=True))


@given(models, users, amounts, st.data())
def test_users_at_any_models_stay_out_of_the_reserve(
    models: list[ModelCost], users: int, memory: int, data: st.DataObject
) -> None:
    found = plan(models, users=users, memory_bytes=memory)
    if not found.fits:
        return
    at = data.draw(st.lists(st.sampled_from(found.models), min_size=users, max_size=users))
    held = found.base_bytes + found.resident_bytes + sum(model.bytes_per_user for model in at)
    assert held <= found.total_bytes <= memory - found.reserve_bytes
    assert found.headroom_bytes >= 0
    assert sum(found.mixed_users) == users
    assert found.mixed_bytes <= found.total_bytes


@given(models, users, amounts)
def test_no_larger_measured_batch_would_have_fitted(models: list[ModelCost], users: int, memory: int) -> None:
    found = plan(models, users=users, memory_bytes=memory)
    for model, planned in zip(models, batches(found), strict=True):
        for size, peak in model.footprint.peak_bytes_by_size.items():
            if size > planned:
                assert found.resident_bytes + users * peak > memory - found.reserve_bytes


@pytest.mark.parametrize(
    ("count", "up", "down"),
    [(0, "0 MiB", "0 MiB"), (1, "1 MiB", "0 MiB"), (-MIB, "-1 MiB", "-1 MiB"), (GIB + 1, "1.1 GiB", "1.0 GiB")],
)
def test_nothing_fits_by_rounding(count: int, up: str, down: str) -> None:
    assert (bytes_in_words(count), bytes_in_words(count, up=False)) == (up, down)


@pytest.mark.parametrize(
    ("thousandths", "level"),
    [
        (1000, Level.NORMAL),
        (100, Level.NORMAL),
        (99, Level.HALF),
        (79, Level.QUARTER),
        (59, Level.ONE),
        (39, Level.SHED),
        (24, Level.FREE),
        (0, Level.FREE),
    ],
)
def test_batches_shrink_first_then_work_is_shed_then_memory_is_freed(thousandths: int, level: Level) -> None:
    assert decide_pressure(thousandths, 1000, Level.NORMAL, rules=RULES) is level


@pytest.mark.parametrize(
    ("previous", "thousandths", "level"),
    [
        (Level.HALF, 110, Level.HALF),
        (Level.HALF, 130, Level.NORMAL),
        (Level.QUARTER, 99, Level.QUARTER),
        (Level.QUARTER, 101, Level.HALF),
        (Level.ONE, 900, Level.QUARTER),
        (Level.SHED, 45, Level.SHED),
        (Level.SHED, 51, Level.ONE),
        (Level.FREE, 39, Level.FREE),
        (Level.FREE, 45, Level.FREE),
        (Level.FREE, 900, Level.ONE),
        (Level.ONE, 10, Level.FREE),
    ],
)
def test_a_level_is_left_with_room_to_spare_and_step_by_step(previous: Level, thousandths: int, level: Level) -> None:
    assert decide_pressure(thousandths, 1000, previous, rules=RULES) is level


def test_shedding_that_does_not_help_is_followed_by_freeing() -> None:
    decide = {held_s: decide_pressure(35, 1000, Level.SHED, rules=RULES, held_s=held_s) for held_s in (0.0, 4.9, 5.0)}
    assert list(decide.values()) == [Level.SHED, Level.SHED, Level.FREE]
    assert decide_pressure(51, 1000, Level.SHED, rules=RULES, held_s=99.0) is Level.ONE


def test_a_large_machine_is_not_short_with_gigabytes_left() -> None:
    assert decide_pressure(8 * GIB, 1024 * GIB, Level.NORMAL, rules=RULES) is Level.NORMAL
    assert decide_pressure(2 * GIB, 1024 * GIB, Level.NORMAL, rules=RULES) is Level.QUARTER


@given(st.integers(0, GIB), st.integers(0, GIB), st.sampled_from(Level), st.floats(0, 100))
def test_less_memory_never_means_a_milder_level(one: int, other: int, previous: Level, held_s: float) -> None:
    less, more = (decide_pressure(a, GIB, previous, rules=RULES, held_s=held_s) for a in sorted((one, other)))
    assert less >= more


@given(st.integers(0, GIB), st.sampled_from(Level))
def test_with_memory_standing_still_the_level_comes_to_rest(available: int, level: Level) -> None:
    seen = [level]
    for _ in range(len(Level) + 1):
        seen.append(decide_pressure(available, GIB, seen[-1], rules=RULES))
    assert seen[-1] is seen[-2]


@pytest.mark.parametrize(
    ("largest", "limits"),
    [(16, [None, 8, 4, 1, 1, 1]), (3, [None, 1, 1, 1, 1, 1]), (1, [None, 1, 1, 1, 1, 1])],
)
def test_a_level_says_how_large_a_batch_may_be(largest: int, limits: list[int | None]) -> None:
    assert [level.batch_limit(largest) for level in Level] == limits


@pytest.mark.parametrize(
    "wrong", [{"half_below": 1.0}, {"quarter_below": 0.2}, {"free_below": 0.0}, {"recovered_at": 0.9}]
)
def test_rules_that_contradict_themselves_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="level"):
        PressureRules(**wrong)  # type: ignore[arg-type]
