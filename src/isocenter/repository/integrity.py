"""Is a model what it claims to be? Digest, golden cases, and answers that do not depend on batch-mates."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from isocenter.core.errors import BadManifest, BatchVariance, DigestMismatch, GoldenMismatch
from isocenter.core.tensor import Array, FloatArray, TensorSpec
from isocenter.imaging.codecs.raster import decode
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import GoldenPart, Manifest
from isocenter.runtimes.base import Session


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """An input as a caller would send it, and the raw output (before activation) that belongs to it."""

    name: str
    image: bytes
    expected: FloatArray


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far outputs were from their reference."""

    values: int
    worst: float
    """Largest absolute difference."""
    misses: int
    """Values outside absolute + relative * |reference|."""

    def within(self, rule: GoldenPart) -> bool:
        """Whether the rule holds."""
        return self.misses * 1_000_000 <= rule.misses_per_million * self.values


def sha256_of(file: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_digest(folder: ModelFolder) -> str:
    """The digest of the weights, which is the one that the manifest names; "" where they are another server's.

    Raises:
        BadManifest: the file is missing.
        DigestMismatch: it is another file.
    """
    named = folder.manifest.runtime.sha256
    if named is None:
        return ""
    if not folder.weights.is_file():
        raise BadManifest(f"{folder.manifest.name} {folder.manifest.version}: no file {folder.manifest.runtime.file}")
    found = sha256_of(folder.weights)
    if found != named:
        raise DigestMismatch(
            f"{folder.manifest.name} {folder.manifest.version}: {folder.manifest.runtime.file} has sha256 "
            f"{found[:12]}…, the manifest names {named[:12]}…",
            details={"found": found, "named": named},
        )
    return found


def check_tensors(manifest: Manifest, session: Session) -> tuple[TensorSpec, TensorSpec]:
    """The input and output tensors that the manifest names.

    Raises:
        BadManifest: the model has others.
    """
    inputs = {spec.name: spec for spec in session.inputs}
    outputs = {spec.name: spec for spec in session.outputs}
    if set(inputs) != {manifest.input.tensor}:
        raise BadManifest(
            f"{manifest.name}: input.tensor is {manifest.input.tensor!r}, the model takes {sorted(inputs)}"
        )
    if manifest.output.tensor not in outputs:
        raise BadManifest(
            f"{manifest.name}: output.tensor is {manifest.output.tensor!r}, the model gives {sorted(outputs)}"
        )
    taken, given = inputs[manifest.input.tensor], outputs[manifest.output.tensor]
    if taken.dtype != np.float32 or len(taken.shape) != 3:
        raise BadManifest(f"{manifest.name}: an image model takes float32 [C, H, W], not {taken.dtype} {taken.shape}")
    if given.shape not in {(len(manifest.output.labels),), (-1,)}:
        raise BadManifest(
            f"{manifest.name}: {len(manifest.output.labels)} labels, but the model gives shape {list(given.shape)}"
        )
    return taken, given


def golden_cases(folder: ModelFolder) -> list[GoldenCase]:
    """The pairs `golden/<case>.png` and `golden/<case>.json` (`{"logits": [...]}`).

    Raises:
        BadManifest: there is none, or one is incomplete.
    """
    cases = []
    for image in sorted(folder.golden.glob("*.png")):
        try:
            expected = json.loads(image.with_suffix(".json").read_text(encoding="utf-8"))["logits"]
            cases.append(GoldenCase(image.stem, image.read_bytes(), np.asarray(expected, dtype=np.float32)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadManifest(f"golden case {image.stem} of {folder.manifest.name} is not complete: {error}") from error
    if not cases:
        raise BadManifest(
            f"{folder.manifest.name} has no golden case: expected {folder.golden.name}/<case>.png and .json"
        )
    return cases


def golden_items(cases: list[GoldenCase], pipeline: FastPipeline) -> list[FloatArray]:
    """The golden inputs as the model takes them, through the same decoding and preprocessing as a request's."""
    return [pipeline(decode(case.image, limits=ImageLimits())).tensor for case in cases]


def check_golden(manifest: Manifest, session: Session, cases: list[GoldenCase], items: list[FloatArray]) -> Deviation:
    """Run every golden case alone.

    Raises:
        GoldenMismatch: an output is outside the tolerance.
    """
    outputs = [_run(manifest, session, [item])[0] for item in items]
    if outputs[0].shape != (len(manifest.output.labels),):
        raise BadManifest(
            f"{manifest.name}: {len(manifest.output.labels)} labels, but an answer has shape {list(outputs[0].shape)}"
        )
    found = deviation(np.stack(outputs), np.stack([case.expected for case in cases]), manifest.golden)
    if not found.within(manifest.golden):
        raise GoldenMismatch(
            f"{manifest.name} {manifest.version}: {found.misses} of {found.values} golden values are off, "
            f"the worst by {found.worst:.3g} (allowed {manifest.golden.absolute:g} + "
            f"{manifest.golden.relative:g}|ref|)",
            details={"misses": found.misses, "values": found.values, "worst": found.worst},
        )
    return found


def check_batch_invariance(manifest: Manifest, session: Session, items: list[FloatArray]) -> Deviation:
    """Run each item alone, and again inside a mixed batch of the largest size: the answer must be the same.

    Raises:
        BatchVariance: it depends on the batch-mates.
    """
    size = manifest.batching.max_batch_size
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(items[0].shape, dtype=np.float32) for _ in range(min(3, size))]
    mixed = [([*items, *noise] * size)[index] for index in range(max(size, 1))]
    together = _run(manifest, session, mixed)
    alone: dict[int, Array] = {}
    for item in mixed:
        if id(item) not in alone:
            alone[id(item)] = _run(manifest, session, [item])[0]
    found = deviation(together, np.stack([alone[id(item)] for item in mixed]), manifest.golden)
    if not found.within(manifest.golden):
        raise BatchVariance(
            f"{manifest.name} {manifest.version}: in a batch of {size} the answer changes by up to {found.worst:.3g}; "
            "the export has lost its batch axis or runs in training mode",
            details={"batch_size": size, "worst": found.worst},
        )
    return found


def deviation(found: Array, reference: Array, rule: GoldenPart) -> Deviation:
    """Compare two arrays of one shape under a tolerance; NaN anywhere is a miss."""
    if found.shape != reference.shape:
        raise GoldenMismatch(f"output has shape {list(found.shape)}, the reference {list(reference.shape)}")
    difference: npt.NDArray[np.float64] = np.abs(found.astype(np.float64) - reference.astype(np.float64))
    allowed = rule.absolute + rule.relative * np.abs(reference.astype(np.float64))
    worst = float(difference.max(initial=0.0)) if np.isfinite(difference).all() else float("inf")
    return Deviation(difference.size, worst, int(np.count_nonzero(~(difference <= allowed))))


def _run(manifest: Manifest, session: Session, items: list[FloatArray]) -> Array:
    # A copy: a session may use its output memory again in the next run.
    return session.run({manifest.input.tensor: np.stack(items)})[manifest.output.tensor].copy()
