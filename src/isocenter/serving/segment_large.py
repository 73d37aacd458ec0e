"""Segment a TIFF that does not fit into memory: windows streamed through the engine, labels streamed to a file.

What the steps measure is measured over the whole image first; then rows come, are run in windows, merged, parted into
objects, and written, and nothing is kept that later rows do not need.
"""

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from isocenter.core.clock import Clock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import DeadlineExceeded, InputNotAccepted
from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.codecs.microscopy import as_channels, pixel_size_um
from isocenter.imaging.codecs.tiff_labels import LabelFile, Scratch
from isocenter.imaging.codecs.tiff_samples import Stretch
from isocenter.imaging.image import Note
from isocenter.imaging.large import TiledImage, refuse_constant_bands
from isocenter.imaging.postprocess.activation import probabilities_of
from isocenter.imaging.postprocess.seams import Joined, Seams
from isocenter.imaging.sliding.merge import Sink
from isocenter.imaging.sliding.plan import WindowPlan, plan
from isocenter.imaging.transforms.arrays.streamed import StreamedSteps, measured
from isocenter.measure.memory import free_memory
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository
from isocenter.serving.cells import CellsAsked, rule_of
from isocenter.serving.predict import fallback_note, refuse_other_task
from isocenter.serving.segment import WindowRun
from isocenter.serving.segmenters import segments

Progress = Callable[[int, int], object]
"""Told how many windows are done, of how many; on the event loop."""
MARGIN_PX = 128
"""What a tile of objects sees beyond its edges: objects up to this size are those of the whole image."""
TILE_PX: tuple[int, int] | None = None
"""Rows and columns that a tile of objects answers for; None: as many as memory allows."""
_KEPT_BANDS: Final = 2
_FIRST_ROWS: Final = 16
_ROWS_PER_CLEARING: Final = 512


@dataclass(frozen=True, eq=False, kw_only=True)
class LargeAnswer:
    """The answer for one large image."""

    labels: Path
    """A BigTIFF of uint32 on the source grid: objects numbered by their first pixels, row by row; 0 is none."""
    objects: npt.NDArray[np.void]
    """One record an object, by label: see `imaging.postprocess.seams.RECORD`."""
    image_size_px: tuple[int, int]
    """Width and height."""
    pixel_size_um: tuple[float, float] | None
    """Height and width."""
    model: str
    version: int
    threshold: float
    """Probability from which a pixel belongs to an object."""
    windows: int
    batch_size: int
    """Items in the largest batch that a window was run in."""
    warnings: tuple[Note, ...]
    stages_s: dict[str, float]
    fallback: str = ""
    """As in `Segmentation`."""

    @property
    def count(self) -> int:
        """How many objects there are."""
        return len(self.objects)

    @property
    def areas_px(self) -> npt.NDArray[np.int64]:
        """Their areas, by label."""
        return np.asarray(self.objects["area_px"])


class SegmentLarge:
    """The use case. Every refusal that an image can earn comes before any model time."""

    def __init__(self, repository: Repository, *, clock: Clock) -> None:
        self._repository = repository
        self._clock = clock

    async def __call__(
        self,
        image: Path,
        asked: CellsAsked,
        *,
        out: Path,
        request_id: str,
        deadline: Deadline | None = None,
        priority: int = 0,
        progress: Progress | None = None,
    ) -> LargeAnswer:
        """Answer one TIFF on disk, with labels in the file `out`. Without a deadline, it takes as long as it takes.

        Raises:
            BadInput: the image, or what is asked of it, cannot be answered; or the model does not work by windows.
            Refused: not now.
            DeadlineExceeded: too late.
            ModelFault: the model failed.
            OSError: the labels cannot be written.
        """
        asked.check()
        served = self._served(asked)
        deadline = deadline or Deadline.never()
        served.engine.check(deadline, priority=priority)
        started_s = self._clock.now_s()
        picture = await asyncio.to_thread(TiledImage.open, image, asked=asked.pixels)
        with picture:
            parts = await asyncio.to_thread(_Parts, picture, served)
            measured_s = self._clock.now_s()
            if deadline.expired(measured_s):
                raise DeadlineExceeded("the deadline passed while the image was measured", details={"where": "measure"})
            rule = rule_of(served.manifest.output, asked)
            run = WindowRun(served, parts.windows, parts.cut, deadline, priority, request_id, "", self._clock)
            with tempfile.TemporaryFile(dir=out.parent) as nameless:
                scratch = Scratch(nameless, picture.width_px)
                seams = Seams(
                    (picture.height_px, picture.width_px),
                    served.manifest.output.labels,
                    rule,
                    scratch.append,
                    margin_px=MARGIN_PX,
                    tile_px=TILE_PX,
                )
                await run.into(parts.sink(seams, served), progress)
                merged_s = self._clock.now_s()
                joined = await asyncio.to_thread(_written, out, scratch, seams, picture, parts.pixel_size_um)
        return LargeAnswer(
            labels=out,
            objects=joined.objects,
            image_size_px=(picture.width_px, picture.height_px),
            pixel_size_um=parts.pixel_size_um,
            model=served.name,
            version=served.version,
            threshold=rule.threshold,
            windows=len(parts.windows),
            batch_size=run.batch_size,
            warnings=(*parts.notes, *fallback_note(run.fallback)),
            stages_s={
                "measure": measured_s - started_s,
                "windows": merged_s - measured_s,
                "labels": self._clock.now_s() - merged_s,
            },
            fallback=run.fallback,
        )

    def _served(self, asked: CellsAsked) -> ServedModel:
        served = self._repository.resolve(asked.model, asked.version)
        refuse_other_task(served, "segmentation")
        if not segments(served.manifest, "image2d") or served.manifest.sliding is None:
            raise InputNotAccepted(
                f"{served.name} {served.version} does not work by windows: it takes no image that is too large for"
                " memory",
                details={"kind": served.manifest.input.kind, "sliding": served.manifest.sliding is not None},
            )
        return served


