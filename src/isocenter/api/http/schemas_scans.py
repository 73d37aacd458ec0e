"""What the routes for scans answer, as types."""

from typing import Any, Final, Literal

from pydantic import Field

from isocenter.api.http.schemas import Shape, WarningShape

_MEANINGS: Final = {
    "series": "Of a scan: which series of several, from 1.",
    "volume": "Of a scan: which volume of several, from 0.",
    "format": "Of a scan: json, nifti, dicom-seg, montage, probabilities; several, with commas, as a zip.",
    "priority": "Of a scan: smaller is sooner, -100 to 100.",
}
SCAN_PARAMETERS: Final[list[dict[str, Any]]] = [
    {"name": name, "in": "query", "schema": {"type": "string"}, "description": text} for name, text in _MEANINGS.items()
]
NAMED_SCAN: Final[dict[str, Any]] = {
    "scan_path": {
        "description": "A path below the server's `scans.roots`, or an object of paths by channel.",
        "oneOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}],
    },
    "model": {"type": "string", "description": "Needed if several segment volumes."},
    "version": {"type": "integer", "description": "The highest if not given."},
    **{name: {"type": ["integer", "string"], "description": text} for name, text in _MEANINGS.items()},
    "format": {"type": ["string", "array"], "items": {"type": "string"}, "description": _MEANINGS["format"]},
}
SCAN_FILES: Final[dict[str, Any]] = {
    name: {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "The files of one scan. A file of any other field is a channel, by the field's name.",
    }
    for name in ("scan", "scans", "files")
}
"""Fields of a form that pictures are not sent in."""
SCAN_MEDIA: Final[dict[str, Any]] = {
    media: {"schema": {"type": "string", "format": "binary", "description": f"Of a scan: {text}."}}
    for media, text in (
        ("application/gzip", "nifti, probabilities"),
        ("application/dicom", "dicom-seg"),
        ("image/png", "montage"),
        ("application/zip", "several formats"),
    )
}
"""What a scan is answered with beside JSON, by the format that was asked for."""
SCAN_HEADERS: Final[dict[str, Any]] = {
    "X-Warnings": {"schema": {"type": "string"}, "description": "Of a scan, beside a file: codes of its warnings."}
}


class LesionShape(Shape):
    """One lesion: connected voxels of one label."""

    label: str | int
    number: int = Field(description="From 1, the largest first.")
    voxels: int
    volume_ml: float
    centroid_voxel: tuple[float, float, float] = Field(description="In indices of the mask.")
    centroid_lps_mm: tuple[float, float, float]
    diameter_mm: float = Field(description="The largest distance between two of its voxels.")
    probability: float | None = Field(description="Mean over its voxels.")


class RemovedShape(Shape):
    """What was too small to count."""

    count: int
    volume_ml: float


class MaskShape(Shape):
    """The mask on the grid of the scan, opened again and compared before it was sent."""

    shape: list[int]
    labels: list[str | int]
    exclusive: bool = Field(
        description="True: a voxel holds the number of its label, 0 is the first. False: one layer of 0 and 1 a label."
    )
    voxels: list[int] = Field(description="Of each label.")
    encoding: str = Field(default="", description="How `data` is written.", examples=["nii.gz, base64"])
    data: str = Field(default="", description="The file.")


class GridShape(Shape):
    """Where the scan and its mask lie: millimetres from indices of the mask."""

    shape: list[int]
    spacing_mm: list[float]
    axcodes: str = Field(description="Where each axis points, most nearly.", examples=["LPS"])
    lps_from_voxel: list[list[float]]
    ras_from_voxel: list[list[float]] = Field(description="The same as NIfTI says it.")


class ScanSourceShape(Shape):
    """What was read. Nothing in it says who the patient is."""

    format: Literal["dicom", "nifti", "nrrd", "metaimage"]
    files: int
    series: int
    modality: str | None
    body_part: str | None
    channels: dict[str, str] = Field(description="What was sent or named as which channel.")


class ScanShape(Shape):
    """What was found in one scan. The first five are null where the model does not say what a finding is."""

    prediction: Literal["present", "absent"] | None
    present: bool | None
    probability: float | None = Field(description="That something is there, 0 to 1.")
    volume_ml: float | None
    removed: RemovedShape | None
    volume_ml_by_label: dict[str, float]
    lesions: list[LesionShape]
    mask: MaskShape
    grid: GridShape
    scan: ScanSourceShape
    model: str
    version: int
    sha256: str = Field(description="Of the model's file.")
    windows: int = Field(description="Runs of the model that the answer was merged from.")
    batch_size: int = Field(description="Items in the largest batch that a window was run in.")
    latency_ms: float
    request_id: str
    timings_ms: dict[str, float] = Field(description="By stage, in the order in which they happened.")
    warnings: list[WarningShape]
    fallback: str | None = Field(default=None, description="What answered in place of the model's own runtime.")
