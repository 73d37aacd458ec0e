"""Axes of a bioimage.io tensor, formats 0.4 (`axes: bcyx`) and 0.5 (a list), in the one order that is served."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from isocenter.core.errors import ImportRefused

AxisKind: TypeAlias = Literal["batch", "channel", "space"]
_LETTERS: Final[dict[str, tuple[AxisKind, str]]] = {
    "b": ("batch", "batch"), "c": ("channel", "channel"), "z": ("space", "z"), "y": ("space", "y"), "x": ("space", "x"),
}  # fmt: skip
_SERVED: Final = (["batch", "channel", "y", "x"], ["batch", "channel", "z", "y", "x"])


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis."""

    kind: AxisKind
    id: str
    """`batch`, `channel`, `z`, `y` or `x`."""
    channels: tuple[str, ...] = ()
    """Names of the channels; empty where the package has none."""
    halo_px: int = 0
    """How much of an output's border is not to be trusted."""


def axes_of(tensor: Mapping[str, Any], name: str) -> list[Axis]:
    """The axes of a tensor: batch, channel, (z,) y, x.

    Raises:
        ImportRefused: they are others, or in another order.
    """
    said = tensor.get("axes")
    if isinstance(said, str):
        found = [_of_letter(letter, name) for letter in said]
        halo = tensor.get("halo") or [0] * len(found)
        if not isinstance(halo, list) or len(halo) != len(found) or not all(map(_is_halo, halo)):
            raise ImportRefused(f"{name}: halo is {halo!r}, not {len(found)} whole numbers")
        found = [Axis(axis.kind, axis.id, (), px) for axis, px in zip(found, halo, strict=True)]
    elif isinstance(said, list):
        found = [_of_entry(entry, name) for entry in said]
    else:
        raise ImportRefused(f"{name}: it does not say which axes it has")
    ids = [axis.id for axis in found]
    if ids not in _SERVED:
        raise ImportRefused(
            f"{name} has the axes {', '.join(ids)}; served are {' and '.join(', '.join(each) for each in _SERVED)}",
            details={"axes": list(ids)},
        )
    return found


def _of_letter(letter: str, name: str) -> Axis:
    if letter not in _LETTERS:
        raise ImportRefused(f"{name} has an axis {letter!r}; served are {', '.join(_LETTERS)}")
    return Axis(*_LETTERS[letter])


def _of_entry(entry: object, name: str) -> Axis:
    if not isinstance(entry, Mapping):
        raise ImportRefused(f"{name}: an axis is {entry!r}, not a mapping")
    kind = entry.get("type")
    if kind == "batch":
        return Axis("batch", "batch")
    if kind == "channel":
        names = entry.get("channel_names") or []
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise ImportRefused(f"{name}: channel_names is {str(names)[:80]}, not a list of names")
        return Axis("channel", "channel", tuple(names))
    if kind == "space":
        halo = entry.get("halo") or 0
        if not _is_halo(halo):
            raise ImportRefused(f"{name}: halo is {str(halo)[:80]}, not a whole number")
        # Format 0.5 calls an axis x where it is not named.
        return Axis("space", str(entry.get("id", "x")), (), halo)
    raise ImportRefused(f"{name} has an axis of type {kind!r}; served are batch, channel and space")


def _is_halo(value: object) -> bool:
    return type(value) is int and value >= 0
