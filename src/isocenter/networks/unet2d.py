"""U-Net: a contracting path, an expanding path, and the former's features beside the latter's.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015,
arXiv:1505.04597; figure 1.

The paper counts 23 convolutional layers and gives no number of parameters; its figure 1 comes to 31.0 M. Two things
differ here, as they do in what people train today: the convolutions pad, so that the mask has the picture's size; each
3x3 convolution is followed by a norm (whose offset is the convolution's bias), which adds 5,888 scales. Because of the
padding the multiply-adds are those of the full 1024 x 1024 px and not of the paper's shrinking 572 x 572.
"""

import torch
from torch import Tensor, nn


def _twice(channels_in: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (channels_in, width):
        layers += [nn.Conv2d(source, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet2d(nn.Module):
    """Segment a picture: float32 [B, channels, H, W] in, logits float32 [B, classes, H, W] out.

    H and W are multiples of 16 px (1024 by default) with the five levels of the paper.
    """

    def __init__(
        self, classes: int = 1, *, channels: int = 3, widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            _twice(source, width) for source, width in zip((channels, *widths[:-1]), widths, strict=True)
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(deep, width, 2, stride=2) for deep, width in steps)
        self.up = nn.ModuleList(_twice(2 * width, width) for _, width in steps)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        seen: list[Tensor] = []
        features = image
        for number, level in enumerate(self.down):
            features = level(features if number == 0 else self.pool(features))
            seen.append(features)
        for grow, level, skipped in zip(self.grow, self.up, reversed(seen[:-1]), strict=True):
            features = level(torch.cat([skipped, grow(features)], dim=1))
        logits: Tensor = self.head(features)
        return logits
