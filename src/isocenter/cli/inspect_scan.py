"""`isocenter inspect` of a scan: what is in a folder, file or zip, what would be refused, and why.

Names no patient, unless it is asked to: then on the screen, and nowhere else.
"""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from isocenter.cli.inspect_picture import Shown
    from isocenter.core.errors import BadInput
    from isocenter.imaging.codecs.slice_track import SliceTrack
    from isocenter.imaging.codecs.volume_files import Refusal, SeriesFacts, VolumeFacts
    from isocenter.imaging.limits import VolumeLimits

_ASKED: Final = 20
"""Files of a folder that are looked into before it is taken for none of scans."""
_DRAWN: Final = 4
"""Volumes of one series that are drawn: of many time points the first say enough."""
_NAMES: Final = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")

Tracks = dict[tuple[int, int | None], "SliceTrack"]
Identifiers = dict[int, dict[str, str]]


def is_scan(source: Path) -> bool:
    """Whether a file is a scan, or a zip of one, by its first bytes or its name; or one of a folder's first files."""
    from isocenter.cli.cohort_find import zip_of_scans
    from isocenter.imaging.codecs.volume_files import begins_as_scan

    def begins(file: Path) -> bool:
        return file.name.lower().endswith(_NAMES) or begins_as_scan(file) or zip_of_scans(file)

    if source.is_file():
        return begins(source)
    if not source.is_dir() or (source / "model.yaml").is_file():
        return False
    return any(begins(each) for each in islice((each for each in source.rglob("*") if each.is_file()), _ASKED))


def show(source: Path, *, as_json: bool, picture: Path | None = None, identifiers: bool = False) -> None:
    """Print the series of a source, and raise nothing for what would be refused."""
    from isocenter.cli import console
    from isocenter.core.errors import BadInput
    from isocenter.imaging.codecs.volume_files import describe
    from isocenter.imaging.limits import VolumeLimits

    limits = VolumeLimits()
    try:
        found = describe(source, limits=limits)
    except BadInput as error:  # of the source as a whole
        refusal = {"code": error.code, "message": error.message, "details": error.details}
        if as_json:
            console.write_json([{"refusal": refusal}])
        else:
            console.out().print(_refused(error), style="red", soft_wrap=True, markup=False)
        return
    tracks, names = _measured(source, found, limits, identifiers=identifiers)
    if as_json:
        console.write_json([_as_json(each, tracks, names) for each in found])
    else:
        _print(found, tracks, names)
    if picture is not None:
        _draw(source, found, tracks, limits, picture)


def _measured(
    source: Path, found: "list[SeriesFacts]", limits: "VolumeLimits", *, identifiers: bool
) -> tuple[Tracks, Identifiers]:
    """Where slices lie, by series and volume; who the patients are, by series, if that was asked."""
    from isocenter.imaging.codecs.slice_track import SliceTrack, series_of, slice_tracks

    tracks: Tracks = {
        (each.series, volume.volume): SliceTrack.even(
            each.series, volume.volume, slices=volume.slices, gap_mm=volume.spacing_mm[-1]
        )
        for each in found
        if each.format != "dicom"
        for volume in each.volumes
        if volume.spacing_mm
    }
    if all(each.format != "dicom" for each in found):
        return tracks, {}
    series = series_of(source, limits=limits)
    tracks |= {(track.series, track.volume): track for track in slice_tracks(series)}
    if not identifiers:
        return tracks, {}
    from isocenter.imaging.codecs.dicom_identifiers import identifiers_of

    return tracks, {number: identifiers_of(planes[0]) for number, planes in enumerate(series, 1)}


def _as_json(series: "SeriesFacts", tracks: Tracks, names: Identifiers) -> dict[str, Any]:
    said = asdict(series)
    for volume in said["volumes"]:
        track = tracks.get((series.series, volume["volume"]))
        volume["measured"] = None if track is None else _track_as_json(track)
    whole = tracks.get((series.series, None))
    said["measured"] = None if whole is None else _track_as_json(whole)
    if series.series in names:
        said["identifiers"] = names[series.series]
    return said


def _track_as_json(track: "SliceTrack") -> dict[str, Any]:
    gaps = track.gaps_mm
    return {
        "slices": len(track.along_mm),
        "gap_mm": {"median": track.median_gap_mm, "min": min(gaps, default=None), "max": max(gaps, default=None)},
        "uneven": len(track.uneven),
        "missing": track.missing,
        "doubled": len(track.doubled),
        "tilt_deg": None if track.tilt_deg is None else round(track.tilt_deg, 4),
    }


