"""A small residual classifier for single image planes, and its way out to ONNX."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

ONNX_OPSET = 17
INPUT_NAME = "image"
OUTPUT_NAME = "logits"
INPUT_SIDE_PX = 224


def _conv_norm(channels_in: int, channels_out: int, *, kernel_px: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel_px, stride=stride, padding=kernel_px // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


class _SqueezeExcite(nn.Module):
    """Scale each channel by what the whole plane says about it (Hu et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 8)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(features, 1)
        gate: Tensor = torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))))
        return features * gate


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; a strided shortcut averages, so that it sees every pixel."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(channels_in, channels_out, stride=stride)
        self.second = _conv_norm(channels_out, channels_out)
        self.attention = _SqueezeExcite(channels_out)
        shortcut: list[nn.Module] = []
        if stride > 1:
            shortcut.append(nn.AvgPool2d(stride, ceil_mode=False))
        if channels_in != channels_out:
            shortcut.append(_conv_norm(channels_in, channels_out, kernel_px=1))
        self.shortcut = nn.Sequential(*shortcut)
        # Each block starts as its own shortcut, which lets a high learning rate hold from the first step.
        norm = self.second[1]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.attention(self.second(functional.relu(self.first(features))))
        return functional.relu(self.shortcut(features) + residual)


class SliceResNet(nn.Module):
    """Classify one normalised plane: float32 [B, 3, 224, 224] in, logits float32 [B, classes] out.

    The sides may be any multiple of 32 px; 224 is what the shipped weights were trained for. The head looks at the
    average and at the maximum of every feature: a small lesion is lost in an average.
    """

    def __init__(
        self,
        classes: int = 4,
        *,
        widths: Sequence[int] = (24, 48, 96, 128),
        depths: Sequence[int] = (1, 1, 1, 1),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise ValueError(f"{len(widths)} widths for {len(depths)} stages")
        self.stem = nn.Sequential(_conv_norm(3, 16, kernel_px=5, stride=2), nn.ReLU(), nn.MaxPool2d(2))
        blocks: list[nn.Module] = []
        channels = 16
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(_ResidualBlock(channels, width, stride=stride))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.blocks(self.stem(image))
        average = functional.adaptive_avg_pool2d(features, 1).flatten(1)
        maximum = features.amax(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(torch.cat([average, maximum], dim=1)))
        return logits


def export_onnx(module: nn.Module, path: Path, *, side_px: int = INPUT_SIDE_PX) -> None:
    """Write `module` as one ONNX file, opset 17, with a free batch axis on `image` and `logits`.

    The module is exported in evaluation mode and given back in the mode it came in. Raises OSError if `path` cannot
    be written.
    """
    was_training = module.training
    example = torch.zeros(2, 3, side_px, side_px)
    module.eval()
    try:
        with warnings.catch_warnings():
            # The tracing exporter is deprecated in name, but the other one pins the batch axis and a newer opset.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (example,),
                str(path),
                dynamo=False,
                opset_version=ONNX_OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
            )
    finally:
        module.train(was_training)
