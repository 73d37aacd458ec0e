"""Golden cases: inputs with the raw outputs (before the activation) that belong to them.

As a caller sends it, `<case>.png` with `<case>.json` (`{"logits": […]}`), for classification. As the model takes it,
one item without a batch axis, `<case>.input.npy` with `<case>.output.npy`; `.npz`, an array a tensor name, where there
are several. Nothing is unpickled.
"""

import json
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from isocenter.core.errors import BadManifest, InputNotAccepted, SetupError
from isocenter.core.tensor import Array, Tensors, TensorSpec
from isocenter.engine.batch import check_item
from isocenter.imaging.codecs.raster import decode
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.transforms.arrays.pipeline import ArrayPipeline
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Manifest
from isocenter.runtimes.base import Session

UNREADABLE: Final = (
    OSError, ValueError, KeyError, TypeError, EOFError, RecursionError, MemoryError, zipfile.BadZipFile, zlib.error,
    SyntaxError, tokenize.TokenError,
)  # fmt: skip
"""What a file can make numpy, zipfile and json raise, whatever is in it."""

Pipeline: TypeAlias = FastPipeline | ArrayPipeline
"""What prepares an input: pictures of classification models, or arrays."""


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """An input, as a caller sends it or as the model takes it, and the raw output that belongs to it."""

    name: str
    image: bytes
    """Empty: there are tensors instead."""
    expected: Array | Tensors
    """Of the manifest's output; or of several, by their names."""
    tensors: Array | Tensors | None = None
    """For the manifest's input; or for several, by their names."""


def pipeline_of(manifest: Manifest) -> Pipeline:
    """What prepares the inputs of a model."""
    return FastPipeline(manifest.transforms) if manifest.task == "classification" else ArrayPipeline(manifest.steps)


def golden_cases(folder: ModelFolder) -> list[GoldenCase]:
    """Every case of a version, pictures first.

    Raises:
        BadManifest: there is none, or one is incomplete.
    """
    cases = []
    pictures = folder.golden.glob("*.png") if folder.manifest.task == "classification" else ()
    for file in (*sorted(pictures), *sorted(folder.golden.glob("*.input.np[yz]"))):
        name = file.name.removesuffix(file.suffix).removesuffix(".input")
        try:
            cases.append(_picture(name, file) if file.suffix == ".png" else _tensors(name, file))
        except UNREADABLE as error:
            raise BadManifest(f"golden case {name} of {folder.manifest.name} is not complete: {error}") from error
    if not cases:
        kinds = "<case>.png and .json, or " if folder.manifest.task == "classification" else ""
        raise BadManifest(
            f"{folder.manifest.name} has no golden case: expected in {folder.golden.name}/ {kinds}"
            "<case>.input.npy and .output.npy"
        )
    return cases


def golden_items(cases: list[GoldenCase], pipeline: Pipeline, session: Session) -> list[Tensors]:
    """The golden inputs as the model takes them; pictures through the same decoding and preprocessing as a request's.

    Raises:
        SetupError: one is not what the model takes.
    """
    items = [by_name(_prepared(case, pipeline), session.inputs) for case in cases]
    for case, item in zip(cases, items, strict=True):
        try:
            check_item(item, session.inputs)
        except InputNotAccepted as error:
            raise SetupError(f"golden case {case.name}: {error.message}", details=error.details) from error
    return items


def by_name(tensors: Array | Tensors, specs: tuple[TensorSpec, ...]) -> Tensors:
    """A lone array under the name of the first tensor."""
    return tensors if isinstance(tensors, Mapping) else {specs[0].name: tensors}


def _prepared(case: GoldenCase, pipeline: Pipeline) -> Array | Tensors:
    if case.tensors is not None:
        return case.tensors
    if not isinstance(pipeline, FastPipeline):
        raise BadManifest(f"golden case {case.name} is a picture, and the model takes arrays")
    return pipeline(decode(case.image, limits=ImageLimits())).tensor


def _picture(name: str, file: Path) -> GoldenCase:
    expected = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["logits"]
    return GoldenCase(name, file.read_bytes(), np.asarray(expected, dtype=np.float32))


def _tensors(name: str, file: Path) -> GoldenCase:
    expected = _read(file.with_name(f"{name}.output{file.suffix}"))
    arrays = [*expected.values()] if isinstance(expected, Mapping) else [expected]
    if not arrays or any(array.dtype.kind not in "biuf" for array in arrays):
        raise ValueError("its output is not of numbers")
    return GoldenCase(name, b"", expected, _read(file))


def _read(file: Path) -> Array | Tensors:
    with file.open("rb") as stream:
        found = np.load(stream, allow_pickle=False)
        if (file.suffix == ".npz") != isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError(f"{file.name} is no {file.suffix} file")
        return {key: found[key] for key in found.files} if file.suffix == ".npz" else np.asarray(found)
