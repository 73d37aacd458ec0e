"""The networks of nnU-Net 2, whose weights load by their own names; no code of theirs is needed.

Isensee, Jaeger, Kohl, Petersen, Maier-Hein: nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation. Nature Methods 2021, doi:10.1038/s41592-020-01008-z (`PlainConvUNet`); Isensee et al.: nnU-Net Revisited.
MICCAI 2024, arXiv:2404.09556 (`ResidualEncoderUNet`). As in `dynamic_network_architectures` 0.4: what is built here has
their parameters, one by one, except for the names under which those are listed a second time.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

_CONV: Final = {2: nn.Conv2d, 3: nn.Conv3d}
_GROW: Final = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL: Final = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_NORMS: Final = {
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
}
NONLINEARITIES: Final = {"LeakyReLU": nn.LeakyReLU, "ReLU": nn.ReLU, "GELU": nn.GELU, "SiLU": nn.SiLU}
_AGAIN: Final = ("all_modules.", "decoder.encoder.")
"""Parts of names that list a parameter a second time."""
_ALL: Final = re.compile(r"all_modules\.\d+")

Sizes = Sequence[Sequence[int]]


class _Parts:
    """What all of a network's convolutions have in common."""

    def __init__(
        self, dims: int, *, bias: bool, norm: str, norm_options: Mapping[str, Any], nonlinearity: str,
        nonlinearity_options: Mapping[str, Any], nonlinearity_first: bool,
    ) -> None:  # fmt: skip
        if dims not in _CONV or norm not in _NORMS or nonlinearity not in NONLINEARITIES:
            raise ValueError(f"{dims} axes, norm {norm!r}, nonlinearity {nonlinearity!r}")
        self.dims, self.bias, self._norm, self._norm_options = dims, bias, norm, dict(norm_options)
        self._act, self._act_options, self._act_first = nonlinearity, dict(nonlinearity_options), nonlinearity_first

    def conv(self, taken: int, given: int, kernel: Sequence[int], stride: Sequence[int], *, bias: bool) -> nn.Module:
        padding = tuple((size - 1) // 2 for size in kernel)
        return _CONV[self.dims](taken, given, tuple(kernel), tuple(stride), padding, bias=bias)

    def norm(self, width: int) -> nn.Module:
        made: nn.Module = _NORMS[self._norm][self.dims](width, **self._norm_options)
        return made

    def nonlinearity(self) -> nn.Module:
        made: nn.Module = NONLINEARITIES[self._act](**self._act_options)
        return made

    def one(
        self, taken: int, given: int, kernel: Sequence[int], stride: Sequence[int], *, act: bool = True
    ) -> nn.Module:
        return _Normed(
            self.conv(taken, given, kernel, stride, bias=self.bias),
            self.norm(given),
            self.nonlinearity() if act else None,
            act_first=self._act_first,
        )

    def stack(self, count: int, taken: int, given: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Module:
        ones = (1,) * self.dims
        first = self.one(taken, given, kernel, stride)
        return _Convs(nn.Sequential(first, *(self.one(given, given, kernel, ones) for _ in range(count - 1))))

    def block(self, taken: int, given: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Module:
        ones = (1,) * self.dims
        skip: list[nn.Module] = []
        if any(step != 1 for step in stride):
            skip.append(_POOL[self.dims](tuple(stride), tuple(stride)))
        if taken != given:
            skip.append(_Normed(self.conv(taken, given, ones, ones, bias=False), self.norm(given), None))
        first = self.one(taken, given, kernel, stride)
        return _Block(first, self.one(given, given, kernel, ones, act=False), nn.Sequential(*skip), self.nonlinearity())


class _Normed(nn.Module):
    """Convolution, norm, nonlinearity; or the last two the other way round."""

    def __init__(self, conv: nn.Module, norm: nn.Module, nonlin: nn.Module | None, *, act_first: bool = False) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.nonlin = nonlin or nn.Identity()
        self._act_first = act_first

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv(features)
        found: Tensor = self.norm(self.nonlin(features)) if self._act_first else self.nonlin(self.norm(features))
        return found


class _Convs(nn.Module):
    def __init__(self, convs: nn.Sequential) -> None:
        super().__init__()
        self.convs = convs

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.convs(features)
        return found


class _Blocks(nn.Module):
    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.blocks(features)
        return found


class _Block(nn.Module):
    """ResNet-D: what goes past is averaged where it shrinks, then brought to the width."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module, skip: nn.Module, nonlin2: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2, self.skip, self.nonlin2 = conv1, conv2, skip, nonlin2

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.nonlin2(self.conv2(self.conv1(features)) + self.skip(features))
        return found


class _Encoder(nn.Module):
    def __init__(self, stages: nn.Sequential, stem: nn.Module | None = None) -> None:
        super().__init__()
        if stem is not None:
            self.stem = stem
        self.has_stem = stem is not None
        self.stages = stages

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.stem(image) if self.has_stem else image
        seen = []
        for stage in self.stages:
            features = stage(features)
            seen.append(features)
        return seen


class _Decoder(nn.Module):
    """From the coarsest stage up; only the finest stage's scores are given."""

    def __init__(
        self, parts: _Parts, widths: Sequence[int], kernels: Sizes, strides: Sizes, convs: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        stages, grow, heads = [], [], []
        for below in range(len(widths) - 1, 0, -1):
            width, stride = widths[below - 1], tuple(strides[below])
            grow.append(_GROW[parts.dims](widths[below], width, stride, stride, bias=parts.bias))
            count = convs[len(widths) - 1 - below]
            stages.append(parts.stack(count, 2 * width, width, kernels[below - 1], (1,) * parts.dims))
            heads.append(_CONV[parts.dims](width, classes, 1))
        self.stages, self.transpconvs, self.seg_layers = (
            nn.ModuleList(stages),
            nn.ModuleList(grow),
            nn.ModuleList(heads),
        )

    def forward(self, seen: list[Tensor]) -> Tensor:
        features = seen[-1]
        for stage, grow, skipped in zip(self.stages, self.transpconvs, reversed(seen[:-1]), strict=True):
            features = stage(torch.cat([grow(features), skipped], dim=1))
        scores: Tensor = self.seg_layers[-1](features)
        return scores


class _UNet(nn.Module):
    def __init__(self, encoder: _Encoder, decoder: _Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.decoder(self.encoder(image))
        return scores


class PlainConvUNet(_UNet):
    """Segment: float32 [B, channels, *spatial] in, scores float32 [B, classes, *spatial] out.

    Sides are multiples of the product of the strides. Sequences have one entry a stage, finest first; `decoder_convs`
    one fewer, coarsest first.

    Raises:
        ValueError: a norm or a nonlinearity that is not known here; or lengths that do not fit.
    """

    def __init__(
        self, *, channels: int, classes: int, widths: Sequence[int], kernels: Sizes, strides: Sizes,
        convs: Sequence[int], decoder_convs: Sequence[int], **parts: Any,
    ) -> None:  # fmt: skip
        _check_lengths(widths, kernels, strides, convs, decoder_convs)
        made = _Parts(len(kernels[0]), **parts)
        stages = []
        for taken, width, kernel, stride, count in zip(
            (channels, *widths[:-1]), widths, kernels, strides, convs, strict=True
        ):
            stages.append(nn.Sequential(made.stack(count, taken, width, kernel, stride)))
        encoder = _Encoder(nn.Sequential(*stages))
        super().__init__(encoder, _Decoder(made, widths, kernels, strides, decoder_convs, classes))


class ResidualEncoderUNet(_UNet):
    """The same with residual blocks on the way down, after a convolution that brings the input to the first width.

    Raises:
        ValueError: see `PlainConvUNet`.
    """

    def __init__(
        self, *, channels: int, classes: int, widths: Sequence[int], kernels: Sizes, strides: Sizes,
        blocks: Sequence[int], decoder_convs: Sequence[int], stem_width: int | None = None, **parts: Any,
    ) -> None:  # fmt: skip
        _check_lengths(widths, kernels, strides, blocks, decoder_convs)
        made = _Parts(len(kernels[0]), **parts)
        ones = (1,) * made.dims
        stem = made.stack(1, channels, stem_width or widths[0], kernels[0], ones)
        stages = []
        for taken, width, kernel, stride, count in zip(
            (stem_width or widths[0], *widths[:-1]), widths, kernels, strides, blocks, strict=True
        ):
            first = made.block(taken, width, kernel, stride)
            stages.append(
                _Blocks(nn.Sequential(first, *(made.block(width, width, kernel, ones) for _ in range(count - 1))))
            )
        encoder = _Encoder(nn.Sequential(*stages), stem)
        super().__init__(encoder, _Decoder(made, widths, kernels, strides, decoder_convs, classes))


class OfSlices(nn.Module):
    """A network of pictures for volumes of one slice: [B, channels, 1, H, W] in, [B, classes, 1, H, W] out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume: Tensor) -> Tensor:
        scores: Tensor = self.network(volume.squeeze(2)).unsqueeze(2)
        return scores


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of an nnU-Net by the names here: each once.

    Raises:
        ValueError: a parameter that is listed twice has two values.
    """
    own = {name: tensor for name, tensor in state.items() if not any(part in name for part in _AGAIN)}
    for name, tensor in state.items():
        first = name.replace("decoder.encoder.", "encoder.")
        names = [_ALL.sub(part, first) for part in ("conv", "norm")] if _ALL.search(first) else [first]
        if not any(each in own and torch.equal(own[each], tensor) for each in names):
            raise ValueError(f"{name} has another value than {' or '.join(names)}")
    return own


def _check_lengths(
    widths: Sequence[int], kernels: Sizes, strides: Sizes, depth: Sequence[int], decoder: Sequence[int]
) -> None:
    found = len(widths), len(kernels), len(strides), len(depth), len(decoder) + 1
    if len(set(found)) != 1 or len(widths) < 2:
        raise ValueError(f"widths, kernels, strides and depths are of {', '.join(map(str, found))} stages")
