"""What a TIFF's description says of its pages: OME-XML (2016-06) and ImageJ's lines. Pure text in, facts out."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final
from xml.etree import ElementTree

from isocenter.core.errors import BadImage, UnsupportedMedia

_UM: Final = {
    "nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometers": 1.0,
    "micrometre": 1.0, "micrometres": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6,
    "inch": 25400.0, "in": 25400.0, "Å": 1e-4, "pm": 1e-6,
}  # fmt: skip
_MAX_PLANES, _MAX_IMAGES = 16_384, 64
_MAX_SIDE_PX, _MAX_DIGITS = 2**32 - 1, 20
_ORDERS = {"XYZCT", "XYZTC", "XYCTZ", "XYCZT", "XYTCZ", "XYTZC"}
_IMAGEJ = re.compile(rb"ImageJ=")
# Of a pixel, in micrometres: less than an atom or more than a hand is no microscope's, whatever is written.
_SIZES_UM: Final = (1e-4, 1e5)
LARGEST_OF_INCHES_UM: Final = 20.0
"""Dots per inch of printers and screens stand in many files: a pixel of 85 um is 300 of them, not a microscope's."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a file: its pages, and what is known of them."""

    pages: tuple[int, ...]
    """Their numbers, counted from 0 along the file: one a channel, or one for all channels of the page."""
    channels: tuple[str, ...] = ()
    """Names of the channels; empty, or empty at places: the file does not say."""
    pixel_size_um: tuple[float, float] | None = None
    """Height and width."""
    size_px: tuple[int, int] | None = None
    """Height and width of a page as described: pages of another size are not what the pixel size was written for."""


def pictures_of(description: bytes, pages: int, *, per_unit: tuple[float, float] | None = None) -> list[Picture] | None:
    """The pictures that a description makes of a file's pages, or of some of them; None: it says nothing of them.

    `pages` is how many there are; `per_unit` is what the resolution tags say, pixels down and across a unit, which is
    ImageJ's to tell.

    >>> first, second = pictures_of(b"ImageJ=1.53\\nimages=4\\nchannels=2\\nslices=2\\n", 4)
    >>> first.pages, second.pages
    ((0, 1), (2, 3))

    Raises:
        BadImage: it cannot be read, or does not fit the pages.
        UnsupportedMedia: pixels lie in another file.
    """
    if _IMAGEJ.match(description):
        return _of_imagej(description, pages, per_unit)
    if b"<OME" in description[:4096] or b":OME" in description[:4096]:
        return _of_ome(description, pages)
    return None


def micrometres(unit: str) -> float | None:
    """How many micrometres a unit has.

    >>> micrometres("nm"), micrometres("pixel")
    (0.001, None)
    """
    return _UM.get(unit.strip().replace("\u03bc", "\u00b5").replace("\\u00B5", "\u00b5"))


def _of_imagej(description: bytes, pages: int, per_unit: tuple[float, float] | None) -> list[Picture]:
    lines = description.split(b"\0")[0].decode("utf-8", "replace").splitlines()
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    images, channels = _count(facts.get("images", str(pages))), _count(facts.get("channels", "1"))
    if images > pages:
        raise UnsupportedMedia(
            f"an ImageJ stack of {images} images without a page for each; {pages} are there",
            details={"images": images, "pages": pages},
        )
    if images % channels:
        raise BadImage(f"{images} images of {channels} channels", details={"images": images, "channels": channels})
    across = facts.get("unit", "")
    size = _imagej_size(facts.get("yunit", across), across, per_unit)
    return [Picture(tuple(range(first, first + channels)), (), size) for first in range(0, images, channels)]


def _imagej_size(down: str, across: str, per_unit: tuple[float, float] | None) -> tuple[float, float] | None:
    """`down` and `across` are units: ImageJ writes a second one where they differ."""
    units = micrometres(down), micrometres(across)
    if units[0] is None or units[1] is None or not per_unit or min(per_unit) <= 0:
        return None
    size = units[0] / per_unit[0], units[1] / per_unit[1]
    if _UM["inch"] in units and max(size) > LARGEST_OF_INCHES_UM:
        return None
    return size if all(map(is_size, size)) else None


def is_size(um: float) -> bool:
    """Whether a pixel of a microscope's picture can be as large.

    >>> is_size(0.25), is_size(1e-5)
    (True, False)
    """
    return _SIZES_UM[0] <= um <= _SIZES_UM[1]


def _count(text: str) -> int:
    if not text.strip().isdecimal() or len(text) > _MAX_DIGITS or not 1 <= int(text) <= _MAX_PLANES:
        raise BadImage(f"an ImageJ stack of {text[:20]!r}")
    return int(text)


def _of_ome(description: bytes, pages: int) -> list[Picture]:
    text = description.rstrip(b"\0 \r\n")
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise BadImage("the OME description declares entities")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as exc:
        raise BadImage("the OME description is not XML") from exc
    own = root.get("UUID", "")
    images = [*_named(root, "Image")]
    if not images or len(images) > _MAX_IMAGES:
        raise BadImage(f"the OME description holds {len(images)} images", details={"images": len(images)})
    return [picture for image in images for picture in _of_image(image, pages, own)]


