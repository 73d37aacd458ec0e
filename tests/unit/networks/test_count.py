"""Parameters and multiply-adds: by hand for single layers, and as the papers' tables have them for whole networks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from isocenter.networks.cbam_resunet import CbamResUNet  # noqa: E402
from isocenter.networks.count import count  # noqa: E402
from isocenter.networks.hrnet import HRNet  # noqa: E402
from isocenter.networks.resnet50 import ResNet50  # noqa: E402
from isocenter.networks.unet2d import UNet2d  # noqa: E402
from isocenter.networks.unet3d import CicekUNet3d, UNet3d  # noqa: E402

GI = 2**30


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize(
    ("layer", "shape", "parameters", "multiply_adds"),
    [
        (nn.Conv2d(3, 8, 5, stride=2, padding=2), (3, 10, 6), 3 * 8 * 25 + 8, 5 * 3 * 8 * 3 * 25),
        (nn.Conv2d(8, 4, 3, groups=4, bias=False), (8, 6, 6), 4 * 2 * 9, 4 * 4 * 4 * 2 * 9),
        (nn.Conv3d(2, 3, 3, padding=1), (2, 4, 5, 6), 2 * 3 * 27 + 3, 4 * 5 * 6 * 3 * 2 * 27),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), (6, 5, 5), 6 * 4 * 4 + 4, 5 * 5 * 6 * 4 * 4),
        (nn.Linear(7, 5), (7,), 7 * 5 + 5, 7 * 5),
        (nn.Linear(7, 5), (3, 7), 7 * 5 + 5, 3 * 7 * 5),
        (nn.BatchNorm2d(6), (6, 4, 4), 12, 0),
    ],
    ids=["strided", "grouped", "volume", "transposed", "linear", "linear of rows", "norm"],
)
def test_a_layer_costs_what_it_does_on_paper(
    layer: nn.Module, shape: Sequence[int], parameters: int, multiply_adds: int
) -> None:
    found = count(nn.Sequential(layer), shape)
    assert (found.parameters, found.multiply_adds) == (parameters, multiply_adds)


def test_a_layer_that_runs_twice_counts_twice_and_its_weights_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Conv2d(2, 2, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.shared(x))

    found = count(Twice(), (2, 3, 3))
    assert (found.parameters, found.multiply_adds) == (4, 2 * 4 * 9)
    assert found.by_layer == {"shared": 2 * 4 * 9}


def test_counting_leaves_the_network_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count(network, (1, 4, 4))
    assert network.training
    assert not network[0]._forward_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_resnet50_has_what_its_paper_and_the_published_weights_have() -> None:
    usual = count(without_memory(lambda: ResNet50(1000)), (3, 224, 224))
    first = count(without_memory(lambda: ResNet50(1000, stride_in="1x1")), (3, 224, 224))
    assert (usual.parameters, first.parameters) == (25_557_032, 25_557_032)
    assert round(usual.multiply_adds / 1e9, 2) == 4.09
    assert first.multiply_adds == 3_857_973_248  # table 1 says 3.8e9


def imagenet_head(width: int) -> int:
    """Parameters that the ImageNet networks of the authors have after the four streams."""
    total = 1024 * 2048 + 3 * 2048 + 2048 * 1000 + 1000
    for stream, middle in enumerate((32, 64, 128, 256)):
        out, taken = 4 * middle, width << stream
        total += taken * middle + 9 * middle**2 + middle * out + taken * out + 2 * (2 * middle + 2 * out)
    for taken in (128, 256, 512):
        total += 9 * taken * 2 * taken + 3 * 2 * taken
    return total


@pytest.mark.parametrize(
    ("width", "published"), [(18, 21_299_004), (32, 41_232_680), (40, 57_557_160), (48, 77_469_864)]
)
def test_hrnet_has_the_streams_of_the_published_weights_to_the_last_parameter(width: int, published: int) -> None:
    network = without_memory(lambda: HRNet(1, width=width))
    head = sum(each.numel() for part in (network.mixing, network.head) for each in part.parameters())
    assert sum(each.numel() for each in network.parameters()) - head == published - imagenet_head(width)


def test_hrnet_w48_has_what_the_table_of_its_paper_has() -> None:
    found = count(without_memory(lambda: HRNet(19, width=48)), (3, 1024, 2048))
    assert round(found.parameters / 1e6, 1) == 65.9
    assert round(found.multiply_adds / GI, 1) == 696.2


def test_hrnet_w18_has_the_multiply_adds_of_the_landmark_paper() -> None:
    found = count(without_memory(lambda: HRNet(68, width=18)), (3, 256, 256))
    assert round(found.multiply_adds / GI, 1) == 4.3
    assert round(found.parameters / 1e6, 2) == 9.65  # the paper says 9.3; see docs/networks.md


def test_resunet_has_the_weights_of_table_1_of_its_paper() -> None:
    network = without_memory(lambda: CbamResUNet(attention=False))
    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    shortcuts = [unit.shortcut for unit in (*network.down, *network.up)]
    counted = [each for each in convolutions if not any(each is shortcut for shortcut in shortcuts)]
    assert len(counted) == 15
    assert sum(each.weight.numel() for each in counted) == 7_780_096  # the paper says 7.8 M
    assert sum(each.weight.numel() for each in shortcuts) == 430_272


def test_attention_costs_what_its_equations_say() -> None:
    widths = (64, 128, 256, 512, 256, 128, 64)
    plain = count(without_memory(lambda: CbamResUNet(attention=False)), (3, 64, 64)).parameters
    attentive = count(without_memory(CbamResUNet), (3, 64, 64)).parameters
    assert attentive - plain == sum(2 * width * width // 16 + 2 * 7 * 7 for width in widths)


def test_unet_has_the_23_convolutions_of_its_paper() -> None:
    network = without_memory(lambda: UNet2d(2, channels=1))
    layers = [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.ConvTranspose2d)]
    widths = (64, 128, 256, 512, 1024)
    paper = 9 * 1 * 64 + 9 * 64 * 64 + 2 * 64 + 64 * 2 + 2
    for narrow, wide in pairwise(widths):
        paper += 9 * narrow * wide + 9 * wide * wide + 2 * wide  # down
        paper += 4 * wide * narrow + narrow + 9 * 2 * narrow * narrow + 9 * narrow * narrow + 2 * narrow  # up
    scales = sum(each.weight.numel() for each in network.modules() if isinstance(each, nn.BatchNorm2d))
    assert len(layers) == 23
    assert paper == 31_030_658
    assert scales == 5_888
    assert sum(each.numel() for each in network.parameters()) == paper + scales


def test_the_first_3d_unet_has_what_its_paper_has_and_the_scales_of_its_norms() -> None:
    network = without_memory(CicekUNet3d)
    scales = sum(each.weight.numel() for each in network.modules() if isinstance(each, nn.BatchNorm3d))
    assert scales == 2_336
    assert sum(each.numel() for each in network.parameters()) == 19_069_955 + scales


def test_the_light_3d_unet_has_as_many_as_the_one_that_volumes_are_measured_with() -> None:
    found = count(without_memory(UNet3d), (1, 96, 96, 96))
    assert (found.parameters, found.multiply_adds) == (1_438_802, 31_742_558_208)
