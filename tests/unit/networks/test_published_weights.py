"""Weights that others have published load by name, and mean the same here."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from isocenter.core.errors import ImportRefused  # noqa: E402
from isocenter.networks.resnet50 import ResNet50  # noqa: E402
from isocenter.networks.unet3d import UNet3d  # noqa: E402

DEPTHS = (3, 4, 6, 3)


def torchvision_shapes(classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a torchvision `resnet50` (timm's has the same), as their state dicts list them."""

    def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.{part}", (width,)) for part in ("weight", "bias", "running_mean", "running_var"))
        yield f"{name}.num_batches_tracked", ()

    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    taken = 64
    for stage, depth in enumerate(DEPTHS, 1):
        width = 32 << stage
        for block in range(depth):
            at = f"layer{stage}.{block}"
            yield f"{at}.conv1.weight", (width, taken, 1, 1)
            yield from norm(f"{at}.bn1", width)
            yield f"{at}.conv2.weight", (width, width, 3, 3)
            yield from norm(f"{at}.bn2", width)
            yield f"{at}.conv3.weight", (4 * width, width, 1, 1)
            yield from norm(f"{at}.bn3", 4 * width)
            if block == 0:
                yield f"{at}.downsample.0.weight", (4 * width, taken, 1, 1)
                yield from norm(f"{at}.downsample.1", 4 * width)
            taken = 4 * width
    yield "fc.weight", (classes, taken)
    yield "fc.bias", (classes,)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(1)
        if name.endswith("running_var") or (".bn" in name and name.endswith("weight")):
            return 0.5 + torch.rand(shape, generator=generator)
        values = torch.randn(shape, generator=generator)
        return values * (2 / values[0].numel()) ** 0.5 if len(shape) > 1 else 0.1 * values

    return {name: drawn(name, shape) for name, shape in torchvision_shapes(4)}


def as_torchvision_computes(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """A ResNet-50 (v1.5) written out over torchvision's names."""

    def normed(name: str, y: Tensor) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(y, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])

    x = functional.relu(normed("bn1", functional.conv2d(x, state["conv1.weight"], stride=2, padding=3)))
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(DEPTHS, 1):
        for block in range(depth):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.relu(normed(f"{at}.bn1", functional.conv2d(x, state[f"{at}.conv1.weight"])))
            y = functional.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1)
            y = normed(
                f"{at}.bn3", functional.conv2d(functional.relu(normed(f"{at}.bn2", y)), state[f"{at}.conv3.weight"])
            )
            if block == 0:
                x = functional.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride)
                x = normed(f"{at}.downsample.1", x)
            x = functional.relu(x + y)
    return functional.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def test_a_torchvision_resnet50_answers_here_as_it_does_there(state: dict[str, Tensor]) -> None:
    network = ResNet50().eval()
    network.load_torchvision_state(state)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected, found = as_torchvision_computes(state, x), network(x)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fc.weight": torch.zeros(1000, 2048)}, r"head.weight has shape \[1000, 2048\], not \[4, 2048\]"),
        ({"layer3.5.bn2.running_var": None}, "stages.2.5.middle.1.running_var is missing"),
        ({"layer5.0.conv1.weight": torch.zeros(1)}, "layer5.0.conv1.weight is left over"),
        ({"conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}, "NaN or infinity, first in stem.0.weight"),
    ],
    ids=["other classes", "missing", "left over", "NaN"],
)
def test_weights_of_another_network_are_refused(state: dict[str, Tensor], change: dict[str, Any], said: str) -> None:
    changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    with pytest.raises(ImportRefused, match=said):
        ResNet50().load_torchvision_state(changed)


def test_counters_of_training_steps_may_be_missing(state: dict[str, Tensor]) -> None:
    ResNet50().load_torchvision_state({name: each for name, each in state.items() if "num_batches" not in name})


@pytest.mark.slow
def test_a_monai_basic_unet_answers_here_as_it_does_there() -> None:
    nets = pytest.importorskip("monai.networks.nets")
    widths = (16, 16, 32, 64, 128, 16)
    torch.manual_seed(5)
    theirs = nets.BasicUNet(spatial_dims=3, in_channels=2, out_channels=3, features=widths).eval()
    ours = UNet3d(3, channels=2, widths=widths).eval()
    ours.load_monai_state(theirs.state_dict())
    x = torch.randn(2, 2, 32, 48, 32)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))
