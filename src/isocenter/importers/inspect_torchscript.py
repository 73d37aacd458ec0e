"""`isocenter inspect` of a TorchScript file: its graph, and what one item costs, seen in one run on shapes alone."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from isocenter.core.errors import MissingExtra
from isocenter.core.tensor import TensorSpec
from isocenter.importers.inspect_facts import Cost, Facts, Slot, by_count, with_sizes
from isocenter.importers.torchscript_file import refuse_bomb
from isocenter.runtimes.registry import installed

_CONTROL: Final = ("prim::If", "prim::Loop")
_LAYERS: Final = (
    "aten::_convolution", "aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::conv_transpose1d",
    "aten::conv_transpose2d", "aten::conv_transpose3d", "aten::convolution", "aten::linear", "aten::addmm",
    "aten::matmul", "aten::mm", "aten::bmm", "aten::lstm", "aten::gru",
)  # fmt: skip


def inspect(path: Path, *, ports: str = "", sizes: Sequence[int] = ()) -> Facts:
    """Look into a file. It is loaded as the runtime does, after a look at what it would call.

    Args:
        path: the file.
        ports: its input as `image: float32[3, 224, 224]`; needed for costs where the file does not say it itself.
        sizes: of the axes that this leaves open, in order.

    Raises:
        BadManifest: it is no TorchScript file, or does more than compute.
        ImportRefused: it would unpack to more than the limit; the sizes do not fit.
        MissingExtra: torch is not installed.
    """
    if not installed("torch"):
        raise MissingExtra(
            'a TorchScript file is read with torch, which is not installed: pip install "isocenter[torch]"'
        )
    refuse_bomb(path)
    from isocenter.runtimes.torch import tensor_specs
    from isocenter.runtimes.torch_archive import load_script

    module, known = load_script(path)
    kinds = Counter(_kinds(_inlined(module).nodes()))
    kinds = Counter({kind: count for kind, count in kinds.items() if kind.startswith(("aten::", "quantized::"))})
    tensors = [*module.parameters(), *module.buffers()]
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    facts = Facts(
        file=path.name,
        kind="torchscript",
        bytes=path.stat().st_size,
        ops=by_count((kind.removeprefix("aten::"), count) for kind, count in kinds.items()),
        weights=by_count(weights.items()),
        layers=by_count(_layers(kinds, weights).items()),
        warnings=list(_warnings(module)),
    )
    taken = tensor_specs(ports) if ports else known[0] if known else ()
    facts.inputs = [_slot(spec) for spec in taken]
    facts.outputs = [_slot(spec) for spec in known[1]] if known else []
    if not taken:
        facts.cost_missing = "the file does not say what it takes: --input 'image: float32[3, 224, 224]'"
        return facts
    item = with_sizes(tuple(size if size > 0 else "?" for size in taken[0].shape), sizes)
    rest = [tuple(max(size, 1) for size in spec.shape) for spec in taken[1:]]
    _add_cost(facts, path, module, [item, *rest], taken)
    return facts


def _add_cost(
    facts: Facts, path: Path, module: Any, shapes: list[tuple[int, ...]], taken: Sequence[TensorSpec]
) -> None:
    import torch

    failures: list[str] = []
    for device, method in (("meta", "in one run on shapes alone"), ("cpu", "in one run on zeros")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ran = torch.jit.load(str(path), map_location="meta") if device == "meta" else module
            batch = [
                torch.zeros((1, *shape), dtype=getattr(torch, str(spec.dtype)), device=device)
                for shape, spec in zip(shapes, taken, strict=True)
            ]
            flops, peak_bytes, outputs = _watched(ran.eval(), batch)
        except Exception as error:  # of whatever kind: the file decides what is raised
            failures.append(f"{method}: {type(error).__name__}")
            continue
        facts.cost = Cost(shapes[0], flops // 2, peak_bytes, f"by torch's own counter, {method}")
        facts.outputs = facts.outputs or outputs
        return
    facts.cost_missing = f"it does not run at {list(shapes[0])} ({'; '.join(failures)})"


def _watched(module: Any, batch: list[Any]) -> tuple[int, int, list[Slot]]:
    """Floating-point operations, the largest sum of live values in bytes, and the outputs."""
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    own = {each.untyped_storage()._cdata for each in (*module.parameters(), *module.buffers())}
    peak = sum(each.untyped_storage().nbytes() for each in batch)

    class _Memory(TorchDispatchMode):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.live: dict[int, tuple[Any, int]] = {}
            for each in batch:
                self.take(each)

        def take(self, value: Any) -> None:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in own:
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            elif isinstance(value, list | tuple):
                for each in value:
                    self.take(each)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            made = func(*args, **(kwargs or {}))
            self.live = {key: each for key, each in self.live.items() if not each[0].expired()}
            self.take(made)
            peak = max(peak, sum(size for _, size in self.live.values()))
            return made

    with torch.no_grad(), _Memory(), FlopCounterMode(display=False) as counter:
        given = module(*batch)
    given = given if isinstance(given, list | tuple) else list(given.values()) if isinstance(given, dict) else [given]
    names = [f"output {index}" for index in range(len(given))]
    outputs = [
        Slot(name, str(each.dtype).removeprefix("torch."), tuple(each.shape))
        for name, each in zip(names, given, strict=True)
    ]
    return int(counter.get_total_flops()), peak, outputs


def _inlined(module: Any) -> Any:
    import torch

    graph = module.forward.graph.copy()
    torch._C._jit_pass_inline(graph)
    return graph


def _kinds(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        yield node.kind()
        for block in node.blocks():
            yield from _kinds(block.nodes())


def _layers(kinds: Counter[str], weights: Counter[str]) -> Counter[str]:
    words = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
    floats = {dtype: count for dtype, count in weights.items() if dtype in words}
    stored = words[max(floats, key=lambda dtype: floats[dtype])] if floats else "fp32"
    found = Counter({stored: sum(kinds[kind] for kind in _LAYERS)})
    quantized = sum(count for kind, count in kinds.items() if kind.startswith("quantized::"))
    return +(found + Counter({"int8": quantized}))


def _warnings(module: Any) -> Iterator[str]:
    if module.training:
        yield "it was saved in training mode: batch norms and dropout would act on an answer"
    kinds = set(_kinds(_inlined(module).nodes()))
    if control := [kind.removeprefix("prim::") for kind in _CONTROL if kind in kinds]:
        yield f"control flow ({', '.join(control)}): its cost depends on the values"


def _slot(spec: TensorSpec) -> Slot:
    return Slot(spec.name, str(spec.dtype), ("batch", *(size if size > 0 else "?" for size in spec.shape)))
