"""What became of the scans of a cohort: rows, and the tables of them."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

State: TypeAlias = Literal["answered", "refused", "failed", "waiting"]
"""Refused: the scan cannot be answered. Failed: the model or the machine; asked again by the next run."""

COLUMNS: Final = (
    "path", "series", "state", "code", "present", "probability", "volume_ml", "lesions", "spacing_mm", "seconds",
    "warnings", "mask", "montage", "message",
)  # fmt: skip
LESION_COLUMNS: Final = (
    "path", "series", "lesion", "label", "volume_ml", "diameter_mm", "probability", "x_lps_mm", "y_lps_mm", "z_lps_mm",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One scan. `path` is within the cohort, `written` within the folder of the results, by format."""

    path: str
    series: int | None = None
    """Of a source that holds several; they count from 1."""
    state: State = "waiting"
    code: str = ""
    message: str = ""
    present: bool | None = None
    probability: float | None = None
    volume_ml: float | None = None
    lesions: tuple[Mapping[str, Any], ...] | None = None
    """None: the model tells none apart."""
    spacing_mm: tuple[float, ...] = ()
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
    written: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The path in letters that can be printed, and the series where there are several."""
        return printable(self.path) + (f" series {self.series}" if self.series is not None else "")

    @property
    def finding(self) -> str:
        """Present, absent, or nothing where the model does not say."""
        return "" if self.present is None else "present" if self.present else "absent"


def printable(path: str) -> str:
    """A path without what cannot be written; a file name may hold bytes that are no letters."""
    return path.encode("utf-8", "replace").decode()


def results_csv(rows: Iterable[Row]) -> str:
    """One line a scan."""
    return _csv(COLUMNS, ([*_cells(row)] for row in rows))


def lesions_csv(rows: Iterable[Row]) -> str:
    """One line a lesion, the largest of each scan first."""

    def lines() -> Iterable[list[object]]:
        for row in rows:
            for lesion in row.lesions or ():
                place = [_short(mm) for mm in lesion["centroid_lps_mm"]]
                sizes = (_short(lesion["volume_ml"]), _short(lesion["diameter_mm"]), _short(lesion["probability"]))
                yield [printable(row.path), _plain(row.series), lesion["number"], lesion["label"], *sizes, *place]

    return _csv(LESION_COLUMNS, lines())


def as_json(row: Row) -> dict[str, Any]:
    """One object a scan; the same keys whatever became of it."""
    return {
        "path": printable(row.path),
        "series": row.series,
        "state": row.state,
        "error": None if row.state in ("answered", "waiting") else {"code": row.code, "message": row.message},
        "present": row.present,
        "probability": row.probability,
        "volume_ml": row.volume_ml,
        "lesions": None if row.lesions is None else [*row.lesions],
        "spacing_mm": [*row.spacing_mm],
        "seconds": row.seconds,
        "warnings": [*row.warnings],
        "written": {form: printable(name) for form, name in row.written.items()},
    }


def summary(rows: Sequence[Row]) -> str:
    """How many of what.

    >>> summary([Row(path="a", state="answered", present=True), Row(path="b", state="refused", code="gantry_tilt")])
    '2 scans: 1 answered (1 present, 0 absent), 1 refused (1 gantry_tilt)'
    """
    answered = [row for row in rows if row.state == "answered"]
    parts = [f"{len(answered)} answered"]
    if any(row.present is not None for row in answered):
        present = sum(row.present is True for row in answered)
        parts[0] += f" ({present} present, {sum(row.present is False for row in answered)} absent)"
    for state in ("refused", "failed"):
        codes = Counter(row.code for row in rows if row.state == state)
        if codes:
            said = ", ".join(f"{count} {code}" for code, count in codes.most_common())
            parts.append(f"{codes.total()} {state} ({said})")
    if waiting := sum(row.state == "waiting" for row in rows):
        parts.append(f"{waiting} waiting")
    return f"{len(rows)} scan{'s' if len(rows) != 1 else ''}: {', '.join(parts)}"


def _cells(row: Row) -> Iterable[object]:
    return (
        printable(row.path),
        _plain(row.series),
        row.state,
        row.code,
        row.finding and str(row.present).lower(),
        _short(row.probability),
        _short(row.volume_ml),
        "" if row.lesions is None else len(row.lesions),
        " ".join(_short(mm) for mm in row.spacing_mm),
        _short(row.seconds),
        " ".join(row.warnings),
        printable(row.written.get("nifti", "")),
        printable(row.written.get("montage", "")),
        row.message,
    )


def _csv(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def _plain(value: object) -> str:
    return "" if value is None else str(value)


def _short(value: float | None) -> str:
    """Six digits: more than any of these is known to.

    >>> _short(0.8799999952316284), _short(None), _short(12.0)
    ('0.88', '', '12')
    """
    return "" if value is None else f"{value:.6g}"
