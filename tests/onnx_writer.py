"""ONNX files made by hand, byte by byte, so that tests need no package for them. Field numbers: onnx.proto."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isocenter.core.tensor import Array

NUMBERS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10, "float64": 11}
_INTS, _TENSOR = 7, 4
_SCALE = 0.05
"""Of quantised activations."""


@dataclass(frozen=True)
class Node:
    """One operator. Attributes are whole numbers, lists of them, or constants."""

    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: dict[str, int | list[int] | Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """An input or output; axes that are names are open."""

    name: str
    shape: Sequence[int | str]
    dtype: str = "float32"


def write_onnx(
    file: Path,
    nodes: Sequence[Node],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    initializers: dict[str, Array] | None = None,
    *,
    external: dict[str, str] | None = None,
    opset: int = 17,
) -> Path:
    """Write a model. `external` says in which other file an initializer's values are."""
    graph = b"".join(
        (
            *(_bytes(1, _node(node)) for node in nodes),
            _bytes(2, b"graph"),
            *(
                _bytes(5, _tensor(name, array, (external or {}).get(name)))
                for name, array in (initializers or {}).items()
            ),
            *(_bytes(11, _port(port)) for port in inputs),
            *(_bytes(12, _port(port)) for port in outputs),
        )
    )
    file.write_bytes(_number(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _number(2, opset)))
    return file


def _node(node: Node) -> bytes:
    names = [*(_bytes(1, name.encode()) for name in node.inputs), *(_bytes(2, name.encode()) for name in node.outputs)]
    attributes = [_bytes(5, _attribute(name, value)) for name, value in node.attributes.items()]
    return b"".join((*names, _bytes(4, node.op.encode()), *attributes))


def _attribute(name: str, value: int | list[int] | Array) -> bytes:
    head = _bytes(1, name.encode())
    if isinstance(value, int):
        return head + _number(3, value) + _number(20, 2)
    if isinstance(value, list):
        return head + b"".join(_number(8, each) for each in value) + _number(20, _INTS)
    return head + _bytes(5, _tensor("", value, None)) + _number(20, _TENSOR)


def _tensor(name: str, array: Array, elsewhere: str | None) -> bytes:
    head = [
        *(_number(1, size) for size in array.shape),
        _number(2, NUMBERS[str(array.dtype)]),
        _bytes(8, name.encode()),
    ]
    if elsewhere is None:
        return b"".join((*head, _bytes(9, np.ascontiguousarray(array).tobytes())))
    pair = _bytes(1, b"location") + _bytes(2, elsewhere.encode())
    return b"".join((*head, _bytes(13, pair), _number(14, 1)))


def _port(port: Port) -> bytes:
    axes = [_bytes(1, _number(1, size) if isinstance(size, int) else _bytes(2, size.encode())) for size in port.shape]
    tensor = _number(1, NUMBERS[port.dtype]) + _bytes(2, b"".join(axes))
    return _bytes(1, port.name.encode()) + _bytes(2, _bytes(1, tensor))


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value & (1 << 64) - 1)


