"""Everything that can go wrong, as named facts.

An error carries a stable code, one sentence with the measured value and the limit, and details a program can read.
It carries no HTTP status: that is decided at the edge (`isocenter.api.http.problems`).

    IsocenterError
    ├── BadInput                what the caller can mend
    │   ├── BadRequest          bad_request
    │   ├── MissingImage        missing_image
    │   ├── TooManyBytes        too_many_bytes
    │   ├── UnsupportedMedia    unsupported_media
    │   ├── BadImage            bad_image
    │   │   └── TruncatedImage  truncated_image
    │   ├── TooManyPixels       too_many_pixels
    │   ├── MultiFrameImage     multi_frame_image
    │   ├── EmptyInput          empty_input
    │   ├── NonFinitePixels     non_finite_pixels
    │   ├── MissingWindow       missing_window
    │   ├── InputNotAccepted    input_not_accepted
    │   ├── WrongTask           wrong_task
    │   └── UnknownModel        unknown_model
    │       └── UnknownVersion  unknown_version
    ├── Refused                 right request, wrong moment: try again
    │   ├── Overloaded          overloaded
    │   ├── Draining            draining
    │   ├── NotReady            not_ready
    │   └── Unavailable         unavailable
    ├── DeadlineExceeded        deadline_exceeded
    ├── Abandoned               abandoned
    ├── ModelFault              the model or its runtime failed
    │   ├── RuntimeFault        runtime_fault
    │   │   ├── OutOfMemory     out_of_memory
    │   │   └── RuntimeLost     runtime_lost
    │   ├── RunHung             run_hung
    │   └── NumericFailure      numeric_failure
    └── SetupError              found at start-up or by `isocenter check`
        ├── BadManifest         bad_manifest
        ├── DigestMismatch      digest_mismatch
        ├── GoldenMismatch      golden_mismatch
        ├── BatchVariance       batch_variance
        ├── Unmeasured          unmeasured_precision
        ├── GateMissed          gate_missed
        ├── ReloadRefused       reload_refused
        ├── ImportRefused       import_refused
        ├── MissingExtra        missing_extra
        └── BadSettings         bad_settings
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeAlias

Detail: TypeAlias = "str | int | float | bool | Sequence[Detail] | Mapping[str, Detail] | None"


class IsocenterError(Exception):
    """The root: a sentence for people, a code and details for programs."""

    code: ClassVar[str] = "error"
    holds_s: float = 0.0
    """For so many seconds, whoever asks the same would hear the same."""

    def __init__(
        self, message: str, *, details: Mapping[str, Detail] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Detail] = dict(details or {})
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.details, self.retry_after_s)


def _rebuild(
    kind: type[IsocenterError], message: str, details: Mapping[str, Detail], retry_after_s: float | None
) -> IsocenterError:
    return kind(message, details=details, retry_after_s=retry_after_s)


def without_frames(error: IsocenterError) -> IsocenterError:
    """The same error without tracebacks, its causes included.

    A traceback holds the frames that raised, and these hold images: an answer that waits to be read, or a cycle that
    waits for the garbage collector, would keep hundreds of megabytes alive.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


class BadInput(IsocenterError):
    """What was sent cannot be answered; the caller can mend it."""

    code = "bad_input"


class BadRequest(BadInput):
    """The request itself is malformed: a header, a field, a multipart body."""

    code = "bad_request"


class MissingImage(BadInput):
    """No image in the request."""

    code = "missing_image"


class TooManyBytes(BadInput):
    """The body is larger than the limit."""

    code = "too_many_bytes"


class UnsupportedMedia(BadInput):
    """Not one of the formats that are read."""

    code = "unsupported_media"


class BadImage(BadInput):
    """The format was recognised, the content is broken."""

    code = "bad_image"


class TruncatedImage(BadImage):
    """The file ends before its pixels do."""

    code = "truncated_image"


class TooManyPixels(BadInput):
    """The header announces more pixels than the limit, before any was decoded."""

    code = "too_many_pixels"


