"""The composition root: picks the concrete classes, wires them, starts them in order and stops them backwards.

Two parts, which run in one process or in several: the engine room owns the models and counts what happens; a front
takes requests, decodes, and asks the engines.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from starlette.types import ASGIApp

from isocenter.api.http.application import build_http
from isocenter.api.http.exposition import Exposition, LocalMetrics
from isocenter.api.http.rehearsal import rehearse
from isocenter.api.http.reload import Reloads
from isocenter.api.http.server import HttpServer
from isocenter.api.listener import address, bound
from isocenter.core.clock import Clock, SystemClock
from isocenter.core.errors import BadSettings
from isocenter.core.events import Observer
from isocenter.imaging.limits import ImageLimits, VolumeLimits
from isocenter.process import connections_possible, settle_process, signals, tune_process
from isocenter.repository.layout import ModelFolder, scan
from isocenter.repository.load import ServedModel, load
from isocenter.repository.reload import Reloader
from isocenter.repository.repository import Repository
from isocenter.repository.sessions import niceness, usable_cores
from isocenter.runtimes.registry import AUTO
from isocenter.serving.budget import FORM_OVERHEAD_BYTES, ByteBudget
from isocenter.serving.cells import SegmentImage
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.health import Door, HealthCheck
from isocenter.serving.jobs.jobs import FILE_NAME, Jobs
from isocenter.serving.jobs.scan_jobs import ScanJobs
from isocenter.serving.jobs.store import JobStore
from isocenter.serving.memory_watch import MemoryWatch, Watched
from isocenter.serving.predict import Predict
from isocenter.serving.reloading import LocalReload, Reloading
from isocenter.serving.scan_paths import ScanRoots
from isocenter.serving.scans import SegmentScan
from isocenter.serving.segment import Segment
from isocenter.serving.stats import LocalStats, StatsSource
from isocenter.serving.volume_memory import VolumeMemory
from isocenter.settings import Settings
from isocenter.telemetry.gauges import engine_gauges, front_gauges
from isocenter.telemetry.live_stats import LiveStats
from isocenter.telemetry.logging import set_up_logging
from isocenter.telemetry.metrics import LiveGauge, Metrics, MetricsObserver
from isocenter.telemetry.observer import LogObserver, MutedUntilReady, Observers

# Of a JPEG, about 2 ms of decoding.
_HERE_MAX_PIXELS, _FEW_CORES = 400_000, 2


@dataclass(frozen=True, slots=True)
class EngineRoom:
    """What runs the models, and counts."""

    repository: Repository
    metrics: Metrics
    observer: MutedUntilReady
    counting: Observer
    """For what happened, and was logged, elsewhere."""
    stats: StatsSource
    live: LiveStats
    reloader: Reloader

    def count(self) -> None:
        """What happens from now on counts; what came before was loading and rehearsal."""
        self.observer.count()
        self.live.count_from_now()


@dataclass(frozen=True, slots=True)
class Front:
    """What takes requests."""

    http: ASGIApp
    predict: Predict
    segment: Segment
    cells: SegmentImage
    scans: SegmentScan
    health: HealthCheck
    door: Door
    pool: CpuPool
    bodies: ByteBudget
    jobs: Jobs | None
    """None: there is no folder for them."""


@dataclass(frozen=True, slots=True)
class Composition:
    """Everything that answers requests, without a network."""

    http: ASGIApp
    repository: Repository
    predict: Predict
    segment: Segment
    cells: SegmentImage
    scans: SegmentScan
    health: HealthCheck
    door: Door
    metrics: Metrics
    stats: StatsSource
    observer: Observer
    clock: Clock
    reloader: Reloader


class Bound(Protocol):
    """How long engines may take to finish what is in, asked when it is time."""

    def __call__(self) -> float: ...


@asynccontextmanager
async def open_service(
    settings: Settings, *, clock: Clock | None = None, logger: logging.Logger | None = None
) -> AsyncIterator[Composition]:
    """Load every model, prove it, warm it, and hold it ready, all in this process; on leaving, drain and stop.

    Raises:
        SetupError: a model is not what it claims to be. Nothing is served then.
    """
    if settings.frontends:
        raise BadSettings(
            f"frontends is {settings.frontends}: only `isocenter serve` starts processes; use frontends=0 here"
        )
    clock = clock or SystemClock()
    logger = logger or logging.getLogger("isocenter")
    door = Door()
    # If the door had to be closed on somebody, the time for finishing is used up.
    async with (
        open_engine_room(
            settings, clock=clock, logger=logger, bound_s=lambda: 0.1 if door.inside else settings.drain.bound_s
        ) as room,
        open_front(
            settings,
            repository=room.repository,
            metrics=LocalMetrics(room.metrics),
            stats=room.stats,
            reloads=LocalReload(room.reloader, logger),
            observer=room.observer,
            door=door,
            clock=clock,
            logger=logger,
        ) as front,
    ):
        room.metrics.add_live(*_gauges(room, front))
        with front.pool.warming_up():
            await rehearse(front.http, list(room.repository))
        room.count()
        yield Composition(
            front.http,
            room.repository,
            front.predict,
            front.segment,
            front.cells,
            front.scans,
            front.health,
            door,
            room.metrics,
            room.stats,
            room.observer,
            clock,
            room.reloader,
        )


@asynccontextmanager
async def open_engine_room(
    settings: Settings,
    *,
    clock: Clock,
    logger: logging.Logger,
    bound_s: Bound,
    also: Observer | None = None,
    dress: Callable[[ServedModel], ServedModel] = lambda model: model,
    on_change: Callable[[], None] = lambda: None,
) -> AsyncIterator[EngineRoom]:
    """Load every model, prove it, warm it; on leaving, drain and stop all of them.

    Args:
        settings: which models, and how memory is watched.
        clock: what deadlines are counted on.
        logger: for what an operator reads.
        bound_s: how long the engines may take in the end.
        also: hears of every event, loading and rehearsals included.
        dress: what is served in place of a model that was loaded.
        on_change: called when a reload has changed what is served.

    Raises:
        SetupError: a model is not what it claims to be.
    """
    metrics = Metrics()
    live = LiveStats(clock)
    counting = Observers(MetricsObserver(metrics), live)
    observer = MutedUntilReady(Observers(counting, LogObserver(logger)))
    told = Observers(observer, also) if also is not None else observer
    repository = Repository(default_model=settings.default_model)

    async def ready(folder: ModelFolder, *, alone: bool, weights: Iterable[float]) -> ServedModel:
        nice = niceness(folder.manifest.instances.weight, weights)
        served = await load(folder, clock=clock, observer=told, nice=nice, measure_memory=alone)
        manifest = served.manifest
        if manifest.runtime.kind == AUTO:
            chosen = {"model": served.name, "version": served.version, "kind": manifest.runtime_kind}
            logger.info("runtime_chosen", extra=chosen)
        return dress(served)

    async def ready_again(folder: ModelFolder) -> ServedModel:
        own = (folder.manifest.name, folder.manifest.version)
        weights = [each.manifest.instances.weight for each in repository if (each.name, each.version) != own]
        return await ready(folder, alone=False, weights=weights)

    async with AsyncExitStack() as stack:
        stack.push_async_callback(_retire_all, repository, bound_s)
        folders = scan(settings.models)
        weights = [folder.manifest.instances.weight for folder in folders]
        for folder in folders:
            repository.add(await ready(folder, alone=True, weights=weights))
        if settings.default_model is not None:
            repository.resolve(settings.default_model)
        await stack.enter_async_context(MemoryWatch(lambda: map(_watched, repository), clock=clock, observer=told))
        reloader = Reloader(
            repository,
            settings.models,
            load=ready_again,
            observer=told,
            drain_bound_s=settings.drain.bound_s,
            on_change=on_change,
        )
        stack.push_async_callback(reloader.close)
        yield EngineRoom(repository, metrics, observer, counting, LocalStats(repository, live), live, reloader)


@asynccontextmanager
async def open_front(
    settings: Settings,
    *,
    repository: Repository,
    metrics: Exposition,
    stats: StatsSource,
    reloads: Reloads,
    observer: Observer,
    door: Door,
    clock: Clock,
    logger: logging.Logger,
) -> AsyncIterator[Front]:
    """Put together what takes requests; on leaving, end its threads."""
    share = max(1, settings.frontends)
    limits = ImageLimits(max_bytes=settings.limits.max_bytes, max_pixels=settings.limits.max_pixels)
    bodies = ByteBudget(max(settings.limits.max_inflight_bytes // share, limits.max_bytes + FORM_OVERHEAD_BYTES))
    threads, here_max_pixels = _decoding(settings)
    # Front ends have a core each, more or less.
    cores = 1 if settings.frontends else usable_cores()
    async with (
        CpuPool(threads=threads, max_waiting=settings.decode.max_waiting, clock=clock, cores=cores) as pool,
        AsyncExitStack() as stack,
    ):
        predict = Predict(
            repository, pool, limits=limits, clock=clock, observer=observer, decode_here_max_pixels=here_max_pixels
        )
        volumes = VolumeMemory(settings.limits.max_volume_bytes // share, clock=clock)
        segment = Segment(repository, pool, clock=clock, observer=observer, memory=volumes)
        cells = SegmentImage(repository, pool, segment, limits=limits, clock=clock, observer=observer)
        of_scans = VolumeLimits(**settings.scans.model_dump(exclude={"roots"}))
        roots = ScanRoots(settings.scans.roots, limits=of_scans)
        scans = SegmentScan(repository, pool, segment, roots=roots, limits=of_scans, clock=clock, observer=observer)
        health = HealthCheck(repository, door, clock)
        jobs = _jobs(settings, scans, door, clock=clock, observer=observer, logger=logger)
        if jobs is not None:
            await stack.enter_async_context(jobs)
        http = build_http(
            predict=predict,
            cells=cells,
            scans=scans,
            jobs=jobs,
            repository=repository,
            health=health,
            door=door,
            metrics=metrics,
            stats=stats,
            reloads=reloads,
            reload_from=settings.http.reload_from,
            limits=limits,
            max_scan_bytes=min(of_scans.max_bytes, bodies.limit_bytes - FORM_OVERHEAD_BYTES),
            clock=clock,
            observer=observer,
            logger=logger,
            bodies=bodies,
            max_connections=max(1, min(settings.http.max_connections // share, connections_possible())),
        )
        yield Front(http, predict, segment, cells, scans, health, door, pool, bodies, jobs)


def _jobs(
    settings: Settings, scans: SegmentScan, door: Door, *, clock: Clock, observer: Observer, logger: logging.Logger
) -> Jobs | None:
    """What keeps and runs jobs. Of several front ends, the first that locks the folder runs them."""
    given = settings.jobs
    if given.folder is None:
        return None
    store = JobStore(given.folder / FILE_NAME, max_queued=given.max_queued, max_disk_bytes=given.max_disk_bytes)
    return Jobs(
        store,
        lambda jobs: ScanJobs(scans, jobs.on_thread),
        clock=clock,
        observer=observer,
        logger=logger,
        at_once=given.at_once,
        retention_s=given.retention_s,
        shared=settings.frontends > 0,
        may_begin=lambda: door.is_open,
    )


def _decoding(settings: Settings) -> tuple[int, int]:
    """Decode threads, and the pixels up to which none is needed.

    A front end has a core to itself, more or less. On one core or two, a model and an event loop are enough to keep
    them busy, and threads that wait for the interpreter's lock are not (`docs/decisions/0004-frontends.md`).
    """
    threads, here = settings.decode.threads, settings.decode.here_max_pixels
    if threads == "auto":
        threads = 1 if settings.frontends else usable_cores()
    if here == "auto":
        here = _HERE_MAX_PIXELS if settings.frontends or usable_cores() <= _FEW_CORES else 0
    return threads, here


async def serve(settings: Settings, *, announce: Callable[[str, int], None] = lambda *_: None) -> bool:
    """Serve until SIGTERM or SIGINT, then drain. True if everything that was in got its answer within the bound.

    `announce` is called with the address and the number of models once requests are answered.

    Raises:
        SetupError: nothing could be served.
    """
    logger = set_up_logging(settings.log_level)
    tune_process(settings.http.max_connections)
    asked_early = asyncio.Event()  # while models are loaded: some of them may have been read before they were changed
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked_early.set)
    with bound(settings.http.host, settings.http.port) as listener:
        async with open_service(settings, logger=logger) as service:
            stop = asyncio.Event()
            reloading = Reloading(service.reloader, logger)
            with signals(stop, reloading.begin, logger):
                server = http_server(service.http, settings)
                running = asyncio.create_task(server.serve(sockets=[listener]), name="http")
                await server.listening.wait()
                settle_process()
                host, port, url = address(listener)
                logger.info("ready", extra={"host": host, "port": port, "models": len(list(service.repository))})
                announce(url, len({model.name for model in service.repository}))
                if asked_early.is_set():
                    reloading.begin()
                stopping = asyncio.create_task(stop.wait(), name="stop")
                await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                left, seconds = await drain(service.door, settings)
                logger.info("drained", extra={"left": left, "seconds": seconds})
                server.should_exit = True
                await running
    logger.info("stopped", extra={"left": service.door.inside})
    return left == 0


def http_server(http: ASGIApp, settings: Settings) -> HttpServer:
    """The server for an application, not yet running."""
    return HttpServer(http, backlog=settings.http.backlog, keep_alive_s=settings.http.keep_alive_s)


async def drain(door: Door, settings: Settings) -> tuple[int, float]:
    """Close the door, wait for those inside, and keep telling newcomers 503 for a while; who was left, and seconds."""
    door.close()
    started_s = asyncio.get_running_loop().time()
    lingered = asyncio.create_task(asyncio.sleep(settings.drain.linger_s))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.drain.bound_s):
            await door.emptied()
    await lingered
    return door.inside, round(asyncio.get_running_loop().time() - started_s, 3)


async def _retire_all(repository: Repository, bound_s: Bound) -> None:
    """Finish what is in, then stop the engines, the last one first."""
    for model in reversed(list(repository)):
        await model.retire(bound_s())


def _watched(model: ServedModel) -> Watched:
    assert model.own is not None
    return Watched(model.own, model.manifest.batching.max_batch_size)


def queued_items(repository: Repository) -> list[tuple[str, int, int]]:
    """Name, version and items that wait of each model."""
    return [(model.name, model.version, model.engine.queued) for model in repository]


def _gauges(room: EngineRoom, front: Front) -> tuple[LiveGauge, ...]:
    return (
        *engine_gauges(lambda: queued_items(room.repository)),
        *front_gauges(
            decoding=lambda: front.pool.waiting,
            inside=lambda: front.door.inside,
            body_bytes=lambda: front.bodies.in_use_bytes,
            jobs_queued=lambda: front.jobs.queued if front.jobs else 0,
            jobs_running=lambda: front.jobs.running if front.jobs else 0,
            ready=front.health.ready,
        ),
    )
