"""What a front end is told of one engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from isocenter.core.tensor import TensorSpec
from isocenter.engine.cost import CostModel
from isocenter.engine.doorkeeper import QueueLimits
from isocenter.engine.lifecycle import State
from isocenter.engine.link.frames import specs_from_json, specs_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    """One engine as it is announced."""

    index: int
    """Its number in the engine process; never used for another engine."""
    slot: int | None
    """Its place on the board."""
    model: str
    version: int
    state: State
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    timeout_s: float
    """What callers give who do not say."""
    limits: QueueLimits
    about: Mapping[str, Any]
    """What the floors above want to know of the model; plain data."""

    def as_json(self) -> list[Any]:
        """As plain data."""
        return [
            self.index,
            self.slot,
            self.model,
            self.version,
            self.state.value,
            specs_to_json(self.inputs),
            specs_to_json(self.outputs),
            self.timeout_s,
            [self.limits.items, self.limits.item_bytes, self.limits.items_by_bytes],
            dict(self.about),
        ]

    @classmethod
    def from_json(cls, data: list[Any]) -> Self:
        """The way back."""
        index, slot, model, version, state, inputs, outputs, timeout_s, limits, about = data
        return cls(
            index=index,
            slot=slot,
            model=model,
            version=version,
            state=State(state),
            inputs=specs_from_json(inputs),
            outputs=specs_from_json(outputs),
            timeout_s=timeout_s,
            limits=QueueLimits(*limits),
            about=about,
        )


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast an engine is believed to be, and which batches it forms."""

    curve: dict[int, float]
    """Seconds by batch size; empty before a warm-up."""
    spread: float
    sizes: tuple[int, ...]
    caution_s: float = 0.0
    """What doors keep free beside it, as answers have been late."""

    def as_json(self) -> list[Any]:
        """As plain data."""
        return [list(self.curve.items()), self.spread, list(self.sizes), self.caution_s]

    @classmethod
    def from_json(cls, data: list[Any]) -> Self:
        """The way back."""
        curve, spread, sizes, caution_s = data
        return cls(dict(curve), spread, tuple(sizes), caution_s)

    @classmethod
    def of(cls, cost: CostModel | None, sizes: tuple[int, ...], caution_s: float = 0.0) -> Self:
        """What a model of the cost says now."""
        return cls({}, 1.0, sizes, caution_s) if cost is None else cls(cost.curve(), cost.spread, sizes, caution_s)

    def cost(self) -> CostModel | None:
        """The model of the cost that says the same."""
        if not self.curve:
            return None
        cost = CostModel(self.curve)
        cost.spread = self.spread
        return cost

    def like(self, other: "Speed") -> bool:
        """Whether no prediction would differ by more than a few percent."""
        return (
            self.sizes == other.sizes
            and self.curve.keys() == other.curve.keys()
            and _near(self.spread, other.spread)
            and abs(self.caution_s - other.caution_s) <= 0.001
            and all(_near(seconds, other.curve[size]) for size, seconds in self.curve.items())
        )


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 0.03 * max(one, other)
