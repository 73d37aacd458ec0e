"""Many items into one batch and back: check, collate, scatter."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from isocenter.core.errors import InputNotAccepted, NumericFailure, RuntimeFault
from isocenter.core.tensor import Array, Tensors, TensorSpec

Answer: TypeAlias = Tensors | NumericFailure
"""What one item of a batch came to."""


def check_item(item: Tensors, specs: Sequence[TensorSpec]) -> None:
    """See that an item (no batch axis) is what the model takes.

    Raises:
        InputNotAccepted: a tensor is missing, unknown, or of another element type or shape.
    """
    for spec in specs:
        array = item.get(spec.name)
        if array is None:
            raise InputNotAccepted(f"tensor {spec.name!r} is missing", details={"tensor": spec.name})
        if not spec.describes(array):
            wanted, found = f"{spec.dtype}{list(spec.shape)}", f"{array.dtype}{list(array.shape)}"
            raise InputNotAccepted(
                f"tensor {spec.name!r} is {found}, the model takes {wanted}",
                details={"tensor": spec.name, "found": found, "wanted": wanted},
            )
    if len(item) != len(specs):
        unknown = sorted(set(item) - {spec.name for spec in specs})
        raise InputNotAccepted(f"the model takes no tensor {', '.join(unknown)}", details={"unknown": list(unknown)})


def shape_key(item: Tensors, specs: Iterable[TensorSpec]) -> tuple[tuple[int, ...], ...]:
    """Items with equal keys can share a batch."""
    return tuple(item[spec.name].shape for spec in specs)


def make_buffers(specs: Iterable[TensorSpec], max_batch_size: int) -> dict[str, Array]:
    """Room for the largest batch of every input whose shape is fixed, to be used again for each batch."""
    return {spec.name: np.empty((max_batch_size, *spec.shape), spec.dtype) for spec in specs if -1 not in spec.shape}


def collate(items: Sequence[Tensors], specs: Iterable[TensorSpec], buffers: Mapping[str, Array]) -> dict[str, Array]:
    """Gather checked items along axis 0: views of `buffers`, valid until the next call; a lone item is not copied."""
    batch: dict[str, Array] = {}
    for spec in specs:
        name = spec.name
        if len(items) == 1:
            batch[name] = items[0][name][np.newaxis]
        elif name in buffers:
            batch[name] = rows = buffers[name][: len(items)]
            for index, item in enumerate(items):
                rows[index] = item[name]
        else:
            batch[name] = np.stack([item[name] for item in items])
    return batch


def scatter(outputs: Tensors, specs: Iterable[TensorSpec], items: int, *, fresh: bool = False) -> list[Answer]:
    """Split outputs into one answer for each item.

    Answers are copies, as a runtime may use its memory again. If `fresh`, it does not, and a lone item takes what there
    is; of several, each would hold all of it.

    Raises:
        RuntimeFault: an output is missing, or has not one row for each item.
    """
    names = [spec.name for spec in specs]
    failures: dict[int, NumericFailure] = {}
    for name in names:
        array = outputs.get(name)
        if array is None:
            raise RuntimeFault(f"the runtime gave no output {name!r}", details={"output": name})
        if array.ndim == 0 or len(array) != items:
            raise RuntimeFault(
                f"output {name!r} has shape {list(array.shape)}, not {items} along axis 0",
                details={"output": name, "shape": list(array.shape), "items": items},
            )
        for index in _non_finite_rows(array):
            failures.setdefault(index, _numeric_failure(name, array[index]))
    if fresh and items == 1 and not failures:
        return [{name: outputs[name][0, ...] for name in names}]
    # `[index, ...]` keeps a scalar output an array.
    return [failures.get(index) or {name: outputs[name][index, ...].copy() for name in names} for index in range(items)]


def _non_finite_rows(array: Array) -> list[int]:
    if array.dtype.kind not in "fc":
        return []
    finite = np.isfinite(array)
    if finite.all():
        return []
    return [index for index, row in enumerate(finite) if not row.all()]


def _numeric_failure(name: str, row: Array) -> NumericFailure:
    bad = int(np.size(row) - np.count_nonzero(np.isfinite(row)))
    return NumericFailure(
        f"{bad} of {np.size(row)} values of output {name!r} are NaN or infinite",
        details={"output": name, "non_finite": bad, "values": int(np.size(row))},
    )
