"""JPEG (ITU-T T.81, 8 bits, Huffman): gray, colour, and Adobe's ink.

Decoding is strict: libjpeg's warnings (bad entropy code, premature end, bogus progression) are refusals here.
Damage that leaves a valid code stream cannot be seen by anyone.
"""

import io
import math
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import JpegImagePlugin

from isocenter.core.errors import BadImage, TruncatedImage, UnsupportedMedia
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.header import FEW_PIECES, Decoded, Header
from isocenter.imaging.codecs.ifd import read_orientation
from isocenter.imaging.codecs.pixels import rgb_from_cmyk
from isocenter.imaging.image import Note, SourceInfo

_MAX_SEGMENTS = 4096
_MAX_SCANS = 200
_MAX_SCANNED_PIXELS = 1_500_000_000  # each scan of a progressive image visits every pixel anew
_SOS, _EOI, _APP0, _APP1, _APP2, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_SIZED_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READ_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_COLORSPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegHeader(Header):
    """Where the first scan starts, and the stretches of the file that are metadata."""

    scan_at: int
    components: tuple[int, ...]
    subsampled: bool
    """Whether some components have fewer samples than others, as colour differences do."""
    progressive: bool
    one_scan: bool
    """Whether the first scan holds all components; of a sequential image there is no other one then."""
    metadata: tuple[tuple[int, int], ...]

    @property
    def effort_pixels(self) -> float:
        """Its pixels; where there are several scans, there may be 200, and ink is converted by ourselves."""
        plain = self.one_scan and not self.progressive and self.channels < 4
        return self.source.width_px * self.source.height_px if plain else math.inf


def read_header(data: bytes) -> JpegHeader:
    """Walk the segments up to the first scan."""
    frame: bytes = b""
    orientation, notes = 1, tuple[Note, ...]()
    exif_seen = several = adobe = False
    metadata: list[tuple[int, int]] = []
    at = 2
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(data):
            raise _truncated("the file ends before the first scan", len(data))
        if data[at] != 0xFF:
            raise BadImage(f"no marker where a segment should start, at byte {at}", details={"offset": at})
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte, T.81 B.1.1.2
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        body = data[at + 4 : min(end, at + 4 + 65535)]
        if length < 2:
            raise BadImage(f"a segment of length {length} at byte {at}", details={"offset": at, "length": length})
        if end > len(data):
            raise _truncated(f"a segment at byte {at} ends beyond the file", len(data))
        if marker == _SOS:
            return _checked(frame, at, body[:1], metadata, orientation, notes, adobe=adobe)
        if marker == _EOI:
            raise BadImage("the image ends before its first scan")
        if marker in _SIZED_FRAMES:
            if frame:
                raise BadImage("two frame headers")
            frame = bytes([marker]) + body
        elif marker == _APP1 and body.startswith(b"Exif\x00\x00") and not exif_seen:
            exif_seen = True
            orientation, said = read_orientation(body)
            notes = (*notes, *said)
        elif marker == _APP14 and body.startswith(b"Adobe"):
            adobe = True
        elif marker == _APP2 and body.startswith(b"MPF\x00") and not several:
            several = True
            notes = (*notes, Note("first_picture_of_several", "the JPEG holds several pictures; the first was read"))
        if (_APP0 < marker <= 0xEF and marker != _APP14) or marker == _COM:
            metadata.append((at, end))
        at = end
    raise BadImage(f"more than {_MAX_SEGMENTS} segments before the first scan", details={"limit": _MAX_SEGMENTS})


def few_segments(data: bytes) -> bool:
    """Whether few segments come before the first scan, or it is soon seen that something is wrong with them."""
    at = 2
    for _ in range(FEW_PIECES):
        if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] == _SOS:
            return True
        at += 1 if data[at + 1] == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def decode(data: bytes, header: JpegHeader) -> Decoded:
    """Strict and without the GIL."""
    pixels = _strict(data, header)
    if header.source.mode == "CMYK":
        return Decoded(rgb_from_cmyk(255 - pixels), (_ink_note(),))
    return Decoded(pixels[..., 0] if header.source.mode == "L" else pixels)


