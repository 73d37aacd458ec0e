"""A small U-Net for lesions in head scans, made for a CPU: its finest features lie on every second voxel.

After Cicek et al.: 3D U-Net, MICCAI 2016, arXiv:1606.06650, with the sums in place of concatenations of LinkNet
(Chaurasia, Culurciello, arXiv:1707.03718). The full grid costs most and is touched twice: by the first convolution, of
stride 2, and by the last one, transposed, which gives each of the eight voxels its own weights. Norms are those of one
volume alone: sequences differ in contrast, and a batch's mean of several is none of theirs.
"""

from torch import Tensor, nn
from torch.nn import functional


def _convolution(channels_in: int, width: int, *, side: int = 3, stride: int = 1) -> nn.Sequential:
    padding = (side - stride + 1) // 2 if stride > 1 else side // 2
    return nn.Sequential(
        nn.Conv3d(channels_in, width, side, stride=stride, padding=padding, bias=False),
        nn.InstanceNorm3d(width, affine=True),
        nn.ReLU(inplace=True),
    )


class LesionUNet3d(nn.Module):
    """Segment a volume: float32 [B, channels, D, H, W] in, logits float32 [B, classes, D, H, W] out.

    D, H and W are multiples of 16 voxels.
    """

    def __init__(self, classes: int = 2, *, channels: int = 1, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.stem = _convolution(channels, widths[0], side=4, stride=2)
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(source, width), _convolution(width, width))
            if number
            else _convolution(width, width)
            for number, (source, width) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True))
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.narrow = nn.ModuleList(nn.Conv3d(deep, width, 1, bias=False) for deep, width in steps)
        self.up = nn.ModuleList(
            nn.Sequential(_convolution(width, width), _convolution(width, width)) for _, width in steps
        )
        self.head = nn.ConvTranspose3d(widths[0], classes, 2, stride=2)

    def forward(self, volume: Tensor) -> Tensor:
        seen: list[Tensor] = []
        features = self.stem(volume)
        for number, level in enumerate(self.down):
            features = level(features if number == 0 else functional.max_pool3d(features, 2))
            seen.append(features)
        for narrow, level, skipped in zip(self.narrow, self.up, reversed(seen[:-1]), strict=True):
            # Nearest: it has no arithmetic in which runtimes could differ.
            grown = functional.interpolate(narrow(features), scale_factor=2.0, mode="nearest")
            features = level(skipped + grown)
        logits: Tensor = self.head(features)
        return logits
