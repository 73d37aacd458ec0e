"""From a form's bytes to its fields and files, in memory."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from multipart import parse_options_header

from isocenter.api.http.parts import FormReader, Part
from isocenter.core.errors import BadRequest

_MAX_PARTS: Final = 4096
_MAX_TEXT_BYTES: Final = 1024


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
    """Names of fields that nobody asked for."""


def is_form(content_type: bytes | None) -> bool:
    """Whether a body is a form with files."""
    kind, _ = parse_options_header((content_type or b"").decode("latin-1"))
    return bool(kind == "multipart/form-data")


def read_form(
    body: bytes | bytearray,
    content_type: bytes | None,
    *,
    file_fields: Collection[str],
    text_fields: Collection[str],
) -> Form:
    """Read a whole form. Some clients send texts as files, too; parts of other names are named and not kept.

    Raises:
        BadRequest: it is malformed, or a text is given twice, or longer than a kilobyte.
    """
    boundary = parse_options_header((content_type or b"").decode("latin-1"))[1].get("boundary", "")
    reader = FormReader(boundary, max_parts=_MAX_PARTS, length=len(body))
    form = Form()
    for part in reader.parts(bytes(body)):
        if part.name in file_fields:
            form.files.append(FormFile(part.file_name or "", part.data))
        elif part.name in text_fields:
            put_text(form.texts, part)
        else:
            form.others.append(part.name[:64])
    reader.close()
    return form


def put_text(texts: dict[str, str], part: Part) -> None:
    """Add what a part says.

    Raises:
        BadRequest: it is there already, or longer than a kilobyte, or not UTF-8.
    """
    name, data = part.name[:64], part.data
    if len(data) > _MAX_TEXT_BYTES:
        raise BadRequest(
            f"the field {name!r} has {len(data)} bytes, a text may have {_MAX_TEXT_BYTES}",
            details={"bytes": len(data), "limit": _MAX_TEXT_BYTES},
        )
    if part.name in texts:
        raise BadRequest(f"the field {name!r} is given twice; which one is meant is not guessed")
    try:
        texts[part.name] = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise BadRequest(f"the field {name!r} is not UTF-8") from None