class MultiFrameImage(BadInput):
    """Several frames or pages: which one is meant is never guessed."""

    code = "multi_frame_image"


class EmptyInput(BadInput):
    """Every pixel has the same value: nothing can be found in it, and "nothing found" would be a lie."""

    code = "empty_input"


class NonFinitePixels(BadInput):
    """NaN or infinity among the pixels."""

    code = "non_finite_pixels"


class MissingWindow(BadInput):
    """More than 8 bits per sample, and the model declares no intensity window for them."""

    code = "missing_window"


class InputNotAccepted(BadInput):
    """Outside of what the model's manifest says it accepts."""

    code = "input_not_accepted"


class WrongTask(BadInput):
    """The model answers another kind of question than the one that was asked."""

    code = "wrong_task"


class UnknownModel(BadInput):
    """No such model here."""

    code = "unknown_model"


class UnknownVersion(UnknownModel):
    """The model exists, this version does not."""

    code = "unknown_version"


class Refused(IsocenterError):
    """A good request at a bad moment; `retry_after_s` says when to come back."""

    code = "refused"


class Overloaded(Refused):
    """The queue or the decode pool is full: shed at the door."""

    code = "overloaded"


class Draining(Refused):
    """The server is stopping; what is in is finished, nothing new is taken."""

    code = "draining"


class NotReady(Refused):
    """The model is loading, warming up or has no working instance."""

    code = "not_ready"


class Unavailable(Refused):
    """The engine process is gone; it is being started again."""

    code = "unavailable"


class DeadlineExceeded(IsocenterError):
    """The deadline passed before the answer was there."""

    code = "deadline_exceeded"


class Abandoned(IsocenterError):
    """The caller left; nobody will read this."""

    code = "abandoned"


class ModelFault(IsocenterError):
    """The model or its runtime failed; the request was good."""

    code = "model_fault"


class RuntimeFault(ModelFault):
    """The runtime raised."""

    code = "runtime_fault"


class OutOfMemory(RuntimeFault):
    """The runtime had no memory for the run, not even for a smaller one."""

    code = "out_of_memory"


class RuntimeLost(RuntimeFault):
    """What the model runs in is gone, as a server that stopped: no item is at fault, and no session of it works."""

    code = "runtime_lost"


class RunHung(ModelFault):
    """The run took so much longer than any before that its instance was given up."""

    code = "run_hung"


class NumericFailure(ModelFault):
    """NaN or infinity in the output: never passed on as a finding."""

    code = "numeric_failure"


class SetupError(IsocenterError):
    """Something is wrong with the installation or a model folder."""

    code = "setup_error"


class BadManifest(SetupError):
    """`model.yaml` is missing, malformed or promises what the model does not hold."""

    code = "bad_manifest"


class DigestMismatch(SetupError):
    """The weights are not the ones that the manifest names."""

    code = "digest_mismatch"


class GoldenMismatch(SetupError):
    """The golden input did not give the golden output."""

    code = "golden_mismatch"


class BatchVariance(SetupError):
    """An answer depends on the other items of its batch."""

    code = "batch_variance"


class Unmeasured(SetupError):
    """A precision other than fp32, and no measurement of its difference that belongs to these weights."""

    code = "unmeasured_precision"


class GateMissed(SetupError):
    """The measured difference from fp32 is larger than the manifest's gate allows."""

    code = "gate_missed"


class ReloadRefused(SetupError):
    """A version in the folder is not what it claims to be; what was served before still is."""

    code = "reload_refused"


class ImportRefused(SetupError):
    """What is to be imported is unsafe, not understood, or does not say what a model must say; nothing was written."""

    code = "import_refused"


class MissingExtra(SetupError):
    """An optional dependency is not installed; the message names the extra to install."""

    code = "missing_extra"


class BadSettings(SetupError):
    """A setting is unknown or out of range."""

    code = "bad_settings"
