"""From a folder to a model that may answer: check, open, prove, warm."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from isocenter.core.clock import Clock
from isocenter.core.errors import RuntimeLost, SetupError
from isocenter.core.events import Observer
from isocenter.core.tensor import Tensors
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.engine.memory import Footprint
from isocenter.engine.protocol import Engine
from isocenter.measure.memory import free_memory
from isocenter.repository import integrity
from isocenter.repository.accuracy import check_difference
from isocenter.repository.footprint import Measuring, meter_for
from isocenter.repository.golden import Pipeline, pipeline_of
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import FallbackPart, Manifest
from isocenter.repository.sessions import open_fallback, reopen
from isocenter.repository.sessions import open_sessions as open_sessions
from isocenter.repository.sessions import usable_cores as usable_cores
from isocenter.runtimes.base import Session, Trimmed
from isocenter.runtimes.registry import open_runtime


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of one model, proven and warm, with the engine that runs it."""

    folder: ModelFolder
    digest: str
    pipeline: Pipeline
    engine: Engine
    """What requests are sent to, in this process or in another."""
    service_s: dict[int, float]
    """Seconds of a session run by batch size, measured at warm-up."""
    footprint: Footprint | None = None
    """What an instance costs in memory, measured at warm-up; None where the system does not say."""
    own: InlineEngine | None = None
    """The engine itself, where it runs in this process."""

    @property
    def manifest(self) -> Manifest:
        """What the model promises."""
        return self.folder.manifest

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The model's version."""
        return self.manifest.version

    async def retire(self, bound_s: float) -> None:
        """Finish what is in within the bound, and stop; an engine in another process is not ours to stop."""
        if self.own is not None:
            await self.own.drain(bound_s)
            await self.own.stop()


def warm_up_sizes(manifest: Manifest) -> list[int]:
    """The batch sizes run before ready, which are the ones that the policy may form: the preferred ones, else doubling.

    Every size costs its run time twice at start, so not all of them are taken.
    """
    largest = manifest.batching.max_batch_size
    doubling = [1 << power for power in range(largest.bit_length())]
    return sorted({1, *(manifest.batching.preferred_batch_sizes or doubling), largest})


async def load(
    folder: ModelFolder,
    *,
    clock: Clock,
    observer: Observer,
    nice: int = 0,
    measure_memory: bool = True,
) -> ServedModel:
    """Bring one version to ready. If the server that it runs on cannot be reached, on its fallback, until it can.

    Args:
        nice: how much its threads stand back for those of other models.
        measure_memory: False where other work goes on in this process, which would be taken for the model's.

    Raises:
        SetupError: it is not what it claims to be; nothing of it is left running.
    """
    manifest = folder.manifest
    proven = await asyncio.to_thread(_prove, folder, nice, measure_memory)
    pipeline, fallback = proven.pipeline, manifest.fallback
    engine = InlineEngine(
        model=manifest.name,
        version=manifest.version,
        sessions=proven.sessions,
        rules=BatchRules(
            max_batch_size=manifest.batching.max_batch_size,
            preferred_batch_sizes=tuple(manifest.batching.preferred_batch_sizes),
            max_queue_delay_s=manifest.batching.max_queue_delay_ms / 1e3,
        ),
        max_queue_size=manifest.batching.max_queue_size,
        max_queue_bytes=manifest.batching.max_queue_bytes,
        timeout_s=manifest.slo.timeout_ms / 1e3,
        clock=clock,
        observer=observer,
        nice=nice,
        open_session=partial(reopen, folder, pipeline, nice=nice),
        open_fallback=partial(open_fallback, folder, fallback, pipeline, nice=nice) if fallback else None,
        fallback=fallback.label if fallback else "",
        standing_in=proven.standing_in,
        missing=0 if proven.sessions else manifest.instances.count,
        stand_in_s=proven.stand_in_s,
        free=free_memory,
    )
    try:
        await engine.start()
        service_s = await engine.warm_up(warm_up_sizes(manifest), proven.item, repeats=2)
        if manifest.input.kind == "volume3d" and manifest.batching.max_batch_size > 1:
            await asyncio.to_thread(_trim, proven.sessions, proven.item)
        engine.open()
    except BaseException:
        await engine.stop()
        raise
    return ServedModel(folder, proven.digest, pipeline, engine, dict(service_s), proven.footprint, engine)


