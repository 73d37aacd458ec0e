"""`checkpoint_final.pth` of nnU-Net, read as data: by torch's own reader of weights, with the types that nnU-Net adds.

Beside tensors and plain containers, its checkpoints hold numpy scalars (of the logged losses): how those are made is
all that is let in beyond what torch lets in by itself. Whatever else a file asks for is refused before it is made.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from isocenter.core.errors import ImportRefused
from isocenter.importers.torchscript_file import refuse_bomb

if TYPE_CHECKING:
    from torch import Tensor

_SCALARS: Final = (np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_)
_NEEDED: Final = ("network_weights", "trainer_name", "init_args")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What inference needs of one fold."""

    weights: "Mapping[str, Tensor]"
    configuration: str
    """`2d`, `3d_fullres`, …"""
    trainer: str
    mirrored_axes: tuple[int, ...]
    """Spatial axes that are mirrored for the mean of predictions; empty: none."""


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint on the CPU. torch must be installed.

    Raises:
        ImportRefused: it is none, or holds more than data; nothing of it was run.
    """
    import torch

    try:
        refuse_bomb(file)
        with torch.serialization.safe_globals(_allowed()):
            said = torch.load(file, map_location="cpu", weights_only=True)
    except ImportRefused:
        raise
    except pickle.UnpicklingError as error:
        raise ImportRefused(
            f"{file.name} is refused: it holds more than tensors, plain containers and numpy scalars, or is no "
            "checkpoint; nothing of it was run",
            details={"file": file.name},
        ) from error
    except Exception as error:
        raise ImportRefused(f"{file.name} is no checkpoint that torch can read: {type(error).__name__}") from error
    return _checkpoint(file.name, said)


def _allowed() -> list[Any]:
    """How numpy scalars are unpickled, as numpy 1 and numpy 2 spell it."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    spelt: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*spelt, np.dtype, *(type(np.dtype(kind)) for kind in _SCALARS)]


def _checkpoint(name: str, said: Any) -> Checkpoint:
    from torch import Tensor

    if not isinstance(said, Mapping) or any(key not in said for key in _NEEDED):
        raise ImportRefused(f"{name} is no checkpoint of nnU-Net 2: it lacks one of {', '.join(_NEEDED)}")
    weights, arguments = said["network_weights"], said["init_args"]
    configuration = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    named = isinstance(weights, Mapping) and all(
        isinstance(each, str) and isinstance(tensor, Tensor) for each, tensor in weights.items()
    )
    if not named or not weights or not isinstance(configuration, str):
        raise ImportRefused(f"{name} is no checkpoint of nnU-Net 2: no weights by name, or no configuration")
    axes = said.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(axes, list | tuple) or not all(isinstance(axis, int) and 0 <= axis <= 2 for axis in axes):
        raise ImportRefused(f"{name}: inference_allowed_mirroring_axes is {str(axes)[:80]}, not spatial axes")
    return Checkpoint(weights, configuration, str(said["trainer_name"]), tuple(sorted(set(axes))))
