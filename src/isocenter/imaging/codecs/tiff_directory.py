"""An image file directory as bytes, classic and BigTIFF: what every writer of TIFF ends with (TIFF 6.0, 2)."""

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

SHORT: Final = 3
LONG: Final = 4
RATIONAL: Final = 5
LONG8: Final = 16
X_RESOLUTION: Final = 282
Y_RESOLUTION: Final = 283
RESOLUTION_UNIT: Final = 296

_CODES: Final = {SHORT: "H", LONG: "I", RATIONAL: "I", LONG8: "Q"}
_CENTIMETRE: Final = 3
_UM_IN_A_CM: Final = 10_000


class Values(NamedTuple):
    """What a tag holds. A fraction is two numbers."""

    kind: int
    numbers: Sequence[int]


def directory(tags: Mapping[int, Values], at: int, *, order: str = "<", big: bool = False) -> bytes:
    """The directory that begins at an even offset in the file, and after it the values that have no room in it.

    >>> directory({256: Values(SHORT, [7])}, 8).hex(" ", 2)
    '0100 0001 0300 0100 0000 0700 0000 0000 0000'
    """
    count, entry, room, end = ("Q", "HHQ", 8, "Q") if big else ("H", "HHI", 4, "I")
    width = struct.calcsize(order + entry) + room
    values_at = at + struct.calcsize(order + count) + width * len(tags) + struct.calcsize(order + end)
    table, values = [struct.pack(order + count, len(tags))], b""
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{_CODES[kind]}", *numbers)
        table.append(struct.pack(order + entry, tag, kind, len(numbers) // 2 if kind == RATIONAL else len(numbers)))
        if len(packed) <= room:
            table.append(packed.ljust(room, b"\0"))
        else:
            table.append(struct.pack(order + end, values_at + len(values)))
            values += packed + bytes(-len(packed) % (8 if big else 2))
    return b"".join((*table, struct.pack(order + end, 0), values))


def resolution(pixel_size_um: tuple[float, float] | None) -> dict[int, Values]:
    """The tags that say how large a pixel is, from its height and width; none if it is not known."""
    if pixel_size_um is None:
        return {}
    height_um, width_um = pixel_size_um
    return {
        X_RESOLUTION: Values(RATIONAL, _per_cm(width_um)),
        Y_RESOLUTION: Values(RATIONAL, _per_cm(height_um)),
        RESOLUTION_UNIT: Values(SHORT, [_CENTIMETRE]),
    }


def _per_cm(um: float) -> list[int]:
    """Pixels a centimetre, as a fraction of numbers below 2**32."""
    above, below = _UM_IN_A_CM / um, 1
    while above * 10 < 2**31 and below < 10**6:
        above, below = above * 10, below * 10
    return [min(2**32 - 1, round(above)), below]
