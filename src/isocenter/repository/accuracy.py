"""How far a version's precision may be from fp32: `difference.json` holds what was measured, the gate what is allowed.

The file belongs to one set of weights in one runtime, one precision and one kind of device. Whatever changes one of
these makes the measurement void.
"""

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, ValidationError

from isocenter.core.errors import BadManifest, GateMissed, Unmeasured
from isocenter.core.precision import REFERENCE, Precision
from isocenter.core.tensor import Array
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Digest, EnsemblePart, FallbackPart, Manifest, Part, RuntimePart

DIFFERENCE: Final = "difference.json"
FALLBACK_DIFFERENCE: Final = "difference.fallback.json"

_NEEDED: Final = {"classification": ("top1_agreement",), "segmentation": ("top1_agreement", "dice"), "tensors": ()}

DoubleArray: TypeAlias = npt.NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]


class _Measured(Part):
    """NaN and infinity are no measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ReferencePart(_Measured):
    """What was compared with."""

    runtime: str
    precision: Literal["fp32"]
    sha256: Digest | None
    """Of its weights; null where they are another server's."""


class CalibrationPart(_Measured):
    """What an int8 model was calibrated with; none of it is among the items that were compared."""

    items: Annotated[int, Field(ge=1)]
    images_sha256: Digest


class Difference(_Measured):
    """A measured difference from the reference, as it stands in `difference.json`."""

    weights_sha256: Digest | None
    """Of all weights, see `weights_digest`; null where they are another server's."""
    runtime: str
    precision: Precision
    device: str
    """Its kind: cpu, cuda."""
    reference: ReferencePart
    items: Annotated[int, Field(ge=1)]
    max_abs_dp: Annotated[float, Field(ge=0)]
    """Largest absolute difference after the declared activation, see `isocenter.repository.comparison`."""
    top1_agreement: Share | None
    """Share of items with the same most probable class, of voxels with the same labels; null for plain tensors."""
    dice: Share | None
    """Smallest of a label's, each over all items together; null for what is no segmentation."""
    machine: str
    """The processor that computed it."""
    images_sha256: Digest | None = None
    """Over the digests of the files, in rising order."""
    calibration: CalibrationPart | None = None


@dataclass(frozen=True, slots=True)
class Miss:
    """A figure outside of the gate."""

    name: str
    found: float
    limit: float
    at_least: bool

    def __str__(self) -> str:
        return f"{self.name} is {self.found:.4g}, at {'least' if self.at_least else 'most'} {self.limit:g} is allowed"


def check_difference(folder: ModelFolder) -> Difference | None:
    """Hold the measured difference of a version against its gate; None for the reference precision itself.

    Raises:
        Unmeasured: there is none that belongs to these weights, or it is of too few items.
        GateMissed: it is larger than the gate allows.
    """
    manifest = folder.manifest
    return _check(folder, manifest.runtime, manifest.instances.device, manifest.ensemble, folder.path / DIFFERENCE)


def check_fallback_difference(folder: ModelFolder) -> Difference | None:
    """The same for its fallback, which has a file of its own; None too if there is no fallback.

    Raises:
        Unmeasured, GateMissed: see `check_difference`.
    """
    fallback = folder.manifest.fallback
    if fallback is None:
        return None
    return _check(folder, fallback, fallback.device, None, folder.path / FALLBACK_DIFFERENCE)


def _check(
    folder: ModelFolder, runtime: RuntimePart, device: str, ensemble: EnsemblePart | None, file: Path
) -> Difference | None:
    if runtime.precision == REFERENCE:
        return None
    manifest = folder.manifest
    who = f"{manifest.name} {manifest.version}{' fallback' if isinstance(runtime, FallbackPart) else ''}"
    found = read_difference(file, who=f"{who} in {runtime.precision}")
    _belongs(found, who, file.name, runtime, kind_of(device), ensemble)
    if found.items < manifest.gate.min_items:
        raise Unmeasured(
            f"{who}: {file.name} is of {found.items} items, the gate asks for {manifest.gate.min_items}",
            details={"items": found.items, "min_items": manifest.gate.min_items},
        )
    if missed := misses(found, manifest):
        raise GateMissed(
            f"{who}: {runtime.precision} differs too much from {REFERENCE}: {'; '.join(map(str, missed))}",
            details={each.name: {"found": each.found, "limit": each.limit} for each in missed},
        )
    return found


def read_difference(file: Path, *, who: str) -> Difference:
    """Read a measurement.

    Raises:
        Unmeasured: it is not there, or not one.
    """
    if not file.is_file():
        raise Unmeasured(f"{who}: no {file.name} beside model.yaml, so nobody knows how far it is from {REFERENCE}")
    try:
        return Difference.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        where = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        said = f"{'.'.join(map(str, where['loc']))}: {where['msg']}" if where else str(error)
        raise Unmeasured(f"{who}: {file.name} is not a measurement: {said}") from error


def write_difference(file: Path, found: Difference) -> None:
    """Write it whole or not at all."""
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as stream:
            stream.write(difference_json(found))
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def difference_json(found: Difference) -> bytes:
    """What stands in the file."""
    return found.model_dump_json(indent=2).encode() + b"\n"


