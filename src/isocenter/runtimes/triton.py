"""A model on another server, behind the runtime seam: Triton, or anything that speaks KServe V2 with binary tensors.

Sessions run on the instances' own threads, as local ones do, so that nothing here touches the event loop. The server
gone is not a fault of the batch: it is `RuntimeLost`, and the engine runs the batch elsewhere if there is an elsewhere.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from isocenter.core.errors import BadManifest, IsocenterError, OutOfMemory, RuntimeFault, RuntimeLost
from isocenter.core.precision import Precision
from isocenter.core.tensor import Array, Tensors, TensorSpec
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.checks import Option, Value, as_fault, check_batch, check_outputs, chosen
from isocenter.runtimes.triton_grpc import GrpcConnection
from isocenter.runtimes.triton_http import HttpConnection
from isocenter.runtimes.triton_memory import FOLDER, SharedTensors
from isocenter.runtimes.triton_parts import (
    DTYPES,
    WORDS,
    Address,
    Asked,
    Connection,
    ModelInfo,
    Received,
    Refusal,
    Sent,
    Target,
    TensorInfo,
    address_of,
    lost,
)

_NAME: Final = "triton"
_OPTIONS: Final[Mapping[str, Option]] = {
    "model": Option(""),
    "version": Option(""),
    "shared_memory": Option("auto", ("auto", "true", "false")),
    "timeout_s": Option(30.0),
}
_CONNECTIONS: Final[Mapping[str, Callable[..., Connection]]] = {"grpc": GrpcConnection, "http": HttpConnection}
_MOST_TIMEOUT_S: Final = 3600.0


class TritonRuntime:
    """Opens a model that `url` serves: `grpc://host:port` or `http://host:port`. No file is read.

    Options: `model`, its name there; `version` (the server's choice); `shared_memory`: `true`, `false` or `auto` (where
    the server is on a loopback address and takes it); `timeout_s` (30): how long the server may be silent in a run.
    """

    name = _NAME

    def open(self, file: Path, options: SessionOptions) -> Session:
        """Ask the server what the model takes, and be ready to send it batches.

        Raises:
            MissingExtra: `grpc://` without grpcio.
            BadManifest: the url or an option is wrong, or the model there cannot be served: no batch axis, an element
                type that is not served, or a configuration that says another precision.
            RuntimeLost: the server cannot be reached, or does not have the model ready.
        """
        address = address_of(options.url)
        values = chosen(_NAME, _in_words(options), _OPTIONS)
        target = Target(str(values["model"]), str(values["version"]))
        timeout_s = float(values["timeout_s"])
        if not 0 < timeout_s <= _MOST_TIMEOUT_S:
            raise BadManifest(f"option timeout_s of runtime triton is {timeout_s:g}; it must be above 0, up to 3600")
        connection = _CONNECTIONS[address.scheme](address, target, timeout_s=timeout_s)
        try:
            info = _described(connection, address, target)
            proof = _proof(options.precision, info, address, target)
            session = TritonSession(connection, address, target, info, proof)
            session.share(str(values["shared_memory"]))
        except BaseException:
            connection.close()
            raise
        return session


class TritonSession:
    """A connection to one model, and the memory that it shares with the server. Used by one thread at a time."""

    def __init__(self, connection: Connection, address: Address, target: Target, info: ModelInfo, proof: str) -> None:
        self.inputs = tuple(_spec(tensor, target, info.max_batch_size) for tensor in info.inputs)
        self.outputs = tuple(_spec(tensor, target, info.max_batch_size) for tensor in info.outputs)
        self.proof = proof
        self._connection = connection
        self._address = address
        self._target = target
        self._most = info.max_batch_size or 0
        self._shared: SharedTensors | None = None

    @property
    def shares_memory(self) -> bool:
        """Whether tensors pass through shared memory."""
        return self._shared is not None

    def share(self, wish: str) -> None:
        """Share memory with the server: `true`, `false`, or `auto`: if it is on this machine and takes it.

        Raises:
            BadManifest: it was asked for, and is not to be had.
        """
        if wish == "false" or (wish == "auto" and not (self._address.is_local and FOLDER.is_dir())):
            return
        try:
            self._shared = SharedTensors(self._connection)
        except (OSError, Refusal) as error:
            if wish == "true":
                raise BadManifest(
                    f"{self._address} takes no shared memory of this machine: {_said(error)}; "
                    "shared_memory: auto does without where it must"
                ) from error

    def run(self, batch: Tensors) -> Tensors:
        """Run one batch there. Outputs in shared memory are written over by the next run.

        Raises:
            InputNotAccepted: the batch is not what the model takes.
            RuntimeLost: no answer; whether anything was computed is not known.
            OutOfMemory, RuntimeFault: the server says that it failed.
        """
        items = check_batch(batch, self.inputs)
        if self._most and items > self._most:
            raise RuntimeFault(f"a batch of {items}, {self._target} on {self._address} takes up to {self._most}")
        try:
            asked = [self._asked(spec, items) for spec in self.outputs]
            received = self._connection.infer([self._sent(spec, batch[spec.name]) for spec in self.inputs], asked)
            outputs = self._read(received, items)
        except Refusal as refusal:
            raise self._as_fault(refusal) from refusal
        except IsocenterError:
            raise
        except Exception as error:  # an answer that is not what the protocol says, or no room for it
            raise as_fault(_NAME, error) from error
        check_outputs(_NAME, outputs, self.outputs, items)
        return outputs

    def close(self) -> None:
        """Let the server forget the shared memory, and hang up."""
        if self._shared is not None:
            with contextlib.suppress(Refusal, RuntimeLost):
                self._shared.close()
        self._connection.close()

    def _sent(self, spec: TensorSpec, array: Array) -> Sent:
        word = WORDS[spec.dtype]
        region = self._shared.of(spec, array.shape) if self._shared is not None else None
        if region is None:
            return Sent(spec.name, word, array.shape, array)
        np.copyto(region.array(spec.dtype, array.shape), array)
        return Sent(spec.name, word, array.shape, region.room_of(array.nbytes))

    def _asked(self, spec: TensorSpec, items: int) -> Asked:
        shape = (items, *spec.shape)
        region = self._shared.of(spec, shape) if self._shared is not None else None
        size_bytes = spec.dtype.itemsize * math.prod(shape)
        return Asked(spec.name, None if region is None else region.room_of(size_bytes))

    def _read(self, received: list[Received], items: int) -> dict[str, Array]:
        found: dict[str, Array] = {}
        specs = {spec.name: spec for spec in self.outputs}
        for each in received:
            spec = specs.get(each.name)
            if spec is None or each.datatype != WORDS[spec.dtype]:
                raise RuntimeFault(f"{self._address} gave an output {each.name[:64]!r} of {each.datatype[:16]!r}")
            if each.content is not None:
                found[each.name] = np.frombuffer(each.content, spec.dtype).reshape(each.shape)
                continue
            region = self._shared.of(spec, (items, *spec.shape)) if self._shared is not None else None
            if region is None or each.shape != (items, *spec.shape):
                raise RuntimeFault(f"{self._address} gave output {each.name[:64]!r} without its bytes")
            found[each.name] = region.array(spec.dtype, each.shape)
        if missing := sorted(set(specs) - set(found)):
            raise RuntimeFault(f"{self._address} gave no output {missing[0]!r}")
        return found

    def _as_fault(self, refusal: Refusal) -> RuntimeFault:
        """A model that went away answers as one that failed does, in words that differ by version: so ask again."""
        if not self._connection.ready():
            return lost(self._address, f"no longer has {self._target} ready")
        if isinstance(as_fault(_NAME, RuntimeError(refusal.text)), OutOfMemory):
            return OutOfMemory(f"{self._address} had no memory for the run")
        # What the server said is not passed on: it may quote tensors.
        return RuntimeFault(f"{self._address} refused the run of {self._target}: {refusal.kind}")


def _in_words(options: SessionOptions) -> SessionOptions:
    """Numbers and truth values of YAML as the table of options has them."""
    given: dict[str, Value] = dict(options.options)
    if isinstance(shared := given.get("shared_memory"), bool):
        given["shared_memory"] = str(shared).lower()
    if type(version := given.get("version")) is int:
        given["version"] = str(version)
    if type(timeout_s := given.get("timeout_s")) is int:
        given["timeout_s"] = float(timeout_s)
    return dataclasses.replace(options, options=given)


def _described(connection: Connection, address: Address, target: Target) -> ModelInfo:
    if not connection.ready():
        raise lost(address, f"does not have {target} ready")
    try:
        return connection.describe()
    except Refusal as refusal:
        raise BadManifest(f"{address} does not describe {target}: {_said(refusal)}") from refusal
    except (ValueError, KeyError, TypeError) as error:
        raise BadManifest(f"{address} does not describe {target} as KServe V2 says") from error


def _said(error: Exception) -> str:
    if isinstance(error, Refusal):
        return f"{error.kind} {error.text[:200]}".strip()
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _spec(tensor: TensorInfo, target: Target, max_batch_size: int | None) -> TensorSpec:
    """One input or output without its batch axis.

    Raises:
        BadManifest: it has none, or an element type that is not served.
    """
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise BadManifest(f"tensor {tensor.name!r} of {target} has datatype {tensor.datatype}, which is not served")
    if not tensor.shape or tensor.shape[0] != -1:
        hint = "; its configuration says max_batch_size 0" if max_batch_size == 0 else ""
        shape = list(tensor.shape)
        raise BadManifest(
            f"tensor {tensor.name!r} of {target} has shape {shape}: axis 0 must be a dynamic batch axis{hint}"
        )
    return TensorSpec(tensor.name, dtype, tensor.shape[1:])


def _proof(stated: Precision, info: ModelInfo, address: Address, target: Target) -> str:
    """What is known of the precision, which is little: the protocol shows the tensors, not the arithmetic.

    Raises:
        BadManifest: the configuration tells an accelerator to compute in another one.
    """
    if others := sorted(set(info.accelerated_in) - {stated}):
        raise BadManifest(
            f"precision is {stated}, but the configuration of {target} on {address} says precision_mode {others[0]}",
            details={"stated": stated, "configured": others},
        )
    datatypes = sorted({tensor.datatype for tensor in (*info.inputs, *info.outputs)})
    seen = f"{', '.join(datatypes)} tensors, platform {info.platform or 'not told'}"
    if info.accelerated_in:
        return f"{stated}: as configured for the accelerator at {address}, not seen to run ({seen})"
    return f"{stated}: stated, and not provable from here; the golden cases decide ({seen}, at {address})"
