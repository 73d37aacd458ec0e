"""Tables for people: figures as long as they carry, Markdown, and under which conditions a table came about."""

import datetime
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from isocenter.repository.load import usable_cores

RESULTS = Path(__file__).resolve().parent / "results"

Cell = str | int | float | None


def figure(value: Cell) -> str:
    """Three digits or so, which is all that a measurement carries; nothing for None.

    >>> [figure(value) for value in (1234.5, 35.26, 0.9471, 0.0, 7, None, "x")]
    ['1234', '35.3', '0.947', '0', '7', '', 'x']
    """
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share of one as per cent.

    >>> percent(0.9471), percent(0.0042), percent(0.0), percent(None)
    ('94.7 %', '0.42 %', '0 %', '')
    """
    if share is None:
        return ""
    return f"{figure(share * 100)} %"


def rounds(count: int) -> str:
    """How many rounds, in words.

    >>> rounds(1), rounds(3)
    ('1 round', '3 rounds')
    """
    return f"{count} round{'' if count == 1 else 's'}"


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table.

    >>> print(table(["server", "requests/s"], [["a", 12.345]]))
    | server | requests/s |
    |---|---|
    | a | 12.3 |
    """
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(figure(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def cpu_name() -> str:
    """The processor, in its own words."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def conditions(*, threads: int | None = None) -> str:
    """One paragraph: machine, versions, day."""
    memory_gb = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    model = f", {threads} model threads" if threads else ""
    return (
        f"{cpu_name()}, {usable_cores()} usable cores, {memory_gb:.0f} GB; Linux {platform.release()}, Python "
        f"{platform.python_version()}, ONNX Runtime {version('onnxruntime')} in fp32{model}, Isocenter "
        f"{version('isocenter')}; {datetime.datetime.now(datetime.UTC):%Y-%m-%d}."
    )


def command_line() -> str:
    """The command that is running, as a reader would type it in the project's folder; no absolute paths."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}"]
    words += [Path(word).name if word.startswith(("/", "~")) else word for word in sys.argv[1:]]
    return f"`python {shlex.join(words)}`"


def write(out: Path, text: str) -> None:
    """Print a page and keep it."""
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
