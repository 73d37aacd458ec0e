"""Two versions answer the same items: how far apart are they? Largest difference, most probable class, Dice."""

import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from isocenter.core.errors import BadInput, BadManifest, NumericFailure
from isocenter.core.tensor import Array, Tensors
from isocenter.engine.batch import check_item
from isocenter.imaging.codecs.raster import decode
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.postprocess.activation import masks_of, threshold_of
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository import integrity
from isocenter.repository.accuracy import (
    CalibrationPart,
    Difference,
    DoubleArray,
    ReferencePart,
    comparable,
    digest_of_digests,
    kind_of,
    weights_digest,
)
from isocenter.repository.golden import UNREADABLE, by_name, pipeline_of
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Manifest
from isocenter.repository.sessions import open_one
from isocenter.runtimes.base import Session

_SIGMOID_THRESHOLD: Final = 0.5
_TENSORS: Final = (".npy", ".npz")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a comparison came to; see `Difference` for their meaning."""

    items: int
    max_abs_dp: float
    top1_agreement: float | None
    dice: float | None


class Comparison:
    """Takes pairs of answers, one item at a time, and keeps counts only.

    Differences are those of probabilities: of the outputs after the declared activation. With activation `none` the
    outputs themselves are compared, divided by the largest absolute value of the reference's where that is above 1.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._items = 0
        self._worst = 0.0
        self._places = self._alike = 0
        self._in_both: npt.NDArray[np.int64] | None = None
        self._in_each: npt.NDArray[np.int64] | None = None

    def add(self, found: Tensors, reference: Tensors) -> None:
        """Take the raw outputs of one item, without a batch axis.

        Raises:
            NumericFailure: NaN or infinity among them.
            BadManifest: they have other shapes, or other names.
        """
        self._items += 1
        output = self._manifest.output
        for name in [output.tensor] if output.tensor else sorted(reference):
            one, other = _pair(name, found, reference)
            one, other = comparable(one, other, output.activation, axis=0)
            self._worst = max(self._worst, float(np.abs(one - other).max(initial=0.0)))
            if self._manifest.task == "classification":
                self._add_class(one, other)
            elif self._manifest.task == "segmentation":
                self._add_masks(one, other)

    def figures(self) -> Figures:
        """Of all items so far."""
        return Figures(
            items=self._items,
            max_abs_dp=self._worst,
            top1_agreement=self._alike / self._places if self._places else None,
            dice=self._dice(),
        )

    def _add_class(self, one: DoubleArray, other: DoubleArray) -> None:
        self._places += 1
        if one.size == 1:  # a single class is the most probable one in any case
            self._alike += int((one.item() >= _SIGMOID_THRESHOLD) == (other.item() >= _SIGMOID_THRESHOLD))
        else:
            self._alike += int(one.argmax() == other.argmax())

    def _add_masks(self, one: DoubleArray, other: DoubleArray) -> None:
        masks, expected = (_masks(self._manifest, each) for each in (one, other))
        alike = (masks == expected).all(axis=0)
        self._places += alike.size
        self._alike += int(alike.sum())
        in_both = (masks & expected).reshape(len(masks), -1).sum(axis=1)
        in_each = masks.reshape(len(masks), -1).sum(axis=1) + expected.reshape(len(masks), -1).sum(axis=1)
        self._in_both = in_both if self._in_both is None else self._in_both + in_both
        self._in_each = in_each if self._in_each is None else self._in_each + in_each

    def _dice(self) -> float | None:
        """The smallest of those labels that were found at all; None if none was: nothing was compared then."""
        if self._in_both is None or self._in_each is None or not self._in_each.any():
            return None
        there = self._in_each > 0
        return float((2 * self._in_both[there] / self._in_each[there]).min())


@dataclass(frozen=True, slots=True)
class Answering:
    """A version that answers files: its session, and its own preprocessing."""

    folder: ModelFolder
    session: Session

    def item(self, file: Path) -> Tensors:
        """A file as the model takes it: a picture through the transforms; or .npy, .npz, which are tensors already.

        Raises:
            BadInput: it is not one.
        """
        if file.suffix in _TENSORS:
            item = by_name(_tensors(file), self.session.inputs)
        elif isinstance(pipeline := pipeline_of(self.folder.manifest), FastPipeline):
            item = by_name(pipeline(decode(file.read_bytes(), limits=ImageLimits())).tensor, self.session.inputs)
        else:
            raise BadInput(f"a model for {self.folder.manifest.task} is compared on .npy files of what it takes")
        check_item(item, self.session.inputs)
        return item

    def outputs(self, item: Tensors) -> Tensors:
        """The raw outputs of one item run alone, without a batch axis."""
        given = self.session.run({name: array[None] for name, array in item.items()})
        return {name: array[0].copy() for name, array in given.items()}


