"""KServe V2 over HTTP/1.1 with binary tensors, on the standard library: tensors go from the array to the socket."""

import contextlib
import http.client
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import orjson

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

_JSON_LENGTH: Final = "Inference-Header-Content-Length"
# What a server says of itself is small; what it says in place of an answer may be anything.
_SAID_MOST_BYTES: Final = 4096


class HttpConnection:
    """One kept-alive connection, opened when it is first used, and again when the server has hung up."""

    def __init__(self, address: Address, target: Target, *, timeout_s: float) -> None:
        self._address = address
        version = f"/versions/{target.version}" if target.version else ""
        self._model = f"/v2/models/{quote(target.model)}{version}"
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def describe(self) -> ModelInfo:
        metadata = orjson.loads(self._ask("GET", self._model, timeout_s=CONNECT_TIMEOUT_S)[1])
        try:
            config = orjson.loads(self._ask("GET", f"{self._model}/config", timeout_s=CONNECT_TIMEOUT_S)[1])
        except Refusal:  # an extension of Triton's
            config = None
        return ModelInfo(
            platform=str(metadata.get("platform", "")),
            inputs=_tensors(metadata["inputs"]),
            outputs=_tensors(metadata["outputs"]),
            max_batch_size=None if config is None else int(config.get("max_batch_size", 0)),
            accelerated_in=() if config is None else _accelerated_in(config),
        )

    def ready(self) -> bool:
        try:
            self._ask("GET", f"{self._model}/ready", timeout_s=CONNECT_TIMEOUT_S)
        except Refusal:
            return False
        return True

    def infer(self, inputs: Sequence[Sent], outputs: Sequence[Asked]) -> list[Received]:
        head = orjson.dumps({"inputs": list(map(_input, inputs)), "outputs": list(map(_output, outputs))})
        parts: list[Bytes] = [head, *(bytes_of(each.content) for each in inputs if not isinstance(each.content, Room))]
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(sum(map(len, parts))),
            _JSON_LENGTH: str(len(head)),
        }
        answer, body = self._ask("POST", f"{self._model}/infer", parts, headers, timeout_s=self._timeout_s)
        length = int(answer.headers.get(_JSON_LENGTH, len(body)))
        return list(_received(orjson.loads(memoryview(body)[:length]), memoryview(body)[length:]))

    def register(self, room: Room, key: str) -> None:
        body = orjson.dumps({"key": key, "offset": 0, "byte_size": room.size_bytes})
        path = f"/v2/systemsharedmemory/region/{quote(room.region)}/register"
        self._ask("POST", path, [body], {"Content-Length": str(len(body))}, timeout_s=CONNECT_TIMEOUT_S)

    def unregister(self, region: str) -> None:
        path = f"/v2/systemsharedmemory/region/{quote(region)}/unregister"
        self._ask("POST", path, [], {"Content-Length": "0"}, timeout_s=CONNECT_TIMEOUT_S)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(
        self,
        method: str,
        path: str,
        parts: Sequence[Bytes] = (),
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            answer, body = self._answered(method, path, parts, headers or {}, timeout_s)
        except TimeoutError as error:
            self.close()
            raise lost(self._address, f"gave no answer in {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise lost(self._address, f"cannot be reached: {_why(error)}") from error
        if answer.status != 200:
            raise Refusal(f"HTTP {answer.status}", _said(body))
        return answer, body

    def _answered(
        self, method: str, path: str, parts: Sequence[Bytes], headers: Mapping[str, str], timeout_s: float
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Once more over a new connection if a kept one has been closed meanwhile: a run changes nothing there."""
        if self._connection is not None:
            with contextlib.suppress(http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                return self._exchange(self._connection, method, path, parts, headers, timeout_s)
            self.close()
        host = self._address.host.strip("[]")
        self._connection = http.client.HTTPConnection(host, self._address.port, timeout=CONNECT_TIMEOUT_S)
        self._connection.connect()
        return self._exchange(self._connection, method, path, parts, headers, timeout_s)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        parts: Sequence[Bytes],
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        if isinstance(connection.sock, socket.socket):
            connection.sock.settimeout(timeout_s)
        connection.request(method, path, body=iter(parts) if parts else None, headers=dict(headers))
        answer = connection.getresponse()
        body = answer.read()
        if answer.will_close:
            self.close()
        return answer, body


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _said(body: bytes) -> str:
    try:
        return str(orjson.loads(body[:_SAID_MOST_BYTES])["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def _tensors(listed: Sequence[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(each["name"], each["datatype"], tuple(map(int, each["shape"]))) for each in listed)


def _accelerated_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    listed = config.get("optimization", {}).get("execution_accelerators", {})
    return accelerated_in(each for kind in ("gpu", "cpu") for each in listed.get(f"{kind}_execution_accelerator", []))


def _input(sent: Sent) -> dict[str, Any]:
    parameters = _in(sent.content) if isinstance(sent.content, Room) else {"binary_data_size": sent.content.nbytes}
    return {"name": sent.name, "shape": sent.shape, "datatype": sent.datatype, "parameters": parameters}


def _output(asked: Asked) -> dict[str, Any]:
    return {"name": asked.name, "parameters": _in(asked.room) if asked.room else {"binary_data": True}}


def _in(room: Room) -> dict[str, Any]:
    return {"shared_memory_region": room.region, "shared_memory_byte_size": room.size_bytes}


def _received(answer: Mapping[str, Any], rest: memoryview) -> Iterator[Received]:
    at = 0
    for output in answer["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        content = None if size is None else rest[at : at + size]
        at += size or 0
        yield Received(output["name"], output["datatype"], tuple(output["shape"]), content)
