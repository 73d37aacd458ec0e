"""What a Python program asks of a service beside the image, and what it gets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypedDict

from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadRequest
from isocenter.imaging.volume import Volume
from isocenter.repository.load import ServedModel
from isocenter.serving.predict import Prediction
from isocenter.serving.scan_answer import ScanFormat
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
    formats: Sequence[ScanFormat]
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
