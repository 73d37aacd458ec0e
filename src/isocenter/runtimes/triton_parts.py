"""What the Open Inference Protocol (KServe V2) and Triton's extensions of it say, whichever way they travel."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from isocenter.core.errors import BadManifest, RuntimeLost
from isocenter.core.tensor import Array

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Element types by the protocol's names. BYTES and BF16 are not served."""
WORDS: Final = {dtype: word for word, dtype in DTYPES.items()}

CONNECT_TIMEOUT_S: Final = 2.0
"""How long a server may take to accept a connection, and to say what it serves."""

Bytes: TypeAlias = bytes | bytearray | memoryview

_ADDRESS: Final = re.compile(r"(?P<scheme>grpc|http)://(?P<host>\[[0-9a-fA-F:.]+\]|[^\s/:@\[\]]+):(?P<port>\d{1,5})/?")
_LOOPBACK: Final = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    scheme: str
    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether it is a loopback address of this machine."""
        return _LOOPBACK.fullmatch(self.host) is not None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def address_of(url: str) -> Address:
    """Read `grpc://host:port` or `http://host:port`.

    >>> address_of("grpc://localhost:8001").is_local, str(address_of("http://[::1]:8000/"))
    (True, 'http://[::1]:8000')

    Raises:
        BadManifest: it is neither.
    """
    found = _ADDRESS.fullmatch(url)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise BadManifest(f"runtime triton needs url grpc://host:port or http://host:port, not {url!r}")
    return Address(found["scheme"], found["host"], int(found["port"]))


@dataclass(frozen=True, slots=True)
class Target:
    """A model on a server, as requests name it; version "" is the one that the server's policy chooses."""

    model: str
    version: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.model):
            raise BadManifest(f"option model of runtime triton is {self.model!r}, which is no model's name")
        if self.version and not (self.version.isascii() and self.version.isdecimal()):
            raise BadManifest(f"option version of runtime triton is {self.version!r}; it must be a whole number")

    def __str__(self) -> str:
        return f"{self.model} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output as the server lists it, with its batch axis; -1 marks an axis of variable length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a server says of a model: its metadata, and its configuration where it tells that (Triton does)."""

    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    max_batch_size: int | None = None
    """0: the model has no batch axis of its own; None: the server does not say."""
    accelerated_in: tuple[str, ...] = ()
    """`precision_mode` of every execution accelerator that the configuration names, in lower case."""


@dataclass(frozen=True, slots=True)
class Room:
    """A piece of registered shared memory, from its start."""

    region: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Sent:
    """One input: its bytes, or where the server finds them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Array | Room


@dataclass(frozen=True, slots=True)
class Asked:
    """One output: wanted in the answer, or in shared memory."""

    name: str
    room: Room | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """One output: its bytes, or None where they are in the room that was asked for."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Bytes | None


class Refusal(Exception):
    """The server answered, and the answer is no. `text` is what it said, which may quote tensors; `kind` never does."""

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.text = text


class Connection(Protocol):
    """A way to a server. Used by one thread at a time.

    Every call raises `RuntimeLost` if there is no answer, and `Refusal` if the answer is no.
    """

    def describe(self) -> ModelInfo:
        """What the model takes and gives."""
        ...

    def ready(self) -> bool:
        """Whether the model takes requests."""
        ...

    def infer(self, inputs: Sequence[Sent], outputs: Sequence[Asked]) -> list[Received]:
        """Run one batch."""
        ...

    def register(self, room: Room, key: str) -> None:
        """Let the server map the shared memory that has this key."""
        ...

    def unregister(self, region: str) -> None:
        """Let the server forget it."""
        ...

    def close(self) -> None:
        """Hang up. Twice is once."""
        ...


def bytes_of(array: Array) -> memoryview:
    """The bytes of an array in C order, copied only if they lie otherwise.

    >>> bytes(bytes_of(np.array([[1, 2]], np.uint8)))
    b'\\x01\\x02'
    """
    return np.ascontiguousarray(array).data.cast("B")


def lost(where: Address, why: str) -> RuntimeLost:
    """The server does not answer."""
    return RuntimeLost(f"{where} {why}", details={"server": str(where)}, retry_after_s=1.0)


def accelerated_in(accelerators: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The precisions that a configuration's execution accelerators are told to use.

    >>> accelerated_in([{"name": "tensorrt", "parameters": {"precision_mode": "FP16"}}, {"name": "openvino"}])
    ('fp16',)
    """
    modes = (accelerator.get("parameters", {}).get("precision_mode", "") for accelerator in accelerators)
    return tuple(str(mode).lower() for mode in modes if mode)
