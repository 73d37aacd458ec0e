"""A network of torch as a session on a GPU: its own stream, pinned staging, CUDA graphs."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from isocenter.core.errors import BadManifest
from isocenter.core.tensor import Array, TensorSpec
from isocenter.runtimes.torch_session import How, Module, TorchSession

_RUNS_BEFORE_CAPTURE: Final = 3


class _Rounding:
    """Whether fp32 products may be rounded to tf32. torch has one switch for the process, so all sessions agree."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Counter[bool] = Counter()

    def join(self, tf32: bool) -> None:
        """Set the switch, or find it set.

        Raises:
            BadManifest: another session needs it the other way.
        """
        with self._lock:
            if self._open[not tf32]:
                raise BadManifest(
                    f"torch rounds fp32 products to tf32 for a whole process or not at all, and a session with "
                    f"{'fp32' if tf32 else 'tf32'} is open on a GPU; runtime onnxruntime has both side by side"
                )
            self._open[tf32] += 1
            torch.backends.cuda.matmul.allow_tf32 = tf32
            torch.backends.cudnn.allow_tf32 = tf32

    def leave(self, tf32: bool) -> None:
        """One session less."""
        with self._lock:
            self._open[tf32] -= 1


_rounding = _Rounding()


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    taken: list[torch.Tensor]
    given: list[torch.Tensor]


class CudaSession(TorchSession):
    """One network on a GPU. Copies and products of a session are in its own stream; it waits asleep."""

    def __init__(self, module: Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], how: How) -> None:
        self._device = torch.device(how.device.kind, how.device.index)
        self._stream = torch.cuda.Stream(self._device)
        self._done = torch.cuda.Event(blocking=True)
        self._pinned: dict[int, torch.Tensor] = {}
        self._captured: dict[tuple[tuple[int, ...], ...], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle() if how.cuda_graphs else None
        self._tf32 = how.precision == "tf32"
        _rounding.join(self._tf32)
        self._joined = True
        try:
            super().__init__(module, inputs, outputs, how)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the network, its graphs and its staging memory."""
        self._captured.clear()
        self._pinned.clear()
        super().close()
        if self._joined:
            self._joined = False
            _rounding.leave(self._tf32)

    def _compute(self, call: Module, arrays: Sequence[Array]) -> list[Array]:
        with self._computing():
            staged = [self._staged(index, array) for index, array in enumerate(arrays)]
            given = self._replayed(call, staged) if self._pool is not None and self._seen else self._eager(call, staged)
            landed = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in given]
            for there, tensor in zip(landed, given, strict=True):
                there.copy_(tensor, non_blocking=True)
            self._done.record(self._stream)
            self._done.synchronize()
            # Pinned memory is scarce and goes back to torch; the caller gets ordinary memory.
            return [np.array(tensor.numpy()) for tensor in landed]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream), super()._computing():
            yield

    def _staged(self, index: int, array: Array) -> torch.Tensor:
        """In pinned memory, which is kept: from there a copy to the GPU does not wait for the processor."""
        tensor = torch.from_numpy(array)
        room = self._pinned.get(index)
        if room is None or room.numel() < tensor.numel():
            room = self._pinned[index] = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
        staged = room[: tensor.numel()].view(tensor.shape)
        return staged.copy_(tensor)

    def _eager(self, call: Module, staged: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        taken = [self._laid_out(tensor.to(self._device, non_blocking=True)) for tensor in staged]
        return self._tensors(call(*taken))

    def _replayed(self, call: Module, staged: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As a graph that was captured for just these shapes."""
        shapes = tuple(tuple(tensor.shape) for tensor in staged)
        captured = self._captured.get(shapes)
        if captured is None:
            captured = self._captured[shapes] = self._capture(call, staged)
        for there, tensor in zip(captured.taken, staged, strict=True):
            there.copy_(tensor, non_blocking=True)
        captured.graph.replay()
        return captured.given

    def _capture(self, call: Module, staged: Sequence[torch.Tensor]) -> _Captured:
        taken = [self._laid_out(tensor.to(self._device)) for tensor in staged]
        for _ in range(_RUNS_BEFORE_CAPTURE):
            self._tensors(call(*taken))
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other sessions may take memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            given = self._tensors(call(*taken))
        return _Captured(graph, taken, given)

    def _corrected(self, layers: Counter[str]) -> tuple[Counter[str], str]:
        allowed = torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
        words = Counter({"tf32" if allowed and word == "fp32" else word: count for word, count in layers.items()})
        return words, f", with allow_tf32 {allowed}"

    def _free(self) -> None:
        super()._free()
        torch.cuda.empty_cache()
