"""The pictures that servers are loaded with, and the requests made of them."""

import io
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from isocenter.imaging.phantoms import brain_slice
from wire import build_request, write_requests


def write_jpegs(folder: Path, count: int, side_px: int) -> Path:
    """Phantoms as colour JPEG files, each different."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        gray = cv2.resize(brain_slice(6_000_000 + number).pixels, (side_px, side_px))
        noise = np.random.default_rng(number).normal(0, 12, (side_px, side_px, 3))
        pixels = np.clip(gray[..., None] + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "jpeg", quality=92)
        (folder / f"{number:03d}.jpg").write_bytes(buffer.getvalue())
    return folder


def as_requests(
    folder: Path, images: Path, *, path: str = "/predict", headers: Mapping[str, str] | None = None
) -> Path:
    """One whole request for each picture of a folder, as a form with the field `file`, which all servers here take."""
    files = sorted(images.iterdir())
    return write_requests(
        folder,
        (build_request(file.read_bytes(), path=path, form_field="file", headers=headers) for file in files),
    )


def injured(images: Path, folder: Path, count: int, seed: int) -> Path:
    """`count` broken files made of good ones: cut, overwritten, bits flipped, a stretch doubled or taken out."""
    rng = np.random.default_rng(seed)
    files = sorted(images.iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        whole = files[number % len(files)].read_bytes()
        begin = int(rng.integers(len(whole)))
        end = min(len(whole), begin + int(rng.integers(1, len(whole) // 4)))
        match number % 5:
            case 0:
                broken = whole[:begin]
            case 1:
                broken = whole[:begin] + rng.bytes(end - begin) + whole[end:]
            case 2:
                at = int(rng.integers(min(len(whole), 400)))
                broken = whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :]
            case 3:
                broken = whole[:end] + whole[begin:]
            case _:
                broken = whole[:begin] + whole[end:]
        (folder / f"{number:04d}.jpg").write_bytes(broken)
    return folder