def _print(found: "list[SeriesFacts]", tracks: Tracks, names: Identifiers) -> None:
    from rich.text import Text

    from isocenter.cli import console
    from isocenter.cli.inspect_picture import said_of

    rows = console.table("series", "volume", "what", "grid", "says", fold=("what", "grid", "says"))
    for series in found:
        for number, grid, says in _lines(series):
            style = "red" if says.startswith("refused") else ""
            rows.add_row(str(series.series), number, Text(_what(series)), grid, Text(says, style=style))
    stdout = console.out()
    stdout.print(rows)
    measured = {series.series for series in found if series.format == "dicom"}
    for (of_series, volume), track in tracks.items():
        if of_series in measured:
            of_volume = "" if volume is None else f", volume {volume}"
            stdout.print(f"series {of_series}{of_volume}: {said_of(track)}", soft_wrap=True, markup=False)
    broken = sum(_is_broken_file(series) for series in found)
    if 0 < broken < len(found):
        files = "1 file is" if broken == 1 else f"{broken} files are"
        stdout.print(f"{files} broken: while that is so, nothing beside is read either", style="red", soft_wrap=True)
    for of_series, said in names.items():
        for keyword, value in said.items():
            said_of_it = console.one_line(f"series {of_series}, {keyword}: {value}")
            stdout.print(said_of_it, soft_wrap=True, markup=False)


def _is_broken_file(series: "SeriesFacts") -> bool:
    """Whether it is no series but a file whose header cannot be read."""
    return series.refusal is not None and series.format == "dicom" and not series.encodings


def _what(series: "SeriesFacts") -> str:
    from isocenter.cli.console import one_line

    files = f"{series.files} file{'s' if series.files > 1 else ''}"
    said = (series.modality or series.format, series.body_part, series.manufacturer, files)
    thick = f"{series.thickness_mm:g} mm thick" if series.thickness_mm else ""
    return one_line(", ".join(each for each in (*said, thick, *series.encodings) if each))


def _lines(series: "SeriesFacts") -> list[tuple[str, str, str]]:
    """Number, grid, and what is said of each volume."""
    if series.refusal:
        return [("", "", _refused(series.refusal))]
    return [(str(each.volume), _grid(each), _says(each)) for each in series.volumes]


def _grid(volume: "VolumeFacts") -> str:
    if not volume.shape:
        return f"{volume.slices} slices"
    size, spacing = " x ".join(map(str, volume.shape)), " x ".join(f"{each:.4g}" for each in volume.spacing_mm)
    return f"{size}, {spacing} mm, {volume.axcodes}"


def _says(volume: "VolumeFacts") -> str:
    if volume.refusal:
        return _refused(volume.refusal)
    return "; ".join(note.message for note in volume.notes) or "readable"


def _refused(why: "Refusal | BadInput") -> str:
    """In one line: a message may quote a header, and a header may hold what a terminal obeys."""
    from isocenter.cli.console import one_line

    return one_line(f"refused, {why.code}: {why.message}")


def _draw(source: Path, found: "list[SeriesFacts]", tracks: Tracks, limits: "VolumeLimits", file: Path) -> None:
    from isocenter.cli.console import err
    from isocenter.cli.errors import Hopeless
    from isocenter.cli.inspect_picture import draw

    try:
        draw(_shown(source, found, tracks, limits)).save(file, "PNG")
    except (OSError, ValueError) as error:
        raise Hopeless(f"cannot write {file}: {error}", hint="--picture scan.png") from error
    err().print(f"picture: {file}", soft_wrap=True, markup=False)


def _shown(source: Path, found: "list[SeriesFacts]", tracks: Tracks, limits: "VolumeLimits") -> "Iterator[Shown]":
    """What is drawn, volume by volume."""
    from isocenter.cli.inspect_picture import Shown

    for series in found:
        title = f"series {series.series}: {_what(series)}"
        if series.refusal:
            yield Shown(title, _refused(series.refusal), True, None, tracks.get((series.series, None)))
            continue
        if len(series.volumes) > _DRAWN:
            yield Shown(title, f"the first {_DRAWN} of {len(series.volumes)} volumes", False, None, None)
        for each in series.volumes[:_DRAWN]:
            yield _volume_shown(source, series, each, tracks, limits, title)


def _volume_shown(
    source: Path, series: "SeriesFacts", facts: "VolumeFacts", tracks: Tracks, limits: "VolumeLimits", title: str
) -> "Shown":
    from isocenter.cli.inspect_picture import Shown
    from isocenter.core.errors import BadInput
    from isocenter.imaging.codecs.volume_files import Pick, read_volume

    number = f", volume {facts.volume}" if len(series.volumes) > 1 else ""
    track = tracks.get((series.series, facts.volume))
    if facts.refusal:
        return Shown(f"{title}{number}", _says(facts), True, None, track)
    try:
        volume = read_volume(source, limits=limits, pick=Pick(series=series.series, volume=facts.volume))
    except BadInput as error:  # of its pixels, which were not looked at before
        return Shown(f"{title}{number}", _refused(error), True, None, track)
    return Shown(f"{title}{number}", f"{_grid(facts)}; {_says(facts)}", False, volume, track)
