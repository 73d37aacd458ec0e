"""The composition root: picks the concrete classes, wires them, starts them in order and stops them backwards."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import uvicorn
from starlette.types import ASGIApp

from isocenter.api.http.application import build_http
from isocenter.core.clock import Clock, SystemClock
from isocenter.core.errors import BadSettings, SetupError
from isocenter.imaging.limits import ImageLimits
from isocenter.repository import integrity
from isocenter.repository.layout import scan
from isocenter.repository.load import ServedModel, load, usable_cores
from isocenter.repository.repository import Repository
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.health import Door, HealthCheck
from isocenter.serving.predict import Predict
from isocenter.settings import Settings
from isocenter.telemetry.logging import set_up_logging
from isocenter.telemetry.metrics import LiveGauge, Metrics, MetricsObserver
from isocenter.telemetry.observer import LogObserver, MutedUntilReady, Observers

_REHEARSALS = 8
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that answers requests, without a network."""

    http: ASGIApp
    repository: Repository
    predict: Predict
    health: HealthCheck
    door: Door
    metrics: Metrics


@asynccontextmanager
async def open_service(
    settings: Settings, *, clock: Clock | None = None, logger: logging.Logger | None = None
) -> AsyncIterator[Service]:
    """Load every model, prove it, warm it, and hold it ready; on leaving, drain and stop.

    Raises:
        SetupError: a model is not what it claims to be. Nothing is served then.
    """
    if settings.frontends:
        raise BadSettings(
            f"frontends is {settings.frontends}: this version runs everything in one process; use --frontends 0"
        )
    clock = clock or SystemClock()
    logger = logger or logging.getLogger("isocenter")
    metrics = Metrics()
    observer = MutedUntilReady(Observers(MetricsObserver(metrics), LogObserver(logger)))
    limits = ImageLimits(max_bytes=settings.limits.max_bytes, max_pixels=settings.limits.max_pixels)
    threads = settings.decode.threads if settings.decode.threads != "auto" else usable_cores()
    door = Door()
    repository = Repository(default_model=settings.default_model)
    async with AsyncExitStack() as stack:
        for folder in scan(settings.models):
            model = await load(folder, clock=clock, observer=observer)
            stack.push_async_callback(_retire, model, door, settings.drain.bound_s)
            repository.add(model)
        if settings.default_model is not None:
            repository.resolve(settings.default_model)
        pool = await stack.enter_async_context(
            CpuPool(threads=threads, max_waiting=settings.decode.max_waiting, clock=clock)
        )
        predict = Predict(repository, pool, limits=limits, clock=clock, observer=observer)
        health = HealthCheck(repository, door, clock)
        metrics.add_live(*_live_gauges(repository, pool, door, health))
        http = build_http(
            predict=predict,
            repository=repository,
            health=health,
            door=door,
            metrics=metrics,
            limits=limits,
            clock=clock,
            observer=observer,
            logger=logger,
        )
        for model in repository:
            await _rehearse(http, model)
        observer.count()
        yield Service(http, repository, predict, health, door, metrics)


async def serve(settings: Settings, *, announce: Callable[[str], None] = lambda _: None) -> bool:
    """Serve until SIGTERM or SIGINT, then drain. True if everything that was in got its answer within the bound.

    `announce` is called with the address once requests are answered.

    Raises:
        SetupError: nothing could be served.
    """
    logger = set_up_logging(settings.log_level)
    tune_process()
    with _listener(settings) as listener:
        async with open_service(settings, logger=logger) as service:
            stop = asyncio.Event()
            with _signals(stop, logger):
                server = _Server(_uvicorn_config(service.http, settings))
                running = asyncio.create_task(server.serve(sockets=[listener]), name="http")
                await server.listening.wait()
                host, port = listener.getsockname()[:2]
                logger.info("ready", extra={"host": host, "port": port, "models": len(list(service.repository))})
                announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
                stopping = asyncio.create_task(stop.wait(), name="stop")
                await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                whole = await _drain(service, settings, logger)
                server.should_exit = True
                await running
    logger.info("stopped", extra={"left": service.door.inside})
    return whole


