"""Segmented images as a table and a summary."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from isocenter.cli.console import one_line, table
from isocenter.cli.outcome import Outcome
from isocenter.cli.segment_places import tails
from isocenter.measure.percentiles import Percentiles


def as_table(outcomes: Sequence[Outcome]) -> Table:
    """One row a file, with as much of its path as tells it from the others; refusals with code and message."""
    right = ("objects", "median area", "image", "latency")
    rows = table("file", *right, "notes", right=right, fold=("notes",))
    for outcome, file in zip(outcomes, tails([outcome.file for outcome in outcomes]), strict=True):
        name = Text(one_line(str(file)))
        if outcome.answer is None:
            problem = outcome.error or {}
            code = Text(f"refused: {problem['code']}", style="red")
            rows.add_row(name, code, "", "", "", Text(one_line(str(problem["message"]))))
            continue
        answer = outcome.answer
        size = answer["image_size"]
        rows.add_row(
            name,
            Text(str(answer["objects"]), style="bold"),
            area(answer),
            f"{size['width']} x {size['height']}",
            f"{answer['latency_ms']:.0f} ms",
            Text(", ".join(warning["code"] for warning in answer["warnings"]), style="yellow"),
        )
    return rows


def area(answer: dict[str, Any]) -> str:
    """The median area of one image's objects, in micrometres where they are known.

    >>> area({"median_area_px": 113.5, "median_area_um2": None}), area({"median_area_px": 9, "median_area_um2": 2.25})
    ('113.5 px', '2.2 µm²')
    """
    if answer["median_area_um2"] is not None:
        return f"{answer['median_area_um2']:.1f} µm²"
    return "" if answer["median_area_px"] is None else f"{answer['median_area_px']:g} px"


def summary(outcomes: Sequence[Outcome], *, wall_s: float, at_once: int, loaded: bool, out: Path) -> str:
    """Counts, latency with its sample count, how long all of it took, and where the results are."""
    answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    left = len(outcomes) - len(answers)
    parts = [f"{len(outcomes)} file{'s' if len(outcomes) != 1 else ''}: {len(answers)} answered, {left} refused"]
    if answers:
        objects = [int(answer["objects"]) for answer in answers]
        parts.append(f"{sum(objects)} objects" + (f", median {median(objects):g} an image" if len(objects) > 1 else ""))
        latency = Percentiles.of(float(answer["latency_ms"]) for answer in answers)
        together = f", {min(at_once, len(outcomes))} at once" if min(at_once, len(outcomes)) > 1 else ""
        parts.append(f"latency p50 {latency.p50:.0f} ms, p95 {latency.p95:.0f} ms (n={latency.count}{together})")
    parts.append(f"{wall_s:.1f} s in all" + (", loading the model included" if loaded else ""))
    if answers:
        parts.append(f"results in {one_line(str(out))}")
    return " · ".join(parts)
