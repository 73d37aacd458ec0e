"""What a Python program asks of a service beside the image, and what it gets."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypedDict, TypeGuard, cast

from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadRequest, BadValue
from isocenter.imaging.codecs.volume_files import Pick
from isocenter.imaging.volume import Volume
from isocenter.repository.load import ServedModel
from isocenter.serving.predict import Prediction
from isocenter.serving.scan_answer import SCAN_FORMATS, ScanFormat
from isocenter.serving.scan_reading import Files, OwnScan, OwnScanOrChannels
from isocenter.serving.scans import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Prediction):
    """The answer for one image: what HTTP answers, and what a threshold makes of it."""

    request_id: str
    total_s: float
    """From the call to the answer."""
    labels: list[str | int] | None
    """Labels whose probability is at least the threshold, highest first; empty if there is none. None: no threshold."""

    def as_json(self, *, request_id: str | None = None, total_s: float | None = None) -> dict[str, Any]:
        """The answer as HTTP writes it, and `labels` where a threshold was given."""
        # Not super(): a dataclass with slots is another class than the one that this method was written in.
        written = Prediction.as_json(
            self, request_id=request_id or self.request_id, total_s=self.total_s if total_s is None else total_s
        )
        return written if self.labels is None else {**written, "labels": self.labels}


class Asked(TypedDict, total=False):
    """What may be said beside the image; see `Service.infer`."""

    model: str | None
    version: int | None
    threshold: float | None
    timeout: float | None
    priority: int


class AskedOfVolume(TypedDict, total=False):
    """What may be said beside the volume; see `Service.segment`."""

    model: str | None
    version: int | None
    timeout: float | None
    priority: int
    probabilities: bool


class AskedOfScan(TypedDict, total=False):
    """What may be said beside a scan; see `Service.segment_scan`."""

    model: str | None
    version: int | None
    formats: str | Sequence[ScanFormat]
    series: int | None
    volume: int | None
    timeout: float | None
    priority: int
    progress: Progress | None


class AskedOfCells(TypedDict, total=False):
    """What may be said beside an image of cells; see `Service.segment_image`."""

    model: str | None
    version: int | None
    threshold: float | None
    detect_holes: bool
    channel: str | int | None
    page: int | None
    timeout: float | None
    priority: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One served version, in short."""

    name: str
    version: int
    title: str
    task: str
    state: str
    labels: list[str | int]


def info_of(served: ServedModel) -> ModelInfo:
    """What there is to know of one version at a glance."""
    return ModelInfo(
        name=served.name,
        version=served.version,
        title=served.manifest.title,
        task=served.manifest.task,
        state=served.engine.state.value,
        labels=list(served.manifest.output.labels),
    )


def deadline_of(timeout_s: float | None, now_s: float) -> Deadline | None:
    """The instant after which the answer is of no use.

    Raises:
        BadRequest: it is no positive number of seconds.
    """
    if timeout_s is None:
        return None
    if not (_is_number(timeout_s) and timeout_s > 0):
        raise BadRequest(f"timeout is {_shown(timeout_s)}; it must be a positive number of seconds")
    return Deadline.after(timeout_s, now_s=now_s)


def check_threshold(threshold: float | None) -> None:
    """See that a threshold is a probability.

    Raises:
        BadRequest: it is not.
    """
    if threshold is not None and not (_is_number(threshold) and 0 <= threshold <= 1):
        raise BadRequest(f"threshold is {_shown(threshold)}; it must be a probability, from 0 to 1")


def check_priority(priority: int) -> None:
    """See that there is an order between a priority and all others.

    Raises:
        BadRequest: it is no finite number.
    """
    if not (_is_number(priority) and -math.inf < priority < math.inf):
        raise BadRequest(f"priority is {_shown(priority)}; it must be a finite number")


def check_at_once(at_once: int) -> None:
    """See that at least one image is asked for at a time.

    Raises:
        BadRequest: it is no such number.
    """
    if not (isinstance(at_once, int) and at_once >= 1):
        raise BadRequest(f"at_once is {_shown(at_once)}; at least one image is asked for at a time")


def check_volume(volume: object) -> None:
    """See that a volume is one: an array does not say where its voxels lie.

    Raises:
        BadRequest: it is something else.
    """
    if not isinstance(volume, Volume):
        raise BadRequest(f"what is segmented is a Volume, as of Volume.of(voxels), not {type(volume).__name__}")


