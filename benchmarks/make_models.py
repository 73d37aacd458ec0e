"""Two models without meaning, to repeat published figures from this project alone: a ResNet-50 and a small network.

    python -m pip install -e '.[torch]'
    python benchmarks/make_models.py --out /tmp/models

Random weights, settled so that answers differ from picture to picture; 224 x 224 RGB, four classes. `small` has four
convolutions and about two million multiply-adds: nearly all of a request is decoding and serving. Speed does not
depend on the weights, so that figures can be compared with those of any ResNet-50 of this size.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

from package_model import Packaging, package

SIDE_PX = 224
CLASSES = 4
SEED = 7


class Bottleneck(nn.Module):  # type: ignore[misc, unused-ignore]
    """One block of a ResNet-50 (He et al. 2015, figure 5, right), the stride in the middle convolution."""

    def __init__(self, channels_in: int, middle: int, stride: int) -> None:
        super().__init__()
        out = middle * 4
        self.body = nn.Sequential(
            *(nn.Conv2d(channels_in, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU()),
            *(nn.Conv2d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU()),
            *(nn.Conv2d(middle, out, 1, bias=False), nn.BatchNorm2d(out)),
        )
        same = stride == 1 and channels_in == out
        projection = (nn.Conv2d(channels_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.skip = nn.Identity() if same else nn.Sequential(*projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        return torch.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Sequential:
    """ResNet-50 for four classes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for middle, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(blocks):
            layers.append(Bottleneck(channels, middle, stride if number == 0 else 1))
            channels = middle * 4
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def small() -> nn.Sequential:
    """Four convolutions for four classes."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)),
    )


def settle(network: nn.Sequential) -> None:
    """Let the batch norms see some noise, and stretch the last layer so that answers differ."""
    network.train()
    with torch.no_grad():
        for _ in range(6):
            network(torch.randn(8, 3, SIDE_PX, SIDE_PX))
        network.eval()
        logits = network(torch.randn(16, 3, SIDE_PX, SIDE_PX))
        scale = 1.5 / logits.std(0)
        last = network[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(scale[:, None])
        last.bias.sub_(logits.mean(0)).mul_(scale)


def main() -> None:
    """Build, export, package."""
    parser = argparse.ArgumentParser(description="a ResNet-50 and a small model, as model folders")
    parser.add_argument("--out", type=Path, required=True, metavar="MODELS")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for build in (resnet50, small):
            torch.manual_seed(SEED)
            network = build()
            settle(network)
            file = Path(scratch) / f"{build.__name__}.onnx"
            torch.onnx.export(
                network,
                (torch.randn(2, 3, SIDE_PX, SIDE_PX),),
                str(file),
                opset_version=17,
                dynamo=False,
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            )
            print(package(file, given.out, Packaging(labels=CLASSES)))


if __name__ == "__main__":
    main()
