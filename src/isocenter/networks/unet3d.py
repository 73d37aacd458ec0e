"""U-Nets for volumes: a light one with instance norms, for windows of large volumes, and the first one published.

`UNet3d`: Falk, Mai, Bensch, et al.: U-Net: deep learning for cell counting, detection, and morphometry. Nature Methods
2019, doi:10.1038/s41592-018-0261-2, in the layout and with the defaults of MONAI's BasicUNet, whose weights load by
`load_monai_state`. The paper has no table of parameters; with the widths here there are 1,438,802, as in MONAI's.

`CicekUNet3d`: Cicek, Abdulkadir, Lienkamp, Brox, Ronneberger: 3D U-Net: Learning Dense Volumetric Segmentation from
Sparse Annotation. MICCAI 2016, arXiv:1606.06650; figure 2. The paper counts 19,069,955 parameters for three channels
and three classes. Here there are 2,336 more: each norm has a scale beside its offset; there the offset alone was
learned.
"""

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from isocenter.networks.weights import load_state

_SLOPE: Final = 0.1


def _twice_instance(channels_in: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (channels_in, width):
        # The bias is lost in the norm that follows; it is there because the published weights have it.
        conv = nn.Conv3d(source, width, 3, padding=1)
        layers += [conv, nn.InstanceNorm3d(width, affine=True), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


class UNet3d(nn.Module):
    """Segment a volume: float32 [B, channels, D, H, W] in, logits float32 [B, classes, D, H, W] out.

    D, H and W are multiples of 16 voxels and at least 32 (96 by default): a norm over one voxel has nothing to norm.
    The sixth width is that of the finest level on the way up. Norms are over the item, so that its answer depends on
    its own voxels only, in training as well.
    """

    def __init__(
        self, classes: int = 2, *, channels: int = 1, widths: tuple[int, ...] = (16, 16, 32, 64, 128, 16)
    ) -> None:
        super().__init__()
        *downwards, last = widths
        self.pool = nn.MaxPool3d(2)
        self.down = nn.ModuleList(
            _twice_instance(source, width) for source, width in zip((channels, *downwards[:-1]), downwards, strict=True)
        )
        grow: list[nn.Module] = []
        up: list[nn.Module] = []
        deep = downwards[-1]
        for level, skipped in reversed(list(enumerate(downwards[:-1]))):
            finest = level == 0
            grown, width = (deep, last) if finest else (deep // 2, skipped)
            grow.append(nn.ConvTranspose3d(deep, grown, 2, stride=2))
            up.append(_twice_instance(skipped + grown, width))
            deep = width
        self.grow = nn.ModuleList(grow)
        self.up = nn.ModuleList(up)
        self.head = nn.Conv3d(last, classes, 1)

    def forward(self, volume: Tensor) -> Tensor:
        return _u_shaped(volume, self)

    def load_monai_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a MONAI BasicUNet with the same widths, channels and classes.

        Raises:
            ImportRefused: a tensor is missing, left over, or of another shape.
        """
        load_state(self, renamed(state))


class CicekUNet3d(nn.Module):
    """Segment a volume: float32 [B, channels, D, H, W] in, logits float32 [B, classes, D, H, W] out.

    D, H and W are multiples of 8 voxels. The convolutions pad, so that the mask has the volume's size; in the paper a
    132 x 132 x 116 volume gives a 44 x 44 x 28 mask.
    """

    def __init__(self, classes: int = 3, *, channels: int = 3, widths: tuple[int, ...] = (64, 128, 256, 512)) -> None:
        super().__init__()
        self.pool = nn.MaxPool3d(2)
        sources = (channels, *widths[:-1])
        # The first convolution of a level has half its width, so that no layer is narrower than what goes in.
        self.down = nn.ModuleList(
            nn.Sequential(*_batch_normed(source, width // 2), *_batch_normed(width // 2, width))
            for source, width in zip(sources, widths, strict=True)
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose3d(deep, deep, 2, stride=2, bias=False) for deep, _ in steps)
        self.up = nn.ModuleList(
            nn.Sequential(*_batch_normed(deep + width, width), *_batch_normed(width, width)) for deep, width in steps
        )
        self.head = nn.Conv3d(widths[0], classes, 1)

    def forward(self, volume: Tensor) -> Tensor:
        return _u_shaped(volume, self)


def _batch_normed(channels_in: int, width: int) -> nn.Sequential:
    conv = nn.Conv3d(channels_in, width, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(width), nn.ReLU())


def _u_shaped(volume: Tensor, network: "UNet3d | CicekUNet3d") -> Tensor:
    seen: list[Tensor] = []
    features = volume
    for number, level in enumerate(network.down):
        features = level(features if number == 0 else network.pool(features))
        seen.append(features)
    for grow, level, skipped in zip(network.grow, network.up, reversed(seen[:-1]), strict=True):
        features = level(torch.cat([skipped, grow(features)], dim=1))
    logits: Tensor = network.head(features)
    return logits


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of MONAI's BasicUNet (`down_1.convs.conv_0.conv.weight`) as ours; other names stay as they are."""
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    if found := re.fullmatch(r"(?:conv_0|down_(\d)\.convs)\.conv_([01])\.(conv|adn\.N)\.(\w+)", name):
        level, which, kind, rest = found.groups()
        return f"down.{level or 0}.{_index(which, kind)}.{rest}"
    if found := re.fullmatch(r"upcat_(\d)\.upsample\.deconv\.(\w+)", name):
        return f"grow.{4 - int(found[1])}.{found[2]}"
    if found := re.fullmatch(r"upcat_(\d)\.convs\.conv_([01])\.(conv|adn\.N)\.(\w+)", name):
        level, which, kind, rest = found.groups()
        return f"up.{4 - int(level)}.{_index(which, kind)}.{rest}"
    return name.replace("final_conv.", "head.")


def _index(which: str, kind: str) -> int:
    return 3 * int(which) + (0 if kind == "conv" else 1)
