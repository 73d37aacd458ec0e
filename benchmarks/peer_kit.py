"""The peer benchmark kit, used as it is: its servers, its models, its pictures, its load generator.

The kit is no part of this project. It is a folder with `bench.py`, named by PEERBENCH; what it installs lies under
PEERBENCH_HOME. Nothing in it is changed.
"""

import argparse
import functools
import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contenders import Contender, Live
from wire import write_requests

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_HOME = "~/.cache/peerbench"
PICTURES = 48


@dataclass(frozen=True)
class Candidate:
    """This server in one setting, as the kit starts it."""

    name: str
    models: Path
    frontends: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_json(self, model: str) -> dict[str, Any]:
        """One entry of the kit's candidates file; the kit fills in the port."""
        argv = [sys.executable, "-m", "isocenter", "serve", "--models", str(self.models), "--host", "127.0.0.1"]
        argv += ["--port", "{port}", "--frontends", str(self.frontends), "--default-model", model]
        return {
            "name": self.name,
            "url": "http://127.0.0.1:{port}/predict",
            "cmd": shlex.join(argv),
            "field": "file",
            "headers": dict(self.headers),
        }


class Kit:
    """A kit that is there, with its models and pictures."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.home = home
        os.environ["PEERBENCH_HOME"] = str(home)
        # The kit's folder stays as it is, compiled files included.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(folder))
        self._bench: Any = importlib.import_module("bench")
        self._load: Any = importlib.import_module("load")

    def weights(self, model: str) -> Path:
        """The kit's ONNX file of a model."""
        return self.home / "models" / f"{model}.onnx"

    def installed(self) -> list[str]:
        """The peers whose environments were made to the end."""
        ready = {marker.parent.name for marker in self.home.glob("venvs/*/peerbench.done")}
        needed = {
            "naive-async": {"naive"},
            "naive-w2": {"naive"},
            "litserve-w1": {"litserve"},
            "litserve-w2": {"litserve"},
            "fastapi-triton": {"fastapi_triton", "pytriton"},
        }
        return [name for name in self._bench.PEERS if needed.get(name, {name}) <= ready]

    def versions(self) -> dict[str, list[str]]:
        """What is installed in each peer's environment."""
        file = self.home / "versions.json"
        found: dict[str, list[str]] = json.loads(file.read_text()) if file.is_file() else {}
        return found

    def targets(
        self, model: str, peers: Sequence[str], candidates: Sequence[Candidate], *, threads: int
    ) -> dict[str, Callable[[], Any]]:
        """Whatever the kit can start and load, by name, candidates first; call one for the kit's own `Target`."""
        file = self.home / "run" / "candidates.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([candidate.as_json(model) for candidate in candidates]))
        given = argparse.Namespace(
            model=model,
            peers=",".join(peers),
            # 0 is the kit's own choice: two threads, shared out over a peer's processes.
            threads=0 if threads == 2 else threads,
            spin=False,
            candidate=[],
            candidate_cmd=None,
            candidate_pid=None,
            candidate_kind="multipart",
            candidate_body_field="file",
            candidates_file=str(file),
        )
        made, _ = self._bench.targets(given)
        return {name: functools.partial(make, given) for name, make in made.items()}

    def contenders(
        self, model: str, peers: Sequence[str], candidates: Sequence[Candidate], scratch: Path, *, threads: int
    ) -> list[Contender]:
        """The same servers for this project's own generators."""
        ours = {candidate.name for candidate in candidates}
        return [
            Contender(name, self._starter(make, scratch / name), name in ours)
            for name, make in self.targets(model, peers, candidates, threads=threads).items()
        ]

    def _starter(self, make: Callable[[], Any], folder: Path) -> Callable[[], AbstractContextManager[Live]]:
        @contextmanager
        def start() -> Iterator[Live]:
            with make() as target:
                requests = write_requests(folder, self._load.build_requests(target.spec()))
                yield Live(urlsplit(target.url).port or 80, requests, target.server.cpu)

        return start


def find_kit() -> Kit:
    """The kit as PEERBENCH and PEERBENCH_HOME say.

    Raises:
        SystemExit: it is not there, or its models are not; a sentence says what is missing.
    """
    folder = Path(os.environ.get("PEERBENCH") or ROOT.parent / "shared" / "peerbench").expanduser().resolve()
    home = Path(os.environ.get("PEERBENCH_HOME") or DEFAULT_HOME).expanduser().resolve()
    if not (folder / "bench.py").is_file():
        raise SystemExit(
            "The peer benchmark kit is not here: set PEERBENCH to its folder, the one that holds bench.py. "
            "`make bench` needs no kit."
        )
    missing = [name for name in ("models/resnet50.onnx", "models/tiny.onnx") if not (home / name).is_file()]
    if missing or len(list(home.glob("data/*.jpg"))) < PICTURES:
        what = " and ".join(missing) or f"{PICTURES} pictures in data/"
        raise SystemExit(
            f"PEERBENCH_HOME ({home.name}) lacks {what}: run `python bench.py setup` in the kit's folder first."
        )
    return Kit(folder, home)
