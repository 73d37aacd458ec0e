"""Outcomes as a table, a summary, JSON lines and CSV."""

import csv
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from rich.table import Table
from rich.text import Text

from isocenter.cli.console import one_line, table
from isocenter.cli.outcome import Outcome, percent
from isocenter.cli.segment_places import tails
from isocenter.measure.percentiles import Percentiles


def as_table(outcomes: Sequence[Outcome]) -> Table:
    """One row a file, with as much of its path as tells it from the others; refusals with code and message."""
    rows = table(
        "file", "prediction", "confidence", "latency", "notes", right=("confidence", "latency"), fold=("notes",)
    )
    for outcome, file in zip(outcomes, tails([outcome.file for outcome in outcomes]), strict=True):
        name = Text(one_line(str(file)))
        if outcome.answer is None:
            problem = outcome.error or {}
            rows.add_row(name, Text(f"refused: {problem['code']}", style="red"), "", "", Text(str(problem["message"])))
            continue
        answer = outcome.answer
        rows.add_row(
            name,
            Text(answer["prediction"], style="bold"),
            percent(answer["confidence"]),
            f"{answer['latency_ms']:.1f} ms",
            Text(", ".join(warning["code"] for warning in answer["warnings"]), style="yellow"),
        )
    return rows


def summary(outcomes: Sequence[Outcome], *, wall_s: float, at_once: int, loaded: bool) -> str:
    """Counts, latency with its sample count, and how long all of it took."""
    answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    left = len(outcomes) - len(answers)
    parts = [f"{len(outcomes)} file{'s' if len(outcomes) != 1 else ''}: {len(answers)} answered, {left} refused"]
    if answers:
        counts = Counter(str(answer["prediction"]) for answer in answers)
        parts.append(", ".join(f"{count} {label}" for label, count in counts.most_common()))
        latency = Percentiles.of(float(answer["latency_ms"]) for answer in answers)
        together = f", {min(at_once, len(outcomes))} at once" if min(at_once, len(outcomes)) > 1 else ""
        parts.append(f"latency p50 {latency.p50:.1f} ms, p95 {latency.p95:.1f} ms (n={latency.count}{together})")
    parts.append(f"{wall_s:.1f} s in all" + (", loading the model included" if loaded else ""))
    return " · ".join(parts)


def write_csv(outcomes: Sequence[Outcome], stream: TextIO) -> None:
    """One line a file, one column a label; the labels are those of all answers, in the model's order."""
    labels = list(
        dict.fromkeys(label for outcome in outcomes if outcome.answer for label in outcome.answer["probabilities"])
    )
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["file", "prediction", "confidence", "latency_ms", *labels, "warnings", "error"])
    for outcome in outcomes:
        answer = outcome.answer
        if answer is None:
            problem = outcome.error or {}
            writer.writerow(
                [outcome.name, "", "", "", *[""] * len(labels), "", f"{problem['code']}: {problem['message']}"]
            )
            continue
        warnings = " ".join(warning["code"] for warning in answer["warnings"])
        odds = [answer["probabilities"].get(label, "") for label in labels]
        writer.writerow(
            [outcome.name, answer["prediction"], answer["confidence"], answer["latency_ms"], *odds, warnings, ""]
        )
