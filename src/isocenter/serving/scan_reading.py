"""What is given as one scan, and how it is read: as a whole, or as one scan for each channel of the model."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from os import PathLike
from typing import Final, TypeAlias

import numpy as np

from isocenter.core.errors import ChannelsDiffer, InputNotAccepted
from isocenter.imaging.codecs.volume_files import Pick, Scan, read_scan
from isocenter.imaging.codecs.volume_parts import Source
from isocenter.imaging.image import Note
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.volume import Volume
from isocenter.serving.scan_paths import ScanPath, ScanRoots

_SAME_AFFINE: Final = 1e-3


class Files(dict[str, bytes]):
    """The files of one scan by their names, as a series of slices; a plain mapping holds channels."""


GivenScan: TypeAlias = (
    bytes | memoryview | str | PathLike[str] | Sequence[str | PathLike[str]] | Mapping[str, bytes] | ScanPath
)
"""One scan: bytes, a path or several of the program's own, several files, or a path that a caller named."""

ScanOrChannels: TypeAlias = GivenScan | Mapping[str, GivenScan]
"""One scan, or, as a plain mapping, one for each channel of the model by its name."""

OwnScan: TypeAlias = bytes | memoryview | str | PathLike[str] | Sequence[str | PathLike[str]] | Files
"""What a Python program hands in as a scan, or as one channel of it."""

OwnScanOrChannels: TypeAlias = OwnScan | Mapping[str, OwnScan]


@dataclass(frozen=True, slots=True)
class ReadScan:
    """What was read."""

    first: Scan
    """The scan; of several channels, the first in the model's order."""
    volume: Volume
    """All channels."""
    channels: Mapping[str, str]
    """What was named as which; empty for a scan without channels."""


class ScanReader:
    """Reads scans within limits. Blocks: for a decode thread."""

    def __init__(self, roots: ScanRoots, limits: VolumeLimits) -> None:
        self._roots = roots
        self._limits = limits

    def read(self, given: Mapping[str, GivenScan], pick: Pick) -> ReadScan:
        """One scan, or the channels of one, in their order; see `by_channel`. Two that hold the same are noted.

        Raises:
            BadInput: one cannot be read, or the channels do not lie on one grid in one patient.
        """
        scans = {channel: self._one(source, pick) for channel, source in given.items()}
        first = next(iter(scans.values()))
        if list(scans) == [""]:
            return ReadScan(first, first.volume, {})
        for channel, scan in scans.items():
            _refuse_other_grid(channel, scan.volume, next(iter(scans)), first.volume)
        _refuse_other_patient(scans)
        voxels = np.concatenate([scan.volume.voxels for scan in scans.values()])
        notes = [
            replace(note, message=f"{channel}: {note.message}")
            for channel, scan in scans.items()
            for note in scan.volume.notes
        ]
        volume = Volume(voxels, first.volume.geometry, tuple(scans), (*notes, *_alike_notes(scans)))
        return ReadScan(first, volume, {channel: _said(source) for channel, source in given.items()})

    def _one(self, source: GivenScan, pick: Pick) -> Scan:
        held: Source = self._roots.read(source.text) if isinstance(source, ScanPath) else source
        return read_scan(held, limits=self._limits, pick=pick)


def by_channel(source: ScanOrChannels, wanted: Sequence[str], *, model: str) -> dict[str, GivenScan]:
    """What was given, by channel in the model's order; an empty name stands for a scan without channels.

    >>> list(by_channel({"flair": b"2", "t1": b"1"}, ["t1", "flair"], model="tumors"))
    ['t1', 'flair']

    Raises:
        InputNotAccepted: a channel is missing, or there is one that the model does not take.
    """
    if isinstance(source, Files) or not isinstance(source, Mapping):
        if len(wanted) > 1:
            raise InputNotAccepted(
                f"{model} takes the channels {', '.join(wanted)}: one scan for each, by its name; "
                "which one a scan is, is not guessed",
                details={"channels": [*wanted], "found": []},
            )
        return {"": source}
    missing = [name for name in wanted if name not in source]
    unknown = [name[:64] for name in source if name not in wanted]
    if missing or unknown or not wanted:
        raise InputNotAccepted(
            f"{model} takes the channels {', '.join(wanted) or '(one without a name)'}; there are "
            f"{', '.join(name[:64] for name in source) or 'none'}",
            details={"channels": [*wanted], "missing": [*missing], "unknown": [*unknown]},
        )
    return {name: source[name] for name in wanted}


def _refuse_other_grid(channel: str, volume: Volume, first: str, of_first: Volume) -> None:
    """See that a channel is one, and lies where the first one does."""
    if len(volume.voxels) != 1:
        raise InputNotAccepted(
            f"channel {channel} holds {len(volume.voxels)} channels itself; send each by its name",
            details={"channel": channel, "count": len(volume.voxels)},
        )
    shape, wanted = volume.geometry.shape, of_first.geometry.shape
    apart = float(np.abs(volume.geometry.lps_from_voxel - of_first.geometry.lps_from_voxel).max())
    if shape == wanted and apart <= _SAME_AFFINE:
        return
    raise ChannelsDiffer(
        f"channel {channel} lies on a grid of {' x '.join(map(str, shape))}, {first} on one of "
        f"{' x '.join(map(str, wanted))}; their affines differ by {apart:.3g}, the limit is {_SAME_AFFINE:g}",
        details={
            "channel": channel,
            "shape": [*shape],
            "first": first,
            "shape_of_first": [*wanted],
            "affines_differ_by": apart,
            "limit": _SAME_AFFINE,
        },
    )


def _refuse_other_patient(scans: Mapping[str, Scan]) -> None:
    """See that no two channels name different patients, or frames of reference: scanners give many the same grid.

    What a format does not say is not compared.
    """
    for what, of in (("patients", attrgetter("patient_key")), ("frames of reference", attrgetter("place_key"))):
        said = {channel: key for channel, scan in scans.items() if (key := of(scan))}
        first = next(iter(said), "")
        for channel, key in said.items():
            if key != said[first]:
                raise ChannelsDiffer(
                    f"channel {channel} and {first} are of different {what}",
                    details={"channel": channel, "first": first, "differ_in": what},
                )


def _alike_notes(scans: Mapping[str, Scan]) -> tuple[Note, ...]:
    """A note for each two channels with the same voxels, however their files differ.

    Two acquisitions never have them: one scan was given twice, by mistake or in the place of one that is missing.
    """
    return tuple(
        Note("channels_alike", f"channels {one} and {other} hold the same voxels: one scan was given as both")
        for (one, first), (other, second) in itertools.combinations(scans.items(), 2)
        if _same(first.volume, second.volume)
    )


def _same(one: Volume, other: Volume) -> bool:
    """Whether two channels hold the same voxels; plane by plane, so that it ends where the first one differs."""
    return all(itertools.starmap(np.array_equal, zip(one.voxels[0], other.voxels[0], strict=True)))


def _said(source: GivenScan) -> str:
    """How its sender calls it, where he named a path: the answer goes back to him, and nowhere else."""
    return source.text[:256] if isinstance(source, ScanPath) else ""
