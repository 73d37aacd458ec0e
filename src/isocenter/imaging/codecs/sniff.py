"""Tell the format from the first bytes; the name and the declared type of a file are not asked."""

from isocenter.core.errors import MissingImage, UnsupportedMedia

FORMATS = ("jpeg", "png", "tiff", "bmp", "webp")

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
    (b"BM", "bmp"),
)

_REFUSED_BY_NAME: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "a GIF"),
    (128, b"DICM", "a DICOM file"),
    (344, b"n+1\x00", "a NIfTI volume"),
    (344, b"ni1\x00", "a NIfTI header"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x1f\x8b", "gzip data (perhaps a compressed NIfTI volume)"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 codestream"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftyphei", "a HEIF"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x7fELF", "a program"),
    (0, b"<", "markup text"),
    (0, b"{", "JSON text"),
)


def sniff(data: bytes) -> str:
    r"""The format's name: jpeg, png, tiff, bmp or webp.

    >>> sniff(b"\x89PNG\r\n\x1a\n and so on")
    'png'

    Raises:
        MissingImage: there are no bytes.
        UnsupportedMedia: another format; the message names it where it is known.
    """
    if not data:
        raise MissingImage("the image has 0 bytes", details={"bytes": 0})
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    found = next((name for at, magic, name in _REFUSED_BY_NAME if data[at : at + len(magic)] == magic), "unknown data")
    read = ", ".join(name.upper() for name in FORMATS)
    raise UnsupportedMedia(
        f"this is {found}; images are read from {read}", details={"found": found, "read": [*FORMATS]}
    )