def _trim(sessions: Sequence[Session], item: Tensors) -> None:
    """Of volumes, one mostly fills the machine; what several at once took at the warm-up would be held for nothing."""
    one = {name: array[np.newaxis] for name, array in item.items()}
    for session in sessions:
        if isinstance(session, Trimmed):
            session.trim(one)


def prove(folder: ModelFolder) -> str:
    """Everything that is proven before ready, on sessions that are closed again; gives the digest.

    Raises:
        SetupError, ModelFault: it is not what it claims to be.
    """
    proven = _prove(folder, 0, False, may_stand_in=False)
    proven.close()
    return proven.digest


@dataclass(slots=True)
class _Proven:
    """What the proofs left open: the model's own sessions, or one of its fallback that stands in for all of them."""

    digest: str
    pipeline: Pipeline
    item: Tensors
    """What a run is measured with."""
    sessions: list[Session]
    footprint: Footprint | None = None
    standing_in: Session | None = None
    stand_in_s: float = 0.0
    """What opening the fallback took."""

    def close(self) -> None:
        for session in self.sessions:
            session.close()


def _prove(folder: ModelFolder, nice: int, measure_memory: bool, *, may_stand_in: bool = True) -> _Proven:
    manifest = folder.manifest
    digest = integrity.check_digest(folder)
    check_difference(folder)
    pipeline = pipeline_of(manifest)
    open_runtime(manifest.runtime_kind)  # imported before its memory is measured
    measuring = Measuring(meter_for(manifest.instances.device) if measure_memory else None)
    try:
        sessions = list(measuring.open(lambda: open_sessions(folder, nice=nice)))
    except RuntimeLost as lost:
        if manifest.fallback is None or not may_stand_in:
            raise SetupError(f"{manifest.name} {manifest.version}: {lost.message}", details=lost.details) from lost
        return _prove_fallback(folder, manifest.fallback, nice, digest, pipeline)
    try:
        cases = integrity.golden_cases(folder)
        items = integrity.golden_items(cases, pipeline, sessions[0])
        # Before anything larger ran: a runtime keeps what its largest batch has taken.
        footprint = measuring.run(sessions[0], typical_item(manifest, items), warm_up_sizes(manifest))
        for session in sessions:
            integrity.check_golden(manifest, session, cases, items)
        integrity.check_batch_invariance(manifest, sessions[0], items)
        proven = _Proven(digest, pipeline, typical_item(manifest, items), sessions, footprint)
        if manifest.fallback is not None:
            began_s = time.perf_counter()
            open_fallback(folder, manifest.fallback, pipeline, nice=nice).close()
            proven.stand_in_s = time.perf_counter() - began_s
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return proven


def _prove_fallback(folder: ModelFolder, fallback: FallbackPart, nice: int, digest: str, pipeline: Pipeline) -> _Proven:
    """Everything that is proven of the model's own sessions, of the session that stands in for them."""
    manifest = folder.manifest.model_copy(update={"runtime": fallback})
    began_s = time.perf_counter()
    session = open_fallback(folder, fallback, pipeline, nice=nice)
    stand_in_s = time.perf_counter() - began_s
    try:
        cases = integrity.golden_cases(folder)
        items = integrity.golden_items(cases, pipeline, session)
        integrity.check_golden(manifest, session, cases, items)
        integrity.check_batch_invariance(manifest, session, items)
    except BaseException:
        session.close()
        raise
    item = typical_item(manifest, items)
    return _Proven(digest, pipeline, item, [], standing_in=session, stand_in_s=stand_in_s)


def typical_item(manifest: Manifest, items: list[Tensors]) -> Tensors:
    """What a run is measured with: the first golden item, or as much noise as a spatial window holds."""
    if manifest.sliding is None:
        return items[0]
    golden = items[0][manifest.input.tensor]
    if golden.shape[1:] == manifest.sliding.roi:
        return items[0]
    shape = (len(golden), *manifest.sliding.roi)
    return {manifest.input.tensor: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
