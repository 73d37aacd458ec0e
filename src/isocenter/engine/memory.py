"""What fits into memory, and what is given up when it gets short. Pure: reads nothing, changes nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from itertools import pairwise

RESERVE = 0.10
"""Share of all memory that a plan leaves alone, and below which the watch begins to shrink batches."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one instance of a model version costs, measured."""

    session_bytes: int
    """Held by one opened session that has not run yet."""
    peak_bytes_by_size: dict[int, int]
    """On top of that at the height of a run, by batch size, had nothing larger run before."""


# A plan for users.


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model version asks of a plan."""

    name: str
    version: int
    instances: int
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model version in a plan. The totals hold while every user is at this model."""

    name: str
    version: int
    fits: bool
    resident_bytes: int
    """Held by all of its instances, idle."""
    batch_per_user: int
    """The largest measured size that fits; the smallest if none does."""
    bytes_per_user: int
    """What a run of that size takes on top of what is resident."""
    total_bytes: int
    """The process, every model of the plan and all users."""
    headroom_bytes: int
    """Left of what may be used; below zero if it does not fit."""
    problem: str = ""
    """Why it does not fit."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A plan that holds whichever model each user is at."""

    users: int
    memory_bytes: int
    reserve_bytes: int
    base_bytes: int
    """Held by the process without any model."""
    models: tuple[ModelPlan, ...]

    @property
    def fits(self) -> bool:
        """Whether every model has a batch size at which all users at once stay inside."""
        return all(model.fits for model in self.models)

    @property
    def resident_bytes(self) -> int:
        """Held by all models, idle."""
        return sum(model.resident_bytes for model in self.models)

    @property
    def total_bytes(self) -> int:
        """The most that is held, with every user at the model that costs most."""
        return max(model.total_bytes for model in self.models)

    @property
    def headroom_bytes(self) -> int:
        """Left then, of what may be used."""
        return self.memory_bytes - self.reserve_bytes - self.total_bytes

    @property
    def mixed_users(self) -> tuple[int, ...]:
        """So many users at each model if they are dealt out in turn."""
        each, rest = divmod(self.users, len(self.models))
        return tuple(each + (number < rest) for number in range(len(self.models)))

    @property
    def mixed_bytes(self) -> int:
        """Held with the users dealt out, each with the batch that is planned for his model."""
        runs = zip(self.mixed_users, self.models, strict=True)
        return self.base_bytes + self.resident_bytes + sum(users * model.bytes_per_user for users, model in runs)


def plan(
    models: Sequence[ModelCost], *, users: int, memory_bytes: int, base_bytes: int = 0, reserve: float = RESERVE
) -> MemoryPlan:
    """The largest batch of each model at which so many users may run at once, whichever model each is at.

    Every user gets the same part of what the process, the models and the reserve leave.

    Args:
        models: at least one.
        users: inferences that run at the same time.
        memory_bytes: all that there is.
        base_bytes: held by the process without any model.
        reserve: share of all memory that is left alone.
    """
    if not models:
        raise ValueError("a plan is for at least one model")
    if users < 1:
        raise ValueError(f"a plan is for at least one user, not {users}")
    if not 0 <= reserve < 1:
        raise ValueError(f"a reserve is a share from 0 to below 1, not {reserve}")
    idle_bytes = base_bytes + sum(_resident(model) for model in models)
    usable_bytes = memory_bytes - _reserve(memory_bytes, reserve)
    return MemoryPlan(
        users,
        memory_bytes,
        _reserve(memory_bytes, reserve),
        base_bytes,
        tuple(_plan_one(model, users, idle_bytes, usable_bytes, memory_bytes, reserve) for model in models),
    )


def _plan_one(
    model: ModelCost, users: int, idle_bytes: int, usable_bytes: int, memory_bytes: int, reserve: float
) -> ModelPlan:
    peaks = model.footprint.peak_bytes_by_size
    fitting = [size for size in peaks if idle_bytes + users * peaks[size] <= usable_bytes]
    size = max(fitting) if fitting else min(peaks)
    total_bytes = idle_bytes + users * peaks[size]
    needed = bytes_in_words(_memory_for(total_bytes, reserve))
    return ModelPlan(
        model.name,
        model.version,
        bool(fitting),
        _resident(model),
        size,
        peaks[size],
        total_bytes,
        usable_bytes - total_bytes,
        "" if fitting else f"does not fit: needs {needed}, has {bytes_in_words(memory_bytes, up=False)}",
    )


