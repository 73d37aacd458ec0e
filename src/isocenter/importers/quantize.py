"""An int8 version of an fp32 model: static quantisation from calibration images, measured before it is written.

The file is ONNX with QuantizeLinear and DequantizeLinear around each layer, which ONNX Runtime and OpenVINO both turn
into int8 kernels. Activations are uint8, weights int8 by channel in 7 bits (-64 to 64): without VNNI, x86 adds
products of uint8 and int8 in pairs into 16 bits and cuts off what does not fit. 2 * 255 * 64 fits, 2 * 255 * 127 does
not, and nothing says so: there, the demonstration model is off by 0.70 in a probability with 8 bits, by 0.013 with 7.
The layers at the edges, which read the input itself or give the output, stay in fp32: in four splits of 192 pictures,
the worst difference was 0.019 with ONNX Runtime and with OpenVINO, and 0.039 with all layers in int8.
"""

import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import yaml

from isocenter.core.errors import GateMissed, ImportRefused, MissingExtra
from isocenter.core.tensor import Array, Tensors
from isocenter.importers.folder import Imported, write_folder
from isocenter.repository import accuracy, comparison, integrity
from isocenter.repository.accuracy import CalibrationPart, Difference, Miss, digest_of_digests
from isocenter.repository.comparison import Answering, Figures
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Manifest
from isocenter.repository.sessions import open_one
from isocenter.runtimes.base import Session
from isocenter.runtimes.onnx_file import read_onnx

Target: TypeAlias = Literal["onnxruntime", "openvino"]
WEIGHTS: Final = "model.onnx"
_LEAST_OPSET: Final = 13  # the first in which QuantizeLinear knows channels
_TIMED_RUNS: Final = 15
_PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Split:
    """Files by their digest: those to calibrate with, and those that the difference is measured on."""

    calibration: dict[str, Path]
    held_out: dict[str, Path]


@dataclass(frozen=True, slots=True)
class Quantised:
    """What came of it."""

    difference: Difference
    outside: list[Miss]
    """What lies outside the gate; with any, the version cannot become ready."""
    service_ms: dict[int, tuple[float, float]]
    """Median of a run in fp32 and in int8, in the same runtime, by batch size."""
    folder: ModelFolder


