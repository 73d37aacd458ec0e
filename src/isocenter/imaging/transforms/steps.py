"""What a manifest may say about preprocessing: four kinds of steps, as data."""

from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Side = Annotated[int, Field(ge=1, le=8192)]


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Percentile(_Step):
    """A sample of the image itself, by nearest rank: the ceil(p/100 * n)-th smallest of n, the smallest for 0."""

    percentile: Annotated[float, Field(ge=0, le=100)]


class Value(_Step):
    """A fixed sample value."""

    value: _Finite


def _by_name(bound: object) -> object:
    return {"min": {"percentile": 0}, "max": {"percentile": 100}}.get(bound, bound) if isinstance(bound, str) else bound


Bound: TypeAlias = Annotated[Percentile | Value, BeforeValidator(_by_name)]


class Window(_Step):
    """An intensity window: samples of more than 8 bits go linearly from low..high to 0..255, clipped, not rounded.

    8-bit images pass untouched. `low: min` and `high: max` are the 0th and 100th percentile.

    >>> Window(kind="window", low="min", high={"percentile": 99.9}).low
    Percentile(percentile=0.0)
    """

    kind: Literal["window"]
    low: Bound
    high: Bound

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        match self.low, self.high:
            case (Percentile(percentile=low), Percentile(percentile=high)) | (Value(value=low), Value(value=high)):
                if high <= low:
                    raise ValueError(f"high ({high:g}) is not above low ({low:g})")
        return self


class Color(_Step):
    """To gray by ITU-R BT.601 weights (0.299, 0.587, 0.114), unrounded; to RGB by replication."""

    kind: Literal["color"]
    to: Literal["gray", "rgb"]


class Resize(_Step):
    """To `size` [height, width] by two banded matrices, without rounding (see `resample`).

    `antialias` concerns bilinear only: area always averages, nearest never does. `pad` is in samples of 0..255.
    """

    kind: Literal["resize"]
    size: tuple[_Side, _Side]
    mode: Literal["stretch", "letterbox", "crop"] = "stretch"
    filter: Literal["bilinear", "nearest", "area"] = "bilinear"
    antialias: bool = True
    pad: Annotated[float, Field(ge=0, le=255)] = 0.0


class Normalize(_Step):
    """(sample * scale - mean) / std per channel, as float32 CHW; `mean` says whether 1 or 3 channels go in."""

    kind: Literal["normalize"]
    scale: _Positive = 1 / 255
    mean: tuple[_Finite, ...]
    std: tuple[_Positive, ...]

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(f"mean and std need 1 or 3 values each, not {len(self.mean)} and {len(self.std)}")
        return self

    @property
    def output_range(self) -> float:
        """From the darkest to the lightest possible output, of the channel where that is farthest."""
        return 255 * self.scale / min(self.std)


Step: TypeAlias = Annotated[Window | Color | Resize | Normalize, Field(discriminator="kind")]
_ORDER = ("window", "color", "resize", "normalize")


def _checked_order(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    kinds = [step.kind for step in steps]
    if any(_ORDER.index(first) >= _ORDER.index(second) for first, second in pairwise(kinds)):
        raise ValueError(f"steps come in the order {', '.join(_ORDER)}, each at most once, not {', '.join(kinds)}")
    if not steps or not isinstance(steps[-1], Normalize):
        raise ValueError("the last step is normalize, and it is required")
    for step in steps:
        if isinstance(step, Color) and len(steps[-1].mean) != (1 if step.to == "gray" else 3):
            raise ValueError(f"color gives {step.to}, normalize takes {len(steps[-1].mean)} channels")
    return steps


Steps: TypeAlias = Annotated[tuple[Step, ...], AfterValidator(_checked_order)]
"""A manifest's `transforms`: window, color, resize, normalize, in this order; only normalize is required."""
