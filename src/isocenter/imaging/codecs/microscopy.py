"""The one door for cell images: every channel that a file holds, with its name, untouched, and the pixel size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from isocenter.core.errors import BadImage, InputNotAccepted, IsocenterError
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import raster
from isocenter.imaging.codecs.header import Header
from isocenter.imaging.codecs.ome import Picture, distinct
from isocenter.imaging.codecs.pixels import refuse_non_finite, upright
from isocenter.imaging.codecs.sniff import sniff
from isocenter.imaging.codecs.tiff import TiffHeader
from isocenter.imaging.codecs.tiff_blocks import channels_of, has_channels
from isocenter.imaging.codecs.tiff_pages import TiffPages, read_pages
from isocenter.imaging.codecs.tiff_samples import samples_of
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.image import Note, RasterImage
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.volume import COLOURS, Volume

GRAY = "gray"
_LUMA = (19595, 38470, 7471)  # ITU-R BT.601 in 65536ths, as Pillow: the three of a gray pixel give its value


@dataclass(frozen=True, slots=True)
class PixelsAsked:
    """Which of the pictures and channels of a file is meant, where it holds several."""

    channel: str | int | None = None
    """By its name (upper or lower case), or its number from 0; None: all of them."""
    page: int | None = None
    """From 0: a page of a plain TIFF; a section or time point of an OME-TIFF or ImageJ stack, whose channels stay
    together. None: the only one."""


def read_image(
    data: bytes | memoryview,
    *,
    limits: ImageLimits,
    asked: PixelsAsked = PixelsAsked(),
) -> Volume:
    """A picture [C, H, W] of uint8, uint16 or float32 as stored, upright; its channels by name; its pixel size.

    Colours are called red, green and blue, the only channel of a gray picture gray, others as the file says, or by
    their numbers from 0. `pixel_size_um` tells the pixel size, if the file knows it.

    >>> import cv2
    >>> png = cv2.imencode(".png", np.eye(5, dtype=np.uint8))[1].tobytes()
    >>> volume = read_image(png, limits=ImageLimits())
    >>> volume.voxels.shape, volume.channels, pixel_size_um(volume)
    ((1, 5, 5), ('gray',), None)

    Raises:
        MultiFrameImage: several pages, and none was asked for.
        InputNotAccepted: there is no such channel or page.
        BadInput: one of its kinds; no other exception leaves here, whatever the bytes are.
    """
    whole = bytes(data)
    limits.check_bytes(len(whole))
    if sniff(whole) == "tiff":
        try:
            return _usable(_of_tiff(whole, limits, asked))
        except IsocenterError:
            raise
        except Exception as exc:
            raster.refuse("tiff", exc, len(whole))
    refuse_other_page(asked.page)
    return _usable(chosen(volume_of(raster.decode(whole, limits=limits)), asked.channel))


def refuse_other_page(page: int | None) -> None:
    """See that no other page is asked for than the only one that there is.

    Raises:
        InputNotAccepted: one is.
    """
    if page not in (None, 0):
        raise InputNotAccepted(f"page {page} is asked for, there is 1", details={"page": page, "pages": 1})


def pixel_size_um(volume: Volume) -> tuple[float, float] | None:
    """Height and width of a pixel, if its file knows them.

    >>> pixel_size_um(Volume.of(np.eye(4)[None])) is None
    True
    """
    if not any(note.code == "pixel_size" for note in volume.notes):
        return None
    height_mm, width_mm = volume.geometry.spacing_mm[:2]
    return round(1000 * height_mm, 9), round(1000 * width_mm, 9)


def chosen(volume: Volume, channel: str | int | None) -> Volume:
    """One channel of a picture, or all of them.

    >>> chosen(Volume.of(np.zeros((2, 3, 3)), channels=("DAPI", "GFP")), "gfp").channels
    ('GFP',)

    Raises:
        InputNotAccepted: there is no such channel.
    """
    if channel is None:
        return volume
    names = volume.channels or distinct((), len(volume.voxels))
    number = number_of(channel, names)
    return replace(volume, voxels=volume.voxels[number : number + 1], channels=(names[number],))


def as_channels(volume: Volume, names: Sequence[str]) -> Volume:
    """A picture with the channels that a model takes; what had to be done for it is noted.

    The one channel of a gray picture is shown three times to a model of colours; colours become their luminance for a
    model of one channel; one channel is taken for one channel whatever both are called.

    >>> as_channels(Volume.of(np.ones((1, 2, 2), np.uint8)), ("red", "green", "blue")).notes[0].code
    'gray_repeated'

    Raises:
        InputNotAccepted: which of several channels is meant is not guessed.
    """
    wanted = tuple(names)
    if not wanted or volume.channels == wanted or set(wanted) <= set(volume.channels):
        return volume.select(wanted)
    if len(volume.voxels) == 1 and wanted == COLOURS:
        note = Note("gray_repeated", "the model takes colours; the gray channel was given as red, green and blue")
        repeated = np.ascontiguousarray(np.broadcast_to(volume.voxels, (3, *volume.voxels.shape[1:])))
        return Volume(repeated, volume.geometry, COLOURS, (*volume.notes, note))
    if len(volume.voxels) == 1 and len(wanted) == 1:
        return replace(volume, channels=wanted)
    if volume.channels == COLOURS and len(wanted) == 1:
        note = Note("luminance", f"the model takes one channel; {wanted[0]} is 0.299 red + 0.587 green + 0.114 blue")
        return Volume(_luminance(volume.voxels), volume.geometry, wanted, (*volume.notes, note))
    found = volume.channels or tuple(map(str, range(len(volume.voxels))))
    one = " Ask for one of them." if len(wanted) == 1 or wanted == COLOURS else ""
    raise InputNotAccepted(
        f"the model takes the channels {', '.join(wanted)}; the picture has {', '.join(found)}.{one}",
        details={"channels": [*wanted], "found": [*found]},
    )


@dataclass(frozen=True, slots=True)
class Planes:
    """One picture of a TIFF: its pages with their headers, and the names of all channels."""

    picture: Picture
    headers: tuple[TiffHeader, ...]
    names: tuple[str, ...]

    def only(self, channel: str | int | None) -> "Planes":
        """Without pages that an asked channel does not need.

        Raises:
            InputNotAccepted: there is no such channel.
        """
        if channel is None:
            return self
        number = number_of(channel, self.names)
        if len(self.headers) == 1:
            return self
        picture = replace(self.picture, pages=self.picture.pages[number : number + 1])
        return Planes(picture, self.headers[number : number + 1], self.names[number : number + 1])


def planes_of(pages: TiffPages, page: int | None) -> Planes:
    """The pages of a picture and what their channels are called; nothing is decoded.

    Raises:
        MultiFrameImage, InputNotAccepted: which picture is not said, or there is none such.
        BadImage: the pages of one picture differ, from each other or from what is written of them.
    """
    picture = pages.picture(page)
    headers = tuple(pages.header(number) for number in picture.pages)
    first = headers[0]
    size_px = first.source.height_px, first.source.width_px
    if picture.size_px is not None and picture.size_px != size_px:
        height, width = picture.size_px
        raise BadImage(
            f"the OME description speaks of {width} x {height} pixels, the page has {size_px[1]} x {size_px[0]}",
            details={"described": [width, height], "found": [size_px[1], size_px[0]]},
        )
    for other in headers[1:]:
        if _form(other) != _form(first) or len(_names_of(other)) != 1:
            raise BadImage(
                f"the pages of one picture differ: {_shown(first)} and {_shown(other)}",
                details={"pages": [*picture.pages]},
            )
    own = _names_of(first)
    if len(headers) > 1 and len(own) != 1:
        raise BadImage(f"a picture of {len(headers)} pages with {len(own)} channels each")
    count = len(headers) if len(headers) > 1 else len(own)
    unnamed = not any(picture.channels) and len(headers) == 1 and own in (COLOURS, (GRAY,))
    return Planes(picture, headers, own if unnamed else distinct(picture.channels, count))


def _of_tiff(data: bytes, limits: ImageLimits, asked: PixelsAsked) -> Volume:
    planes = planes_of(read_pages(data), asked.page).only(asked.channel)
    announced = 0
    for header in planes.headers:
        raster.check_header(header, len(data), limits)
        announced += header.decoded_bytes
    source = planes.headers[0].source
    limits.check_size(source.width_px, source.height_px, announced, said="the pages announce", done="decoded")
    parts, notes = [], list[Note]()
    for header in planes.headers:
        decoded = channels_of(samples_of(data, header), header)
        turned, said = upright(decoded.pixels, header.orientation)
        notes += [note for note in (*header.notes, *decoded.notes, *said) if note not in notes]
        parts.append(turned[np.newaxis] if turned.ndim == 2 else np.moveaxis(turned, -1, 0))
    voxels = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
    turned_aside = planes.headers[0].orientation >= 5
    volume = placed(voxels, planes.names, planes.picture.pixel_size_um, notes, turned=turned_aside)
    return chosen(volume, asked.channel if len(voxels) == len(planes.names) > 1 else None)


def placed(
    voxels: Array,
    names: Sequence[str],
    pixel_size_um: tuple[float, float] | None,
    notes: Sequence[Note],
    *,
    turned: bool = False,
) -> Volume:
    """A picture on a grid of its pixel size; `turned`: rows and columns have changed places."""
    if pixel_size_um is None:
        return Volume(voxels, Geometry.of(voxels.shape[1:]), tuple(names), tuple(notes))
    height_um, width_um = pixel_size_um[::-1] if turned else pixel_size_um
    note = Note("pixel_size", f"the file says that a pixel is {width_um:.6g} um wide and {height_um:.6g} um high")
    geometry = Geometry.of(voxels.shape[1:], (height_um / 1000, width_um / 1000))
    return Volume(voxels, geometry, tuple(names), (*notes, note))


def _names_of(header: TiffHeader) -> tuple[str, ...]:
    if has_channels(header):
        return distinct((), header.channels)
    return (GRAY,) if header.colour_channels == 1 and not header.colormap else COLOURS


def _form(header: Header) -> tuple[int, int, int, int]:
    source = header.source
    return source.width_px, source.height_px, source.bits, header.orientation


def _shown(header: Header) -> str:
    return f"{header.source.width_px} x {header.source.height_px} of {header.source.bits} bits"


def _usable(volume: Volume) -> Volume:
    for channel in volume.voxels:
        refuse_non_finite(channel)
    volume.refuse_unusable(each=False)
    return volume


def number_of(channel: str | int, names: Sequence[str]) -> int:
    """Which channel is meant: the one of that name, and only where none has it, the one of that number.

    A number is looked for among the names too, so that 1 means the same wherever it is said, as text or not.

    >>> number_of("gfp", ("DAPI", "GFP")), number_of("0", ("DAPI", "GFP")), number_of(2, ("2", "1", "0"))
    (1, 0, 0)

    Raises:
        InputNotAccepted: there is no such channel, or several of this name.
    """
    name = str(channel).strip()
    same = [number for number, each in enumerate(names) if each == name]
    same = same or [number for number, each in enumerate(names) if each.casefold() == name.casefold()]
    is_number = name.isascii() and name.isdecimal() and len(name) < 6
    found = same[0] if len(same) == 1 else int(name) if is_number and not same else -1
    if not 0 <= found < len(names):
        raise InputNotAccepted(
            f"channel {channel} is asked for, there are {', '.join(names)}",
            details={"channel": channel, "found": [*names]},
        )
    return found


def _luminance(voxels: Array) -> Array:
    if voxels.dtype.kind == "f":
        weights = np.array(_LUMA, np.float32) / np.float32(65536)
        return np.asarray(np.tensordot(weights, voxels.astype(np.float32, copy=False), 1)[np.newaxis])
    total = np.full(voxels.shape[1:], 32768, np.uint32)  # cannot wrap: the weights add up to 65536
    for weight, channel in zip(_LUMA, voxels, strict=True):
        total += np.uint32(weight) * channel
    return np.asarray((total >> 16).astype(voxels.dtype)[np.newaxis])


def volume_of(image: RasterImage) -> Volume:
    pixels = image.pixels[np.newaxis] if image.pixels.ndim == 2 else np.moveaxis(image.pixels, -1, 0)
    voxels = np.ascontiguousarray(pixels)
    return Volume(voxels, Geometry.of(voxels.shape[1:]), (GRAY,) if len(voxels) == 1 else COLOURS, image.notes)
