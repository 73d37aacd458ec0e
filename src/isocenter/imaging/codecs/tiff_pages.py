"""The pages of a TIFF as pictures: which belong together, what their channels are called, how large a pixel is."""

from collections.abc import Sequence
from dataclasses import dataclass

from isocenter.core.errors import BadImage, InputNotAccepted, MultiFrameImage, UnsupportedMedia
from isocenter.imaging.codecs import tiff
from isocenter.imaging.codecs.ifd import Directory, Layout, Readable, directories, read_directory, read_layout
from isocenter.imaging.codecs.ome import LARGEST_OF_INCHES_UM, Picture, is_size, micrometres, pictures_of
from isocenter.imaging.codecs.tiff import TiffHeader

_PER_X, _PER_Y, _UNIT = 282, 283, 296
_FACTS = frozenset({tiff.SUBFILE, tiff.WIDTH, tiff.HEIGHT, tiff.BELOW, _PER_X, _PER_Y, _UNIT})
_FIRST_FACTS = _FACTS | tiff.ALL_THERE_IS
_MASK = 4
_UNITS = {2: "inch", 3: "cm"}


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

    Pages that are smaller copies or masks of others are left out, unless OME-XML places planes on them. Pages that a
    description does not speak of are pictures too, after those that it does: which one is meant is not guessed.

    Raises:
        BadImage, TruncatedImage: a directory is broken or cut.
        UnsupportedMedia: pixels lie in another file, or where pages do not tell.
    """
    layout = read_layout(data)
    offsets = tuple(directories(data, layout))
    if not offsets:
        raise BadImage("the TIFF has no page")
    first = read_directory(data, _FIRST_FACTS, layout=layout, at=offsets[0])
    tiff.refuse_hidden(first)
    told = pictures_of(first.texts.get(tiff.DESCRIPTION, b""), len(offsets), per_unit=_per_unit(first)) or []
    placed = {page for picture in told for page in picture.pages}
    others = [n for n in range(len(offsets)) if n not in placed]
    pages = {n: read_directory(data, _FACTS, layout=layout, at=offsets[n]) for n in others}
    largest = max([_pixels(first), *map(_pixels, pages.values())])
    full = [n for n, page in pages.items() if not _left_out(page, largest)]
    if not told and not full:
        raise UnsupportedMedia("a TIFF of which each page is a copy or a mask of what does not stand beside it")
    return TiffPages(data, layout, offsets, (*told, *(Picture((n,), (), _pixel_size_um(pages[n])) for n in full)))


def _pixels(page: Directory) -> int:
    return page.one(tiff.WIDTH, 0) * page.one(tiff.HEIGHT, 0)


def _left_out(page: Directory, largest: int) -> bool:
    """Whether it is a mask, or a copy that is smaller than what it is a copy of: same-sized pages are pictures."""
    kind, below = page.one(tiff.SUBFILE, 0), bool(page.values.get(tiff.BELOW))
    return bool(kind & _MASK) or bool(kind & tiff.REDUCED and (below or _pixels(page) < largest))


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
    return (height, width) if is_size(min(height, width)) and max(height, width) <= LARGEST_OF_INCHES_UM else None
