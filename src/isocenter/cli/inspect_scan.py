"""`isocenter inspect` of a scan: what is in a folder or file, what would be refused, and why. Names no patient."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from isocenter.imaging.codecs.volume_files import SeriesFacts, VolumeFacts

_ASKED: Final = 20
"""Files of a folder that are looked into before it is taken for none of scans."""


def is_scan(source: Path) -> bool:
    """Whether a file, or one of the first files of a folder, begins as a scan does."""
    from isocenter.imaging.codecs.volume_files import begins_as_scan

    if source.is_file():
        return begins_as_scan(source)
    if not source.is_dir() or (source / "model.yaml").is_file():
        return False
    return any(begins_as_scan(each) for each in islice((each for each in source.rglob("*") if each.is_file()), _ASKED))


def show(source: Path, *, as_json: bool) -> None:
    """Print the series of a source, and raise nothing for what would be refused."""
    from isocenter.cli import console
    from isocenter.imaging.codecs.volume_files import describe
    from isocenter.imaging.limits import VolumeLimits

    found = describe(source, limits=VolumeLimits())
    if as_json:
        console.write_json([asdict(each) for each in found])
        return
    from rich.text import Text

    rows = console.table("series", "volume", "what", "grid", "says", fold=("what", "grid", "says"))
    for series in found:
        for number, grid, says in _lines(series):
            style = "red" if says.startswith("refused") else ""
            rows.add_row(str(series.series), number, _what(series), grid, Text(says, style=style))
    console.out().print(rows)


def _what(series: "SeriesFacts") -> str:
    said = (series.modality or series.format, series.body_part, series.manufacturer, f"{series.files} files")
    return ", ".join(each for each in (*said, *series.encodings) if each)


def _lines(series: "SeriesFacts") -> list[tuple[str, str, str]]:
    """Number, grid, and what is said of each volume."""
    if series.refusal:
        return [("", "", f"refused, {series.refusal.code}: {series.refusal.message}")]
    return [(str(each.volume), _grid(each), _says(each)) for each in series.volumes]


def _grid(volume: "VolumeFacts") -> str:
    if not volume.shape:
        return f"{volume.slices} slices"
    size, spacing = " x ".join(map(str, volume.shape)), " x ".join(f"{each:.4g}" for each in volume.spacing_mm)
    return f"{size}, {spacing} mm, {volume.axcodes}"


def _says(volume: "VolumeFacts") -> str:
    if volume.refusal:
        return f"refused, {volume.refusal.code}: {volume.refusal.message}"
    return "; ".join(note.message for note in volume.notes) or "readable"
