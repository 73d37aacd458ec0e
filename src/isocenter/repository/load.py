"""From a folder to a model that may answer: check, open, prove, warm."""

import asyncio
import os
from dataclasses import dataclass

from isocenter.core.clock import Clock
from isocenter.core.errors import SetupError
from isocenter.core.events import Observer
from isocenter.core.tensor import FloatArray
from isocenter.engine.batch_policy import BatchRules
from isocenter.engine.engine import InlineEngine
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository import integrity
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Manifest
from isocenter.runtimes.base import Session, SessionOptions
from isocenter.runtimes.registry import open_runtime


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of one model, proven and warm, with the engine that runs it."""

    folder: ModelFolder
    digest: str
    pipeline: FastPipeline
    engine: InlineEngine
    service_s: dict[int, float]
    """Median seconds of a session run by batch size, measured at warm-up."""

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


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def session_threads(manifest: Manifest) -> int:
    """Threads for each instance; `auto` shares the usable cores out over the instances."""
    threads = manifest.instances.threads
    return max(1, usable_cores() // manifest.instances.count) if threads == "auto" else threads


def open_sessions(folder: ModelFolder) -> list[Session]:
    """One session an instance, with the tensors that the manifest names."""
    manifest = folder.manifest
    runtime = open_runtime(manifest.runtime.kind)
    options = SessionOptions(
        precision=manifest.runtime.precision,
        device=manifest.instances.device,
        threads=session_threads(manifest),
        options=dict(manifest.runtime.options),
    )
    sessions = [runtime.open(folder.weights, options) for _ in range(manifest.instances.count)]
    for session in sessions:
        integrity.check_tensors(manifest, session)
    return sessions


def warm_up_sizes(manifest: Manifest) -> list[int]:
    """The batch sizes run before ready, which are the ones that the policy may form: the preferred ones, else doubling.

    Every size costs its run time twice at start, so not all of them are taken.
    """
    largest = manifest.batching.max_batch_size
    doubling = [1 << power for power in range(largest.bit_length())]
    return sorted({1, *(manifest.batching.preferred_batch_sizes or doubling), largest})


async def load(folder: ModelFolder, *, clock: Clock, observer: Observer) -> ServedModel:
    """Bring one version to ready.

    Raises:
        SetupError: it is not what it claims to be; nothing of it is left running.
    """
    manifest = folder.manifest
    digest, pipeline, sessions, items = await asyncio.to_thread(_prove, folder)
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
        clock=clock,
        observer=observer,
    )
    try:
        await engine.start()
        service_s = await engine.warm_up(warm_up_sizes(manifest), {manifest.input.tensor: items[0]}, repeats=1)
        engine.open()
    except BaseException:
        await engine.stop()
        raise
    return ServedModel(folder, digest, pipeline, engine, dict(service_s))


def _prove(folder: ModelFolder) -> tuple[str, FastPipeline, list[Session], list[FloatArray]]:
    manifest = folder.manifest
    digest = integrity.check_digest(folder)
    pipeline = FastPipeline(manifest.transforms)
    sessions = open_sessions(folder)
    try:
        cases = integrity.golden_cases(folder)
        items = integrity.golden_items(cases, pipeline)
        taken, _ = integrity.check_tensors(manifest, sessions[0])
        if not taken.describes(items[0]):
            raise SetupError(
                f"{manifest.name}: the transforms give {list(items[0].shape)}, the model takes {list(taken.shape)}"
            )
        for session in sessions:
            integrity.check_golden(manifest, session, cases, items)
        integrity.check_batch_invariance(manifest, sessions[0], items)
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return digest, pipeline, sessions, items
