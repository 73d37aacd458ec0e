"""A small U-Net for nuclei: each level adds what it sees to what comes up, in place of stacking both.

After Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, arXiv:1505.04597. The sums in place of concatenations are those of
LinkNet (Chaurasia, Culurciello, arXiv:1707.03718). The full size, which costs most on a CPU, has one convolution down
and one up.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 48, 96, 128, 192)
"""Channels of the levels, the full size first."""


def _convolution(channels_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


def _level(channels_in: int, width: int, *, convolutions: int) -> nn.Sequential:
    return nn.Sequential(*[_convolution(width if number else channels_in, width) for number in range(convolutions)])


class NucleusUNet(nn.Module):
    """Segment a picture: float32 [B, channels, H, W] in 0..1 in, logits float32 [B, classes, H, W] out.

    H and W are multiples of 16 px. The square root of the picture goes in beside it: nuclei of one field differ in
    brightness by a factor of ten and more.
    """

    def __init__(self, classes: int = 3, *, channels: int = 3, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        sources = (2 * channels, *widths[:-1])
        depths = [1 if number == 0 else 2 for number in range(len(widths))]
        self.down = nn.ModuleList(
            _level(source, width, convolutions=depth)
            for source, width, depth in zip(sources, widths, depths, strict=True)
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], depths[-2::-1], strict=True))
        self.narrow = nn.ModuleList(nn.Conv2d(deep, width, 1, bias=False) for deep, width, _ in steps)
        self.up = nn.ModuleList(_level(width, width, convolutions=depth) for _, width, depth in steps)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        seen: list[Tensor] = []
        features = torch.cat([image, image.clamp(min=0.0).sqrt()], dim=1)
        for number, level in enumerate(self.down):
            features = level(features if number == 0 else functional.max_pool2d(features, 2))
            seen.append(features)
        for narrow, level, skipped in zip(self.narrow, self.up, reversed(seen[:-1]), strict=True):
            # Nearest: it has no arithmetic in which runtimes could differ.
            grown = functional.interpolate(narrow(features), scale_factor=2.0, mode="nearest")
            features = level(skipped + grown)
        logits: Tensor = self.head(features)
        return logits
