"""KServe V2 over gRPC. Needs grpcio, and no generated code: the few messages are declared here, by number.

Tensors are appended to the request by hand, so that they are copied once. A field may stand anywhere in a message, and
serialized messages may be joined (protobuf.dev, encoding), which is what makes that valid.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from isocenter.core.errors import MissingExtra, RuntimeLost
from isocenter.runtimes.triton_parts import (
    CONNECT_TIMEOUT_S,
    Address,
    Asked,
    Bytes,
    ModelInfo,
    Received,
    Refusal,
    Room,
    Sent,
    Target,
    TensorInfo,
    accelerated_in,
    bytes_of,
    lost,
)

_SERVICE: Final = "/inference.GRPCInferenceService/"
_RAW_INPUT_CONTENTS: Final = 7
_UNBOUNDED: Final = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

Fields: TypeAlias = Mapping[str, tuple[int, str]]
"""Number and type of every field; a type in brackets is repeated, `map<…>` has text as its keys."""

_MODEL: Final[Fields] = {"name": (1, "string"), "version": (2, "string")}
_PARAMETERS: Final = "map<Parameter>"
MESSAGES: Final[Mapping[str, Fields]] = {
    "Parameter": {"bool_param": (1, "bool"), "int64_param": (2, "int64"), "string_param": (3, "string")},
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ModelMetadataRequest": _MODEL,
    "TensorMetadata": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "[int64]")},
    "ModelMetadataResponse": {
        "platform": (3, "string"),
        "inputs": (4, "[TensorMetadata]"),
        "outputs": (5, "[TensorMetadata]"),
    },
    "ModelConfigRequest": _MODEL,
    "Accelerator": {"name": (1, "string"), "parameters": (2, "map<string>")},
    "Accelerators": {"gpu": (1, "[Accelerator]"), "cpu": (2, "[Accelerator]")},
    "Optimization": {"execution_accelerators": (4, "Accelerators")},
    "ModelConfig": {"max_batch_size": (4, "int32"), "optimization": (12, "Optimization")},
    "ModelConfigResponse": {"config": (1, "ModelConfig")},
    "InputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "[int64]"),
        "parameters": (4, _PARAMETERS),
    },
    "RequestedOutput": {"name": (1, "string"), "parameters": (2, _PARAMETERS)},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "inputs": (5, "[InputTensor]"),
        "outputs": (6, "[RequestedOutput]"),
    },
    "OutputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "[int64]"),
        "parameters": (4, _PARAMETERS),
    },
    "ModelInferResponse": {"outputs": (5, "[OutputTensor]"), "raw_output_contents": (6, "[bytes]")},
    "SystemSharedMemoryRegisterRequest": {
        "name": (1, "string"),
        "key": (2, "string"),
        "offset": (3, "uint64"),
        "byte_size": (4, "uint64"),
    },
    "SystemSharedMemoryRegisterResponse": {},
    "SystemSharedMemoryUnregisterRequest": {"name": (1, "string")},
    "SystemSharedMemoryUnregisterResponse": {},
}
"""Of the service's protocol (grpc_service.proto, model_config.proto), the messages and fields that are used here."""


