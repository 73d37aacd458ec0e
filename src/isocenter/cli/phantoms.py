"""`isocenter phantoms`: slices and head scans to try the server with, of which no one is a patient."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isocenter.cli.errors import Hopeless

if TYPE_CHECKING:
    from isocenter.core.tensor import Array
    from isocenter.imaging.geometry import Geometry

FIRST_SEED = 3_000_000
"""Beyond every seed that the models of this repository were trained, calibrated or checked with."""


def phantoms(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to put them; made if it is not there.")],
    count: Annotated[int, typer.Option(metavar="N", min=1, max=100_000)] = 8,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="The first seed; each slice or scan takes the next.")
    ] = FIRST_SEED,
    kind: Annotated[
        Literal["slice", "scan"], typer.Option(help="scan: 256 x 256 x 128 voxels of a head, as .nii.gz.")
    ] = "slice",
    truth: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of scans: where to put the masks of what was drawn into them.")
    ] = None,
    form: Annotated[
        Literal["png", "jpg", "png16"], typer.Option("--format", help="png16: 12 bits in 16, as scanners store them.")
    ] = "png",
    side_px: Annotated[int, typer.Option(metavar="PX", min=32, max=4096, help="Of slices.")] = 224,
) -> None:
    """Draw brain-MRI-like slices or head scans for demonstrations and load tests.

    Slices: every class in turn; the name says class and seed: glioma-3000000.png. Scans: healthy, or with lesions, as
    the seed has it; the name says which, and as what sequence they look: ring-t1c-3000002.nii.gz. The same seed gives
    the same picture.
    """
    from isocenter.cli.console import out as stdout

    if kind == "scan":
        if form != "png" or side_px != 224:
            raise Hopeless("--format and --side-px are of slices; a scan is 256 x 256 x 128 voxels in a .nii.gz file")
        files = draw_scans(out, count=count, seed=seed, truth=truth)
    else:
        if truth is not None:
            raise Hopeless("--truth is of scans", hint="--kind scan")
        files = draw_phantoms(out, count=count, seed=seed, form=form, side_px=side_px)
    span = f"from {files[0].name} to {files[-1].name}" if count > 1 else files[0].name
    stdout().print(f"{count} {kind}{'s' if count > 1 else ''} in {out}: {span}", soft_wrap=True, markup=False)


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


def draw_scans(out: Path, *, count: int, seed: int, truth: Path | None = None) -> list[Path]:
    """Write head scans, and into the folder `truth` the number of each voxel's lesion under the same names.

    Raises:
        Hopeless: a folder cannot be written to, or both are the same.
    """
    from isocenter.imaging.phantoms_3d import head_scan

    if truth is not None and truth.resolve() == out.resolve():
        raise Hopeless("--truth is the folder of the scans: the masks would be taken for scans")
    files = []
    folder = out
    try:
        for folder in (out, *([truth] if truth else [])):
            folder.mkdir(parents=True, exist_ok=True)
        for number in range(seed, seed + count):
            phantom = head_scan(number)
            file = out / f"{phantom.kind}-{phantom.contrast}-{number}.nii.gz"
            folder = out
            file.write_bytes(_packed(phantom.volume.voxels[0], phantom.volume.geometry))
            files.append(file)
            if truth is not None:
                folder = truth
                (truth / file.name).write_bytes(_packed(phantom.truth, phantom.volume.geometry))
    except OSError as error:
        raise Hopeless(f"cannot write to {folder}: {error.strerror}", hint="--out with another folder") from error
    return files


def _packed(voxels: "Array", geometry: "Geometry") -> bytes:
    """A .nii.gz, packed fast: noise hardly shrinks, whatever the effort."""
    import gzip

    from isocenter.imaging.codecs.nifti_write import nifti_of

    return gzip.compress(nifti_of(voxels, geometry, compress=False), 1, mtime=0)


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