def measure(
    version: Answering,
    reference: Answering,
    files: Iterable[Path],
    *,
    tell: Callable[[Figures], None] = lambda _: None,
) -> Figures:
    """Let both answer every file, one by one; `tell` hears the figures after each.

    Raises:
        BadManifest: they do not mean the same by their outputs.
        BadInput: a file is none that they take; the message names it.
        NumericFailure, RuntimeFault: one of them failed.
    """
    one, other = version.folder.manifest, reference.folder.manifest
    for what, mine, its in (
        ("task", one.task, other.task),
        ("labels", one.output.labels, other.output.labels),
        ("activation", one.output.activation, other.output.activation),
    ):
        if mine != its:
            raise BadManifest(f"{one.name} {one.version} has {what} {mine}, its reference {its}")
    comparison = Comparison(one)
    for file in files:
        try:
            expected = reference.outputs(reference.item(file))
            comparison.add(version.outputs(version.item(file)), expected)
        except BadInput as error:
            raise type(error)(f"{file.name}: {error.message}", details=error.details) from error
        tell(comparison.figures())
    return comparison.figures()


def compare(
    version: ModelFolder,
    reference: ModelFolder,
    files: Mapping[str, Path],
    *,
    calibration: CalibrationPart | None = None,
    tell: Callable[[Figures], None] = lambda _: None,
) -> Difference:
    """Open both, let them answer every file, and say what `difference.json` is to say.

    Args:
        version: of the precision in question.
        reference: in fp32.
        files: by their digest, see `distinct`.
        calibration: what the version was calibrated with.
        tell: hears the figures after each file.

    Raises:
        SetupError: one is not what it claims to be, or they do not mean the same by their outputs.
        BadInput: a file is none that they take; the message names it.
        NumericFailure, RuntimeFault: one of them failed.
    """
    for each in (version, reference):
        integrity.check_digest(each)
    with closing(open_one(reference)) as its, closing(open_one(version)) as own:
        figures = measure(Answering(version, own), Answering(reference, its), files.values(), tell=tell)
    return as_difference(figures, version, reference, list(files), calibration=calibration)


def as_difference(
    figures: Figures,
    version: ModelFolder,
    reference: ModelFolder,
    digests: list[str],
    *,
    calibration: CalibrationPart | None = None,
) -> Difference:
    """What `difference.json` says of a comparison; `digests` are those of the files that were compared on."""
    manifest = version.manifest
    return Difference(
        weights_sha256=weights_digest(manifest.runtime, manifest.ensemble),
        runtime=manifest.runtime_kind,
        precision=manifest.runtime.precision,
        device=kind_of(manifest.instances.device),
        reference=ReferencePart(
            runtime=reference.manifest.runtime_kind,
            precision="fp32",
            sha256=weights_digest(reference.manifest.runtime, reference.manifest.ensemble),
        ),
        items=figures.items,
        max_abs_dp=figures.max_abs_dp,
        top1_agreement=figures.top1_agreement,
        dice=figures.dice,
        machine=cpu_name(),
        images_sha256=digest_of_digests(sorted(digests)),
        calibration=calibration,
    )


def distinct(files: Iterable[Path]) -> dict[str, Path]:
    """Files by their digest, in rising order of it: the same content counts once, and no name decides the order."""
    return dict(sorted({integrity.sha256_of(file): file for file in files}.items()))


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor, in its own words."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _masks(manifest: Manifest, values: DoubleArray) -> npt.NDArray[np.bool_]:
    """Which voxels have which label, [labels, *spatial]; without the background where labels exclude each other."""
    output = manifest.output
    threshold = threshold_of(output.activation, output.threshold)
    if threshold is not None:
        return values >= threshold
    best = masks_of(values, None, foreground=output.foreground_threshold)
    return np.stack([best == label for label in range(1, len(values))])


def _pair(name: str, found: Tensors, reference: Tensors) -> tuple[Array, Array]:
    if name not in found or name not in reference:
        raise BadManifest(f"one gives {sorted(found)}, its reference {sorted(reference)}")
    one, other = found[name], reference[name]
    if one.shape != other.shape:
        raise BadManifest(f"output {name} has shape {list(one.shape)}, the reference's {list(other.shape)}")
    for who, array in (("the version", one), ("its reference", other)):
        if not np.isfinite(array).all():
            raise NumericFailure(f"{who} gives NaN or infinity in {name}; that cannot be compared")
    return one, other


def _tensors(file: Path) -> Array | Tensors:
    try:
        with file.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            return {key: found[key] for key in found.files} if file.suffix == ".npz" else np.asarray(found)
    except UNREADABLE as error:
        raise BadInput(f"not an array: {error}") from error
