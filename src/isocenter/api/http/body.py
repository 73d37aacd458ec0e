"""From a request's bytes to one image's bytes, in memory, with a limit that holds from the first chunk on."""

from collections.abc import AsyncIterator
from typing import Final

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from isocenter.core.errors import BadRequest, MissingImage, TooManyBytes

FIELDS: Final = ("image", "file")
_OVERHEAD_BYTES: Final = 64 * 1024
"""Room for boundaries, part headers and small fields around the image."""


def check_length(declared: str | None, max_bytes: int) -> None:
    """Refuse by the Content-Length header, before a byte of the body is read.

    Raises:
        BadRequest: the header is no number.
        TooManyBytes: it announces too much.
    """
    if declared is None:
        return
    if not (declared.isascii() and declared.isdecimal() and len(declared) <= 19):
        raise BadRequest("Content-Length is not a number")
    if int(declared) > max_bytes + _OVERHEAD_BYTES:
        raise _too_many(int(declared), max_bytes)


async def read_image(chunks: AsyncIterator[bytes], content_type: str | None, *, max_bytes: int) -> bytes:
    """The image in a request body: the field `image` or `file` of a form, or else the body itself.

    Raises:
        BadRequest: the form is malformed.
        MissingImage: there is no image, or nothing in it.
        TooManyBytes: more than `max_bytes`.
    """
    kind, options = parse_options_header(content_type or "")
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > max_bytes + _OVERHEAD_BYTES:
            raise _too_many(len(body), max_bytes)
    image = _from_form(bytes(body), options.get("boundary", "")) if kind == "multipart/form-data" else bytes(body)
    if len(image) > max_bytes:
        raise _too_many(len(image), max_bytes)
    if not image:
        raise MissingImage("the image is empty: 0 bytes", details={"bytes": 0})
    return image


def _from_form(body: bytes, boundary: str) -> bytes:
    if not boundary:
        raise BadRequest("multipart/form-data without a boundary")
    image: bytes | None = None
    seen: list[str] = []
    try:
        with PushMultipartParser(boundary, content_length=len(body), max_segment_count=16, strict=True) as parser:
            segment: MultipartSegment | None = None
            parts: list[bytes] = []
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    segment, parts = event, []
                elif event:
                    parts.append(bytes(event))
                elif segment is not None:
                    if segment.name in FIELDS:
                        if image is not None:
                            raise BadRequest("the form holds more than one image; send one")
                        image = parts[0] if len(parts) == 1 else b"".join(parts)
                    elif len(seen) < 16:
                        seen.append(segment.name[:32])
                    segment = None
    except MultipartError as error:
        raise BadRequest(f"the multipart form is malformed: {error}") from error
    if image is None:
        raise MissingImage(
            f"the form has no field {' or '.join(FIELDS)}; it has {seen}", details={"fields": list(seen)}
        )
    return image


def _too_many(measured: int, max_bytes: int) -> TooManyBytes:
    return TooManyBytes(
        f"the request has {measured} bytes or more, the limit for an image is {max_bytes}",
        details={"bytes": measured, "limit": max_bytes},
    )