class _Parts:
    """The picture as the model takes it, wherever it is looked at; a few rows of windows are kept."""

    def __init__(self, picture: TiledImage, served: ServedModel) -> None:
        """Go over the whole picture once, and once or twice more for each step that measures it.

        Raises:
            BadInput: it is broken, or holds nothing; or a step cannot be done part by part.
        """
        manifest = served.manifest
        self._picture, self._names = picture, manifest.input.channels
        first = as_channels(picture.read(Stretch(0, min(picture.height_px, _FIRST_ROWS))), self._names)
        _refuse_constant(picture)
        shape = picture.height_px, picture.width_px
        names = first.channels or tuple(map(str, range(len(first.voxels))))
        self._steps: StreamedSteps = measured(manifest.steps, self._bands, shape, names)
        self.notes = (*first.notes, *self._steps.notes)
        self.pixel_size_um = pixel_size_um(first)
        sliding = manifest.sliding
        assert sliding is not None
        pad = self._steps.pad
        self.windows: WindowPlan = plan(pad.shape, sliding.roi, overlap=sliding.overlap, rule=sliding.rule)
        self._rows, self._columns = pad.rows(0), pad.rows(1)
        self._kept: dict[tuple[int, int], FloatArray] = {}
        self._lock = threading.Lock()

    def cut(self, at: tuple[int, ...]) -> FloatArray:
        """The window [C, *roi] at a position of the plan, from any thread."""
        (start, roi), (left, wide) = zip(at, self.windows.roi, strict=True)
        start, left = start - self.windows.before[0], left - self.windows.before[1]
        height, width = self.windows.shape
        rows = max(0, start), min(height, start + roi)
        columns = slice(max(0, left), min(width, left + wide))
        with self._lock:
            if rows not in self._kept:
                self._kept[rows] = self._prepared(*rows)
                while len(self._kept) > _KEPT_BANDS:
                    self._kept.pop(next(iter(self._kept)))
            band = self._kept[rows]
        inside = band[:, :, columns]
        if inside.shape[1:] == (roi, wide):
            return np.ascontiguousarray(inside)
        out = np.zeros((len(band), roi, wide), np.float32)
        out[:, rows[0] - start : rows[1] - start, columns.start - left : columns.stop - left] = inside
        return out

    def sink(self, seams: Seams, served: ServedModel) -> Sink:
        """Takes scores of the padded grid, hands on probabilities of the picture's own."""
        activation = served.manifest.output.activation
        pad = self._steps.pad
        (above, left), (height, width) = pad.before, pad.source
        since = 0

        def take(row: int, scores: FloatArray) -> None:
            nonlocal since
            first, last = max(row, above), min(row + scores.shape[1], above + height)
            if first < last:
                inside = scores[:, first - row : last - row, left : left + width]
                seams(first - above, probabilities_of(inside, activation))
                since += last - first
            if since >= _ROWS_PER_CLEARING:
                # What many threads have freed in pieces stays theirs, and would be half of what is held.
                since = 0
                free_memory()

        return take

    def _bands(self) -> Iterator[Array]:
        return (as_channels(band, self._names).voxels for band in self._picture.bands())

    def _prepared(self, start: int, stop: int) -> FloatArray:
        """Rows of the padded picture, as the model takes them."""
        rows = self._rows[start:stop]
        there, across = np.flatnonzero(rows >= 0), np.flatnonzero(self._columns >= 0)
        low, high = (int(rows[there].min()), int(rows[there].max()) + 1) if len(there) else (0, 1)
        part = self._steps(as_channels(self._picture.read(Stretch(low, high)), self._names).voxels)
        if self._steps.pad.shape == self._steps.pad.source:
            return part
        out: FloatArray = np.full((len(part), len(rows), len(self._columns)), self._steps.pad.value, np.float32)
        out[:, there[:, np.newaxis], across] = part[:, rows[there] - low][:, :, self._columns[across]]
        return out


def _refuse_constant(picture: TiledImage) -> None:
    extremes = [(band.voxels.min(axis=(1, 2)), band.voxels.max(axis=(1, 2))) for band in picture.bands()]
    low, high = (np.array([each[which] for each in extremes]) for which in (0, 1))
    refuse_constant_bands(low.min(axis=0), high.max(axis=0), picture.channels)


def _written(
    out: Path, scratch: Scratch, seams: Seams, picture: TiledImage, pixel_um: tuple[float, float] | None
) -> Joined:
    """Join what was found, and write the labels; the file is there when it is whole."""
    joined = seams.finish()
    part = out.with_name(f".{uuid4().hex}.part")  # nobody else's: two may write to one folder
    try:
        with LabelFile(part, picture.width_px, picture.height_px, pixel_size_um=pixel_um) as file:
            for rows in scratch.again(lambda numbers: joined.number[numbers]):
                file.append(rows)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return joined
