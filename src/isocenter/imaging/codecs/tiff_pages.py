"""The pages of a TIFF as pictures: which belong together, what their channels are called, how large a pixel is."""

from collections.abc import Sequence
from dataclasses import dataclass

from isocenter.core.errors import BadImage, InputNotAccepted, MultiFrameImage
from isocenter.imaging.codecs import tiff
from isocenter.imaging.codecs.ifd import Directory, Layout, Readable, directories, read_directory, read_layout
from isocenter.imaging.codecs.ome import Picture, micrometres, pictures_of
from isocenter.imaging.codecs.tiff import TiffHeader

_SUBFILE, _DESCRIPTION, _PER_X, _PER_Y, _UNIT = 254, 270, 282, 283, 296
_FIRST_FACTS = frozenset({_SUBFILE, _DESCRIPTION, _PER_X, _PER_Y, _UNIT})
_FACTS = _FIRST_FACTS - {_DESCRIPTION}
_REDUCED, _MASK = 1, 4
_UNITS = {2: "inch", 3: "cm"}
# Printers' and screens' dots per inch stand in many files: a pixel of 85 um is 300 dpi, not a microscope's.
_LARGEST_UM = 20.0


@dataclass(frozen=True, slots=True)
class TiffPages:
    """An opened TIFF; nothing of its pixels has been read."""

    data: Readable
    layout: Layout
    offsets: tuple[int, ...]
    pictures: tuple[Picture, ...]

    def picture(self, page: int | None) -> Picture:
        """The picture that is meant.

        Raises:
            MultiFrameImage: there are several, and none was asked for.
            InputNotAccepted: there is no such one.
        """
        count = len(self.pictures)
        if page is None and count > 1:
            raise MultiFrameImage(f"the TIFF holds {count} pages: ask for one", details={"pages": count})
        number = page or 0
        if not 0 <= number < count:
            raise InputNotAccepted(
                f"page {number} is asked for, there are {count}", details={"page": number, "pages": count}
            )
        return self.pictures[number]

    def header(self, page: int) -> TiffHeader:
        """Read and check the directory of a page.

        Raises:
            BadInput: as `tiff.read_header`.
        """
        return tiff.read_page(self.data, self.layout, self.offsets[page])


def read_pages(data: Readable) -> TiffPages:
    """Walk through a TIFF's directories.

    Pages that are smaller copies or masks of others are left out, unless OME-XML places planes on them.

    Raises:
        BadImage, TruncatedImage: a directory is broken or cut.
        UnsupportedMedia: pixels lie in another file.
    """
    layout = read_layout(data)
    offsets = tuple(directories(data, layout))
    if not offsets:
        raise BadImage("the TIFF has no page")
    first = read_directory(data, _FIRST_FACTS, layout=layout, at=offsets[0])
    told = pictures_of(first.texts.get(_DESCRIPTION, b""), len(offsets), per_unit=_per_unit(first))
    if told is not None:
        return TiffPages(data, layout, offsets, tuple(told))
    pages = [read_directory(data, _FACTS, layout=layout, at=at) for at in offsets]
    full = [n for n, page in enumerate(pages) if not n or not page.one(_SUBFILE, 0) & (_REDUCED | _MASK)]
    return TiffPages(data, layout, offsets, tuple(Picture((n,), (), _pixel_size_um(pages[n])) for n in full))


def _per_unit(tags: Directory) -> tuple[float, float] | None:
    """Pixels down and across one unit."""
    down, across = _one(tags.fractions.get(_PER_Y, ())), _one(tags.fractions.get(_PER_X, ()))
    return (down, across) if down > 0 and across > 0 else None


def _one(values: Sequence[float]) -> float:
    return values[0] if values else 0.0


def _pixel_size_um(tags: Directory) -> tuple[float, float] | None:
    unit = micrometres(_UNITS.get(tags.one(_UNIT, 2), ""))
    per = _per_unit(tags)
    if unit is None or per is None:
        return None
    height, width = unit / per[0], unit / per[1]
    return (height, width) if 0 < max(height, width) <= _LARGEST_UM else None
