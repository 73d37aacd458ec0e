"""What a server answers, as types. A key that a newer server adds is left alone; one that is missing is an error."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeVar

import numpy as np

from isocenter.client.errors import NotAnAnswer
from isocenter.core.tensor import Array

T = TypeVar("T")

Format = Literal["json", "geojson", "coco", "coco-rle", "labels", "overlay"]
FORMATS: Final[tuple[Format, ...]] = ("json", "geojson", "coco", "coco-rle", "labels", "overlay")
_TEXT: Final = frozenset({"json", "geojson", "coco", "coco-rle"})
_MOST_PX: Final = 2**27
"""More than a server segments at once: two labels of 4 bytes and one channel are held within 1 GiB."""
_MOST_EXPANSION: Final = 1100  # what deflate makes of zeros


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer as it came; the names of the headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that was done to the image, and that a reader should know."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The class of one image."""

    label: str | int
    confidence: float
    """The probability of the label, 0 to 1."""
    probabilities: dict[str, float]
    model: str
    version: int
    request_id: str
    latency_ms: float
    """As the server counts it, from the arrival of the request to its answer."""
    timings_ms: dict[str, float]
    warnings: tuple[Remark, ...]

    @classmethod
    def read(cls, reply: Reply) -> Self:
        """Of `POST /predict`."""
        return _read(
            reply,
            lambda body: cls(
                label=body["prediction"],
                confidence=float(body["confidence"]),
                probabilities=dict(body["probabilities"]),
                model=str(body["model"]),
                version=int(body["version"]),
                request_id=str(body["request_id"]),
                latency_ms=float(body["latency_ms"]),
                timings_ms=dict(body["timings_ms"]),
                warnings=tuple(Remark(str(each["code"]), str(each["message"])) for each in body["warnings"]),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The objects of one image, in the format that was asked for."""

    format: Format
    media_type: str
    content: bytes
    """As the server wrote it: what belongs into a file."""
    request_id: str

    @classmethod
    def read(cls, reply: Reply, asked: Format) -> Self:
        """Of `POST /segment`."""
        media_type = reply.headers.get("content-type", "").partition(";")[0].strip()
        cells = cls(
            format=asked,
            media_type=media_type,
            content=reply.content,
            request_id=reply.headers.get("x-request-id", ""),
        )
        if (asked in _TEXT) != media_type.endswith("json"):
            raise _strange(reply, f"{asked} was asked for and {media_type or 'nothing that says what it is'} came")
        return cells

    def json(self) -> dict[str, Any]:
        """The document, of `json`, `geojson` and both kinds of `coco`.

        Raises:
            ValueError: it is a picture.
        """
        if self.format not in _TEXT:
            raise ValueError(f"{self.format} is a picture: pixels() reads it")
        found: dict[str, Any] = json.loads(self.content)
        return found

    def pixels(self) -> Array:
        """The picture: `labels` as [H, W] of whole numbers, 0 is the background; `overlay` as [H, W, 3] of uint8.

        Raises:
            ValueError: it is a document.
        """
        if self.format in _TEXT:
            raise ValueError(f"{self.format} is a document: json() reads it")
        from isocenter.imaging.codecs.raster import decode_answer
        from isocenter.imaging.limits import ImageLimits

        # What is here came within the server's limits, which bind images: an answer may have more bytes than they.
        limits = ImageLimits(
            max_bytes=len(self.content),
            max_pixels=_MOST_PX,
            max_decoded_bytes=4 * _MOST_PX,
            max_expansion=_MOST_EXPANSION,
        )
        found = decode_answer(self.content, limits=limits).pixels
        # 32 bits are decoded to floats, which hold every number that fits.
        return found if found.dtype.kind == "u" else found.astype(np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One served version, in short."""

    name: str
    version: int
    task: str
    title: str
    state: str

    @classmethod
    def read_all(cls, reply: Reply) -> list[Self]:
        """Of `GET /v1/models`."""
        return _read(
            reply,
            lambda body: [
                cls(
                    name=str(each["name"]),
                    version=int(each["version"]),
                    task=str(each["task"]),
                    title=str(each["title"]),
                    state=str(each["state"]),
                )
                for each in body["models"]
            ],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the server is: `ok`, `degraded`, `unavailable` or `draining`."""

    status: str
    uptime_s: float
    server: str
    """The version of Isocenter."""
    models: list[dict[str, Any]]
    """Of each version: model, version, state, queued."""

    @classmethod
    def read(cls, reply: Reply) -> Self:
        """Of `GET /health`."""
        return _read(
            reply,
            lambda body: cls(
                status=str(body["status"]),
                uptime_s=float(body["uptime_s"]),
                server=str(body["server"]),
                models=list(body["models"]),
            ),
        )


def read_object(reply: Reply) -> dict[str, Any]:
    """A JSON object as it is."""
    return _read(reply, dict[str, Any])


def _read(reply: Reply, build: Callable[[dict[str, Any]], T]) -> T:
    try:
        return build(json.loads(reply.content))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _strange(reply, f"not the answer that was asked for: {type(error).__name__}") from error


def _strange(reply: Reply, why: str) -> NotAnAnswer:
    return NotAnAnswer(f"status {reply.status}, {why}", details={"status": reply.status})
