"""Pixels of a DICOM file as stored integers: the bits that are stored, and nothing else of them."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from isocenter.core.errors import BadImage, IsocenterError, MissingExtra, TruncatedImage
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.dicom import BIG_ENDIAN, COMPRESSED, NATIVE, ImageFile, data_of, pydicom
from isocenter.imaging.limits import VolumeLimits

_RLE: Final = "1.2.840.10008.1.2.5"
_ITEM: Final = b"\xfe\xff\x00\xe0"
_END_OF_ITEMS: Final = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
_SIZES: Final = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG or JPEG-LS that carry height and width (ITU-T T.81 B.2.2, T.87 C.2.2)."""


def stored_frames(file: ImageFile, *, limits: VolumeLimits) -> Iterator[Array]:
    """Every frame of a file in its order: int32 or uint32 [rows, columns].

    Raises:
        TruncatedImage: the pixels end early.
        BadImage: they are not what the header announces.
        MissingExtra: what unpacks them is not installed.
    """
    data = data_of(file, limits)
    if file.syntax == BIG_ENDIAN and file.bits_allocated == 8:
        data = _bytes_in_order(data, file)
    below = file.high_bit + 1 - file.bits_stored
    if file.syntax in NATIVE:
        for index in range(file.frames):
            yield _masked(_native(file, data, index), file, shift=below)
        return
    try:
        for frame in _unpacked(file, data):
            _check_range(frame, file)
            # Run lengths pack words as they lie; a codestream holds samples, wherever the header puts their bits.
            yield _masked(frame, file, shift=below if file.syntax == _RLE else 0)
    except IsocenterError:
        raise
    except Exception as exc:
        raise BadImage(
            f"the {COMPRESSED[file.syntax]} of file {file.part.number} is broken ({type(exc).__name__})",
            details={"file": file.part.number},
        ) from exc


def _bytes_in_order(data: bytes, file: ImageFile) -> bytes:
    """Samples of a byte lie in words where PixelData is of OW, and big-endian words turn their bytes (PS3.5 A.3)."""
    if data[file.pixels_at - 8 : file.pixels_at - 6] != b"OW":
        return data
    turned = bytearray(data)
    end = file.pixels_at + (len(data) - file.pixels_at) // 2 * 2
    turned[file.pixels_at : end : 2], turned[file.pixels_at + 1 : end : 2] = (
        data[file.pixels_at + 1 : end : 2],
        data[file.pixels_at : end : 2],
    )
    return bytes(turned)


def _native(file: ImageFile, data: bytes, index: int) -> Array:
    start = file.pixels_at + index * file.frame_bytes
    dtype = np.dtype(f"{'>' if file.syntax == BIG_ENDIAN else '<'}u{file.bits_allocated // 8}")
    return np.frombuffer(data, dtype, file.rows * file.columns, start).reshape(file.rows, file.columns)


def _unpacked(file: ImageFile, data: bytes) -> Iterator[Array]:
    library = pydicom()
    decoder = library.pixels.get_decoder(file.syntax)
    if not decoder.is_available:
        raise MissingExtra(f"unpacking {COMPRESSED[file.syntax]} needs pylibjpeg: pip install 'isocenter[dicom]'")
    pixels = memoryview(data)[file.pixels_at : _sequence_end(data, file)]
    frames = list(_frames(library, pixels, file))
    for frame in frames:
        _check_stream(frame, file)
    options: dict[str, Any] = {
        "rows": file.rows,
        "columns": file.columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "bits_allocated": file.bits_allocated,
        "bits_stored": file.bits_stored,
        "pixel_representation": int(file.signed),
        "photometric_interpretation": file.photometric,
        "pixel_keyword": "PixelData",
    }
    for frame in frames:
        if file.syntax == _RLE:
            yield _run_lengths(frame, file)
            continue
        array, _ = decoder.as_array(library.encaps.encapsulate([frame]), index=0, raw=True, **options)
        if array.shape != (file.rows, file.columns):
            raise BadImage(f"a frame of file {file.part.number} has {' x '.join(map(str, array.shape))} pixels")
        yield array


def _sequence_end(data: bytes, file: ImageFile) -> int:
    """Where the items of compressed pixels end, by their delimiter (PS3.5 A.4)."""
    at = file.pixels_at
    while data[at : at + 4] == _ITEM and at + 8 <= len(data):
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    if data[at : at + 8] != _END_OF_ITEMS:
        raise TruncatedImage(
            f"the compressed pixels of file {file.part.number} end before their delimiter",
            details={"file": file.part.number, "bytes": len(data)},
        )
    return at + 8