def quantize(
    models: Path,
    source: ModelFolder,
    files: Mapping[str, Path],
    *,
    to: Target,
    version: int,
    keep: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Quantised:
    """Write an int8 version of an fp32 version.

    Half of the files calibrate it; on the other half it is compared with the source. Its golden outputs are the
    source's, held against the gate.

    Args:
        models: the repository.
        source: an ONNX file in fp32.
        files: pictures, or .npy of what the model takes, by their digest (`comparison.distinct`).
        to: the runtime of the new version.
        version: its number.
        keep: write it although it lies outside the gate.
        tell: hears of each file what is being done with it.

    Raises:
        ImportRefused: of this source it cannot be made, there are too few files, or the number is taken.
        GateMissed: it lies outside the gate; nothing was written.
        MissingExtra: onnx is not installed.
    """
    _check_source(source)
    parts = split(files, least=source.manifest.gate.min_items)
    with tempfile.TemporaryDirectory(prefix="isocenter-") as made_in:
        made = Path(made_in) / WEIGHTS
        with closing(_calibration_items(source, parts, tell)) as items:
            write_int8(source.weights, made, items)
        folder = ModelFolder(made.parent, _manifest(source, made, to, version))
        difference = comparison.compare(
            folder,
            source,
            parts.held_out,
            calibration=_calibration_part(parts),
            tell=lambda so_far: tell(_said(so_far)),
        )
        outside = accuracy.misses(difference, folder.manifest)
        if outside and not keep:
            raise GateMissed(
                f"{source.manifest.name} in int8 differs too much from fp32: {'; '.join(map(str, outside))}; "
                "nothing was written",
                details={each.name: {"found": each.found, "limit": each.limit} for each in outside},
            )
        service_ms = _timed(source, folder, next(iter(parts.held_out.values())), tell)
        files_there: dict[str, bytes | Path] = {
            WEIGHTS: made,
            accuracy.DIFFERENCE: accuracy.difference_json(difference),
            **{f"golden/{case.name}": case for case in sorted(source.golden.iterdir()) if case.is_file()},
        }
        written = write_folder(models, Imported(_data(source, to, version), files_there, []), proven=not outside)
    return Quantised(difference, outside, service_ms, written)


def split(files: Mapping[str, Path], *, least: int) -> Split:
    """Every other file, in the order of their digests, is held out: no name and no date decides.

    Raises:
        ImportRefused: fewer than `least` would be held out.
    """
    if len(files) < 2 * least:
        raise ImportRefused(
            f"{len(files)} different files, {2 * least} are needed: {least} to measure the difference on, as many to "
            "calibrate with",
            details={"files": len(files), "needed": 2 * least},
        )
    ordered = sorted(files)
    return Split(
        {digest: files[digest] for digest in ordered[::2]}, {digest: files[digest] for digest in ordered[1::2]}
    )


def write_int8(source: Path, target: Path, items: Iterator[Tensors]) -> None:
    """Quantise one ONNX file; ranges are the least and the greatest value that the items give.

    Raises:
        MissingExtra: onnx is not installed.
        ImportRefused: the graph cannot be quantised.
    """
    if find_spec("onnx") is None:
        raise MissingExtra('quantisation needs onnx, which is not installed: pip install "isocenter[quantize]"')
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = target.with_name("folded.onnx")
    operators = sorted({*QLinearOpsRegistry, *QDQRegistry})
    with _without_advice():
        try:
            # Batch norms are folded into their layers first; symbolic shapes would need one more package.
            quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
            ranges = _ranges(folded, operators, items)
            model = load_model_with_shape_infer(folded)
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=True,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=edges(model.graph),
                op_types_to_quantize=operators,
                extra_options={},
            )
            quantizer.quantize_model()
            quantizer.model.save_model_to_file(str(target))
        except Exception as error:  # whatever a graph provokes in there
            raise ImportRefused(f"{source.name} cannot be quantised: {type(error).__name__}: {error}") from error
        finally:
            folded.unlink(missing_ok=True)


