"""What a caller sent and can mend; see `isocenter.core.errors` for the whole tree."""

from isocenter.core.fault import IsocenterError


class BadInput(IsocenterError):
    """What was sent cannot be answered; the caller can mend it."""

    code = "bad_input"


class BadRequest(BadInput):
    """The request itself is malformed: a header, a field, a multipart body."""

    code = "bad_request"


class BadValue(BadInput):
    """A value that was asked for is out of its range, or none of those there are."""

    code = "bad_value"


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


class VolumeTooLarge(BadInput):
    """Segmenting the volume would hold more memory than all volumes together may."""

    code = "volume_too_large"


class MultiFrameImage(BadInput):
    """Several frames or pages: which one is meant is never guessed."""

    code = "multi_frame_image"


class UnsafePath(BadInput):
    """An entry of a folder or an archive leads outside of it, or is no plain file."""

    code = "unsafe_path"


class PathNotAllowed(BadInput):
    """A path on the server's own disk that may not be read from here; whether it exists is not told."""

    code = "path_not_allowed"


class ScanTooLarge(BadInput):
    """A scan on the server's own disk is larger than the limit; nothing of it was read."""

    code = "scan_too_large"


class BadVolume(BadInput):
    """The files were read, but are no single volume of evenly spaced, parallel slices."""

    code = "bad_volume"


class SeveralVolumes(BadVolume):
    """More than one volume, as time points or echoes: which one is meant is never guessed."""

    code = "several_volumes"


class MissingGeometry(BadVolume):
    """Nothing says where the voxels lie in the patient, or how far apart."""

    code = "missing_geometry"


class BadGeometry(BadVolume):
    """What is said of the voxels' place contradicts itself, or is impossible."""

    code = "bad_geometry"


class MissingSlices(BadVolume):
    """A gap between slices is not like the others."""

    code = "missing_slices"


class DuplicateSlices(BadVolume):
    """Several slices at one position."""

    code = "duplicate_slices"


class MixedSeries(BadVolume):
    """Slices of more than one series, patient, modality or kind."""

    code = "mixed_series"


class MixedSizes(BadVolume):
    """Slices that differ in rows, columns or pixel spacing."""

    code = "mixed_sizes"


class MixedOrientation(BadVolume):
    """Slices that are not parallel, or turned in their plane."""

    code = "mixed_orientation"


class MixedFramesOfReference(BadVolume):
    """Slices whose positions count from different origins."""

    code = "mixed_frames_of_reference"


class GantryTilt(BadVolume):
    """The slices are not stacked along their normal: the volume is sheared."""

    code = "gantry_tilt"


class ChannelsDiffer(BadVolume):
    """Channels of one scan that do not lie on one grid."""

    code = "channels_differ"


class Localizer(BadVolume):
    """Pictures that scans were planned on, no volume."""

    code = "localizer"


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


class TooManyObjects(BadInput):
    """More objects than the format that was asked for can number."""

    code = "too_many_objects"


class NotDicom(BadInput):
    """A DICOM object was asked for, and the scan is no DICOM series, or one that does not say what it must."""

    code = "not_dicom"


class WrongTask(BadInput):
    """The model answers another kind of question than the one that was asked."""

    code = "wrong_task"


class UnknownModel(BadInput):
    """No such model here."""

    code = "unknown_model"


class UnknownVersion(UnknownModel):
    """The model exists, this version does not."""

    code = "unknown_version"


class UnknownJob(BadInput):
    """No job of that id here."""

    code = "unknown_job"


class JobExpired(UnknownJob):
    """The job was here; it and its results were deleted when their time was over."""

    code = "job_expired"


class JobNotDone(BadInput):
    """The job has no result: it is not done yet, or failed, or was cancelled; the details hold its state."""

    code = "job_not_done"


class JobsOff(BadInput):
    """This server keeps no jobs."""

    code = "jobs_off"


class KeyReused(BadInput):
    """The Idempotency-Key belongs to a job that was asked for something else."""

    code = "key_reused"