def _frames(library: Any, pixels: memoryview, file: ImageFile) -> Iterator[bytes]:
    found = 0
    try:
        for frame in library.encaps.generate_frames(bytes(pixels), number_of_frames=file.frames):
            found += 1
            if found <= file.frames:
                yield frame
    except Exception as exc:
        raise TruncatedImage(
            f"the frames of file {file.part.number} cannot be told apart, or end early ({type(exc).__name__})",
            details={"file": file.part.number},
        ) from exc
    if found != file.frames:
        raise TruncatedImage(
            f"file {file.part.number} holds {found} frames, its header announces {file.frames}",
            details={"file": file.part.number, "frames": found, "announced": file.frames},
        )


def _run_lengths(frame: bytes, file: ImageFile) -> Array:
    """PS3.5 annex G: a segment for each byte of a sample, the high one first. Own: pylibjpeg-rle aborts on lies."""
    planes = file.bits_allocated // 8
    said = np.frombuffer(frame[:64].ljust(64, b"\0"), "<u4")
    if said[0] != planes:
        raise BadImage(f"a frame of file {file.part.number} has {said[0]} segments, not {planes}")
    ends = [*said[2 : planes + 1].tolist(), len(frame)]
    size = file.rows * file.columns
    joined = np.empty((size, planes), np.uint8)
    for plane, (start, end) in enumerate(zip(said[1 : planes + 1].tolist(), ends, strict=True)):
        if not 64 <= start <= end <= len(frame):
            raise BadImage(f"a frame of file {file.part.number} has a segment from byte {start} to {end}")
        joined[:, planes - 1 - plane] = np.frombuffer(_unpack_bits(frame[start:end], size, file), np.uint8)
    return joined.view(f"<u{planes}").reshape(file.rows, file.columns)


def _unpack_bits(segment: bytes, size: int, file: ImageFile) -> bytes:
    out = bytearray()
    at = 0
    while len(out) < size:
        if at + 1 >= len(segment):
            raise TruncatedImage(
                f"a segment of file {file.part.number} ends after {len(out)} of {size} bytes",
                details={"file": file.part.number, "bytes": len(out), "announced_bytes": size},
            )
        code = segment[at]
        if code < 128:
            out += segment[at + 1 : at + 2 + code]
            at += 2 + code
        elif code > 128:
            out += segment[at + 1 : at + 2] * (257 - code)
            at += 2
        else:
            at += 1
    if len(out) > size:
        raise BadImage(f"a segment of file {file.part.number} unpacks to more than {size} bytes")
    return bytes(out)


def _check_stream(frame: bytes, file: ImageFile) -> None:
    """The codestream's own size before a decoder allocates it, and its end."""
    if file.syntax == _RLE:
        return
    size = _stream_size(frame)
    if size != (file.rows, file.columns):
        raise BadImage(
            f"a frame of file {file.part.number} says {size[0]} x {size[1]} pixels, "
            f"the header {file.rows} x {file.columns}",
            details={"file": file.part.number, "frame": [*size], "header": [file.rows, file.columns]},
        )
    if b"\xff\xd9" not in frame[-64:].rstrip(b"\0")[-4:]:
        raise TruncatedImage(
            f"a frame of file {file.part.number} ends before its pixels do", details={"file": file.part.number}
        )


def _stream_size(frame: bytes) -> tuple[int, int]:
    """Rows and columns by the codestream itself; zeros where it does not say."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # SOC, SIZ: ITU-T T.800 A.5.1
        right, bottom, left, top = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
        return bottom - top, right - left
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _SIZES:
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return 0, 0


def _check_range(frame: Array, file: ImageFile) -> None:
    """See that unpacked values are such as the header says; run lengths are of bytes, and hold what those hold.

    Raises:
        BadImage: they are not. Cut to the bits of the header, they would be others.
    """
    if file.syntax == _RLE:
        return
    bits = file.bits_stored
    if file.signed:  # some encoders take a negative sample for the unsigned one of the same bytes
        frame = frame.view(f"i{frame.dtype.itemsize}")
    low, high = -(1 << bits - 1) if file.signed else 0, (1 << bits) - 1
    least, most = int(frame.min()), int(frame.max())
    if least < low or most > high:
        raise BadImage(
            f"a frame of file {file.part.number} unpacks to {least} to {most}, beyond the {bits} bits of the header",
            details={"file": file.part.number, "min": least, "max": most, "bits_stored": bits, "signed": file.signed},
        )


def _masked(frame: Array, file: ImageFile, *, shift: int) -> Array:
    """The stored bits by BitsStored, HighBit and PixelRepresentation (PS3.5 8.1.1): the others may hold anything."""
    if file.bits_stored == 32:
        return frame.astype(np.int32 if file.signed else np.uint32)
    values = frame.astype(np.int64) >> shift & (1 << file.bits_stored) - 1
    if file.signed:
        sign = 1 << file.bits_stored - 1
        values = (values ^ sign) - sign
    return values.astype(np.int32)
