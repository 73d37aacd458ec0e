"""An image or a volume with its place in the patient: what segmentation models take."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from isocenter.core.errors import BadImage, EmptyInput, InputNotAccepted, NonFinitePixels
from isocenter.core.tensor import Array
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.image import Note

COLOURS = ("red", "green", "blue")
"""What the channels of a colour picture are called."""
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels [C, *spatial], 2 or 3 spatial axes, any real type; where they lie; what the channels are called.

    >>> Volume.of(np.zeros((2, 4, 5, 6), np.int16), spacing_mm=(1, 1, 2), channels=("t1", "flair")).geometry.shape
    (4, 5, 6)

    Raises:
        BadImage: the voxels do not fit the geometry or the names.
    """

    voxels: Array
    geometry: Geometry
    channels: tuple[str, ...] = ()
    """Empty: they have no names."""
    notes: tuple[Note, ...] = field(default=())
    """What was done to it on the way."""

    def __post_init__(self) -> None:
        if self.voxels.shape[1:] != self.geometry.shape or not len(self.voxels):
            raise BadImage(
                f"voxels of shape {list(self.voxels.shape)} are not channels of a grid of {list(self.geometry.shape)}",
                details={"shape": [*self.voxels.shape], "grid": [*self.geometry.shape]},
            )
        if self.channels and (len(self.channels) != len(self.voxels) or len(set(self.channels)) != len(self.channels)):
            raise BadImage(
                f"{len(self.voxels)} channels are called {', '.join(self.channels)}",
                details={"channels": [*self.channels], "count": len(self.voxels)},
            )

    @classmethod
    def of(
        cls,
        voxels: Array,
        *,
        geometry: Geometry | None = None,
        spacing_mm: Sequence[float] | None = None,
        channels: Sequence[str] = (),
    ) -> Self:
        """Voxels [C, *spatial] along the axes of LPS, unless a geometry says otherwise."""
        if voxels.ndim not in (3, 4) or 0 in voxels.shape:
            raise BadImage(
                f"an array of {' x '.join(map(str, voxels.shape))}: a volume is channels x 2 or 3 spatial axes",
                details={"shape": [*voxels.shape]},
            )
        return cls(voxels, geometry or Geometry.of(voxels.shape[1:], spacing_mm), tuple(channels))

    def select(self, names: Sequence[str]) -> "Volume":
        """The channels of these names, in this order. Without names of its own, it is taken as it is if there is one.

        Raises:
            InputNotAccepted: a channel is missing, or several have no names.
        """
        if not names or self.channels == tuple(names):
            return self
        if not self.channels and len(self.voxels) == len(names) == 1:
            return replace(self, channels=tuple(names))
        if missing := [name for name in names if name not in self.channels]:
            raise InputNotAccepted(
                f"the model takes the channels {', '.join(names)}; {', '.join(missing)} missing, there are "
                f"{', '.join(self.channels) or f'{len(self.voxels)} without names'}",
                details={"channels": [*names], "missing": [*missing], "found": [*self.channels]},
            )
        order = [self.channels.index(name) for name in names]
        return Volume(self.voxels[order], self.geometry, tuple(names), self.notes)

    def refuse_unusable(self, *, each: bool = True) -> None:
        """See that there is something in every channel, or, without `each`, in one of them: a nucleus may be only blue.

        Raises:
            NonFinitePixels, EmptyInput: NaN or infinity; one value everywhere. Also of values that are so in float32,
                in which models compute.
        """
        constant = []
        for number, channel in enumerate(self.voxels):
            name = self.channels[number] if self.channels else str(number)
            low, high = channel.min(), channel.max()
            if not (np.isfinite(low) and np.isfinite(high)):
                count = int(channel.size - np.count_nonzero(np.isfinite(channel)))
                raise NonFinitePixels(
                    f"{count} of {channel.size} voxels of channel {name} are NaN or infinite",
                    details={"channel": name, "non_finite": count, "voxels": channel.size},
                )
            if max(abs(float(low)), abs(float(high))) > _LARGEST:
                raise NonFinitePixels(
                    f"voxels of channel {name} reach from {low:g} to {high:g}, beyond {_LARGEST:g}",
                    details={"channel": name, "min": float(low), "max": float(high), "limit": _LARGEST},
                )
            if np.float32(low) == np.float32(high):
                constant.append((name, float(low)))
        if constant and (each or len(constant) == len(self.voxels)):
            name, value = constant[0]
            raise EmptyInput(
                f"every voxel of channel {name} has the value {value:g}", details={"channel": name, "value": value}
            )