def tune_process() -> None:
    """Process-wide choices that libraries leave to the program.

    OpenCV's and BLAS' own threads would compete with the decode pool for the same cores. On glibc, memory that was
    freed is kept up to a bound: handing 600 KB arrays back to the system and taking them again costs more (page
    faults) than decoding does.
    """
    cv2.setNumThreads(1)
    sys.setswitchinterval(0.001)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 8 * 2**20)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: it would close the listening socket before the drain."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        try:
            await super().startup(sockets)
        finally:
            self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(http: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        http,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=settings.http.backlog,
        timeout_keep_alive=int(max(1, settings.http.keep_alive_s)),
        timeout_graceful_shutdown=1,  # the door has waited already
    )


@contextmanager
def _listener(settings: Settings) -> Iterator[socket.socket]:
    """Bind before the models are loaded, so that a taken port is said at once; listen only when ready."""
    host, port = settings.http.host, settings.http.port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BadSettings(f"cannot listen on {host} port {port}: {reason}") from error
        yield listener
    finally:
        listener.close()


@contextmanager
def _signals(stop: asyncio.Event, logger: logging.Logger) -> Iterator[None]:
    """The first signal drains; the second ends the process at once."""
    loop = asyncio.get_running_loop()

    def caught(number: signal.Signals) -> None:
        if stop.is_set():
            logger.warning("forced", extra={"signal": number.name})
            os._exit(1)
        logger.info("stopping", extra={"signal": number.name})
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, caught, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _drain(service: Service, settings: Settings, logger: logging.Logger) -> bool:
    """Close the door, wait for those inside, and keep telling newcomers 503 for a while."""
    service.door.close()
    started_s = asyncio.get_running_loop().time()
    lingered = asyncio.create_task(asyncio.sleep(min(settings.drain.linger_s, settings.drain.bound_s)), name="linger")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.drain.bound_s):
            await service.door.emptied()
    await lingered
    seconds = asyncio.get_running_loop().time() - started_s
    logger.info("drained", extra={"left": service.door.inside, "seconds": round(seconds, 3)})
    return service.door.inside == 0


async def _retire(model: ServedModel, door: Door, bound_s: float) -> None:
    """Stop one engine. If the door had to be closed on somebody, the time for finishing is used up."""
    await model.engine.drain(0.1 if door.inside else bound_s)
    await model.engine.stop()


async def _rehearse(http: ASGIApp, model: ServedModel) -> None:
    """Send golden images through the whole application, so that no caller pays for what is done only once."""
    case = integrity.golden_cases(model.folder)[0]
    await asyncio.gather(*(_ask(http, model, case.image) for _ in range(_REHEARSALS)))


async def _ask(http: ASGIApp, model: ServedModel, image: bytes) -> None:
    boundary = "rehearsal"
    body = b'--%b\r\nContent-Disposition: form-data; name="image"\r\n\r\n%b\r\n--%b--\r\n' % (
        boundary.encode(),
        image,
        boundary.encode(),
    )
    statuses: list[int] = []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "query_string": f"model={model.name}&version={model.version}".encode(),
        "headers": [(b"content-type", f"multipart/form-data; boundary={boundary}".encode())],
        "client": None,
        "server": None,
    }

    async def receive() -> dict[str, object]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await http(scope, receive, send)
    if statuses != [200]:
        raise SetupError(f"{model.name}: its own golden image was answered with {statuses}; is a limit below it?")


def _live_gauges(repository: Repository, pool: CpuPool, door: Door, health: HealthCheck) -> tuple[LiveGauge, ...]:
    def queued() -> list[tuple[dict[str, str], float]]:
        return [({"model": m.name, "version": str(m.version)}, float(m.engine.queued)) for m in repository]

    return (
        LiveGauge("isocenter_queue_items", "Requests waiting in an engine's queue.", queued),
        LiveGauge("isocenter_decode_waiting_items", "Images in the decode pool.", lambda: [({}, float(pool.waiting))]),
        LiveGauge("isocenter_requests_in_progress", "Requests inside.", lambda: [({}, float(door.inside))]),
        LiveGauge("isocenter_ready", "1 if requests should be sent here.", lambda: [({}, float(health.ready()))]),
    )
