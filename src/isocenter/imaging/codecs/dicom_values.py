"""Values of a DICOM data set as plain numbers and words, checked where they are taken."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from isocenter.core.errors import BadGeometry, BadImage, MissingGeometry
from isocenter.imaging.codecs.volume_parts import Part


def text(dataset: Any, keyword: str) -> str:
    """A short value, or nothing."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()[:64]


def numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, or None where the tag is absent or empty.

    Raises:
        BadGeometry: there are others.
    """
    value = dataset.get(keyword)
    if value is None or value == "" or (not isinstance(value, str | float | int) and len(value) == 0):
        return None
    try:
        found = tuple(float(each) for each in ([value] if count == 1 else value))
    except (TypeError, ValueError) as exc:
        raise BadGeometry(f"{keyword} is not {count} numbers", details={"tag": keyword}) from exc
    if len(found) != count or not all(map(math.isfinite, found)):
        raise BadGeometry(f"{keyword} is not {count} finite numbers", details={"tag": keyword, "count": len(found)})
    return found


def number(dataset: Any, keyword: str) -> float | None:
    """One finite number, or None where there is none: for what is told and not computed with."""
    try:
        found = numbers(dataset, keyword, 1)
    except BadGeometry:
        return None
    return found[0] if found else None


def stated(dataset: Any, keyword: str, part: Part) -> float | None:
    """One finite number, or None where the tag is absent or empty: for what voxels and places are computed from.

    Raises:
        BadImage: something else stands there, as "1,5" or "-1024 HU". To go on without it would be another scan.
    """
    try:
        found = numbers(dataset, keyword, 1)
    except BadGeometry as exc:
        raise BadImage(
            f"file {part.number} has a {keyword} that is not one number",
            details={"file": part.number, "tag": keyword},
        ) from exc
    return found[0] if found else None


def image_type(value: Any) -> tuple[str, ...]:
    """The values of ImageType or FrameType."""
    if value is None:
        return ()
    return tuple(str(each).strip().upper() for each in ([value] if isinstance(value, str) else value))


def require(found: tuple[float, ...] | None, keyword: str, part: Part) -> tuple[float, ...]:
    """What must be there for a plane to have a place.

    Raises:
        MissingGeometry: it is not.
    """
    if found is None:
        raise MissingGeometry(
            f"file {part.number} does not say its {keyword}", details={"file": part.number, "tag": keyword}
        )
    return found


def whole(dataset: Any, keyword: str, part: Part, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None and default is not None:
        return default
    if not isinstance(value, int):
        raise BadImage(f"file {part.number} does not say its {keyword}", details={"file": part.number, "tag": keyword})
    return value


def maybe_whole(dataset: Any, keyword: str) -> int | None:
    found = number(dataset, keyword)
    return None if found is None else int(found)


def digest(dataset: Any, *keywords: str) -> str:
    """Identifiers as something to compare, that cannot be read back by eye; empty where none is there."""
    values: Sequence[str] = [str(dataset.get(keyword) or "") for keyword in keywords]
    return hashlib.sha256("\0".join(values).encode()).hexdigest()[:16] if any(values) else ""
