"""A small KServe V2 server of our own, over HTTP and gRPC: it answers as Triton does, and can be made to misbehave.

Its model takes `x`, float32 [N, *shape], and gives `scores`: the mean of each item, times 1 and 2.
"""

import contextlib
import json
import mmap
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from isocenter.core.tensor import Array
from isocenter.runtimes import triton_grpc
from patience import PATIENCE_S

LABELS = 2
Tensor = dict[str, Any]


@dataclass
class Behaviour:
    """What the server holds, and what it does wrong."""

    shape: tuple[int, ...] = (3, 8, 8)
    model: str = "lungs"
    ready: bool = True
    max_batch_size: int | None = 8
    """None: it tells no configuration, as other servers of the protocol."""
    batch_axis: bool = True
    datatype: str = "FP32"
    accelerators: list[dict[str, Any]] = field(default_factory=list)
    shared_memory: bool = True
    refuses: int = 0
    """HTTP status of every run; gRPC: any number is INVALID_ARGUMENT, 503 is UNAVAILABLE."""
    says: str = "no"
    hangs: threading.Event | None = None
    hangs_up: int = 0
    """So many runs end in a closed connection."""
    rows_short: int = 0
    binary: bool = True
    batches: list[int] = field(default_factory=list)
    in_shared_memory: int = 0
    still_in_use: int = 0
    """So many wishes to forget a region are refused."""
    regions: dict[str, mmap.mmap] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        axes = [-1] if self.batch_axis else []
        return {
            "name": self.model,
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": self.datatype, "shape": [*axes, *self.shape]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [*axes, LABELS]}],
        }

    def scores(self, x: Array) -> Array:
        self.batches.append(len(x))
        means = x.reshape(len(x), -1).mean(axis=1, dtype=np.float64)
        return np.stack([means, 2 * means], axis=1).astype(np.float32)[: len(x) - self.rows_short]

    def register(self, name: str, key: str, size: int) -> None:
        if not self.shared_memory:
            raise ValueError("no shared memory here")
        with (Path("/dev/shm") / key.removeprefix("/")).open("r+b") as file:
            self.regions[name] = mmap.mmap(file.fileno(), size)

    def unregister(self, name: str) -> None:
        if self.still_in_use:
            self.still_in_use -= 1
            raise ValueError("currently in use")
        self.regions.pop(name, None)

    def region(self, parameters: dict[str, Any]) -> memoryview:
        self.in_shared_memory += 1
        return memoryview(self.regions[parameters["shared_memory_region"]])[: parameters["shared_memory_byte_size"]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    behaviour: Behaviour

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        b, path = self.behaviour, self.path.replace("/versions/1", "")
        if path == f"/v2/models/{b.model}/ready":
            self._answer(200 if b.ready else 400, b"")
        elif path == f"/v2/models/{b.model}":
            self._json(b.metadata())
        elif path == f"/v2/models/{b.model}/config" and b.max_batch_size is not None:
            accelerators = {"gpu_execution_accelerator": b.accelerators}
            self._json({"max_batch_size": b.max_batch_size, "optimization": {"execution_accelerators": accelerators}})
        else:
            self._json({"error": "unknown"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.split("/")
        if parts[2] == "systemsharedmemory":
            try:
                if parts[5] == "register":
                    given = json.loads(body)
                    self.behaviour.register(parts[4], given["key"], given["byte_size"])
                else:
                    self.behaviour.unregister(parts[4])
                self._answer(200, b"")
            except (ValueError, OSError) as error:
                self._json({"error": str(error)}, 400)
        else:
            self._infer(body)

    def _infer(self, body: bytes) -> None:
        b = self.behaviour
        if b.hangs is not None:
            b.hangs.wait(PATIENCE_S)
        if b.hangs_up:
            b.hangs_up -= 1
            self.close_connection = True
            return
        if b.refuses:
            self._json({"error": b.says}, b.refuses)
            return
        length = int(self.headers["Inference-Header-Content-Length"])
        asked = json.loads(body[:length])
        given = asked["inputs"][0]
        room = "shared_memory_region" in given["parameters"]
        data = b.region(given["parameters"]) if room else body[length:]
        scores = b.scores(np.frombuffer(data, np.float32).reshape(given["shape"]))
        output: dict[str, Any] = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape)}
        content = scores.tobytes()
        wanted = asked["outputs"][0]["parameters"]
        if "shared_memory_region" in wanted:
            b.region(wanted)[: len(content)] = content
            content, output["parameters"] = b"", wanted
        elif b.binary:
            output["parameters"] = {"binary_data_size": len(content)}
        else:
            content, output["data"] = b"", scores.ravel().tolist()
        head = json.dumps({"model_name": b.model, "outputs": [output]}).encode()
        self._answer(200, head + content, {"Inference-Header-Content-Length": str(len(head))})

    def _json(self, found: dict[str, Any], status: int = 200) -> None:
        self._answer(status, json.dumps(found).encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    """Closes what is open when it is stopped, as a process that ends does."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, handler: type[_Handler]) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of callers who left: Python 3.11 prints one traceback at a time, and pytest may be at one."""


class HttpV2:
    """The server over HTTP."""

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        handler = type("Handler", (_Handler,), {"behaviour": behaviour})
        self._server = _Server(port, handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in list(self._server.open):
            with contextlib.suppress(OSError):
                # Reset rather than a polite end: so goes a process that is killed.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
                connection.close()


class GrpcV2:
    """The server over gRPC."""

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        import grpc

        self._grpc: Any = grpc
        self._behaviour = behaviour
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers([_methods(grpc, self)])
        self.port: int = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop(None).wait(PATIENCE_S)

    def answer(self, method: str, request: bytes, context: Any) -> Any:
        b, codes = self._behaviour, self._grpc.StatusCode
        asked = triton_grpc._class(f"{method}Request").FromString(request)
        if method == "ModelReady":
            return {"ready": b.ready and asked.name == b.model}
        if method == "ModelMetadata":
            if asked.name != b.model:
                context.abort(codes.NOT_FOUND, "unknown model")
            metadata = b.metadata()
            return {name: metadata[name] for name in ("platform", "inputs", "outputs")}
        if method == "ModelConfig":
            if b.max_batch_size is None:
                context.abort(codes.UNIMPLEMENTED, "what?")
            accelerators = {"gpu": b.accelerators}
            optimization = {"execution_accelerators": accelerators}
            return {"config": {"max_batch_size": b.max_batch_size, "optimization": optimization}}
        if method.startswith("SystemSharedMemory"):
            try:
                if method.endswith("Unregister"):
                    b.unregister(asked.name)
                else:
                    b.register(asked.name, asked.key, asked.byte_size)
            except (ValueError, OSError) as error:
                context.abort(codes.INVALID_ARGUMENT, str(error))
            return {}
        return self._infer(asked, raw_inputs(request), context)

    def _infer(self, asked: Any, raw: Sequence[bytes], context: Any) -> dict[str, Any]:
        b, codes = self._behaviour, self._grpc.StatusCode
        if b.hangs is not None:
            b.hangs.wait(PATIENCE_S)
        if b.hangs_up or b.refuses == 503:
            b.hangs_up = max(0, b.hangs_up - 1)
            context.abort(codes.UNAVAILABLE, "gone")
        if b.refuses:
            context.abort(codes.INVALID_ARGUMENT, b.says)
        given = asked.inputs[0]
        parameters = _plain(given.parameters)
        data = b.region(parameters) if parameters else raw[0]
        scores = b.scores(np.frombuffer(data, np.float32).reshape(tuple(given.shape)))
        wanted = _plain(asked.outputs[0].parameters)
        content = [scores.tobytes()]
        if wanted:
            b.region(wanted)[: scores.nbytes] = content.pop()
        output = {"name": "scores", "datatype": "FP32", "shape": scores.shape}
        return {"outputs": [output], "raw_output_contents": content if b.binary else []}


def _plain(parameters: Any) -> dict[str, Any]:
    return {name: value.string_param or value.int64_param for name, value in parameters.items()}


def _methods(grpc: Any, server: GrpcV2) -> Any:
    class Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            method = details.method.rpartition("/")[2]

            def call(request: bytes, context: Any) -> bytes:
                found: bytes = triton_grpc._class(f"{method}Response")(
                    **server.answer(method, request, context)
                ).SerializeToString()
                return found

            return grpc.unary_unary_rpc_method_handler(call)

    return Methods()


def raw_inputs(message: bytes) -> list[bytes]:
    """Field 7 of a message, read as the encoding says, by nothing of ours."""
    found, at = [], 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 2:
            size, at = _varint(message, at)
            if key >> 3 == 7:
                found.append(message[at : at + size])
            at += size
        else:
            _, at = _varint(message, at)
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


SERVERS: dict[str, Callable[..., "HttpV2 | GrpcV2"]] = {"http": HttpV2, "grpc": GrpcV2}


@contextmanager
def v2_server(scheme: str, behaviour: Behaviour | None = None, port: int = 0) -> Iterator["HttpV2 | GrpcV2"]:
    """A server that answers; stopped at the end."""
    server = SERVERS[scheme](behaviour or Behaviour(), port)
    try:
        yield server
    finally:
        server.stop()
