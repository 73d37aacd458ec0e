"""An ONNX file as its bytes say, without a framework: tensors, operators, and which other files it would read.

The weights are stepped over, so a large file costs no memory. Field numbers: onnx.proto, ONNX 1.17.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from isocenter.core.errors import BadManifest
from isocenter.runtimes import protobuf
from isocenter.runtimes.protobuf import Buffer

DTYPES: Final[dict[int, str]] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1",
}  # fmt: skip
"""Element types by their number in the format."""

_DEEPEST: Final = 64


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None
    """With the batch axis; an open axis has its name, or "". None if the file does not say."""


@dataclass(slots=True)
class OnnxFile:
    """What stands in the file."""

    producer: str = ""
    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    """Version by domain; "" is ONNX itself."""
    inputs: list[Port] = field(default_factory=list)
    """Without those that only name an initializer."""
    outputs: list[Port] = field(default_factory=list)
    ops: Counter[str] = field(default_factory=Counter)
    """Nodes by operator, those of subgraphs and functions included; `domain::Op` where the domain is not ONNX's."""
    parameters: Counter[str] = field(default_factory=Counter)
    """Values of the initializers by element type."""
    external: list[str] = field(default_factory=list)
    """Other files with weights, as the file spells them, each once."""
    functions: int = 0


def read_onnx(file: Path) -> OnnxFile:
    """Read what the file says of itself. Nothing but the file is opened.

    Raises:
        BadManifest: it cannot be read, or is not an ONNX file.
    """
    try:
        with protobuf.mapped(file) as content:
            return parse_onnx(file.name, content)
    except OSError as error:
        raise BadManifest(f"cannot read {file.name}: {error.strerror or error}") from error
    except ValueError as error:
        raise BadManifest(f"{file.name} is not an ONNX file: {error}") from error


def parse_onnx(name: str, content: Buffer) -> OnnxFile:
    """The same of a file that is in memory already.

    Raises:
        BadManifest: it is not an ONNX file.
    """
    try:
        found = _model(content)
    except (ValueError, IndexError) as error:
        raise BadManifest(f"{name} is not an ONNX file: {error}") from error
    if not found.opsets or not found.outputs:
        raise BadManifest(f"{name} is not an ONNX file: no graph with an operator set in it")
    return found


def _model(content: Buffer) -> OnnxFile:
    found = OnnxFile()
    for number, value in protobuf.fields(content):
        if number == 1 and isinstance(value, int):
            found.ir_version = value
        elif isinstance(value, int):
            continue
        elif number == 2:
            found.producer = str(value, "utf-8")
        elif number == 7:
            _graph(value, found, 0)
        elif number == 8:
            domain, version = _opset(value)
            found.opsets["" if domain == "ai.onnx" else domain] = version
        elif number == 20:
            for graph, inner in protobuf.fields(value):
                if graph in (1, 2) and not isinstance(inner, int):
                    _graph(inner, found, 1)
        elif number == 25:
            found.functions += 1
            for node, inner in protobuf.fields(value):
                if node == 7 and not isinstance(inner, int):
                    _node(inner, found, 1)
    return found


def _opset(content: Buffer) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in protobuf.fields(content):
        if number == 1 and not isinstance(value, int):
            domain = str(value, "utf-8")
        elif number == 2 and isinstance(value, int):
            version = value
    return domain, version


def _graph(content: Buffer, found: OnnxFile, depth: int) -> None:
    """Of the outermost graph, the ports are kept as well."""
    if depth > _DEEPEST:
        raise ValueError(f"graphs are nested deeper than {_DEEPEST}")
    inputs: list[Port] = []
    named: set[str] = set()
    for number, value in protobuf.fields(content):
        if isinstance(value, int):
            continue
        if number == 1:
            _node(value, found, depth + 1)
        elif number == 5:
            named.add(_tensor(value, found))
        elif number == 15:
            _sparse(value, found)
        elif number == 11:
            inputs.append(_port(value))
        elif number == 12 and depth == 0:
            found.outputs.append(_port(value))
    if depth == 0:
        found.inputs += [port for port in inputs if port.name not in named]


def _node(content: Buffer, found: OnnxFile, depth: int) -> None:
    op, domain = "", ""
    for number, value in protobuf.fields(content):
        if isinstance(value, int):
            continue
        if number == 4:
            op = str(value, "utf-8")
        elif number == 7:
            domain = str(value, "utf-8")
        elif number == 5:
            _attribute(value, found, depth)
    found.ops[op if domain in ("", "ai.onnx") else f"{domain}::{op}"] += 1


def _attribute(content: Buffer, found: OnnxFile, depth: int) -> None:
    for number, value in protobuf.fields(content):
        if isinstance(value, int):
            continue
        if number in (5, 10):
            _tensor(value, found)
        elif number in (6, 11):
            _graph(value, found, depth + 1)
        elif number in (22, 23):
            _sparse(value, found)


def _sparse(content: Buffer, found: OnnxFile) -> None:
    for number, value in protobuf.fields(content):
        if number in (1, 2) and not isinstance(value, int):
            _tensor(value, found)


def _tensor(content: Buffer, found: OnnxFile) -> str:
    """Count its values, note where they are if elsewhere; gives its name."""
    name, dtype, count, located = "", 0, 1, ""
    external = False
    for number, value in protobuf.fields(content):
        if number == 1:
            for size in [value] if isinstance(value, int) else protobuf.varints(value):
                count *= size
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 14 and isinstance(value, int):
            external |= value == 1
        elif isinstance(value, int):
            continue
        elif number == 8:
            name = str(value, "utf-8")
        elif number == 13:
            external = True
            key, said = _pair(value)
            located = said if key == "location" else located
    if external and located not in found.external:
        found.external.append(located)
    found.parameters[DTYPES.get(dtype, f"type {dtype}")] += count
    return name


def _pair(content: Buffer) -> tuple[str, str]:
    texts = {number: str(value, "utf-8") for number, value in protobuf.fields(content) if not isinstance(value, int)}
    return texts.get(1, ""), texts.get(2, "")


def _port(content: Buffer) -> Port:
    name, dtype = "", ""
    shape: tuple[int | str, ...] | None = None
    for number, value in protobuf.fields(content):
        if isinstance(value, int):
            continue
        if number == 1:
            name = str(value, "utf-8")
        elif number == 2:
            for kind, tensor in protobuf.fields(value):
                if kind == 1 and not isinstance(tensor, int):
                    dtype, shape = _tensor_type(tensor)
    return Port(name, dtype or "not a tensor", shape)


def _tensor_type(content: Buffer) -> tuple[str, tuple[int | str, ...] | None]:
    dtype, shape = "", None
    for number, value in protobuf.fields(content):
        if number == 1 and isinstance(value, int):
            dtype = DTYPES.get(value, f"type {value}")
        elif number == 2 and not isinstance(value, int):
            shape = tuple(
                _axis(axis) for kind, axis in protobuf.fields(value) if kind == 1 and not isinstance(axis, int)
            )
    return dtype, shape


def _axis(content: Buffer) -> int | str:
    found: int | str = ""
    for number, value in protobuf.fields(content):
        if number == 1 and isinstance(value, int):
            found = value
        elif number == 2 and not isinstance(value, int):
            found = str(value, "utf-8")
    return found