class GrpcConnection:
    """One channel with a connection of its own."""

    def __init__(self, address: Address, target: Target, *, timeout_s: float) -> None:
        try:
            import grpc
        except ImportError as error:
            raise MissingExtra(
                f'{address} needs grpcio, which is not installed: pip install "isocenter[triton]"; http:// does not'
            ) from error
        self._grpc: Any = grpc
        self._address = address
        self._target = target
        self._timeout_s = timeout_s
        # Not shared with other channels of this process: each instance has its own, and one that is reopened after a
        # loss does not inherit the wait before the next attempt.
        options = [*_UNBOUNDED, ("grpc.use_local_subchannel_pool", 1)]
        self._channel: Any = grpc.insecure_channel(f"{address.host}:{address.port}", options=options)

    def describe(self) -> ModelInfo:
        named = {"name": self._target.model, "version": self._target.version}
        metadata = self._ask("ModelMetadata", named)
        try:
            config = self._ask("ModelConfig", named).config
        except Refusal:  # an extension of Triton's
            config = None
        return ModelInfo(
            platform=metadata.platform,
            inputs=_tensors(metadata.inputs),
            outputs=_tensors(metadata.outputs),
            max_batch_size=None if config is None else config.max_batch_size,
            accelerated_in=() if config is None else _accelerated_in(config),
        )

    def ready(self) -> bool:
        try:
            answer = self._ask("ModelReady", {"name": self._target.model, "version": self._target.version})
        except Refusal:
            return False
        return bool(answer.ready)

    def infer(self, inputs: Sequence[Sent], outputs: Sequence[Asked]) -> list[Received]:
        head = _made(
            "ModelInferRequest",
            {
                "model_name": self._target.model,
                "model_version": self._target.version,
                "inputs": [
                    {
                        "name": each.name,
                        "datatype": each.datatype,
                        "shape": each.shape,
                        "parameters": _in(each.content) if isinstance(each.content, Room) else {},
                    }
                    for each in inputs
                ],
                "outputs": [{"name": each.name, "parameters": _in(each.room) if each.room else {}} for each in outputs],
            },
        ).SerializeToString()
        parts: list[Bytes] = [head]
        for each in inputs:
            if not isinstance(each.content, Room):
                parts += [_field_head(_RAW_INPUT_CONTENTS, each.content.nbytes), bytes_of(each.content)]
        answer = self._called("ModelInfer", b"".join(parts), self._timeout_s)
        return list(_received(answer, outputs))

    def register(self, room: Room, key: str) -> None:
        named = {"name": room.region, "key": key, "offset": 0, "byte_size": room.size_bytes}
        self._ask("SystemSharedMemoryRegister", named)

    def unregister(self, region: str) -> None:
        self._ask("SystemSharedMemoryUnregister", {"name": region})

    def close(self) -> None:
        self._channel.close()

    def _ask(self, method: str, fields: Mapping[str, Any]) -> Any:
        return self._called(method, _made(f"{method}Request", fields).SerializeToString(), CONNECT_TIMEOUT_S)

    def _called(self, method: str, request: bytes, timeout_s: float) -> Any:
        call = self._channel.unary_unary(_SERVICE + method)  # without a codec, bytes go in and come out
        try:
            answer = call(request, timeout=timeout_s)
        except self._grpc.RpcError as error:
            raise self._told(error, timeout_s) from error
        except ValueError as error:  # the channel is closed
            raise lost(self._address, "was hung up on") from error
        return _class(f"{method}Response").FromString(answer)

    def _told(self, error: Any, timeout_s: float) -> Refusal | RuntimeLost:
        code = error.code()
        if code is self._grpc.StatusCode.DEADLINE_EXCEEDED:
            return lost(self._address, f"gave no answer in {timeout_s:g} s")
        if code in (self._grpc.StatusCode.UNAVAILABLE, self._grpc.StatusCode.CANCELLED):
            return lost(self._address, "does not answer, or takes no requests now")
        return Refusal(f"gRPC {code.name}", error.details() or "")


def _field_head(number: int, size: int) -> bytes:
    """What stands before the bytes of a field: its number, and how many there are.

    >>> _field_head(7, 300).hex()
    '3aac02'
    """
    head = bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)


def _in(room: Room) -> dict[str, Any]:
    return {
        "shared_memory_region": {"string_param": room.region},
        "shared_memory_byte_size": {"int64_param": room.size_bytes},
    }


def _tensors(listed: Sequence[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(each.name, each.datatype, tuple(each.shape)) for each in listed)


def _accelerated_in(config: Any) -> tuple[str, ...]:
    listed = config.optimization.execution_accelerators
    return accelerated_in({"parameters": dict(each.parameters)} for each in (*listed.gpu, *listed.cpu))


def _received(answer: Any, outputs: Sequence[Asked]) -> Iterator[Received]:
    """Raw contents stand in the order of the outputs, without those in shared memory."""
    in_rooms = {each.name for each in outputs if each.room is not None}
    contents = iter(answer.raw_output_contents)
    for output in answer.outputs:
        content = None if output.name in in_rooms else next(contents, None)
        yield Received(output.name, output.datatype, tuple(output.shape), content)


# The messages, made when the first connection is.


def _made(name: str, fields: Mapping[str, Any]) -> Any:
    return _class(name)(**fields)


def _class(name: str) -> Any:
    return _classes()[name]


@cache
def _classes() -> Mapping[str, Any]:
    """A class for each message, in a pool of its own: others may have the whole protocol in the common one."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="isocenter/v2.proto", package="isocenter.v2", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _declare(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"isocenter.v2.{name}")) for name in MESSAGES
    }


def _declare(message: Any, field: str, number: int, kind: str) -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Declared

    made = message.field.add(name=field, number=number, label=Declared.LABEL_OPTIONAL)
    if kind.startswith("map<"):
        entry = message.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _declare(entry, "key", 1, "string")
        _declare(entry, "value", 2, kind[4:-1])
        made.label, made.type = Declared.LABEL_REPEATED, Declared.TYPE_MESSAGE
        made.type_name = f"{message.name}.{entry.name}"
        return
    if kind.startswith("["):
        made.label = Declared.LABEL_REPEATED
        kind = kind[1:-1]
    if kind in MESSAGES:
        made.type, made.type_name = Declared.TYPE_MESSAGE, f".isocenter.v2.{kind}"
    else:
        made.type = getattr(Declared, f"TYPE_{kind.upper()}")