def misses(found: Difference, manifest: Manifest) -> list[Miss]:
    """What lies outside the gate.

    Raises:
        Unmeasured: a figure is not there that the task needs.
    """
    gate = manifest.gate
    for name in _NEEDED[manifest.task]:
        if getattr(found, name) is None:
            raise Unmeasured(f"{manifest.name} {manifest.version}: {name} was not measured; {manifest.task} needs it")
    outside = []
    if not found.max_abs_dp <= gate.max_abs_dp:
        outside.append(Miss("max_abs_dp", found.max_abs_dp, gate.max_abs_dp, at_least=False))
    for name in ("top1_agreement", "dice"):
        value, least = getattr(found, name), getattr(gate, name)
        if value is not None and not value >= least:
            outside.append(Miss(name, value, least, at_least=True))
    return outside


def _belongs(
    found: Difference, who: str, name: str, runtime: RuntimePart, device: str, ensemble: EnsemblePart | None
) -> None:
    weights = weights_digest(runtime, ensemble)
    for what, measured, served in (
        ("weights", found.weights_sha256, weights),
        ("runtime", found.runtime, runtime.kind),
        ("precision", found.precision, runtime.precision),
        ("device", found.device, device),
    ):
        if measured != served:
            raise Unmeasured(
                f"{who}: {name} is of {what} {_short(measured)}, the version has {_short(served)}",
                details={"measured": measured, "served": served},
            )
    # An int8 file is int8 whatever it is called: beside itself, it would show no difference.
    if runtime.precision == "int8" and weights is not None and found.reference.sha256 == weights:
        raise Unmeasured(f"{who}: the reference of {name} is the int8 file itself")


def _short(value: str | None) -> str:
    return "of another server" if value is None else f"{value[:12]}…" if len(value) == 64 else value


def weights_digest(runtime: RuntimePart, ensemble: EnsemblePart | None = None) -> str | None:
    """One digest for all files of weights: that of the file, or of the lines of digests where there are several.

    None where the weights are another server's: that they stay what they were is on trust.
    """
    if runtime.sha256 is None:
        return None
    others = [part.sha256 for part in (*runtime.beside, *(ensemble.members if ensemble else ()))]
    return digest_of_digests([runtime.sha256, *others]) if others else runtime.sha256


def digest_of_digests(digests: list[str]) -> str:
    """One digest for several, in their order.

    >>> digest_of_digests(["ab"]) == hashlib.sha256(b"ab").hexdigest()
    True
    """
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def kind_of(device: str) -> str:
    """What counts of a device: `cuda:1` computes as `cuda:0` does."""
    return device.partition(":")[0]


def in_words(found: Difference) -> str:
    """What was measured, in one line."""
    said = [f"max |dp| {found.max_abs_dp:.2g}"]
    if found.top1_agreement is not None:
        said.append(f"same class {found.top1_agreement:.2%}")
    if found.dice is not None:
        said.append(f"Dice {found.dice:.4f}")
    return f"{found.precision} against {found.reference.precision} on {found.items} items: {', '.join(said)}"


def reference_of(folder: ModelFolder) -> ModelFolder:
    """The same version with the same files, computed in fp32.

    Raises:
        BadManifest: its weights are rounded in the file, so fp32 is not to be had from it.
    """
    manifest = folder.manifest
    if manifest.runtime.precision == "int8":
        raise BadManifest(f"{manifest.name} {manifest.version} is int8 in its file; name the version it was made from")
    runtime = manifest.runtime.model_copy(update={"precision": REFERENCE})
    return ModelFolder(folder.path, manifest.model_copy(update={"runtime": runtime, "fallback": None}))


def comparable(found: Array, reference: Array, activation: str, *, axis: int) -> tuple[DoubleArray, DoubleArray]:
    """Two raw outputs as their difference is taken: after the activation.

    With `none` they are taken as they are, divided by the largest absolute value of the reference, where it is above 1,
    item by item.

    Args:
        found: one item, or a batch of them.
        reference: of the same shape.
        activation: the declared one.
        axis: of the classes.
    """
    one, other = activated(found, activation, axis=axis), activated(reference, activation, axis=axis)
    if activation != "none":
        return one, other
    largest = np.maximum(1.0, np.abs(other).max(axis=tuple(range(axis, other.ndim)), keepdims=True, initial=0.0))
    return one / largest, other / largest


def activated(outputs: Array, activation: str, *, axis: int) -> DoubleArray:
    """Outputs after an activation, in float64; `none` leaves them as they are.

    >>> activated(np.array([1000.0, 1000.0]), "softmax", axis=0)
    array([0.5, 0.5])
    >>> activated(np.array([0.0]), "sigmoid", axis=0)
    array([0.5])
    """
    values = outputs.astype(np.float64)
    if activation == "sigmoid":
        half: DoubleArray = 0.5 * (1.0 + np.tanh(0.5 * values))
        return half
    if activation == "softmax":
        with np.errstate(invalid="ignore"):  # infinity gives NaN, which no bound holds
            exponents = np.exp(values - values.max(axis=axis, keepdims=True))
        shares: DoubleArray = exponents / exponents.sum(axis=axis, keepdims=True)
        return shares
    return values
