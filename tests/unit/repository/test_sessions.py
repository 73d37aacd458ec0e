"""Sessions are opened as the manifest says, and what is opened in place of another is proven to be the same."""

import hashlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401 - it starts a thread of its own, which is no session's
import pytest

from conftest import MODELS
from isocenter.core.errors import BadManifest, DigestMismatch, GoldenMismatch
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository.layout import ModelFolder, find
from isocenter.repository.manifest import FallbackPart
from isocenter.repository.sessions import niceness, open_fallback, open_one, open_sessions, reopen
from isocenter.runtimes.synthetic import SCORES, SyntheticSession
from model_folders import prepared, runtime_part, scores, write_model

SPARE = b"spare"


def fallback_part(weights: bytes = SPARE, **options: Any) -> dict[str, Any]:
    return runtime_part(weights, file="spare.bin", **options)


def with_fallback(models: Path, **options: Any) -> tuple[ModelFolder, FallbackPart]:
    folder = write_model(models, fallback=fallback_part(**options))
    (folder.path / "spare.bin").write_bytes(SPARE)
    assert folder.manifest.fallback is not None
    return folder, folder.manifest.fallback


def pipeline(folder: ModelFolder) -> FastPipeline:
    return FastPipeline(folder.manifest.transforms)


@pytest.mark.parametrize(
    ("weight", "others", "nice"),
    [
        (1.0, [], 0),
        (1.0, [1.0], 0),
        (4.0, [1.0], 0),
        (1.0, [2.0], 3),
        (1.0, [4.0, 2.0], 6),
        (1.0, [1000.0], 19),
        (0.001, [0.001], 0),
    ],
)
def test_who_weighs_less_stands_back(weight: float, others: list[float], nice: int) -> None:
    assert niceness(weight, others) == nice


@pytest.mark.skipif(sys.platform != "linux", reason="niceness counts per thread on Linux only")
def test_the_threads_of_a_session_stand_back_and_nobody_else() -> None:
    folder = find(MODELS, "brain-mri-classifier")
    instances = folder.manifest.instances.model_copy(update={"threads": 3})
    folder = ModelFolder(folder.path, folder.manifest.model_copy(update={"instances": instances}))
    before = niceness_by_thread()
    session = open_one(folder, nice=7)
    after = niceness_by_thread()
    session.close()
    new = [after[thread] for thread in after.keys() - before.keys()]
    assert len(new) >= 2  # the third is the one that runs it; the one that opened it may still be on its way out
    assert set(new) == {7}
    assert {thread: after[thread] for thread in after.keys() & before.keys()} == {
        thread: before[thread] for thread in after.keys() & before.keys()
    }


def niceness_by_thread() -> dict[int, int]:
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended since it was listed
            found[int(task.name)] = os.getpriority(os.PRIO_PROCESS, int(task.name))
    return found


@pytest.mark.parametrize("nice", [0, 5])
def test_what_is_wrong_with_a_model_is_told_whichever_thread_opens_it(nice: int, tmp_path: Path) -> None:
    folder = write_model(tmp_path, runtime=runtime_part(fails_while="sick"))
    (folder.path / "sick").touch()
    with pytest.raises(BadManifest, match="asked to fail"):
        open_one(folder, nice=nice)


def test_every_instance_has_a_session_of_its_own(tmp_path: Path) -> None:
    first, second = open_sessions(write_model(tmp_path, instances={"count": 2}))
    assert first is not second


def test_a_session_in_place_of_a_broken_one_is_proven(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    session = reopen(folder, pipeline(folder), nice=0)
    assert isinstance(session, SyntheticSession)
    assert (len(session.runs), session.closed) == (1, False)
    (folder.path / "golden" / "case.json").write_text(json.dumps({"logits": [9.0, 9.0]}))
    with pytest.raises(GoldenMismatch):
        reopen(folder, pipeline(folder), nice=0)


def test_weights_that_came_into_the_folder_since_are_not_opened_in_place_of_those_that_are_served(
    tmp_path: Path,
) -> None:
    folder = write_model(tmp_path)
    write_model(tmp_path, weights=b"other weights")
    with pytest.raises(DigestMismatch):
        reopen(folder, pipeline(folder), nice=0)


def test_a_fallback_answers_as_the_model_does(tmp_path: Path) -> None:
    folder, fallback = with_fallback(tmp_path)
    session = open_fallback(folder, fallback, pipeline(folder), nice=0)
    found = session.run({"x": prepared(folder.manifest)[None]})[SCORES][0]
    assert found.tolist() == pytest.approx(scores(folder.manifest))
    assert fallback.label == "synthetic fp32 on cpu"


@pytest.mark.parametrize("there", [True, False], ids=["another file", "no file"])
def test_a_fallback_is_the_file_that_the_manifest_names(there: bool, tmp_path: Path) -> None:
    folder, fallback = with_fallback(tmp_path)
    (folder.path / "spare.bin").write_bytes(b"other")
    if not there:
        (folder.path / "spare.bin").unlink()
    with pytest.raises(DigestMismatch, match=hashlib.sha256(SPARE).hexdigest()[:12]):
        open_fallback(folder, fallback, pipeline(folder), nice=0)


def test_a_fallback_that_is_another_model_is_refused(tmp_path: Path) -> None:
    folder, fallback = with_fallback(tmp_path, labels=5)
    with pytest.raises(BadManifest, match="2 labels"):
        open_fallback(folder, fallback, pipeline(folder), nice=0)
