"""From the bytes of a multipart form to its parts, as they arrive."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from isocenter.core.errors import BadRequest

_AS_BYTES: Final = "latin-1"
"""Every byte is a character of it, and comes back as that byte."""
_QUOTED: Final = re.compile(r'"(?:\\.|[^"\\])*"')
_CHARSETS: Final = frozenset({"utf-8", "iso-8859-1", "latin-1", "us-ascii"})
_WITH_CHARSET: Final = re.compile(r"; *filename\*=([\w.:-]+)'[\w-]*'([^;\s]*)", re.ASCII | re.IGNORECASE)


class Part(NamedTuple):
    """One field of a form, or one file."""

    name: str
    file_name: str | None
    """As its sender calls it; None: it is sent as a text."""
    data: bytes


class FormReader:
    """Takes a form in pieces of any size, and gives the parts that are complete."""

    def __init__(self, boundary: str, *, max_parts: int, length: int = -1) -> None:
        """`length` is that of all pieces together, if it is known.

        Raises:
            BadRequest: there is no boundary, or it can be none.
        """
        if not boundary:
            raise BadRequest("multipart/form-data without a boundary")
        try:
            self._parser = PushMultipartParser(boundary, content_length=length, header_charset=_AS_BYTES, strict=True)
        except MultipartError as error:
            raise _malformed(error) from error
        self._max_parts, self._begun = max_parts, 0
        self._segment: MultipartSegment | None = None
        self._data: list[bytes] = []

    def parts(self, piece: bytes) -> Iterator[Part]:
        """Those that end in the next piece.

        Raises:
            BadRequest: it is no form, or has more parts than it may.
        """
        try:
            for event in self._parser.parse(piece):
                if isinstance(event, MultipartSegment):
                    self._segment, self._data = event, []
                    self._count()
                elif event:
                    self._data.append(bytes(event))
                elif self._segment is not None:
                    segment, data = self._segment, self._data
                    self._segment, self._data = None, []
                    yield Part(
                        _as_sent(segment.name), _file_name(segment), data[0] if len(data) == 1 else b"".join(data)
                    )
        except MultipartError as error:
            raise _malformed(error) from error

    def _count(self) -> None:
        self._begun += 1
        if self._begun > self._max_parts:
            raise BadRequest(f"the form has more than {self._max_parts} parts", details={"limit": self._max_parts})

    def close(self) -> None:
        """Called after the last piece.

        Raises:
            BadRequest: something is missing.
        """
        try:
            self._parser.close()
        except MultipartError as error:
            raise _malformed(error) from error


def _malformed(error: MultipartError) -> BadRequest:
    return BadRequest(f"the multipart form is malformed: {error.args[0] if error.args else type(error).__name__}")


def _as_sent(name: str) -> str:
    """UTF-8, as nearly everyone writes it, else Latin-1."""
    if name.isascii():
        return name
    try:
        return name.encode(_AS_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        return name


def _file_name(segment: MultipartSegment) -> str | None:
    """That of a file; some older clients write it with its character set (RFC 5987), and not otherwise."""
    if segment.filename is not None:
        return _as_sent(segment.filename)
    given = _WITH_CHARSET.search(_QUOTED.sub("", segment.header("Content-Disposition", "")))
    if given is None:
        return None
    # No other set: Python knows some that run code of their own, or make what is no text.
    charset = given[1].lower()
    return unquote(given[2], encoding=charset, errors="replace") if charset in _CHARSETS else given[2]
