"""Is a model what it claims to be? Digest, golden cases, and answers that do not depend on batch-mates."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from isocenter.core.errors import BadManifest, BatchVariance, DigestMismatch, GoldenMismatch
from isocenter.core.precision import REFERENCE
from isocenter.core.tensor import Array, Tensors, TensorSpec
from isocenter.repository.accuracy import comparable
from isocenter.repository.golden import GoldenCase as GoldenCase
from isocenter.repository.golden import golden_cases as golden_cases
from isocenter.repository.golden import golden_items as golden_items
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import GoldenPart, Manifest, RuntimePart
from isocenter.runtimes.base import Session
from isocenter.runtimes.beside import read_with

_ROUNDING: Final = 1e-3
"""How far probabilities may be from what they add up to."""


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

    The files beside them are held against their digests as well.

    Raises:
        BadManifest: a file is missing.
        DigestMismatch: it is another file.
    """
    runtime = folder.manifest.runtime
    if runtime.file is None or runtime.sha256 is None:
        return ""
    for part in runtime.beside:
        check_file(folder, part.file, part.sha256)
    return check_file(folder, runtime.file, runtime.sha256)


def check_file(folder: ModelFolder, file: str, named: str) -> str:
    """The digest of one file, which is the one that the manifest names for it.

    Raises:
        BadManifest: the file is missing.
        DigestMismatch: it is another file.
    """
    if not (folder.path / file).is_file():
        raise BadManifest(f"{folder.manifest.name} {folder.manifest.version}: no file {file}")
    found = sha256_of(folder.path / file)
    if found != named:
        raise DigestMismatch(
            f"{folder.manifest.name} {folder.manifest.version}: {file} has sha256 "
            f"{found[:12]}…, the manifest names {named[:12]}…",
            details={"found": found, "named": named},
        )
    return found


def check_beside(folder: ModelFolder, part: RuntimePart) -> None:
    """See, before it is opened, that no other file is read with it than those that have a digest.

    Raises:
        BadManifest: one would be, or it is no file of its runtime.
    """
    if part.file is None:
        return
    weights = folder.path / part.file
    named = {folder.path / each.file for each in part.beside}
    for location in read_with(part.kind, weights):
        if weights.parent / location not in named:
            raise BadManifest(
                f"{part.file} reads {location!r}, which has no digest under runtime.beside", details={"file": location}
            )


def check_tensors(manifest: Manifest, session: Session) -> tuple[TensorSpec, TensorSpec]:
    """The input and output tensors that the manifest names; the first ones where it names none.

    Raises:
        BadManifest: the model has others, or others than its task needs.
    """
    inputs = {spec.name: spec for spec in session.inputs}
    outputs = {spec.name: spec for spec in session.outputs}
    tensors = manifest.task == "tensors"
    if manifest.input.tensor not in inputs if manifest.input.tensor else not tensors:
        raise _other_tensors(manifest, f"input.tensor is {manifest.input.tensor!r}, the model takes {sorted(inputs)}")
    if len(inputs) != 1 and not tensors:
        raise _other_tensors(manifest, f"input.tensor is {manifest.input.tensor!r}, the model takes {sorted(inputs)}")
    if manifest.output.tensor not in outputs if manifest.output.tensor else not tensors:
        raise _other_tensors(
            manifest, f"output.tensor is {manifest.output.tensor!r}, the model gives {sorted(outputs)}"
        )
    taken = inputs[manifest.input.tensor] if manifest.input.tensor else session.inputs[0]
    given = outputs[manifest.output.tensor] if manifest.output.tensor else session.outputs[0]
    if manifest.task == "classification":
        _check_classifier(manifest, taken, given)
    elif manifest.task == "segmentation":
        _check_segmenter(manifest, taken, given)
    return taken, given


def _check_classifier(manifest: Manifest, taken: TensorSpec, given: TensorSpec) -> None:
    if taken.dtype != np.float32 or len(taken.shape) != 3:
        raise _other_tensors(manifest, f"an image model takes float32 [C, H, W], not {taken.dtype} {taken.shape}")
    if given.shape not in {(len(manifest.output.labels),), (-1,)}:
        raise _other_tensors(
            manifest, f"{len(manifest.output.labels)} labels, but the model gives shape {list(given.shape)}"
        )


