"""The answer for one scan, and how it is written."""

import base64
import io
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import orjson

from isocenter.imaging.codecs.volume_files import SeriesFacts
from isocenter.imaging.geometry import swap_lps_ras
from isocenter.imaging.image import Note
from isocenter.imaging.postprocess.findings import Findings
from isocenter.serving.segment import Segmentation

ScanFormat: TypeAlias = Literal["json", "nifti", "dicom-seg", "montage", "probabilities"]
SCAN_FORMATS: Final[tuple[ScanFormat, ...]] = get_args(ScanFormat)

_MEDIA_TYPES: Final[dict[ScanFormat, str]] = {
    "json": "application/json",
    "nifti": "application/gzip",
    "dicom-seg": "application/dicom",
    "montage": "image/png",
    "probabilities": "application/gzip",
}
_FILE_NAMES: Final[dict[ScanFormat, str]] = {
    "json": "answer.json",
    "nifti": "mask.nii.gz",
    "dicom-seg": "mask.dcm",
    "montage": "montage.png",
    "probabilities": "probabilities.nii.gz",
}
# The same answer is the same archive: without the time at which it was packed.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


class Rendered(NamedTuple):
    """An answer as it is written."""

    body: bytes
    media_type: str
    filename: str


@dataclass(frozen=True, eq=False, kw_only=True)
class ScanAnswer:
    """What was found in one scan, on the scan's own grid."""

    findings: Findings | None
    """None: the model's manifest has no rule for what a finding is."""
    segmentation: Segmentation
    """Its mask is without what the rule for findings removed; probabilities are kept if they were asked for."""
    facts: SeriesFacts
    """Of the series; of several channels, of the first."""
    channels: Mapping[str, str]
    """What was sent or named as which channel; empty for a scan of one channel."""
    model: str
    version: int
    sha256: str
    """Of the model's file."""
    warnings: tuple[Note, ...]
    voxels: tuple[int, ...]
    """Of every label."""
    stages_s: dict[str, float]
    """Seconds by stage, in the order in which they happened."""
    formats: tuple[ScanFormat, ...] = ("json",)
    """As what it is written, in the order in which it was asked for."""
    parts: Mapping[ScanFormat, bytes] = field(default_factory=dict, repr=False)
    """Written already, and checked; the JSON is written at the end."""
    request_id: str = ""
    total_s: float | None = None
    """From the call to the answer."""

    def as_json(self) -> dict[str, Any]:
        """Strings, numbers, lists and mappings only."""
        found, total_s = self.findings, self.total_s
        fallback = self.segmentation.fallback
        return {
            "prediction": None if found is None else "present" if found.present else "absent",
            "present": None if found is None else found.present,
            "probability": None if found is None else found.probability,
            "volume_ml": None if found is None else found.volume_ml,
            "volume_ml_by_label": self._volume_ml_by_label(),
            "lesions": [] if found is None else [asdict(lesion) for lesion in found.lesions],
            "removed": None if found is None else {"count": found.removed, "volume_ml": found.removed_ml},
            "mask": self._mask(),
            "grid": self._grid(),
            "scan": self._scan(),
            "model": self.model,
            "version": self.version,
            "sha256": self.sha256,
            "windows": self.segmentation.windows,
            "batch_size": self.segmentation.batch_size,
            "latency_ms": None if total_s is None else round(total_s * 1e3, 3),
            "request_id": self.request_id,
            "timings_ms": {stage: round(seconds * 1e3, 3) for stage, seconds in self.stages_s.items()},
            "warnings": [{"code": note.code, "message": note.message} for note in self.warnings],
        } | ({"fallback": fallback} if fallback else {})

    def rendered(self) -> Rendered:
        """One format as itself; several as one zip."""
        if len(self.formats) == 1:
            form = self.formats[0]
            return Rendered(self._written(form), _MEDIA_TYPES[form], _FILE_NAMES[form])
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for form in self.formats:
                entry = zipfile.ZipInfo(_FILE_NAMES[form], _EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, self._written(form))
        return Rendered(packed.getvalue(), "application/zip", "answer.zip")

    def _written(self, form: ScanFormat) -> bytes:
        return orjson.dumps(self.as_json()) if form == "json" else self.parts[form]

    def _mask(self) -> dict[str, Any]:
        mask = self.segmentation.mask
        written = {
            "shape": list(mask.shape),
            "labels": list(self.segmentation.labels),
            "exclusive": self._exclusive,
            "voxels": list(self.voxels),
        }
        if "nifti" in self.parts:
            written |= {"encoding": "nii.gz, base64", "data": base64.b64encode(self.parts["nifti"]).decode("ascii")}
        return written

    def _grid(self) -> dict[str, Any]:
        geometry = self.segmentation.geometry
        return {
            "shape": list(geometry.shape),
            "spacing_mm": list(geometry.spacing_mm),
            "axcodes": geometry.axcodes,
            "lps_from_voxel": geometry.lps_from_voxel.tolist(),
            "ras_from_voxel": swap_lps_ras(geometry.lps_from_voxel).tolist(),
        }

    def _scan(self) -> dict[str, Any]:
        facts = self.facts
        return {
            "format": facts.format,
            "files": facts.files,
            "series": facts.series,
            "modality": facts.modality or None,
            "body_part": facts.body_part or None,
            "channels": dict(self.channels),
        }

    def _volume_ml_by_label(self) -> dict[str, float]:
        if self.findings is not None:
            return {str(label): volume_ml for label, volume_ml in self.findings.volume_ml_by_label.items()}
        voxel_ml = abs(float(np.linalg.det(self.segmentation.geometry.lps_from_voxel[:3, :3]))) / 1e3
        counts = list(zip(self.segmentation.labels, self.voxels, strict=True))
        return {str(label): count * voxel_ml for label, count in counts[self._exclusive :]}

    @property
    def _exclusive(self) -> bool:
        """Whether a voxel has one label, which is the background if it is the first."""
        return self.segmentation.mask.ndim == len(self.segmentation.geometry.shape)
