"""The service for plain scripts and threads: no loop of one's own, and nothing left behind."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import MODELS, ROOT
from isocenter import Answer, SyncService
from isocenter.core.errors import BadManifest, BadRequest, Draining, UnknownModel
from isocenter.imaging.phantoms import brain_slice
from isocenter.imaging.volume import Volume
from patience import PATIENCE_S
from segmenters import write_segmenter

MODEL = "brain-mri-classifier"
PIXELS = brain_slice(3_000_000, label="Glioma").pixels


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "png")
    return buffer.getvalue()


PNG = _png()

pytestmark = pytest.mark.may_block


@pytest.fixture(scope="module")
def plain() -> Iterator[SyncService]:
    with SyncService(MODELS) as service:
        yield service


def test_a_plain_script_asks_without_a_loop(plain: SyncService) -> None:
    assert plain.infer(PNG, threshold=0.5, timeout=PATIENCE_S).labels == ["Glioma"]
    assert [each.name for each in plain.models()] == [MODEL]
    assert plain.get_metrics()[MODEL]["answered"] >= 1
    assert plain.stats(MODEL).version == 1
    with pytest.raises(UnknownModel):
        plain.infer(PNG, model="hearts")


def test_threads_ask_at_the_same_time(plain: SyncService) -> None:
    before = plain.stats(MODEL)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: plain.infer(PIXELS), range(64)))

    after = plain.stats(MODEL)
    assert {answer.label for answer in answers} == {"Glioma"}
    assert after.answered - before.answered == 64


def test_many_images_from_a_plain_script(plain: SyncService) -> None:
    answers = plain.infer_many((PIXELS for _ in range(40)), at_once=16)

    assert [each.label for each in answers if isinstance(each, Answer)] == ["Glioma"] * 40


def test_ctrl_c_abandons_the_call_and_the_service_goes_on(plain: SyncService) -> None:
    main = threading.main_thread().ident
    assert main is not None
    asked = []

    def images() -> Iterator[bytes]:
        signal.pthread_kill(main, signal.SIGINT)
        while True:
            asked.append(1)
            yield PNG

    with pytest.raises(KeyboardInterrupt):
        plain.infer_many(images(), at_once=2)

    assert plain.infer(PNG).label == "Glioma"
    so_far = len(asked)
    assert plain.infer(PNG).label == "Glioma"
    assert len(asked) == so_far


def test_the_thread_that_answers_is_not_made_to_wait_for_itself(plain: SyncService) -> None:
    with pytest.raises(RuntimeError, match="cannot wait for itself"):
        plain.infer_many(plain.infer(PNG) for _ in range(1))  # type: ignore[misc]


def test_what_a_service_is_asking_for_does_not_close_it(plain: SyncService) -> None:
    def images() -> Iterator[bytes]:
        plain.close()
        yield PNG

    with pytest.raises(BadRequest, match="cannot be closed by what it runs"):
        plain.infer_many(images())

    assert plain.infer(PNG).label == "Glioma"


def assert_ended(threads: set[threading.Thread]) -> None:
    """Threads that have nothing more to do may take a moment."""
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread.name


def test_nothing_is_left_of_a_service_that_was_closed() -> None:
    before = set(threading.enumerate())

    with SyncService(MODELS) as service:
        assert service.infer(PNG).label == "Glioma"
        its_own = set(threading.enumerate()) - before

    assert_ended(its_own)
    for call in (lambda: service.infer(PNG), service.get_metrics, service.models):
        with pytest.raises(Draining):
            call()
    service.close()


def test_calls_that_are_in_when_a_service_closes_all_end() -> None:
    service = SyncService(MODELS).open()
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(service.infer, PNG) for _ in range(64)]
        service.close()
        ended = [call.exception() for call in calls]

    assert {type(error) for error in ended} <= {type(None), Draining}


def test_a_service_that_cannot_be_opened_says_why_and_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    with pytest.raises(BadManifest), SyncService(tmp_path):
        pass

    assert set(threading.enumerate()) <= before


def test_the_example_prints_its_table(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(MODELS)
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "embedding.py"],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 11
    assert [line.split()[:2] for line in lines[-2:]] == [["-", "refused:"], [f"{MODEL}:", "p50"]]
    assert "(n=8)" in lines[-1]


def test_a_volume_is_segmented_too(tmp_path: Path) -> None:
    write_segmenter(tmp_path)
    voxels = np.random.default_rng(5).standard_normal((1, 9, 12, 10)).astype(np.float32)

    with SyncService(tmp_path) as service:
        answer = service.segment(Volume.of(voxels, spacing_mm=(1, 1, 2)), probabilities=True)

    assert np.array_equal(answer.mask, voxels[0] > 0)
    assert answer.probabilities is not None
