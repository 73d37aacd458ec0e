"""`isocenter segment` of scans: a cohort with the model in this process."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from isocenter.app import Composition, open_service
from isocenter.cli.cohort import Progress, answer_all
from isocenter.cli.cohort_find import find_scans
from isocenter.cli.cohort_ledger import CohortAnswer, Ledger
from isocenter.cli.cohort_report import Report
from isocenter.cli.cohort_rows import Row
from isocenter.cli.errors import Hopeless
from isocenter.core.clock import SystemClock
from isocenter.core.deadline import Deadline
from isocenter.imaging.codecs.volume_files import Pick
from isocenter.process import tune_process
from isocenter.repository import layout
from isocenter.serving.scans import ScanAsked
from isocenter.serving.segmenters import segments

if TYPE_CHECKING:
    from isocenter.repository.layout import ModelFolder
    from isocenter.serving.scan_answer import ScanAnswer, ScanFormat
    from isocenter.settings import Settings

_CLOCK: Final = SystemClock()


def segment_cohort(
    arguments: Sequence[str],
    settings: "Settings",
    *,
    model: str | None,
    version: int | None,
    formats: "Sequence[ScanFormat]",
    out: Path,
    at_once: int,
    as_json: bool,
) -> list[Row]:
    """Answer every scan that is named and is not answered yet; what became of all of them.

    Raises:
        Hopeless: there is no scan, no one model for it, or another process works into `out`.
        SetupError: a model of the repository cannot be served.
    """
    scans = find_scans(arguments, out)
    chosen = model_of_scans(settings, model, version).manifest
    if len(chosen.input.channels) > 1:
        raise Hopeless(
            f"{chosen.name} takes the channels {', '.join(chosen.input.channels)}, and a cohort has one scan for each "
            "answer: which of its files is which channel is not guessed",
            hint="Service.segment_scan({'t1': path, …}) for each of them",
        )
    wanted: tuple[ScanFormat, ...] = (*dict.fromkeys((*formats, "montage")),)
    identity = f"{chosen.name}/{chosen.version}/{chosen.runtime.sha256}/{','.join(sorted(wanted))}"
    ledger = Ledger(out, model=f"{chosen.name} {chosen.version}")
    try:
        tune_process()
        started_s = time.monotonic()
        with Report(as_json=as_json) as report:
            before = ledger.plan(scans, identity=identity)
            report.planned(ledger.rows, before)
            if before < len(ledger.rows):
                asked = ScanAsked(model=chosen.name, version=chosen.version, formats=wanted)
                asyncio.run(_answer(settings, ledger, report, asked, at_once))
        rows = ledger.rows
        report.result(rows, wall_s=time.monotonic() - started_s, out=out)
        return rows
    finally:
        ledger.close()


def model_of_scans(settings: "Settings", model: str | None, version: int | None) -> "ModelFolder":
    """The model that is meant, by the manifests alone: before any of them is loaded.

    Raises:
        UnknownModel, UnknownVersion, BadManifest: as the names say.
        Hopeless: none is named and there is not one for scans, or the one that is named is none.
    """
    if model is not None:
        folder = layout.find(settings.models, model, version)
        if segments(folder.manifest, "volume3d"):
            return folder
        raise Hopeless(f"{model} takes no scans: its input is {folder.manifest.input.kind}", hint="isocenter models")
    fitting = {each.manifest.name: each for each in layout.scan(settings.models) if segments(each.manifest, "volume3d")}
    if settings.default_model in fitting:
        return fitting[settings.default_model]
    if len(fitting) != 1:
        said = f"several models segment scans: {', '.join(fitting)}" if fitting else "no model segments scans"
        raise Hopeless(f"{said}, in {settings.models}", hint="--model NAME, or --models DIR")
    return next(iter(fitting.values()))


async def _answer(settings: "Settings", ledger: Ledger, report: Report, asked: ScanAsked, at_once: int) -> None:
    async with open_service(settings, clock=_CLOCK) as service:
        await answer_all(ledger, _Here(service, asked), report, at_once=at_once)


class _Here:
    """Answers scans one by one, however long each takes: nobody waits with a stop-watch for a cohort."""

    def __init__(self, service: Composition, asked: ScanAsked) -> None:
        self._service, self._asked = service, asked

    async def __call__(
        self, source: Path | tuple[Path, ...], *, series: int | None, progress: Progress
    ) -> CohortAnswer:
        asked = replace(self._asked, pick=Pick(series=series))
        started_s = _CLOCK.now_s()
        found = await self._service.scans(
            source, asked, request_id=uuid.uuid4().hex, deadline=Deadline.never(), progress=progress
        )
        return kept(found, seconds=_CLOCK.now_s() - started_s)


def kept(found: "ScanAnswer", *, seconds: float) -> CohortAnswer:
    """What a cohort keeps of an answer."""
    findings, geometry = found.findings, found.segmentation.geometry
    exclusive = found.segmentation.mask.ndim == len(geometry.shape)
    voxel_ml = abs(float(np.linalg.det(geometry.lps_from_voxel[:3, :3]))) / 1e3
    labelled_ml = sum(found.voxels[1:]) * voxel_ml if exclusive else None
    return CohortAnswer(
        present=None if findings is None else findings.present,
        probability=None if findings is None else findings.probability,
        volume_ml=labelled_ml if findings is None else findings.volume_ml,
        lesions=None if findings is None else tuple(asdict(each) for each in findings.lesions),
        spacing_mm=geometry.spacing_mm,
        seconds=seconds,
        warnings=tuple(dict.fromkeys(note.code for note in found.warnings)),
        parts={form: data for form, data in found.parts.items() if form in found.formats},
    )
