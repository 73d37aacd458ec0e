"""What can be measured alike: this server and, from this project alone, its yardsticks beside it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generators import Weigh
from isocenter.repository.layout import ModelFolder
from isocenter.repository.load import usable_cores
from isocenter.repository.manifest import Manifest
from server_process import Launch, free_port, isocenter, started

HERE = Path(__file__).resolve().parent
OURS = "Isocenter"
PLAIN = "plain FastAPI"
LITSERVE = "LitServe"


@dataclass(frozen=True)
class Live:
    """A server that answers: where, which requests it is sent (a folder of whole ones), and what it has used."""

    port: int
    requests: Path
    weigh: Weigh


@dataclass(frozen=True)
class Contender:
    """A server that can be started, as often as it is measured."""

    name: str
    start: Callable[[], AbstractContextManager[Live]]
    ours: bool = False


def of_launch(launch: Launch, requests: Path, *, ours: bool = False) -> Contender:
    """A contender that is one command."""

    @contextmanager
    def start() -> Iterator[Live]:
        with started(launch) as running:
            yield Live(running.port, requests, running.cpu_s)

    return Contender(launch.name, start, ours)


def ours(models: Path, model: str, requests: Path, frontends: Sequence[int]) -> list[Contender]:
    """This server, once for each number of front ends."""
    return [
        of_launch(
            isocenter(models, default_model=model, frontends=count, name=our_name(count, frontends)),
            requests,
            ours=True,
        )
        for count in frontends
    ]


def our_name(frontends: int, measured: Sequence[int]) -> str:
    """What this server is called in a table; the number of front ends is said where several are measured.

    >>> our_name(0, [0]), our_name(0, [0, 2]), our_name(2, [0, 2])
    ('Isocenter', 'Isocenter, inline', 'Isocenter, 2 front ends')
    """
    if len(measured) == 1:
        return OURS
    return f"{OURS}, {frontends} front ends" if frontends else f"{OURS}, inline"


def plain_fastapi(folder: ModelFolder) -> Launch:
    """The server that people write first."""
    argv = [sys.executable, "-m", "uvicorn", "plain_fastapi:app", "--app-dir", str(HERE)]
    argv += ["--port", "0", "--no-access-log"]
    given = json.dumps(yardstick(folder))
    return Launch(PLAIN, argv, {"PLAIN_MODEL": given}, port_pattern=r"running on http://127\.0\.0\.1:(\d+)")


def litserve(folder: ModelFolder, python: str) -> Launch:
    """LitServe, run by a Python that has it."""
    port = free_port()
    given = json.dumps({**yardstick(folder), "port": port})
    return Launch(LITSERVE, [python, str(HERE / "litserve_server.py")], {"LITSERVE_MODEL": given}, port=port)


def has_litserve(python: str) -> bool:
    """Whether this Python can run LitServe."""
    return subprocess.run([python, "-c", "import litserve"], capture_output=True, check=False).returncode == 0


def yardsticks(folder: ModelFolder, requests: Path, *, litserve_python: str) -> list[Contender]:
    """The servers to be compared with that can be run here; one that cannot is said on stderr."""
    found = [of_launch(plain_fastapi(folder), requests)]
    if has_litserve(litserve_python):
        found.append(of_launch(litserve(folder, litserve_python), requests))
    else:
        print("LitServe left out: it is not installed; benchmarks/litserve_server.py says how", file=sys.stderr)
    return found


def yardstick(folder: ModelFolder) -> dict[str, Any]:
    """What a yardstick needs to know of a model folder."""
    given = folder.manifest
    normalize = _normalization(given)
    return {
        "file": str(folder.weights),
        "input": given.input.tensor,
        "labels": given.output.labels,
        "mean": list(normalize["mean"]),
        "std": list(normalize["std"]),
        "threads": usable_cores(),
    }


def _normalization(manifest: Manifest) -> Mapping[str, Any]:
    for step in manifest.transforms:
        if step.kind == "normalize":
            return step.model_dump()
    raise ValueError(f"model {manifest.name} has no normalize step: the yardsticks would not know what to do")