def check_version(version: object) -> None:
    """See that a version is one, or left out.

    Raises:
        BadRequest: it is no whole number.
    """
    if not (version is None or _is_whole(version)):
        raise BadRequest(f"version is {_shown(version)}; it must be a whole number")


def formats_of(given: object) -> tuple[ScanFormat, ...]:
    """The formats that are asked for, each once: names, or one text of them with commas.

    >>> formats_of("json, nifti"), formats_of(["montage", "montage"])
    (('json', 'nifti'), ('montage',))

    Raises:
        BadValue: there is none, or one that is not written.
    """
    if not isinstance(given, Iterable):
        raise BadValue(f"formats is {_shown(given)}; it must be names of {', '.join(SCAN_FORMATS)}")
    names: dict[str, None] = {}
    for each in given.split(",") if isinstance(given, str) else given:
        name = each.strip().lower() if isinstance(each, str) else None
        if name not in SCAN_FORMATS:
            raise BadValue(
                f"format {_shown(each)} is not written; there are {', '.join(SCAN_FORMATS)}",
                details={"format": _shown(each), "formats": [*SCAN_FORMATS]},
            )
        names[name] = None
    if not names:
        raise BadValue(f"formats is empty; there are {', '.join(SCAN_FORMATS)}", details={"formats": [*SCAN_FORMATS]})
    return cast(tuple[ScanFormat, ...], (*names,))


def pick_of(series: object, volume: object) -> Pick:
    """Which of several is meant.

    Raises:
        BadValue: the series is no whole number from 1, or the volume none from 0.
    """
    return Pick(series=_whole("series", series, 1), volume=_whole("volume", volume, 0))


def scan_of(source: object) -> OwnScanOrChannels:
    """What was given as a scan, or as one for each channel.

    Raises:
        BadRequest: it is none of what a scan may be, or a path is none.
    """
    if not isinstance(source, Mapping) or isinstance(source, Files):
        return _own_scan(source)
    if not all(isinstance(name, str) for name in source):
        raise BadRequest("channels are given by their names: the keys of a mapping are texts")
    return {name: _own_scan(each) for name, each in source.items()}


def _own_scan(source: object) -> OwnScan:
    if isinstance(source, bytes | memoryview):
        return source
    if isinstance(source, bytearray):
        return memoryview(source)
    if isinstance(source, Files):
        if all(
            isinstance(name, str) and isinstance(data, bytes | bytearray | memoryview) for name, data in source.items()
        ):
            return source
        raise BadRequest("the files of a scan are given as bytes, by names that are texts")
    if isinstance(source, str | os.PathLike):
        return _path(source)
    if isinstance(source, Iterable) and not isinstance(source, Mapping):
        return [_path(each) for each in source]
    raise BadRequest(f"a scan is a path, several, or the bytes of a file, not {type(source).__name__}")


def _path(given: object) -> str:
    """A path as text. Messages are without it: it may hold the name of a patient."""
    if not isinstance(given, str | os.PathLike):
        raise BadRequest(f"the file of a scan is named by a path, not by {type(given).__name__}")
    path = os.fspath(given)
    if not path:
        raise BadRequest("the path of a scan is empty")
    try:
        possible = isinstance(path, str) and b"\0" not in os.fsencode(path)
    except ValueError:
        possible = False
    if not possible:
        raise BadRequest("the path of a scan is no text that a path can be")
    return cast(str, path)


def _whole(name: str, given: object, least: int) -> int | None:
    if given is None:
        return None
    if not (_is_whole(given) and int(given) >= least):
        raise BadValue(
            f"{name} is {_shown(given)}; it must be a whole number from {least}", details={name: _shown(given)}
        )
    return int(given)


def _is_whole(given: object) -> TypeGuard[Integral]:
    """Whether it counts; True and False do not."""
    return isinstance(given, Integral) and not isinstance(given, bool)


def _is_number(given: object) -> bool:
    """Whether it may be compared with numbers; an array gives more than one answer, or none."""
    return isinstance(given, Real)


def _shown(given: object) -> str:
    """What was given where a number was meant; of other than numbers and texts, only what they are."""
    try:
        return repr(given)[:64] if isinstance(given, Real | str) else f"of type {type(given).__name__}"
    except ValueError:
        return "an integer of thousands of digits"


def at_least(found: Prediction, threshold: float) -> list[str]:
    """The labels whose probability is at least a threshold, highest first."""
    chosen = [label for label, probability in found.probabilities.items() if probability >= threshold]
    return sorted(chosen, key=lambda label: -found.probabilities[label])
