"""From a request's body to the files of a scan and what is asked of it, as the body arrives."""

import json
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from multipart import parse_options_header
from starlette.types import Receive

from isocenter.api.http.form import FormFile, put_text
from isocenter.api.http.parts import FormReader, Part
from isocenter.core.errors import Abandoned, BadInput, BadRequest, BadValue, MissingImage, TooManyBytes
from isocenter.imaging.codecs.sniff import sniff
from isocenter.repository.load import ServedModel
from isocenter.serving.budget import FORM_OVERHEAD_BYTES, Booking
from isocenter.serving.scan_paths import ScanPath
from isocenter.serving.scan_reading import Files, GivenScan, ScanOrChannels

SCAN_FIELDS: Final = ("scan", "scans", "file", "files", "image")
"""Fields of a form that hold the files of a scan. Files of other fields are channels, by the field's name."""

WHAT_IS_ASKED: Final = ("model", "version", "series", "volume", "format", "priority")
"""Names of parameters, of fields of forms, and of keys beside `scan_path`."""

ONLY_OF_SCANS: Final = ("scan", "scans", "files")
"""Those of which no picture is sent."""

_MAGIC: Final = (b"\x1f\x8b", b"PK\x03\x04", b"NRRD", b"ObjectType", b"NDims")
_PICTURES: Final = (b"\xff\xd8", b"\x89PNG", b"II", b"MM", b"BM", b"RIFF")
_MAX_PARTS: Final = 5_100
_MAX_JSON_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class SentScan:
    """What a body holds."""

    texts: dict[str, str] = field(default_factory=dict)
    """What is asked, by name."""
    files: list[FormFile] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)
    """Names under which files were sent."""
    channels: dict[str, list[FormFile]] = field(default_factory=dict)
    paths: ScanOrChannels | None = None
    """What was named in place of being sent."""

    def source(self) -> ScanOrChannels:
        """What the use case takes.

        Raises:
            MissingImage: there is nothing.
            BadRequest: there are files of a scan and of its channels.
        """
        if self.paths is not None:
            return self.paths
        if self.files and self.channels:
            raise BadRequest(
                f"the form holds channels ({', '.join(self.channels)}) and {len(self.files)} files beside them; "
                "send either a scan or its channels by name",
            )
        if not self.files and not self.channels:
            raise MissingImage(
                f"the form holds no file; a scan is sent as {' or '.join(SCAN_FIELDS)}, or a file for each channel "
                "by its name",
                details={"fields": sorted(self.texts)[:16]},
            )
        if self.files:
            return _one(self.files)
        return {name: _one(files) for name, files in self.channels.items()}

    def is_a_scan(self, models: Collection[ServedModel]) -> bool:
        """Whether it can only be meant for one of these models: by a field, a channel, a name, or how a file begins."""
        if "model" in self.texts:
            return any(each.name == self.texts["model"] for each in models)
        channels = {name for each in models for name in each.manifest.input.channels}
        return (
            self.paths is not None
            or not self.fields.isdisjoint(ONLY_OF_SCANS)
            or not channels.isdisjoint(self.channels)
            or any(begins_as_scan(each.data) for each in self.files)
        )

    def picture(self) -> str:
        """The format of a picture that was sent in place of a scan; empty: it is none."""
        if len(self.files) != 1 or begins_as_scan(self.files[0].data):
            return ""
        try:
            return sniff(self.files[0].data)
        except BadInput:
            return ""

    def named(self) -> dict[str, str]:
        """What its sender calls the file of each channel."""
        return {name: ", ".join(each.name for each in files)[:256] for name, files in self.channels.items()}


async def receive_scan(
    receive: Receive, content_type: bytes | None, *, max_bytes: int, booking: Booking | None = None
) -> SentScan:
    """A scan in a request body: JSON that names a path, a form, or else the body itself as the only file.

    Raises:
        Abandoned: the caller left while sending.
        BadRequest, BadValue: the body is malformed, or a key is unknown.
        MissingImage: there is nothing in it.
        Overloaded: there is no room for the body.
        TooManyBytes: more than `max_bytes` and what a form adds to them.
    """
    kind, options = parse_options_header((content_type or b"").decode("latin-1"))
    if is_json(kind):
        chunks = [chunk async for chunk in _chunks(receive, _MAX_JSON_BYTES, booking, "of JSON")]
        return _named_in(b"".join(chunks))
    limit = max_bytes + FORM_OVERHEAD_BYTES
    if kind == "multipart/form-data":
        return await _form(_chunks(receive, limit, booking), options.get("boundary", ""))
    data = b"".join([chunk async for chunk in _chunks(receive, limit, booking)])
    if not data:
        raise MissingImage("the scan is empty: 0 bytes", details={"bytes": 0})
    return SentScan(files=[FormFile("", data)])