def _resident(model: ModelCost) -> int:
    return model.instances * model.footprint.session_bytes


def _reserve(memory_bytes: int, reserve: float) -> int:
    return math.ceil(memory_bytes * reserve)


def _memory_for(bytes_used: int, reserve: float) -> int:
    """The least memory that holds so much and the reserve beside it."""
    needed = int(bytes_used / (1 - reserve))
    while needed - _reserve(needed, reserve) < bytes_used:
        needed += 1
    return needed


def bytes_in_words(count: int, *, up: bool = True) -> str:
    """Bytes for people. What is needed is rounded up, what is there is rounded down: nothing fits by rounding.

    >>> bytes_in_words(40 * 2**20 + 1), bytes_in_words(40 * 2**20 + 1, up=False), bytes_in_words(24 * 2**30)
    ('41 MiB', '40 MiB', '24.0 GiB')
    """
    rounded = math.ceil if up else math.floor
    mib = rounded(count / 2**20)
    return f"{mib} MiB" if abs(mib) < 1024 else f"{rounded(count / 2**30 * 10) / 10:.1f} GiB"


# A watch on what is left.


class Level(IntEnum):
    """How short memory is, and with it what is given up: first the size of batches, then new work, then caches."""

    NORMAL = 0
    HALF = 1
    """No batch above half of the largest."""
    QUARTER = 2
    ONE = 3
    """One item at a time."""
    SHED = 4
    """And new work is refused."""
    FREE = 5
    """And what can be given back to the system is given back."""

    @property
    def word(self) -> str:
        """As events and logs name it."""
        return self.name.lower()

    @property
    def sheds(self) -> bool:
        """Whether new work is refused."""
        return self >= Level.SHED

    def batch_limit(self, max_batch_size: int) -> int | None:
        """The largest batch that may be formed; None: as many as the model allows."""
        divisor = {Level.NORMAL: 0, Level.HALF: 2, Level.QUARTER: 4}.get(self, max_batch_size)
        return max(1, max_batch_size // divisor) if divisor else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PressureRules:
    """Below which share of memory left each level begins, and how it is left again."""

    half_below: float = RESERVE
    quarter_below: float = 0.08
    one_below: float = 0.06
    shed_below: float = 0.04
    free_below: float = 0.025
    recovered_at: float = 1.25
    """A level is left when so many times the share at which it begins is there again."""
    patience_s: float = 5.0
    """Shedding that has not helped for so long is followed by freeing."""
    most_counted_bytes: int = 32 * 2**30
    """Memory beyond this does not count as total: a twentieth of a terabyte is no shortage."""

    def __post_init__(self) -> None:
        shares = [getattr(self, field.name) for field in fields(self)[:5]]
        if not (shares[0] < 1 and shares[-1] > 0 and all(above > below for above, below in pairwise(shares))):
            raise ValueError(f"levels begin at shares between 1 and 0, each below the one before, not {shares}")
        if self.recovered_at < 1:
            raise ValueError(f"a level is not left below the share at which it begins: {self.recovered_at}")

    @property
    def below(self) -> Mapping[Level, float]:
        """The share at which each level begins."""
        return {
            Level.HALF: self.half_below,
            Level.QUARTER: self.quarter_below,
            Level.ONE: self.one_below,
            Level.SHED: self.shed_below,
            Level.FREE: self.free_below,
        }

    def share_left(self, available_bytes: int, total_bytes: int) -> float:
        """What is left, of what counts."""
        return available_bytes / max(1, min(total_bytes, self.most_counted_bytes))


def decide_pressure(
    available_bytes: int, total_bytes: int, previous: Level, *, rules: PressureRules, held_s: float = 0.0
) -> Level:
    """The level from here on: up at once, as far as it must; down one step at a time, and only with room to spare.

    Args:
        available_bytes: what may still be taken.
        total_bytes: of how much.
        previous: the level until now.
        rules: where the levels begin.
        held_s: how long it has been that.
    """
    share = rules.share_left(available_bytes, total_bytes)
    below = rules.below
    reached = max((level for level in below if share < below[level]), default=Level.NORMAL)
    if reached > previous or previous is Level.NORMAL:
        return reached
    # Both refuse new work: going back and forth between them would help nobody.
    stays_below = below[min(previous, Level.SHED)] * rules.recovered_at
    if share >= stays_below:
        return max(reached, Level(min(previous, Level.SHED) - 1))
    return Level.FREE if previous is Level.SHED and held_s >= rules.patience_s else previous
