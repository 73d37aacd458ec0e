"""From a request's bytes to one image's bytes, in memory, with a limit that holds from the first chunk on."""

import re
from typing import Final

from multipart import parse_options_header
from starlette.types import Receive

from isocenter.api.http.parts import FormReader
from isocenter.core.errors import Abandoned, BadRequest, MissingImage, TooManyBytes
from isocenter.serving.budget import FORM_OVERHEAD_BYTES, Booking

FIELDS: Final = ("image", "file")

_USUAL_TYPE: Final = re.compile(rb"multipart/form-data; boundary=([A-Za-z0-9_.-]{1,200})")
"""What clients send. Everything else that may be meant by it is left to the parser."""
_USUAL_HEAD: Final = re.compile(
    rb"(?:Content-Type: [!-~]+\r\n)?"
    rb'Content-Disposition: form-data; name="(?:image|file)"(?:; filename="[ !#$&-\[\]-~]*")?'
    rb"(?:\r\nContent-Type: [!-~]+)?"
)
_USUAL_HEAD_BYTES: Final = 1024


def check_length(declared: bytes | None, max_bytes: int) -> int | None:
    """Refuse by the Content-Length header, before a byte of the body is read; else the length, if one is declared.

    Raises:
        BadRequest: the header is no number.
        TooManyBytes: it announces too much.
    """
    if declared is None:
        return None
    if not (declared.isdigit() and len(declared) <= 19):
        raise BadRequest("Content-Length is not a number")
    length = int(declared)
    if length > max_bytes + FORM_OVERHEAD_BYTES:
        raise _too_many(length, max_bytes)
    return length


async def receive_image(
    receive: Receive, content_type: bytes | None, *, max_bytes: int, booking: Booking | None = None
) -> bytes:
    """The image in a request body: the field `image` or `file` of a form, or else the body itself.

    Raises:
        Abandoned: the caller left while sending.
        BadRequest: the form is malformed.
        MissingImage: there is no image, or nothing in it.
        Overloaded: there is no room for the body.
        TooManyBytes: more than `max_bytes`.
    """
    body = await receive_body(receive, max_bytes=max_bytes, booking=booking)
    return image_in(body, content_type, max_bytes=max_bytes)


async def receive_body(receive: Receive, *, max_bytes: int, booking: Booking | None = None) -> bytes | bytearray:
    """A whole body: an image, or a form around one.

    Raises:
        Abandoned: the caller left while sending.
        Overloaded: there is no room for the body.
        TooManyBytes: more than `max_bytes` and what a form adds to them.
    """
    body: bytes | bytearray = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Abandoned("the caller left while sending")
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size = len(body) + len(chunk)
        if size > max_bytes + FORM_OVERHEAD_BYTES:
            raise _too_many(size, max_bytes)
        if booking is not None:
            booking.cover(size)
        if not body:
            # Most bodies come in one piece, and then none is copied.
            body = chunk
        elif chunk:
            if not isinstance(body, bytearray):
                body = bytearray(body)
            body += chunk
    return body


def image_in(body: bytes | bytearray, content_type: bytes | None, *, max_bytes: int) -> bytes:
    """The image in a whole body.

    Raises:
        BadRequest: the form is malformed.
        MissingImage: there is no image, or nothing in it.
        TooManyBytes: more than `max_bytes`.
    """
    usual = _USUAL_TYPE.fullmatch(content_type) if content_type else None
    image = None if usual is None else _in_a_usual_form(body, usual[1])
    if image is None:
        kind, options = parse_options_header((content_type or b"").decode("latin-1"))
        form = kind == "multipart/form-data"
        image = _in_any_form(bytes(body), options.get("boundary", "")) if form else bytes(body)
    if len(image) > max_bytes:
        raise _too_many(len(image), max_bytes)
    if not image:
        raise MissingImage("the image is empty: 0 bytes", details={"bytes": 0})
    return image


def _in_a_usual_form(body: bytes | bytearray, boundary: bytes) -> bytes | None:
    """The image in a form of one part, as nearly all are; None if the parser has to look, who knows all the others.

    What is answered here is what the parser would answer: a test holds them together.
    """
    start = len(boundary) + 4
    if not body.startswith(b"--%b\r\n" % boundary):
        return None
    head_end = body.find(b"\r\n\r\n", start, start + _USUAL_HEAD_BYTES)
    if head_end < 0 or not _USUAL_HEAD.fullmatch(body, start, head_end):
        return None
    end = body.find(b"\r\n--%b" % boundary, head_end + 4)
    last = end + len(boundary) + 4
    if end < 0 or body[last : last + 2] != b"--":
        return None
    return bytes(memoryview(body)[head_end + 4 : end])


def _in_any_form(body: bytes, boundary: str) -> bytes:
    reader = FormReader(boundary, max_parts=16, length=len(body))
    image: bytes | None = None
    seen: list[str] = []
    for part in reader.parts(body):
        if part.name not in FIELDS:
            seen.append(part.name[:32])
        elif image is not None:
            raise BadRequest("the form holds more than one image; send one")
        else:
            image = part.data
    reader.close()
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