def decode_reference(data: bytes, header: JpegHeader) -> Decoded:
    """Pillow's pixels; the strict decoder only proves that the code stream is whole."""
    _strict(data, header)
    with JpegImagePlugin.JpegImageFile(io.BytesIO(_without_metadata(data, header))) as image:
        if header.source.mode == "CMYK":
            return Decoded(np.array(image.convert("RGB")), (_ink_note(),))
        return Decoded(np.array(image))


def _checked(
    frame: bytes,
    scan_at: int,
    scanned: bytes,
    metadata: list[tuple[int, int]],
    orientation: int,
    notes: tuple[Note, ...],
    *,
    adobe: bool,
) -> JpegHeader:
    if len(frame) < 7:
        raise BadImage("no usable frame header before the first scan")
    kind, bits, height, width, count = struct.unpack_from(">BBHHB", frame)
    if kind not in _READ_FRAMES or bits != 8:
        raise UnsupportedMedia(
            f"a JPEG of process SOF{kind - 0xC0} with {bits} bits; baseline and progressive with 8 bits are read",
            details={"process": kind - 0xC0, "bits": bits},
        )
    if count not in _MODES:
        raise UnsupportedMedia(f"a JPEG with {count} components; 1, 3 or 4 are read", details={"components": count})
    if len(frame) != 7 + 3 * count:
        raise BadImage(f"the frame header announces {count} components and holds {len(frame) - 7} bytes of them")
    if count == 4 and not adobe:
        raise UnsupportedMedia("a CMYK JPEG without Adobe's marker: whether its ink is inverted is not known")
    return JpegHeader(
        source=SourceInfo("jpeg", _MODES[count], width, height, bits),
        channels=count,
        orientation=orientation,
        notes=notes,
        scan_at=scan_at,
        subsampled=len(set(frame[8::3])) > 1,
        components=tuple(frame[7::3]),
        progressive=kind == 0xC2,
        one_scan=scanned == bytes([count]),
        metadata=tuple(metadata),
    )


def _strict(data: bytes, header: JpegHeader) -> Array:
    _check_scans(data, header)
    source = header.source
    pixels: Array = simplejpeg.decode_jpeg(data, colorspace=_COLORSPACES[source.mode], strict=True)
    if pixels.shape != (source.height_px, source.width_px, header.channels):
        raise BadImage(f"the header announces {source.width_px} x {source.height_px} pixels, others were decoded")
    return pixels


def _check_scans(data: bytes, header: JpegHeader) -> None:
    """The image has an end, not too many scans, and every component is in one of them."""
    end = len(data) - 2 if data.endswith(b"\xff\xd9") else data.find(b"\xff\xd9", header.scan_at)
    if end < 0:
        raise _truncated("there is no end-of-image marker", len(data))
    if header.one_scan and not header.progressive:
        return
    scans = 0
    missing = set(header.components)
    pixels = header.source.width_px * header.source.height_px
    limit = min(_MAX_SCANS, _MAX_SCANNED_PIXELS // pixels)
    at = header.scan_at
    while at >= 0:
        scans += 1
        if scans > limit:
            raise BadImage(f"more than {limit} scans over {pixels} pixels", details={"limit": limit, "pixels": pixels})
        missing.difference_update(data[at + 5 : at + 5 + 2 * data[at + 4] : 2] if at + 4 < end else b"")
        at = data.find(b"\xff\xda", at + 2, end)
    if missing:
        raise _truncated(f"{len(missing)} of {len(header.components)} components are in no scan", len(data))


def _without_metadata(data: bytes, header: JpegHeader) -> bytes:
    pieces = []
    kept_to = 0
    for start, end in header.metadata:
        pieces.append(data[kept_to:start])
        kept_to = end
    return b"".join((*pieces, data[kept_to:]))


def _ink_note() -> Note:
    return Note("ink_converted", "CMYK ink was converted to RGB without a colour profile")


def _truncated(what: str, size: int) -> TruncatedImage:
    return TruncatedImage(f"the JPEG is cut: {what} ({size} bytes)", details={"bytes": size})
