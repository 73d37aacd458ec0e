"""A model of cells that costs nothing, and TIFFs of any size that are never in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from isocenter.core.clock import SystemClock
from isocenter.core.request import EngineTimings, Request, Result
from isocenter.repository.golden import pipeline_of
from isocenter.repository.load import ServedModel
from isocenter.repository.repository import Repository
from isocenter.serving.segment_large import SegmentLarge
from segmenters import write_segmenter

Pixels = npt.NDArray[Any]
LABELS = ["background", "inside", "border"]
RULE: dict[str, Any] = {"inside": ["inside", "border"], "split": "seeds", "seeds": "inside", "min_area_px": 12}
STEPS = [{"kind": "scale", "low": {"percentile": 1}, "high": {"percentile": 99.8}, "clip": True}]
BLACK, SPAN = 180, 3200
"""What a camera of 12 bits says of nothing, and of a bright nucleus above it."""


class Instant:
    """An engine that answers each window by what lies in each pixel, at once."""

    model, version, instances = "cells", 1, 1

    def __init__(self) -> None:
        self.service_s: dict[int, float] = {}
        self.windows = 0

    def check(self, deadline: object, *, priority: int = 0, ready_in_s: float = 0.0) -> None: ...

    def note_late(self) -> None: ...

    async def infer(self, request: Request) -> Result:
        """Bright is inside, half bright is border."""
        self.windows += 1
        light = request.item["x"][0]
        inside, border = np.clip(2 * light - 1, 0, 1), 1 - np.abs(2 * light - 1)
        scores = np.stack([np.clip(1 - 2 * light, 0, 1), inside, border])
        return Result({"scores": scores.astype(np.float32)}, EngineTimings(0.0, 0.0, 1))


def served_cells(models: Path, *, roi: int, overlap: float = 0.25, **changes: Any) -> tuple[ServedModel, Instant]:
    """The model behind an instant engine."""
    given: dict[str, Any] = {
        "input": {"kind": "image2d", "tensor": "x", "channels": ["nuclei"]},
        "steps": STEPS,
        "sliding": {"roi": [roi, roi], "overlap": overlap, "mode": "gaussian"},
        "output": {"tensor": "scores", "activation": "none", "labels": LABELS, "objects": RULE},
    }
    folder = write_segmenter(models, "cells", **(given | changes))
    engine = Instant()
    return ServedModel(folder, "", pipeline_of(folder.manifest), cast(Any, engine), {}), engine


def large(served: ServedModel) -> SegmentLarge:
    """The use case over that model alone."""
    repository = Repository()
    repository.add(served)
    return SegmentLarge(repository, clock=SystemClock())


def nuclei(height: int, width: int, *, seed: int = 0, each_px: int = 900) -> Pixels:
    """Discs that touch and overlap, as a camera of 12 bits in 16 sees them: uint16."""
    rng = np.random.default_rng(seed)
    light = np.zeros((height, width), np.float32)
    for _ in range(height * width // each_px):
        x, y, radius = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(5, 15))
        cv2.circle(light, (x, y), radius, 0.4, -1)
        cv2.circle(light, (x, y), radius - 3, float(rng.uniform(0.8, 1)), -1)
    blurred = np.asarray(cv2.GaussianBlur(light, (0, 0), 1.2))
    return (BLACK + SPAN * blurred + rng.normal(0, 8, light.shape)).clip(0, 4095).astype(np.uint16)


def write_tiled(file: Path, height: int, width: int, piece: Callable[[int, int], Pixels], side: int = 512) -> None:
    """A BigTIFF in deflated tiles; `piece` gives the pixels of the tile that begins at a row and a column."""

    def tiles() -> Iterator[Pixels]:
        for row in range(0, height, side):
            for column in range(0, width, side):
                yield piece(row, column)

    tifffile.imwrite(
        file, tiles(), shape=(height, width), dtype="uint16", tile=(side, side), bigtiff=True, compression="zlib",
        compressionargs={"level": 1}, photometric="minisblack",
    )  # fmt: skip
