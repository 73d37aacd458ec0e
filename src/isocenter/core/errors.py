"""Everything that can go wrong, as named facts.

An error carries a stable code, one sentence with the measured value and the limit, and details a program can read.
It carries no HTTP status: that is decided at the edge (`isocenter.api.http.problems`).

    IsocenterError
    ├── BadInput                what the caller can mend
    │   ├── BadRequest          bad_request
    │   ├── BadValue            bad_value
    │   ├── MissingImage        missing_image
    │   ├── TooManyBytes        too_many_bytes
    │   ├── UnsupportedMedia    unsupported_media
    │   ├── BadImage            bad_image
    │   │   └── TruncatedImage  truncated_image
    │   ├── TooManyPixels       too_many_pixels
    │   ├── VolumeTooLarge      volume_too_large
    │   ├── MultiFrameImage     multi_frame_image
    │   ├── UnsafePath          unsafe_path
    │   ├── PathNotAllowed      path_not_allowed
    │   ├── ScanTooLarge        scan_too_large
    │   ├── BadVolume           bad_volume
    │   │   ├── SeveralVolumes    several_volumes
    │   │   ├── MissingGeometry   missing_geometry
    │   │   ├── BadGeometry       bad_geometry
    │   │   ├── MissingSlices     missing_slices
    │   │   ├── DuplicateSlices   duplicate_slices
    │   │   ├── MixedSeries       mixed_series
    │   │   ├── MixedSizes        mixed_sizes
    │   │   ├── MixedOrientation  mixed_orientation
    │   │   ├── MixedFramesOfReference  mixed_frames_of_reference
    │   │   ├── GantryTilt        gantry_tilt
    │   │   ├── ChannelsDiffer    channels_differ
    │   │   └── Localizer         localizer
    │   ├── EmptyInput          empty_input
    │   ├── NonFinitePixels     non_finite_pixels
    │   ├── MissingWindow       missing_window
    │   ├── InputNotAccepted    input_not_accepted
    │   ├── TooManyObjects      too_many_objects
    │   ├── NotDicom            not_dicom
    │   ├── WrongTask           wrong_task
    │   ├── UnknownModel        unknown_model
    │   │   └── UnknownVersion  unknown_version
    │   ├── UnknownJob          unknown_job
    │   │   └── JobExpired      job_expired
    │   ├── JobNotDone          job_not_done
    │   ├── JobsOff             jobs_off
    │   └── KeyReused           key_reused
    ├── Refused                 right request, wrong moment: try again
    │   ├── Overloaded          overloaded
    │   ├── Draining            draining
    │   ├── NotReady            not_ready
    │   ├── Unavailable         unavailable
    │   ├── StoreUnavailable    store_unavailable
    │   └── DiskFull            disk_full
    ├── DeadlineExceeded        deadline_exceeded
    ├── Abandoned               abandoned
    ├── ModelFault              the model or its runtime failed
    │   ├── RuntimeFault        runtime_fault
    │   │   ├── OutOfMemory     out_of_memory
    │   │   └── RuntimeLost     runtime_lost
    │   ├── RunHung             run_hung
    │   ├── NumericFailure      numeric_failure
    │   └── OutputMismatch      output_mismatch
    ├── JobLost                 job_lost
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

from isocenter.core.bad_input import BadGeometry as BadGeometry
from isocenter.core.bad_input import BadImage as BadImage
from isocenter.core.bad_input import BadInput as BadInput
from isocenter.core.bad_input import BadRequest as BadRequest
from isocenter.core.bad_input import BadValue as BadValue
from isocenter.core.bad_input import BadVolume as BadVolume
from isocenter.core.bad_input import ChannelsDiffer as ChannelsDiffer
from isocenter.core.bad_input import DuplicateSlices as DuplicateSlices
from isocenter.core.bad_input import EmptyInput as EmptyInput
from isocenter.core.bad_input import GantryTilt as GantryTilt
from isocenter.core.bad_input import InputNotAccepted as InputNotAccepted
from isocenter.core.bad_input import JobExpired as JobExpired
from isocenter.core.bad_input import JobNotDone as JobNotDone
from isocenter.core.bad_input import JobsOff as JobsOff
from isocenter.core.bad_input import KeyReused as KeyReused
from isocenter.core.bad_input import Localizer as Localizer
from isocenter.core.bad_input import MissingGeometry as MissingGeometry
from isocenter.core.bad_input import MissingImage as MissingImage
from isocenter.core.bad_input import MissingSlices as MissingSlices
from isocenter.core.bad_input import MissingWindow as MissingWindow
from isocenter.core.bad_input import MixedFramesOfReference as MixedFramesOfReference
from isocenter.core.bad_input import MixedOrientation as MixedOrientation
from isocenter.core.bad_input import MixedSeries as MixedSeries
from isocenter.core.bad_input import MixedSizes as MixedSizes
from isocenter.core.bad_input import MultiFrameImage as MultiFrameImage
from isocenter.core.bad_input import NonFinitePixels as NonFinitePixels
from isocenter.core.bad_input import NotDicom as NotDicom
from isocenter.core.bad_input import PathNotAllowed as PathNotAllowed
from isocenter.core.bad_input import ScanTooLarge as ScanTooLarge
from isocenter.core.bad_input import SeveralVolumes as SeveralVolumes
from isocenter.core.bad_input import TooManyBytes as TooManyBytes
from isocenter.core.bad_input import TooManyObjects as TooManyObjects
from isocenter.core.bad_input import TooManyPixels as TooManyPixels
from isocenter.core.bad_input import TruncatedImage as TruncatedImage
from isocenter.core.bad_input import UnknownJob as UnknownJob
from isocenter.core.bad_input import UnknownModel as UnknownModel
from isocenter.core.bad_input import UnknownVersion as UnknownVersion
from isocenter.core.bad_input import UnsafePath as UnsafePath
from isocenter.core.bad_input import UnsupportedMedia as UnsupportedMedia
from isocenter.core.bad_input import VolumeTooLarge as VolumeTooLarge
from isocenter.core.bad_input import WrongTask as WrongTask
from isocenter.core.fault import Detail as Detail
from isocenter.core.fault import IsocenterError as IsocenterError
from isocenter.core.fault import without_frames as without_frames


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


class StoreUnavailable(Refused):
    """Where jobs are kept cannot be read or written: locked, broken, or not there."""

    code = "store_unavailable"


class DiskFull(Refused):
    """No room on the disk for a job or its results."""

    code = "disk_full"


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


class JobLost(IsocenterError):
    """The process ended three times while it ran this job; it is not tried again."""

    code = "job_lost"


class OutputMismatch(ModelFault):
    """What was written, read again, is not what was found: never released."""

    code = "output_mismatch"


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
