"""What the brain-tumour model learns from: drawn heads, and real ones with lesions planted into them, at 2 mm.

Everything passes the steps of the package's own manifest, so that the network sees what a server will show it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from isocenter.core.tensor import Array, FloatArray
from isocenter.imaging.codecs.volume_files import read_volume
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.phantom_planting import plant
from isocenter.imaging.phantoms_3d import CONTRASTS, head_scan
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline
from isocenter.imaging.transforms.arrays.steps import ArrayStep, Orient, Resample, Standardize
from isocenter.imaging.volume import Volume

VOXEL_MM = 2.0
STEPS: tuple[ArrayStep, ...] = (
    Orient(kind="orient", axcodes="RAS"),
    Resample(kind="resample", spacing_mm=(VOXEL_MM,) * 3, antialias=True),
    Standardize(kind="standardize", nonzero=True),
)
"""As the manifest has them; `brain_tumor_report` sees that it does."""
LABELS = ("background", "tumor")
REAL_HEADS = ("nifti/chris_t1.nii.gz", "nifti/MR_Gd.nii.gz")
"""Healthy heads of other people's collections, below the folder that is named; nothing of them is shipped."""
NO_HEAD = "mr_t1_head/dicom"
"""Is called a head, and is a fruit: not learned from, and asked about to see what happens."""

_ZERO, _PER_UNIT = 60, 20.0  # a quantised value is 60 + 20 z: from -3 to 9.75 standard deviations
_CENTRES = 300
_MISTAKEN, _MISTAKEN_VOXELS = 200, 4  # places that are kept, and how much of a lesion counts as one


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One prepared head."""

    values: np.ndarray
    """uint8 [i, j, k], quantised."""
    lesions: np.ndarray
    """uint8 [i, j, k]: the number of the lesion, or 0."""
    weights: np.ndarray
    """float32 by lesion number: a small lesion counts as one too, and has few voxels to say so."""
    centres: np.ndarray
    """int [N, 3]: places in the head."""
    in_lesions: np.ndarray
    """int [N, 3]: places in lesions; none in a healthy head."""


def sample_of(values: FloatArray, lesions: Array) -> Sample:
    """Keep the standardized values [i, j, k] and lesion numbers of one head."""
    quantised = np.clip(np.rint(values * _PER_UNIT + _ZERO), 0, 255).astype(np.uint8)
    numbers = lesions.astype(np.uint8)
    volumes_ml = np.bincount(numbers.ravel(), minlength=256) * VOXEL_MM**3 / 1e3
    weights = np.clip(np.sqrt(4.0 / np.maximum(volumes_ml, 1e-3)), 1.0, 3.0).astype(np.float32)
    weights[0] = 1.0
    rng = np.random.default_rng(int(quantised[::7, ::7, ::7].sum()))
    return Sample(
        quantised,
        numbers,
        weights,
        _some(rng, np.argwhere(quantised[::4, ::4, ::4] > _ZERO) * 4),
        np.concatenate([_some(rng, np.argwhere(numbers == each)) for each in range(1, int(numbers.max()) + 1)])
        if numbers.any()
        else np.zeros((0, 3), np.int64),
    )


def _some(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    return places if len(places) <= _CENTRES else places[rng.choice(len(places), _CENTRES, replace=False)]


def prepared(volume: Volume, truth: Array) -> tuple[FloatArray, Array]:
    """A scan and its lesion numbers [i, j, k] as the model takes them."""
    values = ArrayPipeline(STEPS)(volume).tensor[0]
    grid = tuple(step for step in STEPS if not isinstance(step, Standardize))
    numbers = replace(volume, voxels=truth[np.newaxis])
    nearest = tuple(step.model_copy(update={"filter": "nearest", "antialias": False}) if isinstance(step, Resample)
                    else step for step in grid)  # fmt: skip
    found = ArrayPipeline(nearest)(numbers).tensor[0]
    share = ArrayPipeline(grid)(replace(volume, voxels=(truth > 0)[np.newaxis].astype(np.uint8))).tensor[0]
    return values, np.where(share > 0.5, np.maximum(found, 1.0) if truth.any() else found, 0.0)


def drawn(seed: int, *, share_t2: float = 1 / 3) -> Sample:
    """A phantom, drawn on a scanner's grid and resampled as a scan is.

    On the model's own grid it would be drawn sooner, and small lesions would look otherwise: a network that had learned
    from such found two of three of them there, and one of three in scans. T2 comes as often as the others: fluid is as
    bright in it as many a lesion, which takes learning.
    """
    contrast = CONTRASTS[int(np.random.default_rng((seed, 70)).integers(len(CONTRASTS)))]
    phantom = head_scan(seed, contrast=contrast)
    return sample_of(*prepared(phantom.volume, phantom.truth))


def read_heads(directory: Path) -> list[Volume]:
    """The real heads of a directory; those that are there."""
    files = [directory / name for name in REAL_HEADS]
    return [read_volume(file, limits=VolumeLimits()) for file in files if file.exists()]


def real(head: Volume, seed: int) -> Sample:
    """A real head, on voxels of 1.8 to 2.25 mm as if they were 2 mm, other in contrast; half of them with lesions."""
    rng = np.random.default_rng((seed, 50))
    sides = [float(each) for each in rng.uniform(0.9, 1.125, 3) * VOXEL_MM]
    scale = Resample(kind="resample", spacing_mm=(sides[0], sides[1], sides[2]), antialias=True)
    small = ArrayPipeline((STEPS[0], scale))(head)
    top = float(np.percentile(small.tensor, 99.8))
    gamma = math.exp(rng.uniform(-0.4, 0.4))
    bent = np.clip(small.tensor / top, 0.0, 1.5) ** np.float32(gamma)
    volume = Volume(bent, small.geometry)
    if rng.random() < 0.5:
        return sample_of(_standard(volume), np.zeros(volume.geometry.shape))
    planted = plant(volume, seed, contrast=("t1", "t1c", "t2")[int(rng.choice(3, p=(0.3, 0.6, 0.1)))])
    return sample_of(_standard(planted.volume), planted.truth)


def _standard(volume: Volume) -> FloatArray:
    return np.asarray(ArrayPipeline((STEPS[2],))(volume).tensor[0], np.float32)


def samples(
    heads: Sequence[Volume], first_seed: int, *, share_real: float = 0.25, share_t2: float = 1 / 3
) -> Iterator[Sample]:
    """One after the other, without end: drawn heads, and real ones if there are any."""
    seed = first_seed
    while True:
        rng = np.random.default_rng((seed, 60))
        if heads and rng.random() < share_real:
            yield real(heads[int(rng.integers(len(heads)))], seed)
        else:
            yield drawn(seed, share_t2=share_t2)
        seed += 1


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """Where the last crops came from."""

    sample: Sample
    first: tuple[int, ...]
    """The crop's first voxel, in the sample."""
    mirrored: bool


