"""An ONNX file whose batch axis is fixed at 1, with an open one instead. Nothing else of it changes.

What its nodes make of a larger batch is not looked at here: `write_folder` proves it, and else keeps batches of one.
"""

from collections.abc import Callable, Iterator
from typing import Final

from isocenter.core.errors import ImportRefused
from isocenter.runtimes.protobuf import Buffer, fields, fields_with_ends

# Field numbers of onnx.proto, ONNX 1.17.
_GRAPH: Final = 7
_INPUT, _OUTPUT, _VALUE_INFO = 11, 12, 13
_TYPE, _TENSOR_TYPE, _SHAPE, _DIM = 2, 1, 2, 1
_DIM_PARAM: Final = 2
_NAME: Final = b"batch"
_LARGEST: Final = 2**31 - 2**20  # of a protocol buffer is 2 GiB


def open_batch_axis(content: bytes) -> bytes:
    """The same model with axis 0 of every input and output named `batch`.

    Shapes that the file notes for values in between are left out, as they hold for one item only; runtimes infer them.

    Raises:
        ImportRefused: the file is too large to be rewritten, or axis 0 is fixed at something else than 1.
    """
    if len(content) > _LARGEST:
        raise ImportRefused(
            f"the batch axis is fixed, and a file of {len(content)} bytes is not rewritten: export with an open one",
            details={"bytes": len(content), "limit": _LARGEST},
        )
    return _edit(memoryview(content), {_GRAPH: _graph})


def _graph(content: Buffer) -> bytes:
    port = _within(_TYPE, _within(_TENSOR_TYPE, _within(_SHAPE, _shape)))
    return _edit(content, {_INPUT: port, _OUTPUT: port, _VALUE_INFO: lambda _: None})


def _within(number: int, edit: Callable[[Buffer], bytes]) -> Callable[[Buffer], bytes]:
    return lambda content: _edit(content, {number: edit})


def _shape(content: Buffer) -> bytes:
    axes = [bytes(value) for number, value in fields(content) if number == _DIM and not isinstance(value, int)]
    if axes and (size := _fixed_size(axes[0])) is not None:
        if size != 1:
            raise ImportRefused(f"axis 0 of a tensor is fixed at {size}: export the model with an open batch axis")
        axes[0] = _field(_DIM_PARAM, _NAME)
    return b"".join(_field(_DIM, axis) for axis in axes)


def _fixed_size(axis: bytes) -> int | None:
    return next((value for number, value in fields(memoryview(axis)) if number == 1 and isinstance(value, int)), None)


def _edit(content: Buffer, edits: dict[int, Callable[[Buffer], bytes | None]]) -> bytes:
    """A message with some of its fields made anew, or left out where the edit gives None."""
    return b"".join(_edited(content, edits))


def _edited(content: Buffer, edits: dict[int, Callable[[Buffer], bytes | None]]) -> Iterator[bytes | Buffer]:
    at = 0
    for number, value, end in fields_with_ends(content):
        edit = edits.get(number)
        if edit is None or isinstance(value, int):
            yield content[at:end]
        elif (made := edit(value)) is not None:
            yield _field(number, made)
        at = end


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
