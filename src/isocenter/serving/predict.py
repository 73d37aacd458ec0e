"""Predict: one image in, one class with its probabilities out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadInput, DeadlineExceeded, Overloaded, Refused, WrongTask
from isocenter.core.events import Observer, Shed
from isocenter.core.request import Request
from isocenter.core.tensor import Array, FloatArray
from isocenter.engine.protocol import Reservation
from isocenter.imaging.array import from_array
from isocenter.imaging.codecs.header import Header
from isocenter.imaging.codecs.raster import decode, read_header, soon_read
from isocenter.imaging.image import Note, RasterImage
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.transforms import accepts
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository
from isocenter.serving.arriving import Arriving
from isocenter.serving.cpu_pool import CpuPool


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image."""

    label: str | int
    confidence: float
    probabilities: dict[str, float]
    model: str
    version: int
    warnings: tuple[Note, ...]
    stages_s: dict[str, float]
    """Seconds by stage, in the order in which they happened."""
    fallback: str = ""
    """What answered in place of the model's own runtime; empty: the model's own did."""

    def as_json(self, *, request_id: str, total_s: float) -> dict[str, Any]:
        """The answer as it is written, over HTTP and by the command line; the first three keys are its heart."""
        return {
            "prediction": self.label,
            "confidence": self.confidence,
            "latency_ms": round(total_s * 1e3, 3),
            "probabilities": self.probabilities,
            "model": self.model,
            "version": self.version,
            "request_id": request_id,
            "timings_ms": {stage: round(seconds * 1e3, 3) for stage, seconds in self.stages_s.items()},
            "warnings": [{"code": note.code, "message": note.message} for note in self.warnings],
        } | ({"fallback": self.fallback} if self.fallback else {})


# The answer's way back takes time too; who has less than this share of his left will hardly have it in time.
_WAY_BACK_SHARE = 0.05
# Above this, a header may be far into the file and takes time of its own.
_SMALL_BYTES = 256 * 1024
# How quickly the share of pictures that are decoded on the event loop is followed.
_STEP = 0.05
# How quickly the share of callers who are refused is followed, and from which on they are many.
_REFUSED_STEP, _MANY_REFUSED = 0.01, 1 / 3
# Up to this, a file is decoded about as quickly as the event loop takes a request in and sends its answer.
_QUICK_BYTES = 96 * 1024
_QUICK_VALUES = 600_000


@dataclass(frozen=True, slots=True)
class _Decoded:
    raster: RasterImage
    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class _Prepared:
    tensor: FloatArray
    notes: tuple[Note, ...]
    started_s: float
    decoded_s: float
    begun_s: float
    """Preprocessing need not begin where decoding ended."""
    ended_s: float


