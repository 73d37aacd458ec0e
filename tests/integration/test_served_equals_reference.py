"""What is served is what the model says: the reference preprocessing and a direct run give the same probabilities."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import cv2
import httpx
import numpy as np
import onnxruntime as ort
import pytest
import pytest_asyncio
from PIL import Image

from conftest import MODELS
from isocenter.app import open_service
from isocenter.imaging.codecs.raster import decode_reference
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.phantoms import brain_slice
from isocenter.imaging.transforms import reference
from isocenter.repository.layout import find
from isocenter.settings import load_settings
from patience import PATIENCE_S, PATIENT

TOLERANCE = 1e-5
COUNT = 200
AT_ONCE = 20
FORMS = (
    "jpeg L", "jpeg RGB", "jpeg CMYK", "jpeg progressive", "jpeg exif",
    "png 1", "png L", "png P", "png LA", "png RGB", "png RGBA", "png I;16", "png RGB 16",
    "tiff L", "tiff RGB", "tiff I;16", "tiff F", "tiff CMYK", "tiff 1",
    "bmp L", "bmp RGB", "bmp 1", "webp lossy", "webp lossless", "webp RGBA",
)  # fmt: skip

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.may_block]


def picture(number: int) -> tuple[str, bytes]:
    """One image of some form and size; every one is different."""
    rng = np.random.default_rng(number)
    form = FORMS[number % len(FORMS)]
    kind, _, mode = form.partition(" ")
    height_px, width_px = (int(side) for side in rng.integers(24, 600, size=2))
    if number % 3 == 0:
        height_px = width_px = 224
    gray = cv2.resize(brain_slice(4_000_000 + number).pixels, (width_px, height_px), interpolation=cv2.INTER_AREA)
    tint = np.clip(gray[..., None] * rng.uniform(0.7, 1.0, 3), 0, 255).astype(np.uint8)
    alpha = np.where(np.arange(width_px) < width_px // 3, 90, 255).astype(np.uint8)
    alpha = np.broadcast_to(alpha, gray.shape)
    deep = gray.astype(np.uint16) * 13 + rng.integers(0, 13, gray.shape).astype(np.uint16)
    image = Image.fromarray(tint)
    options: dict[str, Any] = {}
    match mode:
        case "L":
            image = Image.fromarray(gray)
        case "1":
            image = Image.fromarray(gray).convert("1")
        case "P":
            image = image.quantize(64)
        case "CMYK":
            image = image.convert("CMYK")
        case "LA":
            image = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)])
        case "RGBA":
            image.putalpha(Image.fromarray(alpha))
        case "I;16":
            image = Image.fromarray(deep)
        case "F":
            image = Image.fromarray(gray.astype(np.float32) / 7 - 3)
        case "RGB 16":
            written, data = cv2.imencode(".png", np.dstack([deep, deep // 2, deep // 3]))
            assert written
            return form, data.tobytes()
        case "progressive":
            options = {"progressive": True, "quality": 80}
        case "exif":
            exif = Image.Exif()
            exif[0x0112] = int(rng.integers(2, 9))
            options = {"exif": exif}
        case "lossless":
            options = {"lossless": True}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return form, buffer.getvalue()


PICTURES = [picture(number) for number in range(COUNT)]


@pytest.fixture(scope="module")
def direct() -> list[dict[str, float]]:
    """What the model itself says, one image at a time, through the reference preprocessing."""
    folder = find(MODELS, "brain-mri-classifier")
    session = ort.InferenceSession(str(folder.weights), providers=["CPUExecutionProvider"])
    found = []
    for _, data in PICTURES:
        image = decode_reference(data, limits=ImageLimits())
        tensor = reference.preprocess(image, folder.manifest.transforms).tensor
        (logits,) = session.run(["logits"], {"image": tensor[None]})[0].astype(np.float64)
        exponents = np.exp(logits - logits.max())
        found.append(
            dict(zip(map(str, folder.manifest.output.labels), (exponents / exponents.sum()).tolist(), strict=True))
        )
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_service(load_settings(models=MODELS)) as service:
        transport = httpx.ASGITransport(service.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE_S) as client:
            yield client


async def served(client: httpx.AsyncClient, data: bytes) -> dict[str, float]:
    answer = await client.post("/predict", content=data, headers=PATIENT)
    assert answer.status_code == 200, answer.text
    probabilities: dict[str, float] = answer.json()["probabilities"]
    return probabilities


def worst(found: list[dict[str, float]], direct: list[dict[str, float]]) -> tuple[float, str]:
    """The largest difference, and which form it belongs to."""
    return max(
        (max(abs(one[label] - other[label]) for label in other), form)
        for one, other, (form, _) in zip(found, direct, PICTURES, strict=True)
    )


async def test_alone_every_form_and_size_gives_what_the_model_says(
    client: httpx.AsyncClient, direct: list[dict[str, float]]
) -> None:
    found = [await served(client, data) for _, data in PICTURES]

    difference, form = worst(found, direct)
    assert difference <= TOLERANCE, form


async def test_beside_64_others_every_form_and_size_gives_what_the_model_says(
    client: httpx.AsyncClient, direct: list[dict[str, float]]
) -> None:
    stop = asyncio.Event()

    async def other(number: int) -> int:
        answered = 0
        while not stop.is_set():
            await served(client, PICTURES[(number * 7 + answered) % COUNT][1])
            answered += 1
        return answered

    others = [asyncio.create_task(other(number)) for number in range(64)]
    found: list[dict[str, float]] = []
    for first in range(0, COUNT, AT_ONCE):
        found += await asyncio.gather(*(served(client, data) for _, data in PICTURES[first : first + AT_ONCE]))
    stop.set()
    answered = await asyncio.gather(*others)

    difference, form = worst(found, direct)
    assert difference <= TOLERANCE, form
    assert min(answered) > 0
