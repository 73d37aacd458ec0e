"""What a model's manifest accepts of a picture: outside is refused, near the edge is noted."""

from typing import Annotated, Literal, Self

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from isocenter.core.errors import InputNotAccepted
from isocenter.core.tensor import Array
from isocenter.imaging.image import Note, RasterImage

_COLOR_LEVELS = 8
_COLOR_SHARE = 0.01
_Side = Annotated[int, Field(ge=1)]
_Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Accepts(BaseModel):
    """Bounds on the upright picture; a bound left out accepts everything.

    >>> Accepts(min_side_px=64, color="warn").max_side_px is None
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_side_px: _Side | None = None
    max_side_px: _Side | None = None
    max_aspect_ratio: _Ratio | None = None
    warn_below_side_px: _Side | None = None
    warn_above_aspect_ratio: _Ratio | None = None
    color: Literal["any", "warn", "refuse"] = "any"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_side_px and self.max_side_px and self.min_side_px > self.max_side_px:
            raise ValueError(f"min_side_px ({self.min_side_px}) is above max_side_px ({self.max_side_px})")
        return self


def check(accepts: Accepts, image: RasterImage) -> tuple[Note, ...]:
    """Refuse what the model does not accept; note what is near the edge.

    Raises:
        InputNotAccepted: too small, too large, too long, or coloured where colour is refused.
    """
    short, long = sorted(image.pixels.shape[:2])
    ratio = long / short
    if accepts.min_side_px is not None and short < accepts.min_side_px:
        raise _not_accepted("the shorter side", "px", short, "at least", accepts.min_side_px)
    if accepts.max_side_px is not None and long > accepts.max_side_px:
        raise _not_accepted("the longer side", "px", long, "at most", accepts.max_side_px)
    if accepts.max_aspect_ratio is not None and ratio > accepts.max_aspect_ratio:
        raise _not_accepted("the aspect ratio", "to 1", round(ratio, 3), "at most", accepts.max_aspect_ratio)
    notes = []
    if accepts.warn_below_side_px is not None and short < accepts.warn_below_side_px:
        limit = accepts.warn_below_side_px
        notes.append(Note("small_image", f"the shorter side has {short} px; below {limit} px answers are less certain"))
    if accepts.warn_above_aspect_ratio is not None and ratio > accepts.warn_above_aspect_ratio:
        limit_ratio = accepts.warn_above_aspect_ratio
        notes.append(Note("unusual_aspect_ratio", f"the aspect ratio is {ratio:.3g}, above {limit_ratio:g}"))
    if accepts.color != "any":
        notes += _check_color(accepts, image)
    return tuple(notes)


def coloured_share(pixels: Array) -> float:
    """The share of pixels whose channels differ by more than 8 levels of 255 (of the full range, for 16 bits).

    Float images have no full range: the largest absolute sample stands for it.

    >>> coloured_share(np.uint8([[[10, 10, 10], [200, 10, 10]]]))
    0.5
    """
    if pixels.ndim == 2:
        return 0.0
    if pixels.dtype.kind == "u":  # whole numbers are above a limit if they are above what is below it
        limit: float = _COLOR_LEVELS * int(np.iinfo(pixels.dtype).max) // 255
    else:
        limit = _COLOR_LEVELS * float(np.abs(pixels).max()) / 255
    # Planes first: numpy would go over interleaved samples five times slower.
    red, green, blue = cv2.split(pixels)
    apart = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    return float(np.count_nonzero(apart > limit) / apart.size)


def _check_color(accepts: Accepts, image: RasterImage) -> tuple[Note, ...]:
    share = coloured_share(image.pixels)
    if share <= _COLOR_SHARE:
        return ()
    said = f"{100 * share:.1f} % of the pixels are coloured, a gray picture is expected"
    if accepts.color == "refuse":
        raise InputNotAccepted(said, details={"coloured_share": round(share, 6), "limit": _COLOR_SHARE})
    return (Note("unexpected_color", said),)


def _not_accepted(what: str, unit: str, found: float, sense: str, limit: float) -> InputNotAccepted:
    return InputNotAccepted(
        f"{what} is {found:g} {unit}, the model accepts {sense} {limit:g}", details={"found": found, "limit": limit}
    )
