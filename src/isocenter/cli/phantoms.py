"""`isocenter phantoms`: pictures to try the server with, of which no one is a patient."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isocenter.cli.errors import Hopeless

if TYPE_CHECKING:
    from isocenter.core.tensor import Array

FIRST_SEED = 3_000_000
"""Beyond every seed that the models of this repository were trained, calibrated or checked with."""


def phantoms(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to put them; made if it is not there.")],
    count: Annotated[int, typer.Option(metavar="N", min=1, max=100_000)] = 8,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="The first seed; each slice takes the next.")
    ] = FIRST_SEED,
    form: Annotated[
        Literal["png", "jpg", "png16"], typer.Option("--format", help="png16: 12 bits in 16, as scanners store them.")
    ] = "png",
    side_px: Annotated[int, typer.Option(metavar="PX", min=32, max=4096)] = 224,
) -> None:
    """Draw brain-MRI-like slices for demonstrations and load tests.

    Every class in turn; the same seed gives the same picture. The name says class and seed: glioma-3000000.png.
    """
    from isocenter.cli.console import out as stdout

    files = draw_phantoms(out, count=count, seed=seed, form=form, side_px=side_px)
    span = f"from {files[0].name} to {files[-1].name}" if count > 1 else files[0].name
    stdout().print(f"{count} slice{'s' if count > 1 else ''} in {out}: {span}", soft_wrap=True, markup=False)


def draw_phantoms(out: Path, *, count: int, seed: int, form: str, side_px: int = 224) -> list[Path]:
    """Write them, class after class in turn.

    Raises:
        Hopeless: the folder cannot be written to.
    """
    from isocenter.imaging.phantoms import CLASSES, brain_slice

    files = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number in range(seed, seed + count):
            phantom = brain_slice(number, label=CLASSES[number % len(CLASSES)], side_px=side_px)
            name = f"{phantom.label.lower().replace(' ', '-')}-{number}"
            file = out / f"{name}.{'jpg' if form == 'jpg' else 'png'}"
            file.write_bytes(encode(phantom.pixels, form))
            files.append(file)
    except OSError as error:
        raise Hopeless(f"cannot write to {out}: {error.strerror}", hint="--out with another folder") from error
    return files


def encode(pixels: "Array", form: str) -> bytes:
    """A gray plane uint8 [H, W] as a file: png, jpg (quality 92), or png16 (12 bits in 16)."""
    import io

    import numpy as np
    from PIL import Image

    stream = io.BytesIO()
    if form == "jpg":
        Image.fromarray(pixels).save(stream, "JPEG", quality=92)
    elif form == "png16":
        Image.fromarray(pixels.astype(np.uint16) * 16).save(stream, "PNG")
    else:
        Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