def is_json(kind: str) -> bool:
    """Whether a media type is JSON."""
    return kind == "application/json" or kind.endswith("+json")


def begins_as_scan(data: bytes) -> bool:
    r"""Whether a file begins as one of the formats of scans, or as an archive. No picture does.

    >>> begins_as_scan(b"NRRD0004\n"), begins_as_scan(b"\x89PNG\r\n\x1a\n")
    (True, False)
    """
    if data.startswith(_PICTURES):  # whatever stands further on, by chance
        return False
    return data.startswith(_MAGIC) or data[344:347] == b"n+1" or data[4:7] == b"n+2" or data[128:132] == b"DICM"


def unknown_name(name: str, known: tuple[str, ...], said: str) -> BadRequest:
    """The refusal of a name that nobody knows, with the nearest one that somebody does."""
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
    return BadRequest(f"unknown {said} {name[:64]!r}{hint}", details={said: name[:64]})


async def _chunks(
    receive: Receive, limit: int, booking: Booking | None, said: str = "and more"
) -> AsyncIterator[bytes]:
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Abandoned("the caller left while sending")
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > limit:
            raise TooManyBytes(
                f"the request has {size} bytes {said}, the limit is {limit}", details={"bytes": size, "limit": limit}
            )
        if booking is not None:
            booking.cover(size)
        if chunk:
            yield chunk


async def _form(chunks: AsyncIterator[bytes], boundary: str) -> SentScan:
    reader = FormReader(boundary, max_parts=_MAX_PARTS)
    sent = SentScan()
    async for chunk in chunks:
        for part in reader.parts(chunk):
            _put(sent, part)
    reader.close()
    return sent


def _put(sent: SentScan, part: Part) -> None:
    name = part.name
    if name in SCAN_FIELDS:
        sent.fields.add(name)
        sent.files.append(FormFile(part.file_name or "", part.data))
    elif name in WHAT_IS_ASKED:  # some clients send texts as files, too
        put_text(sent.texts, part)
    elif part.file_name is not None:
        sent.channels.setdefault(name[:64], []).append(FormFile(part.file_name, part.data))
    else:
        raise unknown_name(name, WHAT_IS_ASKED, "field")


def _one(files: list[FormFile]) -> GivenScan:
    """One file as its bytes; several by numbers, as their names may be alike."""
    if len(files) == 1:
        if not files[0].data:
            raise MissingImage("the scan is empty: 0 bytes", details={"bytes": 0})
        return files[0].data
    return Files({f"{number:05d}/{each.name}": each.data for number, each in enumerate(files, 1)})


def _named_in(body: bytes) -> SentScan:
    try:
        found = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(found, dict):
        raise BadRequest(f"the body is a JSON {type(found).__name__}; an object with scan_path is needed")
    known = ("scan_path", *WHAT_IS_ASKED)
    for key in found:
        if key not in known:
            raise unknown_name(key, known, "key")
    if "scan_path" not in found:
        raise MissingImage("the body names no scan: the key scan_path is missing", details={"keys": sorted(found)})
    texts = {key: _text(key, value) for key, value in found.items() if key != "scan_path" and value is not None}
    return SentScan(texts=texts, paths=_paths(found["scan_path"]))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("a key is given twice; which one is meant is not guessed")
    return found


def _paths(given: object) -> ScanOrChannels:
    if isinstance(given, str):
        return ScanPath(given)
    if isinstance(given, dict) and given and all(isinstance(path, str) for path in given.values()):
        return {name: ScanPath(path) for name, path in given.items()}
    raise BadValue('scan_path is a path, or an object of paths by channels, as {"t1": "…", "flair": "…"}')


def _text(key: str, value: object) -> str:
    if isinstance(value, list) and key == "format" and all(isinstance(each, str) for each in value):
        return ",".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadValue(f"{key} is a {type(value).__name__}; a text or a whole number is needed", details={"key": key})
    return str(value)
