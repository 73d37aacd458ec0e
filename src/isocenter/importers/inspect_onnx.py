"""`isocenter inspect` of an ONNX file: what it says of itself, and by shape inference what one item costs."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from isocenter.core.errors import ImportRefused
from isocenter.importers.inspect_facts import ITEM_BYTES, Cost, Facts, Slot, by_count, with_sizes
from isocenter.runtimes.onnx_file import DTYPES, OnnxFile, read_onnx
from isocenter.runtimes.onnx_graph import is_inside, stated_layers
from isocenter.runtimes.registry import installed

NEEDS_ONNX: Final = 'needs the package onnx: pip install "isocenter[quantize]", or "isocenter[torch]"'

_CONTROL: Final = ("If", "Loop", "Scan", "SequenceMap")
_RANDOM: Final = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
_MAY_MULTIPLY: Final = (*_CONTROL, "Einsum", "Attention", "DFT", "STFT")
_KERNEL_AT: Final = {"Conv": 1, "ConvInteger": 1, "DeformConv": 1, "QLinearConv": 3}
_PRODUCTS: Final = {"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"}
_RECURRENT: Final = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True, slots=True)
class _Value:
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return round(self.count * ITEM_BYTES.get(self.dtype, 4))


def inspect(path: Path, *, sizes: Sequence[int] = ()) -> Facts:
    """Look into a file. Nothing of it is run, and no other file is read.

    Args:
        path: the file.
        sizes: of the axes that its first input leaves open, in order, without the batch axis.

    Raises:
        BadManifest: it is no ONNX file.
        ImportRefused: the sizes do not fit it.
    """
    found = read_onnx(path)
    facts = Facts(
        file=path.name,
        kind="onnx",
        bytes=path.stat().st_size,
        producer=found.producer,
        opsets={domain or "ai.onnx": version for domain, version in found.opsets.items()},
        inputs=[Slot(port.name, port.dtype, port.shape) for port in found.inputs],
        outputs=[Slot(port.name, port.dtype, port.shape) for port in found.outputs],
        ops=by_count(found.ops.items()),
        weights=by_count(found.parameters.items()),
        layers=by_count(stated_layers(path).items()),
        external={location: _external_bytes(path, location) for location in found.external},
        warnings=list(_warnings(path, found)),
    )
    if not installed("onnx"):
        facts.cost_missing = NEEDS_ONNX
    elif not found.inputs or not found.inputs[0].shape:
        facts.cost_missing = "the file does not say the shape of its input"
    else:
        _add_cost(facts, path, sizes)
    return facts


def _add_cost(facts: Facts, path: Path, sizes: Sequence[int]) -> None:
    shape = facts.inputs[0].shape or ()
    try:
        item = with_sizes(shape[1:], sizes)
    except ImportRefused as error:
        if sizes:
            raise
        facts.cost_missing = error.message
        return
    try:
        values, graph = _inferred(path, item)
    except Exception as error:  # of whatever kind: the parser and shape inference are another's
        facts.cost_missing = f"shape inference failed: {type(error).__name__}"
        return
    multiply_adds, uncounted = _multiply_adds(graph, values)
    facts.cost = Cost(
        item_shape=item,
        multiply_adds=multiply_adds,
        activation_bytes=_peak_bytes(graph, values),
        method="by shape inference of the package onnx",
        uncounted=tuple(sorted(uncounted)),
    )
    facts.warnings += _training_mode(graph)


def _inferred(path: Path, item: tuple[int, ...]) -> tuple[dict[str, _Value], Any]:
    """Every value of the graph at one item, as far as shape inference goes; and the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx
        import onnx.inliner
        import onnx.shape_inference

    model = onnx.load(str(path), load_external_data=False)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    del graph.value_info[:]
    weights = {tensor.name for tensor in graph.initializer}
    ports = [port for port in graph.input if port.name not in weights]
    for port in ports:
        axes = port.type.tensor_type.shape.dim
        wanted = (1, *item) if port is ports[0] else (1, *(axis.dim_value or 1 for axis in list(axes)[1:]))
        for axis, size in zip(axes, wanted, strict=True):
            axis.dim_value = size
    for port in graph.output:
        port.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = {tensor.name: _Value(DTYPES.get(tensor.data_type, ""), tuple(tensor.dims)) for tensor in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        if tensor.HasField("shape") and all(axis.HasField("dim_value") for axis in tensor.shape.dim):
            shape = tuple(axis.dim_value for axis in tensor.shape.dim)
            values.setdefault(info.name, _Value(DTYPES.get(tensor.elem_type, ""), shape))
    return values, graph


def _multiply_adds(graph: Any, values: Mapping[str, _Value]) -> tuple[int, set[str]]:
    total, uncounted = 0, set[str]()
    for node in graph.node:
        foreign = node.domain not in ("", "ai.onnx")
        if foreign or node.op_type in _MAY_MULTIPLY:
            uncounted.add(f"{node.domain}::{node.op_type}" if foreign else node.op_type)
            continue
        try:
            total += _of_node(node, values)
        except KeyError:  # a shape that inference did not find
            uncounted.add(node.op_type)
    return total, uncounted


def _of_node(node: Any, values: Mapping[str, _Value]) -> int:
    """Multiply-adds of one node.

    Raises:
        KeyError: a shape is not known.
    """
    op = node.op_type
    if op in _KERNEL_AT:
        # [out, in / groups, *kernel]: what one value of the output is the sum of.
        return values[node.output[0]].count * math.prod(values[node.input[_KERNEL_AT[op]]].shape[1:])
    if op == "ConvTranspose":
        # [in, out / groups, *kernel]: what one value of the input goes into.
        return values[node.input[0]].count * math.prod(values[node.input[1]].shape[1:])
    if op in _PRODUCTS:
        turned = any(each.name == "transA" and each.i for each in node.attribute)
        return values[node.output[0]].count * values[node.input[0]].shape[0 if turned else -1]
    if op in _RECURRENT:
        steps, items, _ = values[node.input[0]].shape
        return steps * items * (values[node.input[1]].count + values[node.input[2]].count)
    return 0


def _peak_bytes(graph: Any, values: Mapping[str, _Value]) -> int | None:
    """The largest sum of live values, the weights aside; None if a shape is unknown."""
    weights = {tensor.name for tensor in graph.initializer} | {
        name for node in graph.node if node.op_type == "Constant" for name in node.output
    }
    last_use = {name: at for at, node in enumerate(graph.node) for name in _read_by(node)}
    last_use |= {port.name: len(graph.node) for port in graph.output}
    live = {port.name: values[port.name].bytes for port in graph.input if port.name in values}
    live = {name: size for name, size in live.items() if name not in weights}
    peak = sum(live.values())
    for at, node in enumerate(graph.node):
        for name in node.output:
            if name and name not in weights:
                if name not in values:
                    return None
                live[name] = values[name].bytes
        peak = max(peak, sum(live.values()))
        for name in [*_read_by(node), *node.output]:
            if last_use.get(name, -1) <= at:
                live.pop(name, None)
    return peak


def _read_by(node: Any) -> set[str]:
    """Names that a node reads, those of its subgraphs included."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                found |= _read_by(inner)
            found |= {port.name for port in graph.output}
    return found


def _external_bytes(path: Path, location: str) -> int | None:
    file = path.parent / location
    return file.stat().st_size if is_inside(path.parent, location) and file.is_file() else None


def _warnings(path: Path, found: OnnxFile) -> list[str]:
    said: list[str] = []
    for location in found.external:
        if not is_inside(path.parent, location):
            said.append(f"it would read {location!r}, outside of its folder: import and serve refuse it")
        elif not (path.parent / location).is_file():
            said.append(f"its weights in {location!r} are not there")
    if foreign := sorted({op for op in found.ops if "::" in op}):
        said.append(f"operators that are not ONNX's own, which not every runtime has: {', '.join(foreign)}")
    if control := [op for op in _CONTROL if op in found.ops]:
        said.append(f"control flow ({', '.join(control)}): its cost depends on the values")
    if random := [op for op in _RANDOM if op in found.ops]:
        said.append(f"random numbers ({', '.join(random)}): the same input need not give the same output")
    for port in (*found.inputs, *found.outputs):
        if port.shape and isinstance(port.shape[0], int):
            said.append(
                f"axis 0 of {port.name!r} is fixed at {port.shape[0]}: no batches; import opens it where it is 1"
            )
        if port.dtype != "float32":
            said.append(f"{port.name!r} is {port.dtype}, not float32")
    return said


def _training_mode(graph: Any) -> list[str]:
    found = [
        node.name or node.op_type
        for node in graph.node
        if node.op_type == "BatchNormalization"
        and any(each.name == "training_mode" and each.i for each in node.attribute)
    ]
    return [f"{len(found)} batch norms in training mode: an answer depends on its batch-mates"] if found else []
