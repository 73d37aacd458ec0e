"""What a manifest may say about preprocessing of arrays [C, *spatial]: steps as data, in the order they are made.

Names in capitals are MONAI's: a step with the same arguments gives the same numbers.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from isocenter.imaging.transforms.arrays.schemes import NormalizeChannels

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Eps = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Side = Annotated[int, Field(ge=1, le=65_536)]
_Margin = Annotated[int, Field(ge=0, le=4096)]
_Rank = Field(min_length=2, max_length=3)

Sides: TypeAlias = Annotated[tuple[_Side, ...], _Rank]
"""Voxels along each spatial axis."""
SidesOrKeep: TypeAlias = Annotated[tuple[_Side | None, ...], _Rank]
"""The same; null leaves an axis as it is."""
Filter: TypeAlias = Literal["linear", "nearest", "area", "cubic"]


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Orient(_Step):
    """Axes permuted and mirrored, so that they point as `axcodes` says: "RAS", "LPS", … (ORIENTATION)."""

    kind: Literal["orient"]
    axcodes: str

    @model_validator(mode="after")
    def _three_directions(self) -> Self:
        axes = ["LR", "PA", "IS"]
        found = [next((axis for axis in axes if code in axis), None) for code in self.axcodes]
        if len(found) != 3 or set(found) != set(axes):
            raise ValueError(f"axcodes {self.axcodes!r}: one of L R, one of P A and one of I S, in any order")
        return self


class Transpose(_Step):
    """Spatial axes in another order: result axis i is source axis `axes[i]`."""

    kind: Literal["transpose"]
    axes: Annotated[tuple[Annotated[int, Field(ge=0, le=2)], ...], _Rank]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if sorted(self.axes) != list(range(len(self.axes))):
            raise ValueError(f"axes {list(self.axes)}: each of {list(range(len(self.axes)))} once")
        return self


class Resample(_Step):
    """To another spacing, axis by axis (SPACING; its `align_corners` makes no difference there).

    `extent` says what keeps its place: the centres of the first voxels (`centres`, as MONAI), so that the size is
    round((n - 1) * old / new + 1); or the outer edges (`voxels`, as nnU-Net and scikit-image), then it is
    round(n * old / new). Beyond the outermost centres the border value goes on. `cubic` is an interpolating B-spline
    of order 3. `antialias` widens the linear filter where the spacing grows. Where the spacings of the source, or
    the new ones, differ by more than `coarse_above` to one, the coarsest axis is taken by nearest neighbour, as
    nnU-Net does.
    """

    kind: Literal["resample"]
    spacing_mm: Annotated[tuple[_Positive | None, ...], _Rank]
    """Along each axis; null leaves an axis as it is."""
    filter: Literal["linear", "nearest", "cubic"] = "linear"
    extent: Literal["centres", "voxels"] = "centres"
    antialias: bool = False
    coarse_above: Annotated[float, Field(gt=1)] | None = None


class ResizeArray(_Step):
    """To a size in voxels (RESIZE).

    Without `align_corners` the outer edges keep their place, with it the outermost centres. `nearest` is MONAI's
    `nearest-exact`, `area` the mean over whole voxels. `antialias` widens the linear filter where an axis shrinks.
    """

    kind: Literal["resize"]
    size: SidesOrKeep
    filter: Filter = "linear"
    align_corners: bool = False
    antialias: bool = False

    @model_validator(mode="after")
    def _linear_only(self) -> Self:
        if self.align_corners and self.filter != "linear":
            raise ValueError(f"align_corners goes with filter linear, not {self.filter}")
        return self


class CropForeground(_Step):
    """To the box around the foreground (CROPFOREGROUND): voxels above `above`, or other than 0 with `nonzero`.

    `channel` says where it is looked for, null: in any. Without `stay_inside` the margin may reach beyond the array;
    zeros stand there. An array without foreground is refused.
    """

    kind: Literal["crop_foreground"]
    channel: Annotated[int, Field(ge=0)] | None = None
    above: _Finite = 0.0
    nonzero: bool = False
    margin: _Margin | Annotated[tuple[_Margin, ...], _Rank] = 0
    stay_inside: bool = True
    multiple_of: _Side = 1


class _Pad(_Step):
    method: Literal["symmetric", "end"] = "symmetric"
    """`symmetric`: half before and half after, the odd voxel after."""
    mode: Literal["constant", "edge", "reflect"] = "constant"
    value: _Finite = 0.0


class PadTo(_Pad):
    """To at least a size (SPATIALPAD); a longer axis stays as it is."""

    kind: Literal["pad_to"]
    size: SidesOrKeep


class PadToMultiple(_Pad):
    """Until each axis is a multiple (DIVISIBLEPAD)."""

    kind: Literal["pad_to_multiple"]
    multiple_of: _Side | Sides


class CenterCrop(_Step):
    """To at most a size, around the middle (CENTERSPATIALCROP); a shorter axis stays as it is."""

    kind: Literal["center_crop"]
    size: SidesOrKeep


class ArrayPercentile(_Step):
    """A percentile of the array itself, interpolated linearly between the two nearest ranks, as numpy does."""

    percentile: Annotated[float, Field(ge=0, le=100)]


class ArrayValue(_Step):
    """A fixed value."""

    value: _Finite


def _by_name(bound: object) -> object:
    if isinstance(bound, str):
        return {"min": {"percentile": 0}, "max": {"percentile": 100}}.get(bound, bound)
    return {"value": bound} if isinstance(bound, int | float) and not isinstance(bound, bool) else bound


Limit: TypeAlias = Annotated[ArrayPercentile | ArrayValue, BeforeValidator(_by_name)]
"""A number, `{percentile: p}`, `min` or `max`."""


def _in_order(low: object, high: object) -> None:
    match low, high:
        case (ArrayPercentile(percentile=first), ArrayPercentile(percentile=second)) | (
            ArrayValue(value=first),
            ArrayValue(value=second),
        ) if second <= first:
            raise ValueError(f"high ({second:g}) is not above low ({first:g})")


class Scale(_Step):
    """Linearly from low..high to `to` (SCALEINTENSITYRANGE; by percentiles …PERCENTILES; from min to max
    SCALEINTENSITY): (x - low) / (high - low + eps) * (to[1] - to[0]) + to[0], then clipped to `to` if asked.

    Where low and high are the same, x - low + to[0].
    """

    kind: Literal["scale"]
    low: Limit = ArrayPercentile(percentile=0)
    high: Limit = ArrayPercentile(percentile=100)
    to: tuple[_Finite, _Finite] = (0.0, 1.0)
    clip: bool = False
    per_channel: bool = False
    eps: _Eps = 0.0

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        _in_order(self.low, self.high)
        return self


class Standardize(_Step):
    """(x - mean) / (std + eps) (NORMALIZEINTENSITY), of the array itself where `mean` or `std` is left out.

    `nonzero`: only voxels other than 0 count and change. A std of 0 counts as 1.
    """

    kind: Literal["standardize"]
    nonzero: bool = False
    per_channel: bool = False
    mean: Annotated[tuple[_Finite, ...], Field(min_length=1)] | None = None
    """One for all channels, or one a channel."""
    std: Annotated[tuple[_Positive, ...], Field(min_length=1)] | None = None
    eps: _Eps = 0.0


class ShiftScale(_Step):
    """x * gain + offset (bioimage.io `scale_linear`), one for all channels or one a channel."""

    kind: Literal["shift_scale"]
    gain: Annotated[tuple[_Finite, ...], Field(min_length=1)] = (1.0,)
    offset: Annotated[tuple[_Finite, ...], Field(min_length=1)] = (0.0,)


class Clip(_Step):
    """Values below `low` become `low`, above `high` become `high`."""

    kind: Literal["clip"]
    low: Limit | None = None
    high: Limit | None = None
    per_channel: bool = False

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("clip needs low or high")
        _in_order(self.low, self.high)
        return self


class SelectChannels(_Step):
    """Some channels, in this order, by their number from 0."""

    kind: Literal["select_channels"]
    channels: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


ArrayStep: TypeAlias = Annotated[
    Orient
    | Transpose
    | Resample
    | ResizeArray
    | CropForeground
    | PadTo
    | PadToMultiple
    | CenterCrop
    | Scale
    | Standardize
    | ShiftScale
    | Clip
    | SelectChannels
    | NormalizeChannels,
    Field(discriminator="kind"),
]


def _of_one_rank(steps: tuple[ArrayStep, ...]) -> tuple[ArrayStep, ...]:
    ranks = {step.kind: rank for step in steps if (rank := spatial_rank(step)) is not None}
    for (first, one), (second, other) in pairwise(ranks.items()):
        if one != other:
            raise ValueError(f"{first} is of {one} spatial axes, {second} of {other}")
    return steps


def spatial_rank(step: ArrayStep) -> int | None:
    """How many spatial axes a step says that there are; None if it does not say.

    >>> spatial_rank(PadTo(kind="pad_to", size=(96, 96, 96)))
    3
    """
    match step:
        case Orient():
            return 3
        case Transpose(axes=sides) | Resample(spacing_mm=sides):
            return len(sides)
        case ResizeArray(size=size) | PadTo(size=size) | CenterCrop(size=size):
            return len(size)
        case PadToMultiple(multiple_of=tuple() as sides) | CropForeground(margin=tuple() as sides):
            return len(sides)
    return None


ArraySteps: TypeAlias = Annotated[tuple[ArrayStep, ...], AfterValidator(_of_one_rank)]
"""A manifest's `steps`, in any order."""
