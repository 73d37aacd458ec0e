"""A runtime that is the synthetic one in fp32, and off by a given error in bf16."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.tensor import Tensors
from isocenter.repository.accuracy import CalibrationPart, Difference, ReferencePart, weights_digest
from isocenter.repository.layout import ModelFolder
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.registry import RUNTIMES, RuntimeEntry
from isocenter.runtimes.synthetic import SyntheticRuntime
from model_folders import runtime_part


class RoundingSession:
    """Scores of which the first is too large by `error`."""

    def __init__(self, session: Session, error: float) -> None:
        self._session = session
        self._error = error
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.proof = "bf16: as told"

    def run(self, batch: Tensors) -> Tensors:
        """Answer, a little off."""
        (output,) = self.outputs
        scores = self._session.run(batch)[output.name].copy()
        scores[:, 0] += np.float32(self._error)
        return {output.name: scores}

    def close(self) -> None:
        """Close what is inside."""
        self._session.close()


class RoundingRuntime:
    """`runtime.kind: rounding`; the option `error` says how far it is off in bf16."""

    name = "rounding"

    def open(self, file: Path, options: SessionOptions) -> Session:
        """Make a session."""
        others = {name: value for name, value in options.options.items() if name != "error"}
        made = SyntheticRuntime().open(file, SessionOptions(options=others))
        return RoundingSession(made, float(options.options.get("error", 0.0))) if options.precision == "bf16" else made


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it known for a test."""
    entry = RuntimeEntry("rounding", __name__, "RoundingRuntime", "", "", "")
    monkeypatch.setitem(RUNTIMES, "rounding", entry)


def rounding_part(precision: str = "bf16", error: float = 0.0, **options: Any) -> dict[str, Any]:
    """`runtime` of a manifest, or `fallback`."""
    return {**runtime_part(error=error, **options), "kind": "rounding", "precision": precision}


def difference_for(folder: ModelFolder, **changes: object) -> Difference:
    """A measurement that fits a version and lies within every gate, but for the changes."""
    runtime = folder.manifest.runtime
    fits: dict[str, object] = {
        "weights_sha256": weights_digest(runtime, folder.manifest.ensemble),
        "runtime": runtime.kind,
        "precision": runtime.precision,
        "device": "cpu",
        "reference": ReferencePart(runtime="onnxruntime", precision="fp32", sha256="0" * 64),
        "items": 32,
        "max_abs_dp": 0.001,
        "top1_agreement": 1.0,
        "dice": None,
        "machine": "a processor",
        "calibration": CalibrationPart(items=1, images_sha256="1" * 64),
    }
    return Difference.model_validate(fits | changes)
