"""The network of a MONAI bundle: an ONNX file or TorchScript as it is, or weights of a network that is built here."""

import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isocenter.core.errors import BadManifest, ImportRefused, MissingExtra
from isocenter.core.tensor import FloatArray
from isocenter.importers.monai_config import Config, shown, target
from isocenter.importers.onnx_file import FILE as ONNX_FILE
from isocenter.importers.onnx_file import has_fixed_batch, with_open_batch
from isocenter.importers.onnx_file import runtime_part as onnx_part
from isocenter.importers.package import WEIGHTS_LIMIT_BYTES, Package
from isocenter.importers.torchscript_file import FILE as SCRIPT_FILE
from isocenter.importers.torchscript_file import runtime_part as script_part
from isocenter.runtimes.onnx_file import Port, parse_onnx

if TYPE_CHECKING:
    from torch import Tensor, nn

ONNX: Final = "models/model.onnx"
SCRIPT: Final = "models/model.ts"
STATE: Final = "models/model.pt"
_INPUT, _OUTPUT = "image", "scores"
_NETWORKS: Final = ("UNet", "BasicUNet")
_BASIC_WIDTHS: Final = [32, 32, 64, 128, 256, 32]


@dataclass(frozen=True, slots=True)
class Weights:
    """What runs, and how a manifest says so."""

    source: str
    """Its name in the bundle."""
    content: bytes
    """As it is in the bundle."""
    runtime: dict[str, Any]
    files: dict[str, bytes]
    """For the model folder, by name."""
    input_name: str
    output_name: str
    expected: FloatArray | None = None
    """What the network itself says to the golden input, where it was run to be exported."""
    notes: list[str] = field(default_factory=list)
    batch_axis_opened: bool = False


def read_weights(package: Package, config: Config, *, item: FloatArray, outputs: int, any_size: bool) -> Weights:
    """The first of ONNX, TorchScript and weights that a bundle has.

    Args:
        package: the bundle.
        config: its inference configuration, which says what network the weights belong to.
        item: one input, channels first.
        outputs: channels of one output.
        any_size: whether it is given items of other sizes as well.

    Raises:
        ImportRefused: it has none; or weights of a network that is not known here; or files outside of it.
        BadManifest: the file is not what its name says, or holds more than data.
        MissingExtra: torch is needed and not installed.
    """
    if ONNX in package:
        return _onnx(package.read(ONNX, limit_bytes=WEIGHTS_LIMIT_BYTES))
    if SCRIPT in package:
        content = package.read(SCRIPT, limit_bytes=WEIGHTS_LIMIT_BYTES)
        sides = ", ".join(str(-1 if any_size else side) for side in item.shape[1:])
        options = {
            "taken": f"{_INPUT}: float32[{len(item)}, {sides}]",
            "given": f"{_OUTPUT}: float32[{outputs}, {sides}]",
        }
        return Weights(SCRIPT, content, script_part(**options), {SCRIPT_FILE: content}, _INPUT, _OUTPUT)
    if STATE in package:
        content = package.read(STATE, limit_bytes=WEIGHTS_LIMIT_BYTES)
        return _exported(content, config, item, any_size=any_size)
    raise ImportRefused(f"{package.name}: none of {ONNX}, {SCRIPT} and {STATE} in it")


def _onnx(content: bytes) -> Weights:
    try:
        said = parse_onnx(ONNX, memoryview(content))
    except BadManifest as error:
        raise ImportRefused(error.message, details=error.details) from error
    if said.external:
        raise ImportRefused(
            f"{ONNX} keeps weights in other files ({shown(said.external[0])}), which are not read here",
            details={"external": said.external[:16]},
        )
    taken, given = _only(said.inputs, "input"), _only(said.outputs, "output")
    fixed = has_fixed_batch(said)
    ours, notes = content, []
    if fixed:
        ours, note = with_open_batch(content)
        notes.append(note)
    return Weights(
        ONNX, content, onnx_part({}), {ONNX_FILE: ours}, taken.name, given.name, notes=notes, batch_axis_opened=fixed
    )


def _only(ports: list[Port], what: str) -> Port:
    if len(ports) != 1:
        raise ImportRefused(f"{ONNX} has {len(ports)} {what}s ({', '.join(port.name for port in ports)[:80]}), not one")
    return ports[0]


def _exported(content: bytes, config: Config, item: FloatArray, *, any_size: bool) -> Weights:
    place = "network_def" if "network_def" in config else "network"
    where, said = config.component(place)
    if target(said) not in _NETWORKS:
        raise config.refusal(
            where,
            f"is {target(said)}, a network that is not known here: {STATE} is read for "
            f"{', '.join(_NETWORKS)}, any other network comes as {SCRIPT} or {ONNX}",
        )
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra(f'{STATE} needs torch, which is not installed: pip install "isocenter[torch]"')
    from isocenter.networks.export import OUTPUT_NAME, answer, to_onnx
    from isocenter.networks.weights import load_state, read_state

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        file.write_bytes(content)
        network = _built(config, where, said)
        load_state(network, _own_names(target(said), read_state(file)))
        made = to_onnx(network, Path(folder), item_shape=item.shape, input_name=_INPUT, free_sides=any_size)
        exported = made.read_bytes()
        expected = answer(network, item[None])[0]
    notes = [f"{STATE} was put into {target(said)} as it is written here, and exported to ONNX"]
    return Weights(STATE, content, onnx_part({}), {ONNX_FILE: exported}, _INPUT, OUTPUT_NAME, expected, notes)


def _own_names(network: str, state: "Mapping[str, Tensor]") -> "Mapping[str, Tensor]":
    if network == "BasicUNet":
        from isocenter.networks.unet3d import renamed

        return renamed(state)
    # A prefix that all names have is taken for a wrapper's when weights are read; of a UNet it is its own.
    return {name if name.startswith("model.") else f"model.{name}": tensor for name, tensor in state.items()}


def _built(config: Config, place: str, said: Mapping[str, Any]) -> "nn.Module":
    arguments = config.resolved(place, {key: value for key, value in said.items() if not key.startswith("_")})
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        return _unet(given) if target(said) == "UNet" else _basic_unet(given)
    except (TypeError, ValueError) as error:
        raise config.refusal(place, f"({target(said)}) cannot be built: {str(error)[:200]}") from error


def _unet(given: dict[str, Any]) -> "nn.Module":
    from isocenter.networks.monai_unet import MonaiUNet

    given = {"spatial_dims": given.pop("dimensions", None), **given} if "dimensions" in given else given
    for name in ("kernel_size", "up_kernel_size"):
        if isinstance(given.get(name), list) and len(set(given[name])) == 1:
            given[name] = given[name][0]
    return MonaiUNet(**given)


def _basic_unet(given: dict[str, Any]) -> "nn.Module":
    from isocenter.networks.unet3d import UNet3d

    features = given.pop("features", _BASIC_WIDTHS)
    channels, classes = given.pop("in_channels", 1), given.pop("out_channels", 2)
    if given.pop("spatial_dims", 3) != 3 or given:
        raise ValueError(f"only spatial_dims 3, channels and features are known, not {', '.join(given) or 'another'}")
    return UNet3d(int(classes), channels=int(channels), widths=tuple(map(int, features)))