class Predict:
    """The use case. One line a stage; every refusal that an image can earn comes before any model time."""

    def __init__(
        self,
        repository: Repository,
        pool: CpuPool,
        *,
        limits: ImageLimits,
        clock: Clock,
        observer: Observer,
        decode_here_max_pixels: int = 0,
    ) -> None:
        self._repository = repository
        self._pool = pool
        self._limits = limits
        self._clock = clock
        self._observer = observer
        self._decode_here_max_pixels = decode_here_max_pixels
        self._share_here = float(decode_here_max_pixels > 0)
        self._share_refused = 0.0
        self._arriving = Arriving(clock)

    def check(self, model: str | None, version: int | None, deadline: Deadline, *, priority: int = 0) -> None:
        """Refuse a request by its head alone: before its body is read, before a picture is decoded.

        Who is let in here has to come to `__call__` as soon as his body is there.

        Raises:
            BadInput: no such model.
            Refused, DeadlineExceeded: it could not be answered in time.
        """
        self._arriving.see()
        ready_in_s = self._arriving.lag_s + self._ready_in_s()
        served = self._repository.resolve(model, version, task="classification")
        refuse_other_task(served, "classification")
        try:
            served.engine.check(deadline, priority=priority, ready_in_s=ready_in_s)
        except Refused:
            self.note_refused()
            raise
        self._note_share(0.0)
        self._arriving.expect()

    def note_refused(self) -> None:
        """Somebody was refused; to be called by who refuses more than one on one word of `check`."""
        self._note_share(1.0)

    async def __call__(
        self,
        image: bytes | Array,
        *,
        request_id: str,
        model: str | None = None,
        version: int | None = None,
        deadline: Deadline | None = None,
        priority: int = 0,
    ) -> Prediction:
        """Answer one image, or pixels that a caller already holds. Without a deadline, the model's own timeout counts.

        Raises:
            BadInput: the image or the name of the model cannot be answered.
            Refused: not now.
            DeadlineExceeded: too late.
            ModelFault: the model failed.
        """
        entered_s = self._clock.now_s()
        served = self._repository.resolve(model, version, task="classification")
        refuse_other_task(served, "classification")
        if deadline is None:
            deadline = own_deadline(served, entered_s)
        header = self._glance(image)
        here = self._is_small(image, header)
        self._share_here += _STEP * (here - self._share_here)
        place = served.engine.reserve(deadline, priority=priority, ready_in_s=self._pool.ready_in_s(here=here))
        try:
            tensor = served.manifest.input.tensor
            prepared = await self._decoded(served, image, header, place, deadline, here=here)
            submitted_s = self._clock.now_s()
            request = Request(request_id, {tensor: prepared.tensor}, deadline, priority)
            result = await served.engine.infer(request, place)
        except DeadlineExceeded:
            served.engine.note_late()
            raise
        finally:
            place.release()
        answered_s = self._clock.now_s()
        if deadline.left_s(answered_s) < _WAY_BACK_SHARE * (deadline.at_s - entered_s):
            served.engine.note_late()
        probabilities = activate(result.outputs[served.manifest.output.tensor], served.manifest.output.activation)

        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        labels = served.manifest.output.labels
        timings = result.timings
        return Prediction(
            label=labels[best],
            confidence=probabilities[best],
            probabilities=dict(zip(map(str, labels), probabilities, strict=True)),
            model=served.name,
            version=served.version,
            warnings=prepared.notes + fallback_note(result.fallback),
            fallback=result.fallback,
            stages_s={
                "decode_wait": prepared.started_s - entered_s,
                "decode": prepared.decoded_s - prepared.started_s,
                "preprocess": prepared.ended_s - prepared.begun_s,
                "queue": timings.queue_s,
                "infer": timings.service_s,
                "hand_over": (prepared.begun_s - prepared.decoded_s)
                + (submitted_s - prepared.ended_s)
                + max(0.0, answered_s - submitted_s - timings.queue_s - timings.service_s),
                "postprocess": self._clock.now_s() - answered_s,
            },
        )

    def default_deadline(self, model: str | None, version: int | None, *, arrived_s: float) -> Deadline:
        """The model's own deadline for a request that arrived at an instant; an unknown model is refused here."""
        return own_deadline(self._repository.resolve(model, version, task="classification"), arrived_s)

    def meant_by(self, model: str | None, version: int | None) -> tuple[str, int]:
        """The name and version that a request means; an empty name and 0 if it means none that is served."""
        try:
            served = self._repository.resolve(model, version, task="classification")
        except BadInput:
            return "", 0
        return served.name, served.version

    def _note_share(self, refused: float) -> None:
        self._share_refused += _REFUSED_STEP * (refused - self._share_refused)
        self._pool.refusing = self._share_refused > _MANY_REFUSED

    def _ready_in_s(self) -> float:
        """Predicted seconds until a picture of which only the head is known is decoded, where the last ones were."""
        coming, share = self._arriving.count, self._share_here
        here_s = self._pool.ready_in_s(here=True, coming=coming) if share > 0 else 0.0
        threads_s = self._pool.ready_in_s(coming=coming) if share < 1 else 0.0
        return share * here_s + (1 - share) * threads_s

    def _glance(self, image: bytes | Array) -> Header | None:
        """The header of a file that may be small enough to be decoded here; None of anything else.

        Raises:
            BadInput: the header alone says that it cannot be answered.
        """
        if not self._decode_here_max_pixels or not isinstance(image, bytes) or len(image) > _SMALL_BYTES:
            return None
        return read_header(image, limits=self._limits) if soon_read(image) else None

    def _is_small(self, image: bytes | Array, header: Header | None) -> bool:
        """Whether a picture's decoding takes so little that it is done here."""
        if header is not None:
            return header.effort_pixels <= self._decode_here_max_pixels
        if isinstance(image, bytes) or not self._decode_here_max_pixels:
            return False
        return image.size <= self._decode_here_max_pixels

    async def _decoded(
        self,
        served: ServedModel,
        image: bytes | Array,
        header: Header | None,
        place: Reservation,
        deadline: Deadline,
        *,
        here: bool,
    ) -> _Prepared:
        try:
            if here:  # whoever waits for his turn needs no room yet
                return await self._pool.run_here(
                    lambda: self._decode(image, header),
                    lambda decoded: self._preprocess(served, decoded, place.room),
                    deadline,
                )
            room = place.room
            quick = len(image) <= _QUICK_BYTES if isinstance(image, bytes) else image.size <= _QUICK_VALUES
            return await self._pool.run(
                lambda: self._preprocess(served, self._decode(image, header), room), deadline, quick=quick
            )
        except Overloaded as refusal:
            if refusal.details.get("where") == "decode":  # else there was no room for the tensor, and that is told
                self._observer.observe(Shed(served.name, served.version, "decode_full"))
            raise

    def _decode(self, image: bytes | Array, header: Header | None) -> _Decoded:
        """Bytes to pixels."""
        started_s = self._clock.now_s()
        if isinstance(image, bytes):
            raster = decode(image, limits=self._limits, header=header)
        else:
            raster = from_array(image, limits=self._limits)
        return _Decoded(raster, started_s, self._clock.now_s())

    def _preprocess(self, served: ServedModel, decoded: _Decoded, room: Mapping[str, Array] | None) -> _Prepared:
        """Pixels to the tensor that the model takes."""
        begun_s, raster = self._clock.now_s(), decoded.raster
        noticed = accepts.check(served.manifest.input.accepts, raster)
        assert isinstance(served.pipeline, FastPipeline)
        prepared = served.pipeline(raster, out=room[served.manifest.input.tensor] if room else None)
        notes = (*raster.notes, *noticed, *prepared.notes)
        return _Prepared(prepared.tensor, notes, decoded.started_s, decoded.ended_s, begun_s, self._clock.now_s())


