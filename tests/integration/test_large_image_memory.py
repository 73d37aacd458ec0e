"""20,000 x 20,000 pixels in less memory than their labels would fill: in a process of its own, whose peak is read."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.clock import SystemClock
from isocenter.core.deadline import Deadline
from isocenter.imaging.codecs.tiff_samples import Stretch
from isocenter.imaging.large import TiledImage
from isocenter.imaging.postprocess.objects import objects_of
from isocenter.imaging.volume import Volume
from isocenter.measure.memory import ProcessMemory
from isocenter.repository.repository import Repository
from isocenter.serving.cells import CellsAsked, rule_of
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.segment import Segment
from large_images import LABELS, Pixels, large, nuclei, served_cells, write_tiled

SIDE_PX, PIECE_PX, REPEAT_PX = 20_000, 512, 4096
LIMIT_BYTES = 1_500_000_000
ROWS, COLUMNS = Stretch(600, 2200), Stretch(800, 2400)
"""A crop over several corners of tiles, of windows and of objects."""


def segment_in_this_process(folder: Path) -> None:
    """Answer `field.tif`, and print what it took."""
    served, _ = served_cells(folder / "models", roi=512)
    told: list[int] = []
    answer = asyncio.run(
        large(served)(
            folder / "field.tif", CellsAsked(), out=folder / "labels.tif", request_id="r1",
            progress=lambda done, total: told.append(done),
        )
    )  # fmt: skip
    found = {
        "count": answer.count, "windows": answer.windows, "told": len(told), "stages_s": answer.stages_s,
        "peak_bytes": ProcessMemory().peak_bytes(), "notes": [note.message for note in answer.warnings],
    }  # fmt: skip
    sys.stdout.write(json.dumps(found))


def segmented(folder: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, check=False, timeout=3000, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def labels_of_crop(models: Path, pixels: Pixels, low: float, high: float) -> Pixels:
    """A crop as a whole image, with the intensities of the image that it comes from."""
    steps = [{"kind": "scale", "low": low, "high": high, "clip": True}]
    served, _ = served_cells(models, roi=512, steps=steps)
    repository = Repository()
    repository.add(served)
    async with CpuPool(threads=1, max_waiting=4, clock=SystemClock()) as pool:
        segment = Segment(repository, pool, clock=SystemClock(), observer=Nobody())
        volume = Volume.of(pixels[np.newaxis], channels=["nuclei"])
        found = await segment(volume, request_id="crop", deadline=Deadline.never(), probabilities=True)
    assert found.probabilities is not None
    return objects_of(found.probabilities, rule_of(served.manifest.output, CellsAsked()), LABELS).labels


class Nobody:
    def observe(self, event: object) -> None: ...


def whole_ones(labels: Pixels) -> Pixels:
    """Without objects at the edge, which a crop cuts."""
    edges = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return np.where(np.isin(labels, edges), 0, labels)


def same_objects(one: Pixels, other: Pixels) -> bool:
    """Whether two label images hold the same objects, whatever their numbers."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()], axis=1), axis=0)
    return all(len(np.unique(pairs[:, side])) == len(pairs) for side in (0, 1))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.may_block
@pytest.mark.timeout(3600)
async def test_400_million_pixels_stay_below_the_limit_and_are_those_of_the_whole_image(tmp_path: Path) -> None:
    field = nuclei(REPEAT_PX, REPEAT_PX, seed=1)

    def piece(row: int, column: int) -> Pixels:
        row, column = row % REPEAT_PX, column % REPEAT_PX
        return field[row : row + PIECE_PX, column : column + PIECE_PX]

    await asyncio.to_thread(write_tiled, tmp_path / "field.tif", SIDE_PX, SIDE_PX, piece, PIECE_PX)
    found = await asyncio.to_thread(segmented, tmp_path)

    assert found["peak_bytes"] < LIMIT_BYTES
    assert found["told"] == found["windows"]
    with TiledImage.open(tmp_path / "labels.tif") as labels:
        assert labels.shape == (1, SIDE_PX, SIDE_PX)
        written = labels.read(ROWS, COLUMNS).voxels[0].astype(np.int64)
    window = re.search(r"nuclei: ([\d.]+) to ([\d.]+) became", "; ".join(found["notes"]))
    assert window is not None
    crop = field[ROWS.start : ROWS.stop, COLUMNS.start : COLUMNS.stop]
    low, high = (float(each) for each in window.groups())
    alone = await labels_of_crop(tmp_path / "crop", crop, low, high)

    both = (whole_ones(written) > 0) | (whole_ones(alone) > 0)
    assert both.sum() > 500_000
    assert same_objects(np.where(both, written, 0), np.where(both, alone, 0))


if __name__ == "__main__":
    segment_in_this_process(Path(sys.argv[1]))