def _check_segmenter(manifest: Manifest, taken: TensorSpec, given: TensorSpec) -> None:
    rank = 2 if manifest.input.kind == "image2d" else 3
    if taken.dtype != np.float32 or len(taken.shape) != 1 + rank:
        axes = "C, H, W" if rank == 2 else "C, D, H, W"
        raise _other_tensors(
            manifest, f"a model of {manifest.input.kind} takes float32 [{axes}], not {taken.dtype} {list(taken.shape)}"
        )
    labels, channels = len(manifest.output.labels), len(manifest.input.channels)
    if len(given.shape) != 1 + rank or given.shape[0] not in (-1, labels):
        raise _other_tensors(manifest, f"{labels} labels, but the model gives shape {list(given.shape)}")
    selects = any(step.kind == "select_channels" for step in manifest.steps)
    if channels and not selects and taken.shape[0] not in (-1, channels):
        raise _other_tensors(manifest, f"input.channels names {channels}, the model takes {taken.shape[0]}")
    if manifest.input.kind == "volume3d" and taken.shape[0] > 1 and not channels:
        raise _other_tensors(manifest, f"the model takes {taken.shape[0]} channels, and input.channels names none")
    roi = manifest.sliding.roi if manifest.sliding else taken.shape[1:]
    if any(have not in (-1, want) for have, want in zip(taken.shape[1:], roi, strict=True)):
        raise _other_tensors(manifest, f"sliding.roi is {list(roi)}, the model takes {list(taken.shape[1:])}")
    if any(
        -1 not in (have, want) and have != want for have, want in zip(given.shape[1:], taken.shape[1:], strict=True)
    ):
        raise _other_tensors(
            manifest, f"the model takes {list(taken.shape[1:])} voxels and gives {list(given.shape[1:])}"
        )


def _other_tensors(manifest: Manifest, said: str) -> BadManifest:
    return BadManifest(f"{manifest.name}: {said}")


def check_golden(manifest: Manifest, session: Session, cases: list[GoldenCase], items: list[Tensors]) -> Deviation:
    """Run every golden case alone.

    Raises:
        GoldenMismatch: an output of a case is outside the tolerance; each for itself, as the few values in a million
            that may miss it could be all of a small output beside a large one.
        BadManifest: a case does not say what an output is to be, or one that the model does not give; or the
            activation cannot be the one that the outputs want.
    """
    deviations: list[Deviation] = []
    rule = manifest.golden
    shares = manifest.output.activation != "none" and len(manifest.output.labels) > 1
    for case, item in zip(cases, items, strict=True):
        outputs = _run(session, [item])
        expected = _expected(manifest, session, case)
        _check_labels(manifest, item, outputs)
        _check_probabilities(manifest, case, outputs)
        shares = shares and _are_shares(outputs[manifest.output.tensor])
        if unproven := sorted(_answered(manifest, session) - set(expected)):
            raise BadManifest(f"golden case {case.name} says nothing of output {unproven[0]!r}, which is answered")
        for name, reference in expected.items():
            if name not in outputs:
                raise BadManifest(f"golden case {case.name} has an output {name!r}, the model gives {sorted(outputs)}")
            found, rule = compared(outputs[name], reference[np.newaxis], manifest)
            deviations.append(found)
    found = _all_of(deviations)
    if not all(each.within(rule) for each in deviations):
        raise GoldenMismatch(
            f"{manifest.name} {manifest.version}: {found.misses} of {found.values} golden values are off, "
            f"the worst by {found.worst:.3g} (allowed {tolerance_in_words(manifest)})",
            details={"misses": found.misses, "values": found.values, "worst": found.worst},
        )
    if shares:
        raise BadManifest(
            f"{manifest.name}: output.activation is {manifest.output.activation}, and the outputs of every golden case "
            "are probabilities already: none is below 0, and those of the labels add up to 1"
        )
    return found


def check_batch_invariance(manifest: Manifest, session: Session, items: list[Tensors]) -> Deviation:
    """Run each item alone, and again inside a mixed batch of the largest size: the answer must be the same.

    Raises:
        BatchVariance: it depends on the batch-mates.
    """
    size = manifest.batching.max_batch_size
    rng = np.random.default_rng(0)
    shapes = {name: array.shape for name, array in items[0].items()}
    alike = [item for item in items if {name: array.shape for name, array in item.items()} == shapes]
    noise = [{name: _noise(array, rng) for name, array in items[0].items()} for _ in range(min(3, size))]
    mixed = [([*alike, *noise] * size)[index] for index in range(max(size, 1))]
    together = _run(session, mixed)
    alone: dict[int, Tensors] = {}
    for item in mixed:
        if id(item) not in alone:
            alone[id(item)] = _run(session, [item])
    rule, deviations = manifest.golden, []
    for name in sorted(_answered(manifest, session)):
        reference = np.concatenate([alone[id(item)][name] for item in mixed])
        found, rule = compared(together[name], reference, manifest)
        deviations.append(found)
    found = _all_of(deviations)
    if not all(each.within(rule) for each in deviations):
        raise BatchVariance(
            f"{manifest.name} {manifest.version}: in a batch of {size} the answer changes by up to {found.worst:.3g}; "
            "the export has lost its batch axis or runs in training mode",
            details={"batch_size": size, "worst": found.worst},
        )
    return found


