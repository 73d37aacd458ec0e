"""From a form's bytes to its fields and files, in memory."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from isocenter.core.errors import BadRequest

_MAX_PARTS: Final = 4096
_MAX_FIELD_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class FormFile:
    """One file of a form."""

    name: str
    """As its sender calls it; it goes back to him and nowhere else."""
    data: bytes = field(repr=False)


@dataclass(slots=True)
class Form:
    """Texts by their names, and files in their order."""

    texts: dict[str, str] = field(default_factory=dict)
    files: list[FormFile] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Names of fields that hold files nobody asked for."""


def is_form(content_type: bytes | None) -> bool:
    """Whether a body is a form with files."""
    kind, _ = parse_options_header((content_type or b"").decode("latin-1"))
    return bool(kind == "multipart/form-data")


def read_form(body: bytes | bytearray, content_type: bytes | None, *, file_fields: Collection[str]) -> Form:
    """Read a whole form. Parts of other names than `file_fields` are texts, unless they are sent as files.

    Raises:
        BadRequest: it is malformed, or a text is given twice, or longer than a kilobyte.
    """
    boundary = parse_options_header((content_type or b"").decode("latin-1"))[1].get("boundary", "")
    if not boundary:
        raise BadRequest("multipart/form-data without a boundary")
    form = Form()
    try:
        with PushMultipartParser(
            boundary, content_length=len(body), max_segment_count=_MAX_PARTS, strict=True
        ) as parser:
            segment: MultipartSegment | None = None
            parts: list[bytes] = []
            for event in parser.parse(bytes(body)):
                if isinstance(event, MultipartSegment):
                    segment, parts = event, []
                elif event:
                    parts.append(bytes(event))
                elif segment is not None:
                    _put(form, segment, parts[0] if len(parts) == 1 else b"".join(parts), file_fields)
                    segment = None
    except MultipartError as error:
        raise BadRequest(f"the multipart form is malformed: {error}") from error
    return form


def _put(form: Form, segment: MultipartSegment, data: bytes, file_fields: Collection[str]) -> None:
    name = segment.name
    if name in file_fields:
        form.files.append(FormFile(segment.filename or "", data))
        return
    if segment.filename is not None:
        form.others.append(name[:64])
        return
    if len(data) > _MAX_FIELD_BYTES:
        raise BadRequest(
            f"the field {name[:64]!r} has {len(data)} bytes, a text may have {_MAX_FIELD_BYTES}; "
            f"images are sent as {' or '.join(file_fields)}",
            details={"bytes": len(data), "limit": _MAX_FIELD_BYTES, "fields": sorted(file_fields)},
        )
    if name in form.texts:
        raise BadRequest(f"the field {name[:64]!r} is given twice; which one is meant is not guessed")
    try:
        form.texts[name] = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise BadRequest(f"the field {name[:64]!r} is not UTF-8") from None
