"""One way to segment a volume, in a process of its own that does so whenever a line asks it to.

Lines in and out are JSON: {"do": "open"}, {"do": "volume"}, {"do": "save"}, and for our own ways {"do": "bare"},
{"do": "together"}, {"do": "picture"}. What fails is {"error": …}.
"""

import asyncio
import json
import sys
import time
import warnings
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from asked_process import AskedProcess, answer_lines, asked_process
from isocenter.core.tensor import Array, FloatArray
from isocenter.measure.memory import ProcessMemory, free_memory

T = TypeVar("T")

SEED = 5
OVERLAP = 0.25
INPUT, OUTPUT = "x", "y"
SEVERAL = 2
"""Instances that share the cores out, where not one has them all."""
_LONG_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Way:
    """Who slides the windows, and what runs them."""

    slides: str
    """monai, or isocenter."""
    runs: str
    """torch, onnxruntime, openvino."""
    models: str
    """Holds one model folder for each number of instances of a runtime, see `folder_name`."""
    threads: int
    """Of all instances together."""
    instances: int = 1

    def __str__(self) -> str:
        return f"{self.slides} over {self.runs}" + (f", {self.instances} instances" if self.instances > 1 else "")


def folder_name(runs: str, instances: int) -> str:
    """The model folder with `volumes-<runtime>` and the demonstration's classifier."""
    return f"{runs}-{instances}"


def opened(way: Way) -> AbstractContextManager[AskedProcess]:
    """The way in its own process, which is gone afterwards; idle unless asked."""
    return asked_process(__file__, asdict(way))


def network() -> Any:
    """MONAI's BasicUNet with random weights that are always the same; torch's own convolutions."""
    import torch
    from monai.networks.nets.basic_unet import BasicUNet

    torch.manual_seed(11)
    return BasicUNet(spatial_dims=3, in_channels=1, out_channels=2, features=(16, 16, 32, 64, 128, 16)).eval()


def volume(size: list[int], seed: int = SEED) -> FloatArray:
    """Noise [1, *size]."""
    return np.random.default_rng(seed).standard_normal((1, *size)).astype(np.float32)


class Monai:
    """MONAI's own inferer; what it gives are scores, and labels are the largest of them."""

    def __init__(self, way: Way, roi: int) -> None:
        import torch

        torch.set_num_threads(way.threads)
        self._torch, self._roi = torch, roi
        self._call = network() if way.runs == "torch" else self._session(way)
        self._spent_s, self._scores = 0.0, np.zeros(0, np.float32)
        with torch.inference_mode():
            self._call(torch.zeros(1, 1, roi, roi, roi))

    def volume(self, size: list[int]) -> dict[str, float]:
        """Seconds of one volume, and of the network in it."""
        from monai.inferers.utils import sliding_window_inference

        given = self._torch.from_numpy(volume(size)[np.newaxis])
        self._scores, self._spent_s = np.zeros(0, np.float32), 0.0
        free_memory()
        with self._torch.inference_mode():
            peak = _Peak()
            began_s = time.perf_counter()
            scores: Any = sliding_window_inference(given, self._roi, 1, self._counted, overlap=OVERLAP, mode="gaussian")
            seconds, held = time.perf_counter() - began_s, peak.bytes()
            began_s = time.perf_counter()
            scores.argmax(1)
            labels_s = time.perf_counter() - began_s
        self._scores = scores[0].numpy()
        return {"seconds": seconds, "labels_s": labels_s, "network_s": self._spent_s, **held}

    def save(self, out: str, size: list[int]) -> dict[str, Any]:
        """Labels of the last volume, and scores of another one."""
        labels = self._scores.argmax(0).astype(np.uint8)
        self.volume(size)
        np.savez(out, labels=labels, values=self._scores)
        return {}

    def _counted(self, windows: Any) -> Any:
        began_s = time.perf_counter()
        found = self._call(windows)
        self._spent_s += time.perf_counter() - began_s
        return found

    def _session(self, way: Way) -> Callable[[Any], Any]:
        session = _session(way)
        return lambda given: self._torch.from_numpy(session.run({INPUT: given.contiguous().numpy()})[OUTPUT])