def refuse_other_task(served: ServedModel, task: str) -> None:
    """See that a model answers this kind of question.

    Raises:
        WrongTask: it does not.
    """
    found = served.manifest.task
    if found != task:
        raise WrongTask(
            f"{served.name} {served.version} is a model for {found}, asked for was {task}",
            details={"task": found, "asked": task},
        )


def activate(logits: Array, activation: str) -> list[float]:
    """Raw output values to probabilities, in double precision.

    >>> import numpy as np
    >>> activate(np.array([1000.0, 1000.0]), "softmax")
    [0.5, 0.5]
    """
    values: list[float] = logits.reshape(-1).tolist()
    # Plain floats: for a handful of values, numpy's calls would cost more than the arithmetic.
    if activation == "softmax":
        # Without the maximum taken off, exp() overflows on large logits.
        largest = max(values)
        exponents = [math.exp(value - largest) for value in values]
        total = math.fsum(exponents)
        return [exponent / total for exponent in exponents]
    if activation == "sigmoid":
        return [0.5 * (1.0 + math.tanh(0.5 * value)) for value in values]
    return values


def fallback_note(fallback: str) -> tuple[Note, ...]:
    """What an answer says that did not come from the model's own runtime."""
    if not fallback:
        return ()
    return (Note("fallback", f"the model's own runtime is being restarted; {fallback} answered"),)


def own_deadline(served: ServedModel, from_s: float) -> Deadline:
    """The model's own deadline for a request that came at an instant."""
    return Deadline.after(served.manifest.slo.timeout_ms / 1e3, now_s=from_s)
