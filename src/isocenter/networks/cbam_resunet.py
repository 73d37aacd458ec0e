"""CBAM-ResUNet: a U-Net of residual units, each with attention over its channels and its pixels.

Zhang, Liu, Wang: Road Extraction by Deep Residual U-Net. IEEE GRSL 2018, arXiv:1711.10684, table I (the units).
Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module. ECCV 2018, arXiv:1807.06521 (the attention, placed
as in figure 3: after the last convolution of a unit, before the sum).

No paper has a table of the two together. The first counts 7.8 M parameters, which are the 7,780,096 weights of the
fifteen convolutions of its table I; the 1x1 convolutions of the shortcuts (430,272), the norms and biases come on top.
The attention of a unit of C channels adds C^2/8 + 98.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Cbam(nn.Module):
    """Weigh channels, then pixels: [B, C, H, W] to the same. No biases, as in equations 2 and 3 of the paper."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1, bias=False),
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        average = features.mean(dim=(2, 3), keepdim=True)
        largest = features.amax(dim=(2, 3), keepdim=True)
        features = features * torch.sigmoid(self.channel(average) + self.channel(largest))
        seen = torch.cat([features.mean(dim=1, keepdim=True), features.amax(dim=1, keepdim=True)], dim=1)
        return features * torch.sigmoid(self.spatial(seen))


class _Unit(nn.Module):
    """A residual unit with pre-activation (figure 1b): [B, channels_in, H, W] to [B, width, H/stride, W/stride].

    The first unit of the network begins with its convolution: there is nothing to normalise yet.
    """

    def __init__(
        self, channels_in: int, width: int, *, stride: int = 1, first: bool = False, attention: bool = True
    ) -> None:
        super().__init__()
        opening = [] if first else [nn.BatchNorm2d(channels_in), nn.ReLU()]
        self.body = nn.Sequential(
            *opening,
            nn.Conv2d(channels_in, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )
        self.attention = Cbam(width) if attention else nn.Identity()
        self.shortcut = nn.Conv2d(channels_in, width, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor = self.attention(self.body(features)) + self.shortcut(features)
        return total


class CbamResUNet(nn.Module):
    """Segment a picture: float32 [B, channels, H, W] in, logits float32 [B, classes, H, W] out.

    H and W are multiples of 8 px (1024 by default). The last unit's sum is neither normalised nor rectified, as in the
    paper. `attention=False` gives the plain ResUNet.
    """

    def __init__(
        self,
        classes: int = 1,
        *,
        channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        attention: bool = True,
    ) -> None:
        super().__init__()
        down: list[nn.Module] = []
        width_in = channels
        for number, width in enumerate(widths):
            first = number == 0
            down.append(_Unit(width_in, width, stride=1 if first else 2, first=first, attention=attention))
            width_in = width
        self.down = nn.ModuleList(down)
        up: list[nn.Module] = []
        for width in reversed(widths[:-1]):
            up.append(_Unit(width_in + width, width, attention=attention))
            width_in = width
        self.up = nn.ModuleList(up)
        self.head = nn.Conv2d(width_in, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        seen: list[Tensor] = []
        features = image
        for unit in self.down:
            features = unit(features)
            seen.append(features)
        for unit, skipped in zip(self.up, reversed(seen[:-1]), strict=True):
            # Nearest: the paper names no filter, and this one has no arithmetic in which runtimes could differ.
            grown = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = unit(torch.cat([grown, skipped], dim=1))
        logits: Tensor = self.head(features)
        return logits
