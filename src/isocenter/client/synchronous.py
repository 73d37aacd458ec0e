"""The client for programs without an event loop: the same calls, on a thread of its own."""

import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

from isocenter.client.answers import Cells, Format, Health, Model, Prediction
from isocenter.client.asynchronous import AsyncClient
from isocenter.client.image import Image
from isocenter.core.loop_thread import LoopThread

T = TypeVar("T")


class Asked(TypedDict, total=False):
    """What may be said beside the image; see `AsyncClient.predict`."""

    model: str | None
    version: int | None
    timeout_s: float | None
    request_id: str | None


class AskedOfCells(Asked, total=False):
    """What may be said beside the image; see `AsyncClient.segment`."""

    threshold: float | None
    detect_holes: bool | None
    channel: str | int | None
    page: int | None


class Client:
    """A server at an address.

        with Client("http://127.0.0.1:8000") as client:
            answer = client.predict("slice.png")

    Any number of threads may call at once; they share connections. Everything is as `AsyncClient` says, and so are the
    arguments. The thread begins with the first call and ends with `close`; Ctrl-C during a call abandons that call.

    Raises:
        MissingExtra: httpx is not installed.
        ValueError: that is no address, or a limit is not positive.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._client = AsyncClient(url, **options)
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address."""
        return self._client.url

    def close(self) -> None:
        """Close the connections and end the thread; calls that are under way end with `Draining`. Twice is once."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()

    def predict(self, image: Image, **asked: Unpack[Asked]) -> Prediction:
        """Classify one image; see `AsyncClient.predict`."""
        return self._call(self._client.predict(image, **asked))

    def segment(self, image: Image, *, format: Format = "json", **asked: Unpack[AskedOfCells]) -> Cells:
        """Find the objects of one image; see `AsyncClient.segment`."""
        return self._call(self._client.segment(image, format=format, **asked))

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """Every served version."""
        return self._call(self._client.models(timeout_s=timeout_s))

    def model(self, name: str, version: int | None = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Everything about one version; see `AsyncClient.model`."""
        return self._call(self._client.model(name, version, timeout_s=timeout_s))

    def stats(self, model: str, version: int | None = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        """How one version did in the last minute; see `AsyncClient.stats`."""
        return self._call(self._client.stats(model, version, timeout_s=timeout_s))

    def health(self, *, timeout_s: float | None = None) -> Health:
        """How the server is; see `AsyncClient.health`."""
        return self._call(self._client.health(timeout_s=timeout_s))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError("the client is closed")
            if self._thread is None:
                self._thread = LoopThread(self._client, name="isocenter-client", what="the client")
                self._thread.open()
            thread = self._thread
        return thread.call(work)