def _of_image(image: ElementTree.Element, pages: int, own: str) -> Iterator[Picture]:
    pixels = next(_named(image, "Pixels"), None)
    if pixels is None:
        raise BadImage("an image of the OME description has no pixels")
    order = pixels.get("DimensionOrder", "XYCZT")
    sizes = {axis: _positive(pixels.get(f"Size{axis}", "1")) for axis in "CZT"}
    if order not in _ORDERS or math.prod(sizes.values()) > _MAX_PLANES:
        raise BadImage(f"OME pixels in order {order[:10]}, {math.prod(sizes.values())} planes")
    channels = [*_named(pixels, "Channel")]
    samples = {_positive(channel.get("SamplesPerPixel", "1")) for channel in channels} or {1}
    if len(samples) != 1 or sizes["C"] % max(samples):
        raise UnsupportedMedia("an OME-TIFF whose channels differ in samples per pixel")
    each = samples.pop()
    names = tuple(channel.get("Name", "").strip() for channel in channels)
    planes = sizes | {"C": sizes["C"] // each}
    where = _places(pixels, order[2:], planes, own)
    for time, section in product(range(sizes["T"]), range(sizes["Z"])):
        try:
            numbers = tuple(where[channel, section, time] for channel in range(planes["C"]))
        except KeyError as exc:
            raise UnsupportedMedia("an OME-TIFF that keeps planes in another file, or lacks them") from exc
        if max(numbers) >= pages:
            raise BadImage(
                f"the OME description speaks of page {max(numbers)}, there are {pages}",
                details={"page": max(numbers), "pages": pages},
            )
        known = names if each == 1 and len(names) == len(numbers) else ()
        yield Picture(numbers, known, _pixel_size(pixels), _size(pixels))


def _places(
    pixels: ElementTree.Element, order: str, sizes: dict[str, int], own: str
) -> dict[tuple[int, int, int], int]:
    """(channel, section, time) -> page."""
    planes = [
        (at[order.index("C")], at[order.index("Z")], at[order.index("T")])
        for at in (tuple(reversed(each)) for each in product(*(range(sizes[axis]) for axis in reversed(order))))
    ]
    blocks = [*_named(pixels, "TiffData")]
    if not blocks:
        return {plane: page for page, plane in enumerate(planes)}
    if len(blocks) > len(planes):
        raise BadImage(f"the OME description places {len(planes)} planes {len(blocks)} times")
    where: dict[tuple[int, int, int], int] = {}
    placed = 0
    number_of = {plane: number for number, plane in enumerate(planes)}
    uuids = {_uuid(block) for block in blocks} - {""}
    own = own or (next(iter(uuids)) if len(uuids) == 1 else "")
    for block in blocks:
        if _uuid(block) not in ("", own):
            continue
        first = tuple(_index(block.get(f"First{axis}", "0")) for axis in "CZT")
        page, count = _index(block.get("IFD", "0")), block.get("PlaneCount")
        many = _index(count) if count is not None else (1 if block.get("IFD") is not None else len(planes))
        start = number_of.get((first[0], first[1], first[2]))
        if start is None:
            raise BadImage("the OME description places a plane that it does not have")
        for step, plane in enumerate(planes[start : start + many]):
            where[plane] = page + step
            placed += 1
        if placed > 2 * len(planes):
            raise BadImage("the OME description places planes twice")
    return where


def _uuid(block: ElementTree.Element) -> str:
    found = next(_named(block, "UUID"), None)
    return (found.text or "").strip() if found is not None else ""


def _pixel_size(pixels: ElementTree.Element) -> tuple[float, float] | None:
    sizes = []
    for axis in "YX":
        unit = micrometres(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            size = float(pixels.get(f"PhysicalSize{axis}", ""))
        except ValueError:
            return None
        if unit is None or not is_size(size * unit):
            return None
        sizes.append(size * unit)
    return sizes[0], sizes[1]


def _size(pixels: ElementTree.Element) -> tuple[int, int] | None:
    height, width = pixels.get("SizeY"), pixels.get("SizeX")
    return (
        None if height is None or width is None else (_positive(height, _MAX_SIDE_PX), _positive(width, _MAX_SIDE_PX))
    )


def _named(parent: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """Children of a name, whatever the version of the schema."""
    return (child for child in parent if child.tag.rpartition("}")[2] == name)


def _index(text: str, most: int = 10 * _MAX_PLANES) -> int:
    if not text.strip().isdecimal() or len(text) > _MAX_DIGITS or int(text) > most:
        raise BadImage(f"the OME description counts {text[:20]!r}")
    return int(text)


def _positive(text: str, most: int = 10 * _MAX_PLANES) -> int:
    number = _index(text, most)
    if not number:
        raise BadImage("the OME description counts 0 of something")
    return number


def distinct(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Names for so many channels: the number of one without a name; those of one name carry theirs, every one of them.

    >>> distinct(("DAPI", "", "DAPI"), 4)
    ('DAPI (0)', '1', 'DAPI (2)', '3')
    """
    own = [(names[number] if number < len(names) else "") or str(number) for number in range(count)]
    times = Counter(own)
    taken = {name for name, several in times.items() if several == 1}
    found: list[str] = []
    for number, name in enumerate(own):
        if times[name] > 1:
            name = f"{name} ({number})"
            while name in taken:
                name += "'"
            taken.add(name)
        found.append(name)
    return tuple(found)
