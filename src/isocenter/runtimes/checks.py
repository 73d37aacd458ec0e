"""What every runtime does alike: checked options, checked batches, and failures told in our words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from isocenter.core.errors import BadManifest, InputNotAccepted, OutOfMemory, RuntimeFault
from isocenter.core.tensor import Tensors, TensorSpec
from isocenter.runtimes.base import SessionOptions

Value: TypeAlias = str | int | float | bool

# No framework has an exception of its own for this, only sentences: of arenas, C++, oneDNN and CUDA's libraries.
_NO_MEMORY: Final = (
    "failed to allocate memory",
    "bad_alloc",
    "smaller than requested bytes",
    "out of memory",
    "memoryallocation",
    "alloc_failed",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
)


@dataclass(frozen=True, slots=True)
class Option:
    """One named option of a runtime. Its default says its type."""

    default: Value
    choices: tuple[str, ...] = ()
    """The words that it takes; empty where any of its type will do."""

    def problem(self, value: Value) -> str:
        """What a value should have been, or nothing."""
        if self.choices:
            return "" if value in self.choices else f"one of {', '.join(self.choices)}"
        # True is an int in Python; in a manifest it is a mistake.
        if type(value) is type(self.default):
            return ""
        return {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[type(self.default)]


def chosen(runtime: str, given: SessionOptions, table: Mapping[str, Option]) -> dict[str, Value]:
    """Every option of a runtime: as given, else its default.

    Raises:
        BadManifest: an option is unknown, or a value is not one that it takes.
    """
    for name, value in given.options.items():
        option = table.get(name)
        if option is None:
            raise BadManifest(f"runtime {runtime} has no option {name!r}; it has {sorted(table)}")
        if problem := option.problem(value):
            raise BadManifest(f"option {name} of runtime {runtime} is {value!r}; it must be {problem}")
    return {name: option.default for name, option in table.items()} | dict(given.options)


def check_batch(batch: Tensors, specs: Sequence[TensorSpec]) -> int:
    """See that a batch is what the session takes, before anything is computed; gives the number of its items.

    Raises:
        InputNotAccepted: a tensor is missing, unknown, or of another element type or shape; or axis 0 is not the same
            for all, or empty.
    """
    if unknown := sorted(set(batch) - {spec.name for spec in specs}):
        raise InputNotAccepted(f"the model takes no tensor {', '.join(unknown)}", details={"unknown": list(unknown)})
    sizes = {_items(batch, spec) for spec in specs}
    if len(sizes) != 1 or 0 in sizes:
        raise InputNotAccepted(f"a batch has the same number of items in every tensor, 1 or more, not {sorted(sizes)}")
    return sizes.pop()


def _items(batch: Tensors, spec: TensorSpec) -> int:
    array = batch.get(spec.name)
    if array is None:
        raise InputNotAccepted(f"tensor {spec.name!r} is missing", details={"tensor": spec.name})
    fits = array.ndim == 1 + len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, array.shape[1:], strict=True)
    )
    if array.dtype != spec.dtype or not fits:
        wanted, found = f"{spec.dtype}{['batch', *spec.shape]}", f"{array.dtype}{list(array.shape)}"
        raise InputNotAccepted(
            f"tensor {spec.name!r} is {found}, the model takes {wanted}",
            details={"tensor": spec.name, "found": found, "wanted": wanted},
        )
    return len(array)


def check_outputs(runtime: str, outputs: Tensors, specs: Sequence[TensorSpec], items: int) -> None:
    """See that answers are what the session says it gives.

    Raises:
        RuntimeFault: one is of another element type or shape.
    """
    for spec in specs:
        array = outputs[spec.name]
        if array.shape[:1] != (items,) or not spec.describes(array[0, ...]):
            raise RuntimeFault(
                f"{runtime} gave {spec.name!r} as {array.dtype}{list(array.shape)} for {items} items, "
                f"not {spec.dtype}{[items, *spec.shape]}"
            )


def as_fault(runtime: str, error: BaseException) -> RuntimeFault:
    """What a run that raised is told as. The framework's message may quote tensors, so only its kind goes on."""
    if isinstance(error, RuntimeFault):
        return error
    said = str(error).lower()
    if isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY):
        return OutOfMemory(f"{runtime} had no memory for the run")
    return RuntimeFault(f"{runtime} raised {type(error).__name__}")
