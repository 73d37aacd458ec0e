"""What `isocenter inspect` finds in a model file, whatever its format."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from isocenter.core.errors import ImportRefused

ITEM_BYTES: Mapping[str, float] = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2,
    "int32": 4, "uint32": 4, "int64": 8, "uint64": 8, "bool": 1, "int4": 0.5, "uint4": 0.5, "complex64": 8,
    "complex128": 16, "float8e4m3fn": 1, "float8e4m3fnuz": 1, "float8e5m2": 1, "float8e5m2fnuz": 1, "float4e2m1": 0.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slot:
    """An input or output; the batch axis is the first one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None
    """An open axis has its name, or "?"; None: the file does not say."""

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} {self.dtype}, of a shape that the file does not say"
        return f"{self.name} {self.dtype} [{' x '.join(str(size) or '?' for size in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one item costs, on paper. Nothing is measured."""

    item_shape: tuple[int, ...]
    """Of the first input, without batch axis."""
    multiply_adds: int
    """Of convolutions, matrix products and recurrent cells; as papers count them."""
    activation_bytes: int | None
    """The largest sum of values that are needed at one time, in the order of the file, each with memory of its own.
    A runtime may do with less, by writing in place, or take more, for scratch space. None: a shape is unknown."""
    method: str
    """How it was found."""
    uncounted: tuple[str, ...] = ()
    """Operators that may multiply and were not counted."""

    @property
    def flops(self) -> int:
        """A multiplication and an addition each for itself."""
        return 2 * self.multiply_adds


@dataclass(slots=True)
class Facts:
    """Everything about one file."""

    file: str
    kind: str
    bytes: int
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Slot] = field(default_factory=list)
    ops: dict[str, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    """Values by element type."""
    layers: dict[str, int] = field(default_factory=dict)
    """Layers with products by the precision that they are stored in."""
    external: dict[str, int | None] = field(default_factory=dict)
    """Bytes of each file that is read with it; None: it is not there, or not read."""
    cost: Cost | None = None
    cost_missing: str = ""
    """Why there is none."""
    warnings: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Values of all weights."""
        return sum(self.weights.values())

    @property
    def weights_bytes(self) -> int:
        """What the weights take in the types that they are stored in."""
        return round(sum(count * ITEM_BYTES.get(dtype, 4) for dtype, count in self.weights.items()))


def with_sizes(shape: Sequence[int | str], sizes: Sequence[int]) -> tuple[int, ...]:
    """A shape without batch axis whose open axes are filled in; the same sizes may also name every spatial axis.

    >>> with_sizes((3, "h", "w"), (224, 192)), with_sizes((3, 224, 224), (224, 224))
    ((3, 224, 192), (3, 224, 224))

    Raises:
        ImportRefused: another number of sizes is needed, or one is fixed otherwise.
    """
    open_axes = [axis for axis, size in enumerate(shape) if not (isinstance(size, int) and size > 0)]
    if not open_axes and (not sizes or tuple(sizes) == tuple(shape)[-len(sizes) :]):
        return tuple(int(size) for size in shape)
    if len(sizes) != len(open_axes):
        raise ImportRefused(
            f"{len(open_axes)} axes are open in [{', '.join(str(size) or '?' for size in shape)}]: --size names their "
            f"sizes in order, {len(sizes)} are given",
            details={"flag": "--size", "open": len(open_axes)},
        )
    filled = dict(zip(open_axes, sizes, strict=True))
    return tuple(filled.get(axis, 0) or int(size) for axis, size in enumerate(shape))


def by_count(names: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Names with counts, the most frequent first."""
    return dict(sorted(names, key=lambda each: (-each[1], each[0])))
