"""What a volume will hold in memory, known before it is started; and a bound over all that are in progress."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from isocenter.core.clock import Clock
from isocenter.core.errors import Overloaded, VolumeTooLarge
from isocenter.imaging.geometry import Geometry
from isocenter.imaging.postprocess.activation import threshold_of
from isocenter.imaging.sliding.plan import WindowPlan, plan
from isocenter.imaging.transforms.arrays.ahead import Ahead, ahead
from isocenter.repository.manifest import Manifest

BATCHES_AHEAD: Final = 2
"""Windows on their way, in batches for each instance: the next one shall be there when an instance is done."""
MERGED_BYTES: Final = 2**20
"""Scores that become labels at a time."""
_FLOAT_BYTES: Final = 4
_LEAST_RETRY_S: Final = 1.0
_BLOCKS: Final = 6
"""Copies of merged rows that are held while they become labels."""


def volume_bytes(
    manifest: Manifest, geometry: Geometry, *, channels: int = 1, voxel_bytes: int = 4, probabilities: bool = True
) -> int:
    """Bytes held at the peak, at most, while a volume of that grid is segmented: its own voxels included.

    The largest of three: while it is prepared (the steps), while windows are run (prepared tensor, sums, windows on
    their way, labels or probabilities of the prepared grid), and while it is brought back (both grids). What a session
    holds is not a volume's.

    Args:
        manifest: the model's.
        geometry: the source grid.
        channels: that are sent.
        voxel_bytes: of one voxel as it was decoded.
        probabilities: whether they are wanted.

    Raises:
        InputNotAccepted: a step is of another number of axes.
    """
    taken = len(manifest.input.channels) or channels
    coming = list(ahead(manifest.steps, geometry, taken))
    source = math.prod(geometry.shape) * (channels + (taken if taken != channels else 0)) * voxel_bytes
    preparing = _FLOAT_BYTES * max(each.held_voxels for each in coming)
    prepared = coming[-1]
    running = _running(manifest, prepared, probabilities)
    return source + max(preparing, running, _ending(manifest, geometry, prepared, probabilities))


def windows_of(manifest: Manifest, shape: tuple[int, ...]) -> WindowPlan:
    """The windows over a prepared grid; one, of all of it, for a model without `sliding`."""
    sliding = manifest.sliding
    if sliding is None:
        return plan(shape, shape, overlap=0.0)
    return plan(shape, sliding.roi, overlap=sliding.overlap, rule=sliding.rule)


def _running(manifest: Manifest, prepared: Ahead, probabilities: bool) -> int:
    windows, labels = windows_of(manifest, prepared.geometry.shape), len(manifest.output.labels)
    roi, grid = math.prod(windows.roi), math.prod(windows.shape)
    sums = (labels + 1) * windows.roi[0] * math.prod(windows.padded[1:])
    at_once = min(len(windows), BATCHES_AHEAD * manifest.batching.max_batch_size * manifest.instances.count)
    on_their_way = at_once * roi * (prepared.channels + 2 * labels)  # what a session answers is copied once
    kept = labels * grid if probabilities or not _by_rows(manifest, prepared) else 0
    floats = prepared.voxels + sums + on_their_way + roi + kept
    return floats * _FLOAT_BYTES + _labels_bytes(manifest) * grid + _blocks(labels, windows.shape)


def _ending(manifest: Manifest, source: Geometry, prepared: Ahead, probabilities: bool) -> int:
    labels, here, there = len(manifest.output.labels), math.prod(prepared.geometry.shape), math.prod(source.shape)
    floats = labels * (here + there) if probabilities else 0
    if not _by_rows(manifest, prepared):
        all_of_them = probabilities or manifest.output.back == "scores"
        floats = labels * here + (labels if all_of_them else 2) * there + 2 * max(here, there)
    blocks = _blocks(labels, source.shape) if probabilities or not _by_rows(manifest, prepared) else 0
    return floats * _FLOAT_BYTES + _labels_bytes(manifest) * (here + 2 * there) + blocks


def _by_rows(manifest: Manifest, prepared: Ahead) -> bool:
    return manifest.output.back == "labels" or not prepared.resampled


def _labels_bytes(manifest: Manifest) -> int:
    """Of one voxel: a layer a label where they may overlap, else a number."""
    output = manifest.output
    if threshold_of(output.activation, output.threshold) is not None:
        return len(output.labels)
    return 1 if len(output.labels) <= 256 else 2


def _blocks(labels: int, shape: tuple[int, ...]) -> int:
    row = labels * math.prod(shape[1:]) * _FLOAT_BYTES
    return _BLOCKS * max(row, min(MERGED_BYTES, row * shape[0]))


class VolumeMemory:
    """A bound over all volumes in progress together. Used on the event loop."""

    def __init__(self, limit_bytes: int, *, clock: Clock) -> None:
        self.limit_bytes = limit_bytes
        self.in_use_bytes = 0
        """What those in progress may come to hold."""
        self._clock = clock
        self._since_s: list[float] = []
        self._took_s = 0.0
        """What the last one took."""

    @contextmanager
    def held(self, size_bytes: int, *, on_full: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Room for one volume; `on_full` is called before it is refused for want of room.

        Raises:
            VolumeTooLarge: it is over the limit by itself.
            Overloaded: there is no room now; there will be when the oldest is done, going by what the last one took.
        """
        if size_bytes > self.limit_bytes:
            raise VolumeTooLarge(
                f"the volume would hold {_mib(size_bytes)} MiB at its peak, all volumes together may hold "
                f"{_mib(self.limit_bytes)} MiB",
                details={"bytes": size_bytes, "limit": self.limit_bytes},
            )
        wanted, since_s = self.in_use_bytes + size_bytes, self._clock.now_s()
        if wanted > self.limit_bytes:
            on_full()
            raise Overloaded(
                f"volumes in progress hold up to {_mib(self.in_use_bytes)} MiB; with {_mib(size_bytes)} MiB more, the "
                f"limit of {_mib(self.limit_bytes)} MiB is exceeded",
                details={"bytes": wanted, "limit": self.limit_bytes, "where": "volumes"},
                retry_after_s=max(_LEAST_RETRY_S, min(self._since_s) + self._took_s - since_s),
            )
        self.in_use_bytes = wanted
        self._since_s.append(since_s)
        try:
            yield
        finally:
            self.in_use_bytes -= size_bytes
            self._since_s.remove(since_s)
            self._took_s = self._clock.now_s() - since_s


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // 2**20)