def _ranges(folded: Path, operators: Sequence[str], items: Iterator[Tensors]) -> Any:
    """The least and the greatest value of each tensor; as ONNX Runtime's quantiser takes them."""
    from onnxruntime import ExecutionOrder, GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

    class Items(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            item = next(items, None)
            return None if item is None else {name: array[None] for name, array in item.items()}

    class Calibrater(MinMaxCalibrater):  # type: ignore[misc]
        def create_inference_session(self) -> None:
            options = SessionOptions()
            options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
            # In the order that a session has of itself, ranges come last: no tensor is let go before the end. A U-Net
            # took 6.7 GB at 512 x 512 in place of 1.1.
            options.execution_order = ExecutionOrder.PRIORITY_BASED
            self.infer_session = InferenceSession(
                self.augmented_model_path, sess_options=options, providers=["CPUExecutionProvider"]
            )

    calibrater = Calibrater(folded, operators, augmented_model_path=str(folded.with_name("ranges.onnx")))
    try:
        calibrater.augment_graph()
        calibrater.create_inference_session()
        calibrater.collect_data(Items())
        return calibrater.compute_data()
    finally:
        Path(calibrater.augmented_model_path).unlink(missing_ok=True)


def edges(graph: Any) -> list[str]:
    """Names of the layers with products that no other such layer feeds, and of those that feed none.

    `graph` is an onnx.GraphProto, whose nodes stand in the order in which they compute.
    """
    first = _unfed(graph.node, lambda node: node.input, lambda node: node.output)
    last = _unfed(reversed(graph.node), lambda node: node.output, lambda node: node.input)
    return list(dict.fromkeys((*first, *reversed(last))))


def _unfed(nodes: Iterable[Any], before: Callable[[Any], Any], after: Callable[[Any], Any]) -> list[str]:
    found: list[str] = []
    fed: set[str] = set()
    for node in nodes:
        behind = not fed.isdisjoint(before(node))
        if node.op_type in _PRODUCTS and not behind:
            found.append(node.name)
        if node.op_type in _PRODUCTS or behind:
            fed.update(after(node))
    return found


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """What the quantiser logs is advice for whoever calls it by hand."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check_source(source: ModelFolder) -> None:
    manifest = source.manifest
    runtime, who = manifest.runtime, f"{manifest.name} {manifest.version}"
    kind = accuracy.kind_of(manifest.instances.device)
    for wrong, why in (
        (runtime.precision != "fp32", f"is {runtime.precision}; int8 is made of fp32"),
        (runtime.file is None or not runtime.file.endswith(".onnx"), f"is {runtime.file}; an ONNX file is needed"),
        (manifest.ensemble is not None, "is an ensemble; its members are quantised one by one"),
        (kind != "cpu", f"runs on {kind}; int8 is made for CPUs here"),
    ):
        if wrong:
            raise ImportRefused(f"{who} {why}")
    integrity.check_digest(source)
    found = read_onnx(source.weights)
    if found.external:
        raise ImportRefused(f"{who} has its weights in other files ({found.external[0]}); one file is needed")
    if (opset := found.opsets.get("", 0)) < _LEAST_OPSET:
        raise ImportRefused(f"{who} is of ONNX operator set {opset}; {_LEAST_OPSET} is the least")


def _calibration_items(source: ModelFolder, parts: Split, tell: Callable[[str], None]) -> Generator[Tensors]:
    with closing(open_one(source)) as session:
        answering = Answering(source, session)
        for file in parts.calibration.values():
            yield answering.item(file)
            tell("calibrating")


def _calibration_part(parts: Split) -> CalibrationPart:
    return CalibrationPart(items=len(parts.calibration), images_sha256=digest_of_digests(sorted(parts.calibration)))


def _data(source: ModelFolder, to: Target, version: int) -> dict[str, Any]:
    """`model.yaml` of the new version: the source's, as far as it goes on to be true."""
    data: dict[str, Any] = yaml.safe_load((source.path / "model.yaml").read_text(encoding="utf-8"))
    # Options are a runtime's own; the fallback's file stays where it is.
    options = data["runtime"].get("options", {}) if source.manifest.runtime.kind == to else {}
    data["version"] = version
    data["title"] = f"{source.manifest.title or source.manifest.name}, in int8"
    data["runtime"] = {"kind": to, "file": WEIGHTS, "precision": "int8"} | ({"options": options} if options else {})
    data["gate"] = source.manifest.gate.model_dump()
    data.pop("fallback", None)
    return data


def _manifest(source: ModelFolder, weights: Path, to: Target, version: int) -> Manifest:
    data = _data(source, to, version)
    return Manifest.model_validate(data | {"runtime": data["runtime"] | {"sha256": integrity.sha256_of(weights)}})


def _timed(
    source: ModelFolder, made: ModelFolder, file: Path, tell: Callable[[str], None]
) -> dict[int, tuple[float, float]]:
    """Both in the new version's runtime, turn by turn: a neighbour who disturbs one disturbs the other."""
    runtime = made.manifest.runtime.model_copy(
        update={"file": source.manifest.runtime.file, "sha256": source.manifest.runtime.sha256, "precision": "fp32"}
    )
    fp32 = ModelFolder(source.path, source.manifest.model_copy(update={"runtime": runtime}))
    sizes = sorted({1, min(8, source.manifest.batching.max_batch_size)})
    with closing(open_one(fp32)) as one, closing(open_one(made)) as other:
        item = Answering(made, other).item(file)
        tell("timing")
        return {size: _medians_ms(one, other, item, size) for size in sizes}


def _medians_ms(one: Session, other: Session, item: Tensors, size: int) -> tuple[float, float]:
    batch = {name: np.stack([array] * size) for name, array in item.items()}
    taken_s: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + _TIMED_RUNS):
        for session, taken in zip((one, other), taken_s, strict=True):
            started_s = time.perf_counter()
            session.run(batch)
            taken.append(time.perf_counter() - started_s)
    fp32_ms, int8_ms = (1e3 * statistics.median(taken[1:]) for taken in taken_s)
    return fp32_ms, int8_ms


def _said(so_far: Figures) -> str:
    return f"comparing: max |dp| {so_far.max_abs_dp:.2g}"
