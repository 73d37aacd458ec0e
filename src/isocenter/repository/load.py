"""From a folder to a model that may answer: check, open, prove, warm."""

import asyncio
from dataclasses import dataclass
from functools import partial

from isocenter.core.clock import Clock
from isocenter.core.errors import SetupError
from isocenter.core.events import Observer
from isocenter.core.tensor import FloatArray
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.engine.memory import Footprint
from isocenter.engine.protocol import Engine
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.measure.memory import free_memory
from isocenter.repository import integrity
from isocenter.repository.footprint import Measuring, meter_for
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Manifest
from isocenter.repository.sessions import open_fallback, reopen
from isocenter.repository.sessions import open_sessions as open_sessions
from isocenter.repository.sessions import usable_cores as usable_cores
from isocenter.runtimes.base import Session
from isocenter.runtimes.registry import open_runtime


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of one model, proven and warm, with the engine that runs it."""

    folder: ModelFolder
    digest: str
    pipeline: FastPipeline
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
    """Bring one version to ready.

    Args:
        nice: how much its threads stand back for those of other models.
        measure_memory: False where other work goes on in this process, which would be taken for the model's.

    Raises:
        SetupError: it is not what it claims to be; nothing of it is left running.
    """
    manifest = folder.manifest
    digest, pipeline, sessions, items, footprint = await asyncio.to_thread(_prove, folder, nice, measure_memory)
    fallback = manifest.fallback
    engine = InlineEngine(
        model=manifest.name,
        version=manifest.version,
        sessions=sessions,
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
        free=free_memory,
    )
    try:
        await engine.start()
        service_s = await engine.warm_up(warm_up_sizes(manifest), {manifest.input.tensor: items[0]}, repeats=2)
        engine.open()
    except BaseException:
        await engine.stop()
        raise
    return ServedModel(folder, digest, pipeline, engine, dict(service_s), footprint, engine)


def _prove(
    folder: ModelFolder, nice: int, measure_memory: bool
) -> tuple[str, FastPipeline, list[Session], list[FloatArray], Footprint | None]:
    manifest = folder.manifest
    digest = integrity.check_digest(folder)
    pipeline = FastPipeline(manifest.transforms)
    open_runtime(manifest.runtime.kind)  # imported before its memory is measured
    measuring = Measuring(meter_for(manifest.instances.device) if measure_memory else None)
    sessions = list(measuring.open(lambda: open_sessions(folder, nice=nice)))
    try:
        cases = integrity.golden_cases(folder)
        items = integrity.golden_items(cases, pipeline)
        taken, _ = integrity.check_tensors(manifest, sessions[0])
        if not taken.describes(items[0]):
            raise SetupError(
                f"{manifest.name}: the transforms give {list(items[0].shape)}, the model takes {list(taken.shape)}"
            )
        # Before anything larger ran: a runtime keeps what its largest batch has taken.
        footprint = measuring.run(sessions[0], {manifest.input.tensor: items[0]}, warm_up_sizes(manifest))
        for session in sessions:
            integrity.check_golden(manifest, session, cases, items)
        integrity.check_batch_invariance(manifest, sessions[0], items)
        if manifest.fallback is not None:
            open_fallback(folder, manifest.fallback, pipeline, nice=nice).close()
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return digest, pipeline, sessions, items, footprint