def _bytes(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# Models that several tests use.

IMAGE = (3, 16, 16)
"""Shape of an item of the classifier and of the quantised one."""


def write_classifier(
    file: Path, *, dtype: str = "float32", width: int = 8, batch: int | str = "batch", ports: str = ""
) -> Path:
    """Two convolutions, a mean over each picture, four scores: tensors `image` and `logits`."""
    rng = np.random.default_rng(1)
    weights = _weights(rng, width, np.dtype(dtype))
    nodes = [
        Node("Conv", ["image", "w1", "b1"], ["c1"], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        Node("Relu", ["c1"], ["r1"]),
        Node("Conv", ["r1", "w2", "b2"], ["c2"], {"pads": [1, 1, 1, 1]}),
        Node("Relu", ["c2"], ["r2"]),
        *_head("r2"),
    ]
    outside = ports or dtype
    if outside != dtype:
        nodes[0] = Node("Conv", ["cast", "w1", "b1"], ["c1"], nodes[0].attributes)
        nodes.insert(0, Node("Cast", ["image"], ["cast"], {"to": NUMBERS[dtype]}))
        nodes[-1] = Node("Gemm", nodes[-1].inputs, ["half"], nodes[-1].attributes)
        nodes.append(Node("Cast", ["half"], ["logits"], {"to": NUMBERS[outside]}))
    return write_onnx(
        file, nodes, [Port("image", (batch, *IMAGE), outside)], [Port("logits", (batch, 4), outside)], weights
    )


def write_quantised(file: Path) -> Path:
    """The classifier with its convolutions between QuantizeLinear and DequantizeLinear, as quantisers write it."""
    rng = np.random.default_rng(1)
    weights = _weights(rng, 8, np.dtype(np.float32))
    tensors: dict[str, Array] = {
        "zero_signed": np.array(128, np.uint8),
        "zero": np.array(0, np.uint8),
        "zero_w": np.array(0, np.int8),
        "zero_b": np.array(0, np.int32),
        "s": np.array(_SCALE, np.float32),
    }
    nodes: list[Node] = []

    def quantised(name: str, zero: str) -> str:
        nodes.append(Node("QuantizeLinear", [name, "s", zero], [f"{name}_q"]))
        nodes.append(Node("DequantizeLinear", [f"{name}_q", "s", zero], [f"{name}_d"]))
        return f"{name}_d"

    def parameter(name: str, scale: float, dtype: type[np.int8] | type[np.int32], zero: str) -> str:
        tensors[f"{name}_q"] = np.round(weights[name] / scale).astype(dtype)
        tensors[f"{name}_s"] = np.array(scale, np.float32)
        nodes.append(Node("DequantizeLinear", [f"{name}_q", f"{name}_s", zero], [f"{name}_d"]))
        return f"{name}_d"

    def convolution(taken: str, zero: str, number: int, attributes: dict[str, int | list[int] | Array]) -> str:
        scale = float(np.abs(weights[f"w{number}"]).max() / 127)
        parts = [quantised(taken, zero), parameter(f"w{number}", scale, np.int8, "zero_w")]
        parts.append(parameter(f"b{number}", scale * _SCALE, np.int32, "zero_b"))
        nodes.append(Node("Conv", parts, [f"c{number}"], attributes))
        nodes.append(Node("Relu", [f"c{number}"], [f"r{number}"]))
        return f"r{number}"

    first = convolution("image", "zero_signed", 1, {"pads": [1, 1, 1, 1], "strides": [2, 2]})
    second = convolution(first, "zero", 2, {"pads": [1, 1, 1, 1]})
    nodes += _head(quantised(second, "zero"))
    kept = {name: weights[name] for name in ("w3", "b3")}
    return write_onnx(
        file, nodes, [Port("image", ("batch", *IMAGE))], [Port("logits", ("batch", 4))], {**kept, **tensors}
    )


def write_picky(file: Path) -> Path:
    """One more than `x` is `y`, if `x` has four values; it is not said that it must."""
    ones = {"ones": np.ones(4, np.float32)}
    return write_onnx(
        file, [Node("Add", ["x", "ones"], ["y"])], [Port("x", ("batch", "n"))], [Port("y", ("batch", "m"))], ones
    )


def write_large(file: Path, megabytes: int) -> Path:
    """One matrix product with so many MB of weights: tensors `x`, of 64 values, and `y`."""
    columns = megabytes * 2**20 // 4 // 64
    weights = np.random.default_rng(0).standard_normal((64, columns), dtype=np.float32)
    nodes = [Node("MatMul", ["x", "w"], ["p"]), Node("ReduceMean", ["p"], ["y"], {"axes": [1], "keepdims": 1})]
    return write_onnx(file, nodes, [Port("x", ("batch", 64))], [Port("y", ("batch", 1))], {"w": weights})


def _head(taken: str) -> Iterable[Node]:
    yield Node("GlobalAveragePool", [taken], ["mean"])
    yield Node("Flatten", ["mean"], ["flat"], {"axis": 1})
    yield Node("Gemm", ["flat", "w3", "b3"], ["logits"])


def _weights(rng: np.random.Generator, width: int, dtype: np.dtype[np.generic]) -> dict[str, Array]:
    shapes = {
        "w1": (width, 3, 3, 3),
        "b1": (width,),
        "w2": (width, width, 3, 3),
        "b2": (width,),
        "w3": (width, 4),
        "b3": (4,),
    }
    return {name: (rng.standard_normal(shape) * 0.2).astype(dtype) for name, shape in shapes.items()}