class Cropper:
    """Draws crops from the samples that it holds: values float32 [1, S, S, S], classes int64, weights float32.

    Of the crops that are not drawn near a lesion, half are drawn where a lesion was last seen and there is none.
    """

    def __init__(self, seed: int, *, most: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._held: list[Sample] = []
        self._most, self._next = most, 0
        self._last: list[_Cut] = []
        self._mistaken: list[tuple[Sample, np.ndarray]] = []

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, sample: Sample) -> None:
        """Take one in; the oldest one goes where there are too many."""
        if len(self._held) < self._most:
            self._held.append(sample)
        else:
            self._held[self._next % self._most] = sample
        self._next += 1

    def batch(self, count: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`count` crops, stacked."""
        self._last = []
        crops = [self._crop(side) for _ in range(count)]
        values, classes, weights = zip(*crops, strict=True)
        return np.stack(values), np.stack(classes), np.stack(weights)

    def note(self, found: FloatArray) -> None:
        """Take in the probabilities [B, S, S, S] of the last batch: where a lesion is seen in a crop without any."""
        for cut, seen in zip(self._last, found, strict=True):
            side = seen.shape[0]
            inside = tuple(slice(max(0, first), first + side) for first in cut.first)
            if cut.sample.lesions[inside].any() or np.count_nonzero(seen > 0.5) < _MISTAKEN_VOXELS:
                continue
            at = np.array(np.unravel_index(int(seen.argmax()), seen.shape))
            if cut.mirrored:
                at[0] = side - 1 - at[0]
            self._mistaken.append((cut.sample, at + cut.first))
        del self._mistaken[:-_MISTAKEN]

    def _crop(self, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = self._rng
        ill = [each for each in self._held if len(each.in_lesions)]
        near = bool(ill) and rng.random() < 0.65
        if not near and self._mistaken and rng.random() < 0.5:
            # Taken out of the list: it comes back if it is mistaken again.
            sample, place = self._mistaken.pop(int(rng.integers(len(self._mistaken))))
        else:
            among = ill if near else self._held
            sample = among[int(rng.integers(len(among)))]
            places = sample.in_lesions if near else sample.centres
            place = places[int(rng.integers(len(places)))]
        centre = place + rng.integers(-side // 3, side // 3 + 1, 3)
        values = np.full((side,) * 3, 0.0, np.float32)
        numbers = np.zeros((side,) * 3, np.uint8)
        here, there, firsts = [], [], []
        for middle, size in zip(centre, sample.values.shape, strict=True):
            first = int(np.clip(middle - side // 2, min(0, size - side), max(0, size - side)))
            start, stop = max(0, first), min(size, first + side)
            firsts.append(first)
            here.append(slice(start, stop))
            there.append(slice(start - first, stop - first))
        values[tuple(there)] = (sample.values[tuple(here)].astype(np.float32) - _ZERO) / np.float32(_PER_UNIT)
        numbers[tuple(there)] = sample.lesions[tuple(here)]
        mirrored = bool(rng.random() < 0.5)
        self._last.append(_Cut(sample, tuple(firsts), mirrored))
        if mirrored:
            values, numbers = values[::-1], numbers[::-1]
        values = values * np.float32(math.exp(rng.uniform(-0.22, 0.22))) + np.float32(rng.uniform(-0.2, 0.2))
        if rng.random() < 0.4:
            noise = rng.standard_normal(values.shape, dtype=np.float32)
            values = values + np.float32(rng.uniform(0.0, 0.12)) * noise
        weights = sample.weights[numbers]
        return values[np.newaxis].astype(np.float32), (numbers > 0).astype(np.int64), weights
