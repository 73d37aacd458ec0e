"""A network of torch as a session on the CPU; and what sessions on any device have in common."""

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from isocenter.core.errors import BadManifest, IsocenterError, OutOfMemory, RuntimeFault
from isocenter.core.precision import Precision
from isocenter.core.tensor import Array, Tensors, TensorSpec
from isocenter.runtimes import checks
from isocenter.runtimes.devices import Device
from isocenter.runtimes.proof import proven

Module: TypeAlias = Callable[..., Any]

NAME: Final = "torch"
_WORDS: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
_AUTOCAST: Final[Mapping[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PRODUCTS: Final = frozenset(
    {
        "conv1d", "conv2d", "conv3d", "convolution", "_convolution", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "mkldnn_convolution", "linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "addmv", "lstm",
        "gru", "scaled_dot_product_attention",
    }
)  # fmt: skip
"""Operators that a layer with products comes down to."""
_CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a network is run."""

    precision: Precision
    device: Device
    threads: int
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False


class TorchSession:
    """One network on the CPU. Used by one thread at a time.

    The first run is watched: which operators with products it comes down to, and in which element types.
    """

    fresh: Final = True

    def __init__(self, module: Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], how: How) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.proof = f"{how.precision}: to be seen in the first run"
        self._dtypes = [torch.from_numpy(np.empty(0, spec.dtype)).dtype for spec in self.outputs]
        self._how = how
        self._seen = False
        self._call: Module | None = module
        if all(-1 not in spec.shape for spec in self.inputs):
            self._look()

    def run(self, batch: Tensors) -> Tensors:
        """Run one batch; the returned arrays are fresh and belong to the caller.

        Raises:
            BadManifest: in the first run, if the network computes in another precision than stated.
        """
        items = checks.check_batch(batch, self.inputs)
        if self._call is None:
            raise RuntimeFault("the session is closed")
        arrays = [_plain(batch[spec.name]) for spec in self.inputs]
        try:
            if not self._seen:
                self._see(self._call, [array[:1] for array in arrays])
            found = self._named(self._compute(self._call, arrays))
        except IsocenterError:
            raise
        except Exception as error:
            fault = checks.as_fault(NAME, error)
            if isinstance(fault, OutOfMemory):
                self._free()
            raise fault from error
        checks.check_outputs(NAME, found, self.outputs, items)
        return found

    def close(self) -> None:
        """Free the network and what its runs have kept."""
        if self._call is not None:
            self._call = None
            self._free()

    def _compute(self, call: Module, arrays: Sequence[Array]) -> list[Array]:
        with self._computing():
            taken = [self._laid_out(torch.from_numpy(array)) for array in arrays]
            # Copied: a network may answer with its input or with one of its own weights.
            return [np.array(tensor.numpy()) for tensor in self._tensors(call(*taken))]

    def _named(self, arrays: Sequence[Array]) -> Tensors:
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def _laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._how.channels_last and tensor.dim() in _CHANNELS_LAST:
            return tensor.contiguous(memory_format=_CHANNELS_LAST[tensor.dim()])
        return tensor

    def _tensors(self, answer: Any) -> list[torch.Tensor]:
        """What the network gave, in the order of the outputs, in their element types and row-major."""
        if isinstance(answer, Mapping):
            answer = [answer[spec.name] for spec in self.outputs]
        given = [answer] if isinstance(answer, torch.Tensor) else list(answer)
        if len(given) != len(self.outputs):
            raise RuntimeFault(f"the network gave {len(given)} tensors, not {len(self.outputs)}")
        # Under autocast, a network's last layer may well answer in 16 bits.
        return [tensor.to(dtype).contiguous() for tensor, dtype in zip(given, self._dtypes, strict=True)]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Counted per thread that computes; a session may come from another thread than the one that runs it.
        if torch.get_num_threads() != self._how.threads:
            torch.set_num_threads(self._how.threads)
        dtype = _AUTOCAST.get(self._how.precision)
        with (
            torch.inference_mode(),
            torch.autocast(self._how.device.kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            yield

    def _look(self) -> None:
        """See it compute one item of zeros."""
        try:
            self._see(self._call, [np.zeros((1, *spec.shape), spec.dtype) for spec in self.inputs])
        except IsocenterError as error:
            raise error if isinstance(error, BadManifest) else BadManifest(f"a first run failed: {error}") from error
        except Exception as error:
            raise BadManifest(f"a first run failed: {checks.as_fault(NAME, error)}") from error

    def _see(self, call: Any, arrays: Sequence[Array]) -> None:
        with _Watching() as watching:
            checks.check_outputs(NAME, self._named(self._compute(call, arrays)), self.outputs, 1)
        layers, more = self._corrected(watching.layers)
        self.proof = proven(self._how.precision, layers, f"read from a run{more}")
        self._seen = True
        if self._how.compile:
            with warnings.catch_warnings():
                # Of torch's own modules, about each other.
                warnings.simplefilter("ignore", DeprecationWarning)
                # Any batch size with one piece of machine code, and another for a lone item.
                self._call = torch.compile(call, dynamic=True)

    def _corrected(self, layers: Counter[str]) -> tuple[Counter[str], str]:
        """What was counted, put right by what element types do not show; and how that was read."""
        return layers, ""

    def _free(self) -> None:
        # Networks hold themselves in circles.
        gc.collect()


class _Watching(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
    """Counts operators with products by the element type of their second tensor, which holds the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _PRODUCTS:
            tensors = [each for each in args if isinstance(each, torch.Tensor)]
            word = str(tensors[min(1, len(tensors) - 1)].dtype).removeprefix("torch.")
            self.layers[_WORDS.get(word, word)] += 1
        return func(*args, **(kwargs or {}))


def _plain(array: Array) -> Array:
    # torch warns of arrays that may not be written to, though it only reads.
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else array.copy()