def _answered(manifest: Manifest, session: Session) -> set[str]:
    """The outputs that somebody is given."""
    return {manifest.output.tensor} if manifest.output.tensor else {spec.name for spec in session.outputs}


def _expected(manifest: Manifest, session: Session, case: GoldenCase) -> Tensors:
    if isinstance(case.expected, Mapping):
        return case.expected
    return {manifest.output.tensor or session.outputs[0].name: case.expected}


def _check_labels(manifest: Manifest, item: Tensors, outputs: Tensors) -> None:
    """What the specification may leave open: as many values, or channels on the input's grid, as labels."""
    if manifest.task == "tensors":
        return
    found = outputs[manifest.output.tensor].shape[1:]
    grid = item[manifest.input.tensor].shape[1:] if manifest.task == "segmentation" else ()
    if found != (len(manifest.output.labels), *grid):
        where = f" of {list(grid)} voxels" if grid else ""
        raise BadManifest(
            f"{manifest.name}: {len(manifest.output.labels)} labels{where}, but an answer has shape {list(found)}"
        )


def _check_probabilities(manifest: Manifest, case: GoldenCase, outputs: Tensors) -> None:
    """Without an activation a classifier's outputs are answered as probabilities, which no score is."""
    if manifest.task != "classification" or manifest.output.activation != "none":
        return
    found = outputs[manifest.output.tensor]
    odd = found[~((found >= -_ROUNDING) & (found <= 1 + _ROUNDING))]
    if odd.size:
        raise BadManifest(
            f"{manifest.name}: output.activation is none, and golden case {case.name} gives {odd.flat[0]:.4g}, "
            "which is no probability"
        )


def _are_shares(outputs: Array) -> bool:
    """Whether the values of the labels, along axis 1, are shares of 1 everywhere: scores never are by chance."""
    values = outputs.astype(np.float64)
    return bool((values >= 0).all() and (np.abs(values.sum(axis=1) - 1) <= _ROUNDING).all())


def _noise(like: Array, rng: np.random.Generator) -> Array:
    if like.dtype.kind == "f":
        return rng.standard_normal(like.shape, dtype=np.float32).astype(like.dtype)
    return rng.permutation(like.reshape(-1)).reshape(like.shape)  # values that the model knows, in other places


def _all_of(deviations: list[Deviation]) -> Deviation:
    return Deviation(
        sum(each.values for each in deviations),
        max(each.worst for each in deviations),
        sum(each.misses for each in deviations),
    )


def compared(found: Array, reference: Array, manifest: Manifest) -> tuple[Deviation, GoldenPart]:
    """Compare raw outputs, items along axis 0, and the rule that is to hold.

    In fp32 the outputs themselves agree, as `golden` says. In any other precision they agree after the activation, as
    closely as the gate asks of that precision: golden outputs are those of fp32.
    """
    if manifest.runtime.precision == REFERENCE:
        return deviation(found, reference, manifest.golden), manifest.golden
    rule = GoldenPart(absolute=manifest.gate.max_abs_dp, relative=0.0, misses_per_million=0)
    if found.shape != reference.shape:
        return deviation(found, reference, rule), rule
    return deviation(*comparable(found, reference, manifest.output.activation, axis=1), rule), rule


def tolerance_in_words(manifest: Manifest) -> str:
    """What `compared` holds values against."""
    if manifest.runtime.precision == REFERENCE:
        return f"{manifest.golden.absolute:g} + {manifest.golden.relative:g}|ref|"
    return f"{manifest.gate.max_abs_dp:g} after the activation, in {manifest.runtime.precision}"


def deviation(found: Array, reference: Array, rule: GoldenPart) -> Deviation:
    """Compare two arrays of one shape under a tolerance; NaN or infinity anywhere is a miss."""
    if found.shape != reference.shape:
        raise GoldenMismatch(f"output has shape {list(found.shape)}, the reference {list(reference.shape)}")
    difference: npt.NDArray[np.float64] = np.abs(found.astype(np.float64) - reference.astype(np.float64))
    allowed = rule.absolute + rule.relative * np.abs(reference.astype(np.float64))
    finite = np.isfinite(difference)  # an infinite reference would allow anything
    worst = float(difference.max(initial=0.0)) if finite.all() else float("inf")
    return Deviation(difference.size, worst, int(np.count_nonzero(~(finite & (difference <= allowed)))))


def _run(session: Session, items: list[Tensors]) -> Tensors:
    batch = {name: np.stack([item[name] for item in items]) for name in items[0]}
    # A copy: a session may use its output memory again in the next run.
    return {name: array.copy() for name, array in session.run(batch).items()}
