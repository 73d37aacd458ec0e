"""The seam between the engine and every model framework."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from isocenter.core.precision import Precision
from isocenter.core.tensor import Tensors, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How one instance runs. Precision is always stated, never inherited from a framework's default."""

    precision: Precision = "fp32"
    device: str = "cpu"
    threads: int = 1
    url: str = ""
    """Where the model is served, for a runtime that is another server; then the file is not read."""
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Named options of that runtime; an unknown name is an error."""


class Session(Protocol):
    """A loaded artifact in a runtime on a device. Used by one thread at a time."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs without their batch axis."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs without their batch axis."""
        ...

    @property
    def proof(self) -> str:
        """In which precision it was seen to compute, and how that was seen: `fp32: 54 of 54 layers; read from …`."""
        ...

    def run(self, batch: Tensors) -> Tensors:
        """Run one batch: arrays with items along axis 0, in and out. Blocks; releases the GIL where it computes.

        The next run may write over the arrays that this one gave; see `Fresh`.

        Raises:
            InputNotAccepted: the batch is not what the model takes; nothing was computed.
            OutOfMemory: there was no memory for it.
            RuntimeFault: it failed; what the framework said is not passed on, as that may quote tensors.
        """
        ...

    def close(self) -> None:
        """Free what the session holds. Calling it twice is harmless."""
        ...


@runtime_checkable
class Trimmed(Protocol):
    """A session that can give back what its largest runs have taken."""

    def trim(self, batch: Tensors) -> None:
        """Run a batch, and hold no more than such a run takes. Used by the session's own thread, or before it has one.

        Raises:
            RuntimeFault: the run failed.
        """
        ...


@runtime_checkable
class Fresh(Protocol):
    """A session whose answers are nobody else's: no run writes over them, so that they need not be copied."""

    @property
    def fresh(self) -> Literal[True]:
        """That it is one."""
        ...


class Runtime(Protocol):
    """A framework that can open model files."""

    @property
    def name(self) -> str:
        """The word that a manifest uses under `runtime.kind`."""
        ...

    def open(self, file: Path, options: SessionOptions) -> Session:
        """Load a file for one instance.

        Raises:
            MissingExtra: the framework is not installed.
            BadManifest: the file cannot be loaded, or an option or precision is not supported.
        """
        ...
