"""Under load an answer is what it is alone: company in a batch changes it within the golden tolerance at most."""

import http.client
import io
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from conftest import MODELS
from isocenter.imaging.phantoms import brain_slice
from isocenter.repository.layout import find
from serverproc import ServerProcess, running

MODEL = "brain-mri-classifier"
PHANTOMS = 50
VARIANTS = 10
ANSWERS = 5_000
CALLERS = 48

Probabilities = Mapping[str, float]


def pictures() -> list[bytes]:
    """Phantoms, each turned, mirrored, dimmed and grained in several ways; no two are the same."""
    made = []
    for number in range(PHANTOMS):
        pixels = brain_slice(6_500_000 + number).pixels
        for variant in range(VARIANTS):
            rng = np.random.default_rng(number * VARIANTS + variant)
            turned = np.rot90(pixels[:, ::-1] if variant % 2 else pixels, variant // 2)
            grained = turned * rng.uniform(0.5, 1.0) + rng.normal(0, 6, turned.shape)
            buffer = io.BytesIO()
            Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=90)
            made.append(buffer.getvalue())
    return made


def spread(found: Probabilities, alone: Probabilities) -> float:
    """How far apart the logits behind two softmax answers are at least: max - min of the change of log p.

    Softmax hides a shift that is common to all logits, so what an answer shows of them is known up to that shift. The
    changes of log p span at most 2a if, and only if, some common shift brings every logit within a of its other value.
    So a spread of at most twice the absolute golden tolerance says what the tolerance says of the logits, as far as an
    answer can show it. The tolerance's relative part, and the values that may miss it, would only loosen it: left out.
    """
    changes = [math.log(found[label]) - math.log(alone[label]) for label in alone]
    return max(changes) - min(changes)


@pytest.mark.parametrize(("shift", "changes", "expected"), [(5.0, (0, 0, 0), 0.0), (0.0, (1e-3, -1e-3, 0), 2e-3)])
def test_the_spread_sees_logits_and_not_their_common_shift(
    shift: float, changes: Sequence[float], expected: float
) -> None:
    logits = np.array([2.0, -1.0, 0.5])

    def answer(values: np.ndarray) -> dict[str, float]:
        exponents = np.exp(values - values.max())
        return dict(zip("abc", (exponents / exponents.sum()).tolist(), strict=True))

    found = spread(answer(logits + shift + np.array(changes)), answer(logits))

    assert found == pytest.approx(expected, abs=1e-12)


@dataclass
class Load:
    """Many callers, each asking for the next picture as soon as it has its answer."""

    server: ServerProcess
    images: Sequence[bytes]
    order: Sequence[int]
    answers: list[tuple[int, Probabilities]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def run(self, callers: int) -> None:
        """All of the order, once."""
        lock = threading.Lock()
        waiting = iter(self.order)

        def call() -> None:
            connection = self.server.connect()
            while True:
                with lock:
                    number = next(waiting, None)
                if number is None:
                    connection.close()
                    return
                try:
                    status, body, _ = self.server.predict(self.images[number], connection)
                except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                    self.wrong.append(f"{number}: {error!r}")
                    return
                if status == 200:
                    self.answers.append((number, body["probabilities"]))
                else:
                    self.wrong.append(f"{number}: {status} {body}")

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def counted(server: ServerProcess) -> tuple[float, float]:
    """Items and batches so far, as the server counts them."""
    connection = server.connect()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    items, batches = (
        sum(
            float(value)
            for value in re.findall(rf"^isocenter_batch_size_items_{which}{{.*}} (\S+)$", text, re.MULTILINE)
        )
        for which in ("sum", "count")
    )
    return items, batches


@pytest.mark.slow
def test_5000_answers_under_load_equal_their_lone_answers() -> None:
    images = pictures()
    bound = 2 * find(MODELS, MODEL).manifest.golden.absolute
    order = np.random.default_rng(7).permutation(np.arange(ANSWERS) % len(images)).tolist()
    with running(MODELS) as server:
        connection = server.connect()
        alone = [server.predict(image, connection)[1]["probabilities"] for image in images]
        connection.close()
        items_alone, batches_alone = counted(server)
        assert items_alone == batches_alone == len(images)

        load = Load(server, images, order)
        load.run(CALLERS)

        assert load.wrong == []
        assert len(load.answers) == ANSWERS
        items, batches = counted(server)
        joined = (items - items_alone) - (batches - batches_alone)
        assert joined >= ANSWERS // 5, "hardly any answer was added to a batch that had one: nothing was tested"
    worst = max(spread(found, alone[number]) for number, found in load.answers)
    assert worst <= bound
    # The check would see a mix-up: hardly any picture's answer passes for another's.
    others = [spread(alone[number], alone[(number + 1) % len(alone)]) for number in range(len(alone))]
    assert sum(other <= bound for other in others) <= len(others) // 100
