"""What an ONNX graph computes in, layer by layer, read from its bytes; and which other files it may read."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from isocenter.core.errors import BadManifest
from isocenter.runtimes import protobuf
from isocenter.runtimes.onnx_file import DTYPES, OnnxFile, read_onnx
from isocenter.runtimes.protobuf import Buffer

_WORDS: Final = {
    "float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8",
    "int4": "int4", "uint4": "int4",
}  # fmt: skip
"""How the element type of a layer's weights is called as a precision."""
_PRODUCTS: Final = frozenset(
    {
        "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention",
        "FusedConv", "NhwcConv", "NhwcFusedConv", "FusedGemm", "FusedMatMul", "TransposeMatMul", "MultiHeadAttention",
        "FusedMatMulActivation",
    }
)  # fmt: skip
_IN_INT8: Final = frozenset(
    {
        "QLinearConv", "QLinearConvTranspose", "QLinearMatMul", "QGemm", "QAttention", "ConvInteger", "MatMulInteger",
        "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
    }
)  # fmt: skip
_HALVES: Final = ("float16", "bfloat16")
# Field numbers of onnx.proto, ONNX 1.17.
_GRAPH, _FUNCTION = 7, 25
_NODE, _INITIALIZER, _INPUT, _VALUE_INFO = 1, 5, 11, 13


@dataclass(slots=True)
class _Node:
    op: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    dtype: str = ""
    """The element type that an attribute states: `to` of a Cast, the tensor of a Constant."""
    graphs: list[Buffer] = field(default_factory=list)


def vetted(file: Path) -> OnnxFile:
    """What the file says of itself; only files of its own folder are named in it.

    Raises:
        BadManifest: it is no ONNX file, or would have other files read; nothing of them was.
    """
    found = read_onnx(file)
    folder = file.parent
    for name in found.external:
        if not is_inside(folder, name):
            raise BadManifest(
                f"{file.name} has weights in {name!r}, which is not in its folder; nothing of it was read",
                details={"file": file.name, "external": name},
            )
    return found


def is_inside(folder: Path, name: str) -> bool:
    """Whether a name that a graph has for another file can be one of a folder's; the file need not be there.

    A link inside the folder may lead outside: the path is followed, the file is not opened.
    """
    there = Path(name)
    if not name or there.is_absolute() or ".." in there.parts:
        return False
    try:
        (folder / there).is_file()
        return (folder / there).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # no file can have such a name
        return False


def stated_layers(file: Path) -> Counter[str]:
    """Layers with products by precision, as the file has them: the coarser of what they compute in and of what their
    weights are stored in. A layer behind a DequantizeLinear counts as int8.

    Raises:
        BadManifest: it is no ONNX file.
    """
    return _read(file, as_stored=True)


def computed_layers(file: Path) -> Counter[str]:
    """The same for a graph as a runtime has rewritten it: what is still behind a DequantizeLinear computes in fp32.

    Raises:
        BadManifest: it is no ONNX file.
    """
    return _read(file, as_stored=False)


def _read(file: Path, *, as_stored: bool) -> Counter[str]:
    try:
        with protobuf.mapped(file) as content:
            walk = _Walk(as_stored)
            for number, value in protobuf.fields(content):
                if number == _GRAPH and not isinstance(value, int):
                    walk.graph(value, {})
                elif number == _FUNCTION and not isinstance(value, int):
                    walk.nodes(
                        [node for kind, node in protobuf.fields(value) if kind == 7 and not isinstance(node, int)], {}
                    )
            return walk.found
    except (OSError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise BadManifest(f"{file.name} is not an ONNX file: {error}") from error


class _Walk:
    """Follows element types through the nodes, which stand in the order in which they compute."""

    def __init__(self, as_stored: bool) -> None:
        self._as_stored = as_stored
        self.found: Counter[str] = Counter()

    def graph(self, content: Buffer, outer: dict[str, str]) -> None:
        dtypes, nodes = dict(outer), []
        for number, value in protobuf.fields(content):
            if isinstance(value, int):
                continue
            if number == _NODE:
                nodes.append(value)
            elif number == _INITIALIZER:
                name, dtype = _tensor(value)
                dtypes[name] = dtype
            elif number in (_INPUT, _VALUE_INFO):
                name, dtype = _value(value)
                dtypes.setdefault(name, dtype)
        self.nodes(nodes, dtypes)

    def nodes(self, contents: list[Buffer], dtypes: dict[str, str]) -> None:
        for content in contents:
            node = _node(content)
            given = [dtypes.get(name, "") for name in node.inputs]
            self._count(node, given)
            for name in node.outputs:
                # What the graph itself says of a value in between is not better than what its node does.
                dtypes[name] = self._result(node, given)
            for graph in node.graphs:
                self.graph(graph, dtypes)

    def _count(self, node: _Node, given: list[str]) -> None:
        if node.op in _IN_INT8:
            self.found["int8"] += 1
        elif node.op in _PRODUCTS:
            weights = (given[1] if len(given) > 1 else "") or (given[0] if given else "")
            self.found[_WORDS.get(weights, weights or "an unknown type")] += 1

    def _result(self, node: _Node, given: list[str]) -> str:
        first = given[0] if given else ""
        if node.op == "Constant":
            return node.dtype or "float32"
        if node.op == "Cast":
            return first if self._as_stored and first in _HALVES and node.dtype == "float32" else node.dtype
        if node.op == "DequantizeLinear":
            return first if self._as_stored else (given[1] if len(given) > 1 else "") or "float32"
        if node.op == "QuantizeLinear":
            return (given[2] if len(given) > 2 else "") or "uint8"
        return next((dtype for dtype in given if dtype in _WORDS), first)


def _node(content: Buffer) -> _Node:
    node = _Node()
    for number, value in protobuf.fields(content):
        if isinstance(value, int):
            continue
        if number == 1:
            node.inputs.append(str(value, "utf-8"))
        elif number == 2:
            node.outputs.append(str(value, "utf-8"))
        elif number == 4:
            node.op = str(value, "utf-8")
        elif number == 5:
            _attribute(value, node)
    return node


def _attribute(content: Buffer, node: _Node) -> None:
    name, dtype, whole = "", "", 0
    for number, value in protobuf.fields(content):
        if number == 3 and isinstance(value, int):
            whole = value
        elif isinstance(value, int):
            continue
        elif number == 1:
            name = str(value, "utf-8")
        elif number == 5:
            dtype = _tensor(value)[1]
        elif number in (6, 11):
            node.graphs.append(value)
    if name == "to":
        node.dtype = DTYPES.get(whole, "")
    elif dtype and name == "value":
        node.dtype = dtype


def _tensor(content: Buffer) -> tuple[str, str]:
    name, dtype = "", ""
    for number, value in protobuf.fields(content):
        if number == 2 and isinstance(value, int):
            dtype = DTYPES.get(value, "")
        elif number == 8 and not isinstance(value, int):
            name = str(value, "utf-8")
    return name, dtype


def _value(content: Buffer) -> tuple[str, str]:
    name, dtype = "", ""
    for number, value in protobuf.fields(content):
        if isinstance(value, int):
            continue
        if number == 1:
            name = str(value, "utf-8")
        elif number == 2:
            for kind, tensor in protobuf.fields(value):
                if kind == 1 and not isinstance(tensor, int):
                    number_of = next(
                        (each for key, each in protobuf.fields(tensor) if key == 1 and isinstance(each, int)), 0
                    )
                    dtype = DTYPES.get(number_of, "")
    return name, dtype
