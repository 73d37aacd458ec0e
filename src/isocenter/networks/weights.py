"""Where a network's weights come from: a file that is read and never run, or a seed that is said aloud."""

import importlib
import importlib.util
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from isocenter.core.errors import ImportRefused, MissingExtra

_WRAPPINGS: Final = ("state_dict", "model_state_dict", "model", "network_weights", "net")
"""Under which keys training scripts put the weights."""
_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.")
"""What DataParallel, torch.compile and wrappers put before every name."""
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SETTLING_RUNS: Final = 2
_ITEMS: Final = 6
_GRAIN: Final = 0.3
_SPREAD: Final = 1.5
_SHOWN: Final = 3


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU: a `.safetensors` file, or what `torch.save` wrote.

    Of the latter only tensors and plain containers are read; a file that asks for anything else to be called or built
    is refused before it is. The weights may lie under `state_dict` or a like key, and under a common prefix of all
    names.

    Raises:
        ImportRefused: no such file, not a checkpoint, one that holds more than data, or weights twice.
        MissingExtra: a `.safetensors` file, and the library is not installed.
    """
    if not file.is_file():
        raise ImportRefused(f"no checkpoint at {file}")
    return _plain(file, _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file))


def _read_safetensors(file: Path) -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise MissingExtra(f'{file.name} needs safetensors, which is not installed: pip install "safetensors"')
    library: Any = importlib.import_module("safetensors.torch")
    try:
        return library.load_file(str(file), device="cpu")
    except Exception as error:
        raise ImportRefused(f"{file.name} is not a safetensors file: {type(error).__name__}") from error


def _read_torch(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Of another pickle protocol than torch's own: it is read all the same, or refused below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Its message names what was asked for, which is the file's own word.
        raise ImportRefused(
            f"{file.name} is refused: it asks for more than tensors and plain containers, or is no checkpoint; "
            "nothing of it was run",
            details={"file": file.name},
        ) from error
    except Exception as error:
        raise ImportRefused(f"{file.name} is not a checkpoint that torch can read: {type(error).__name__}") from error


def _plain(file: Path, found: Any) -> dict[str, Tensor]:
    while isinstance(found, Mapping) and (inner := [key for key in _WRAPPINGS if isinstance(found.get(key), Mapping)]):
        full = [key for key in inner if any(isinstance(each, Tensor | Mapping) for each in found[key].values())]
        if len(full) > 1:
            raise ImportRefused(
                f"{file.name} holds weights under {' and '.join(full)}: save those that are meant alone"
            )
        found = found[(full or inner)[0]]
    if not isinstance(found, Mapping) or not found:
        raise ImportRefused(f"{file.name} holds no tensors by name, but {type(found).__name__}")
    wrong = [name for name, tensor in found.items() if not (isinstance(name, str) and isinstance(tensor, Tensor))]
    if wrong:
        raise ImportRefused(f"{file.name} holds more than tensors by name: {str(wrong[0])[:60]!r} is none")
    state = dict(found)
    while prefix := next((each for each in _PREFIXES if all(name.startswith(each) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take every weight of a network from tensors by name.

    Raises:
        ImportRefused: a tensor is missing, left over, not finite, or of another shape or kind; the message names the
            first ones.
    """
    if problems := misfits(network, state):
        shown = "; ".join(problems[:_SHOWN]) + ("; …" if len(problems) > _SHOWN else "")
        raise ImportRefused(
            f"the weights are not those of {type(network).__name__}: {len(problems)} of {len(network.state_dict())} "
            f"do not fit: {shown}",
            details={"problems": problems[:20]},
        )
    infinite = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if infinite:
        raise ImportRefused(f"the weights of {type(network).__name__} hold NaN or infinity, first in {infinite[0]}")
    network.load_state_dict(dict(state), strict=False)


def misfits(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors by name from being the weights of a network, a phrase each; no tensor is read."""
    own = network.state_dict()
    # A count of training steps; old checkpoints have none, and nothing that is answered depends on it.
    needed = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    missing = [f"{name} is missing" for name in needed if name not in state]
    left_over = [f"{name} is left over" for name in state if name not in own]
    shapes = [
        f"{name} has shape {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in needed.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} is {_kind(state[name])}, not {tensor.dtype}"
        for name, tensor in needed.items()
        if name in state and not _fits(state[name], tensor)
    ]
    return [*shapes, *kinds, *missing, *left_over]


def _fits(given: Tensor, own: Tensor) -> bool:
    """Whether its values are those of the weights: a quantised file has whole numbers under the same names."""
    if given.layout != torch.strided or given.is_quantized or given.device.type != "cpu":
        return False
    return given.dtype in _FLOATS if own.is_floating_point() else given.dtype == own.dtype


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype}, {tensor.layout}, {tensor.device.type}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed inside, and leave torch's own generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def settle(network: nn.Module, items: Tensor, *, seed: int) -> None:
    """Make random weights answer as trained ones would in size: norms that fit, and outputs of deviation 1.5.

    Without it a deep network's output grows or vanishes, or is the same whatever it is shown, and a difference between
    two precisions says nothing. The norms see the items and seeded noise on top; the last layer (`head`) is then scaled
    and centred per class.

    Args:
        items: a batch like what the network will be asked, at least two.
    """
    was_training = network.training
    head: Any = network.get_submodule("head")
    norms = [each for each in network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with seeded(seed), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all runs
        network.train()
        for _ in range(_SETTLING_RUNS if norms else 0):
            network(items + _GRAIN * torch.randn_like(items))
        network.eval()
        outputs = network(items).transpose(0, 1).flatten(1)
        scale = _SPREAD / outputs.std(dim=1).clamp(min=1e-6)
        head.weight.mul_(scale.reshape(-1, *([1] * (head.weight.dim() - 1))))
        head.bias.sub_(outputs.mean(dim=1)).mul_(scale)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(was_training)


def unlike_items(item_shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Noise in patches of several sizes and strengths: a random network tells items of plain noise hardly apart."""
    channels, *sides = item_shape
    mode = "bilinear" if len(sides) == 2 else "trilinear"
    items = []
    with seeded(seed):
        for number in range(_ITEMS):
            coarse = torch.randn(1, channels, *(max(2, side >> (2 + number % 3)) for side in sides))
            patches = functional.interpolate(coarse, size=sides, mode=mode, align_corners=False)
            items.append((0.5 + number / 4) * patches + _GRAIN * torch.randn(1, *item_shape))
    return torch.cat(items)
