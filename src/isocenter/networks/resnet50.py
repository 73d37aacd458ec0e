"""ResNet-50: fifty weighted layers in residual bottlenecks.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016, arXiv:1512.03385; table 1, third column.

With 1000 classes: 25,557,032 parameters. Table 1 counts 3.8e9 multiply-adds at 224 x 224 px, which is what a stride in
the first 1x1 convolution of a bottleneck gives (`stride_in="1x1"`: 3.86e9). Every published set of weights since has
the stride in the 3x3 convolution, where no pixel is skipped: 4.09e9, and the same parameters. That is the default here.
"""

import re
from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from isocenter.networks.weights import load_state

_STAGES: Final = ((64, 3), (128, 4), (256, 6), (512, 3))
_PARTS: Final = {"1": "reduce", "2": "middle", "3": "expand"}


def _conv_norm(channels_in: int, channels_out: int, kernel_px: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel_px, stride=stride, padding=kernel_px // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside a shortcut (figure 5, right): [B, channels_in, H, W] to [B, 4 width, H/stride, W/stride]."""

    def __init__(self, channels_in: int, width: int, *, stride: int, stride_in: Literal["1x1", "3x3"]) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.reduce = _conv_norm(channels_in, width, 1, stride=first)
        self.middle = _conv_norm(width, width, 3, stride=second)
        self.expand = _conv_norm(width, 4 * width, 1)
        same = stride == 1 and channels_in == 4 * width
        self.shortcut = nn.Identity() if same else _conv_norm(channels_in, 4 * width, 1, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        inner = functional.relu(self.middle(functional.relu(self.reduce(features))))
        return functional.relu(self.expand(inner) + self.shortcut(features))


class ResNet50(nn.Module):
    """Classify a picture: float32 [B, channels, H, W] in, logits float32 [B, classes] out; 224 x 224 px as a rule."""

    def __init__(self, classes: int = 4, *, channels: int = 3, stride_in: Literal["1x1", "3x3"] = "3x3") -> None:
        super().__init__()
        self.stem = _conv_norm(channels, 64, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        stages: list[nn.Module] = []
        width_in = 64
        for number, (width, depth) in enumerate(_STAGES):
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if number > 0 and index == 0 else 1
                blocks.append(Bottleneck(width_in, width, stride=stride, stride_in=stride_in))
                width_in = 4 * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width_in, classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stages(self.pool(functional.relu(self.stem(image))))
        pooled = torch.flatten(functional.adaptive_avg_pool2d(features, 1), 1)
        logits: Tensor = self.head(pooled)
        return logits

    def load_torchvision_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a torchvision or timm ResNet-50 with as many classes.

        Raises:
            ImportRefused: a tensor is missing, left over, or of another shape.
        """
        load_state(self, renamed(state))


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors named as torchvision and timm do (`layer1.0.conv2.weight`, `fc.weight`), named as here; others stay."""
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    if found := re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn)([123])\.(\w+)", name):
        stage, block, kind, part, rest = found.groups()
        return f"stages.{int(stage) - 1}.{block}.{_PARTS[part]}.{0 if kind == 'conv' else 1}.{rest}"
    if found := re.fullmatch(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)", name):
        stage, block, index, rest = found.groups()
        return f"stages.{int(stage) - 1}.{block}.shortcut.{index}.{rest}"
    for theirs, ours in (("conv1.", "stem.0."), ("bn1.", "stem.1."), ("head.fc.", "head."), ("fc.", "head.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
