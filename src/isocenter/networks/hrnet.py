"""HRNetV2: streams of four resolutions side by side that exchange what they see, and a head over all of them.

Wang, Sun, Cheng, et al.: Deep High-Resolution Representation Learning for Visual Recognition. IEEE TPAMI 2020,
arXiv:1908.07919; the segmentation head (HRNetV2) is that of arXiv:1904.04514, section 3.

Everything but the head has, to the last parameter, as many as the weights that the authors published for ImageNet have
without theirs: 9,562,260 (W18), 29,305,536 (W32), 45,521,216 (W40), 65,325,120 (W48). With the head for 19 classes, W48
has 65.9 M and 696.2 "G" at 1024 x 2048 px, as in the papers' tables, whose G is 2^30: 747.5e9 multiply-adds. The same
tables give 45.2 M to W40 and 9.3 M to W18, which is less than the published weights have before any head.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCKS: Final = 4


def _conv_norm(channels_in: int, channels_out: int, kernel_px: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel_px, stride=stride, padding=kernel_px // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


def _conv_norm_relu(channels_in: int, channels_out: int, kernel_px: int = 3, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_conv_norm(channels_in, channels_out, kernel_px, stride=stride), nn.ReLU())


class _Basic(nn.Module):
    """Two 3x3 convolutions beside an identity: [B, C, H, W] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_norm_relu(channels, channels), *_conv_norm(channels, channels, 3))

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.body(features) + features)


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside a shortcut: [B, channels_in, H, W] to [B, 256, H, W]; the four blocks of stage 1."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_norm_relu(channels_in, 64, 1), *_conv_norm_relu(64, 64), *_conv_norm(64, 256, 1)
        )
        self.shortcut = nn.Identity() if channels_in == 256 else _conv_norm(channels_in, 256, 1)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.body(features) + self.shortcut(features))


def _exchange(source: int, target: int, widths: tuple[int, ...]) -> nn.Module:
    """From one stream to another (figure 3): strided 3x3 downwards, 1x1 and bilinear upwards, identity across."""
    if source == target:
        return nn.Identity()
    if source > target:
        grow = nn.Upsample(scale_factor=2 ** (source - target), mode="bilinear", align_corners=False)
        return nn.Sequential(*_conv_norm(widths[source], widths[target], 1), grow)
    steps = [_conv_norm_relu(widths[source], widths[source], stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _conv_norm(widths[source], widths[target], 3, stride=2))


class _ExchangeModule(nn.Module):
    """Four blocks in each stream, then every stream takes the sum of all, brought to its size."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.streams = nn.ModuleList(nn.Sequential(*(_Basic(width) for _ in range(_BLOCKS))) for width in widths)
        everyone = range(len(widths))
        self.paths = nn.ModuleList(
            nn.ModuleList(_exchange(source, target, widths) for source in everyone) for target in everyone
        )

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        seen = [blocks(features) for blocks, features in zip(self.streams, streams, strict=True)]
        return [functional.relu(_sum([path(s) for path, s in zip(paths, seen, strict=True)])) for paths in self.paths]


def _sum(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


class HRNet(nn.Module):
    """Segment a picture: float32 [B, channels, H, W] in, logits float32 [B, classes, H, W] out.

    H and W are multiples of 32 px (1024 by default). `width` is the number of channels of the finest stream, at a
    quarter of the resolution: 18 and 32 are registered, 40 and 48 are those of the papers' tables. The logits are
    computed at a quarter of the resolution and brought to the input's bilinearly. `modules` counts the exchange modules
    of stages 2, 3 and 4.
    """

    def __init__(
        self,
        classes: int = 1,
        *,
        width: int = 18,
        channels: int = 3,
        modules: tuple[int, int, int] = (1, 4, 3),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm_relu(channels, 64, stride=2), *_conv_norm_relu(64, 64, stride=2))
        self.first = nn.Sequential(*(_Bottleneck(64 if index == 0 else 256) for index in range(4)))
        self.opening = nn.ModuleList([_conv_norm_relu(256, width), _conv_norm_relu(256, 2 * width, stride=2)])
        self.widening = nn.ModuleList(
            [
                _conv_norm_relu(2 * width, 4 * width, stride=2),
                _conv_norm_relu(4 * width, 8 * width, stride=2),
            ]
        )
        self.stages = nn.ModuleList()
        for number, repeats in enumerate(modules):
            widths = tuple(width << power for power in range(number + 2))
            self.stages.append(nn.ModuleList(_ExchangeModule(widths) for _ in range(repeats)))
        self.mixing = _conv_norm_relu(15 * width, 15 * width, 1)
        self.head = nn.Conv2d(15 * width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.first(self.stem(image))
        streams = [opening(features) for opening in self.opening]
        for number, stage in enumerate(self.stages):
            if number > 0:
                streams = [*streams, self.widening[number - 1](streams[-1])]
            for module in stage:
                streams = module(streams)
        finest = [streams[0], *(_grown(stream, 2**power) for power, stream in enumerate(streams[1:], 1))]
        return _grown(self.head(self.mixing(torch.cat(finest, dim=1))), 4)


def _grown(features: Tensor, scale: int) -> Tensor:
    return functional.interpolate(features, scale_factor=float(scale), mode="bilinear", align_corners=False)