class Ours:
    """This project as a library, its engine and all, in this process."""

    def __init__(self, way: Way, roi: int) -> None:
        self._way, self._roi, self._model = way, roi, f"volumes-{way.runs}"
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._bare: Any = None
        self._found: Any = None
        self._here: Any = self._do(self._opened())

    def volume(self, size: list[int]) -> dict[str, float]:
        """Seconds of one volume, labels included."""
        given, self._found = _as_volume(volume(size)), None
        free_memory()
        peak = _Peak()
        began_s = time.perf_counter()
        self._found = self._do(self._segment(given, "one"))
        seconds, held = time.perf_counter() - began_s, peak.bytes()
        stages = {f"{stage}_s": seconds for stage, seconds in self._found.stages_s.items()}
        return {"seconds": seconds, **held, **stages}

    def save(self, out: str, size: list[int]) -> dict[str, Any]:
        """Labels of the last volume, and scores of another one: they are not kept where labels are asked for."""
        np.savez(out, labels=self._found.mask, values=self._scores(tuple(size)))
        return {}

    def bare(self, seconds: float) -> dict[str, float]:
        """Windows a second of a session of the same file with nothing around it."""
        if self._bare is None:
            self._bare = _session(self._way)
        given = {INPUT: np.zeros((1, 1, *[self._roi] * 3), np.float32)}
        self._bare.run(given)
        runs, began_s = 0, time.perf_counter()
        while runs < 3 or time.perf_counter() - began_s < seconds:
            self._bare.run(given)
            runs += 1
        return {"per_s": runs / (time.perf_counter() - began_s)}

    def together(self, size: list[int], scans: int, pictures: bool) -> dict[str, Any]:
        """Several volumes at once; and, if asked for, one picture after the other beside them."""
        return self._do(self._together(size, scans, pictures))

    def picture(self, times: int) -> dict[str, Any]:
        """Seconds of a picture alone, one after the other."""
        return {"seconds": [self._do(self._predict()) for _ in range(times)]}

    async def _together(self, size: list[int], scans: int, pictures: bool) -> dict[str, Any]:
        given = [_as_volume(volume(size, SEED + number)) for number in range(scans)]
        before, began_s = self._counts(), time.perf_counter()
        work = asyncio.gather(*(self._segment(each, str(number)) for number, each in enumerate(given)))
        waits: list[float] = []
        while pictures and not work.done():
            await asyncio.sleep(0.5)
            waits.append(await self._predict())
        found = await work
        seconds, after = time.perf_counter() - began_s, self._counts()
        return {
            "seconds": seconds,
            "windows": sum(each.windows for each in found),
            "batches": after[0] - before[0],
            "shared": after[1] - before[1],
            "pictures_s": waits,
        }

    async def _opened(self) -> Any:
        from isocenter.app import open_service
        from isocenter.settings import load_settings

        models = Path(self._way.models) / folder_name(self._way.runs, self._way.instances)
        settings = load_settings(models=models, frontends=0)
        return await self._stack.enter_async_context(open_service(settings))

    async def _segment(self, given: Any, name: str) -> Any:
        return await self._here.segment(given, request_id=name, model=self._model)

    async def _predict(self) -> float:
        from isocenter.imaging.phantoms import brain_slice

        pixels = brain_slice(2_000_000).pixels
        began_s = time.perf_counter()
        await self._here.predict(_png(pixels), request_id="picture", model="brain-mri-classifier", deadline=None)
        return time.perf_counter() - began_s

    def _counts(self) -> tuple[float, float]:
        """Runs of the model's session, and those that several volumes shared."""
        said = dict(line.rsplit(" ", 1) for line in self._here.metrics.text().decode().splitlines() if line[0] != "#")
        where = f'{{model="{self._model}",version="1"}}'
        names = ("isocenter_batch_size_items_count", "isocenter_batches_shared_total")
        runs, shared = (float(said.get(name + where, 0.0)) for name in names)
        return runs, shared

    def _scores(self, shape: tuple[int, ...]) -> FloatArray:
        """What the engine's answers are merged into, before the activation."""
        from isocenter.core.clock import SystemClock
        from isocenter.core.deadline import Deadline
        from isocenter.imaging.sliding.merge import Whole
        from isocenter.imaging.sliding.plan import plan
        from isocenter.serving.segment import WindowRun

        served = self._here.repository.resolve(self._model, 1)
        windows = plan(shape, (self._roi,) * 3, overlap=OVERLAP)
        given, whole = volume(list(shape)), Whole(shape)
        run = WindowRun(
            served, windows, lambda at: windows.cut(given, at), Deadline.never(), 0, "scores", "", SystemClock()
        )
        self._do(run.into(whole))
        return whole.array

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


class _Peak:
    """What is held at the most, in all and more than before."""

    def __init__(self) -> None:
        self._memory = ProcessMemory()
        self._memory.reset_peak()
        self._before = self._memory.held_bytes() or 0

    def bytes(self) -> dict[str, float]:
        """Since it was made; without a permission to begin a new peak, since the process began."""
        peak = self._memory.peak_bytes() or 0
        return {"more_bytes": peak - self._before, "peak_bytes": peak}


def _session(way: Way) -> Any:
    from isocenter.runtimes.base import SessionOptions
    from isocenter.runtimes.registry import open_runtime

    file = Path(way.models) / folder_name(way.runs, 1) / f"volumes-{way.runs}" / "1" / "model.onnx"
    return open_runtime(way.runs).open(file, SessionOptions(precision="fp32", threads=way.threads))


def _as_volume(voxels: Array) -> Any:
    from isocenter.imaging.volume import Volume

    return Volume.of(voxels)


def _png(pixels: Array) -> bytes:
    import cv2

    return cv2.imencode(".png", pixels)[1].tobytes()


def main() -> None:
    """Do what each line asks for."""
    warnings.simplefilter("ignore")
    way = Way(**json.loads(sys.argv[1]))
    work: Any = None

    def do(what: str, **more: Any) -> dict[str, Any]:
        nonlocal work
        if what == "open":
            work = (Monai if way.slides == "monai" else Ours)(way, **more)
            return {}
        answer: dict[str, Any] = getattr(work, what)(**more)
        return answer

    answer_lines(do)


if __name__ == "__main__":
    main()
