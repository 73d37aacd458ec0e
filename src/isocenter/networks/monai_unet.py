"""MONAI's UNet, whose published weights load by their own names; no code of theirs is needed.

Kerfoot, Clough, Oksuz, Lee, King, Schnabel: Left-Ventricle Quantification Using Residual U-Net. STACOM 2018,
doi:10.1007/978-3-030-12029-0_40. In MONAI 1.6 `monai.networks.nets.UNet`; what is built here has its parameters, one by
one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

_CONV: Final = {2: nn.Conv2d, 3: nn.Conv3d}
_GROW: Final = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS: Final = {
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
}
_ACTIVATIONS: Final = {"prelu": nn.PReLU, "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU}
_OPTIONS: Final = {
    "instance": {"affine", "eps", "momentum", "track_running_stats"},
    "batch": {"affine", "eps", "momentum", "track_running_stats"},
    "prelu": {"num_parameters", "init"},
    "relu": {"inplace"},
    "leakyrelu": {"negative_slope", "inplace"},
}
Named = str | Sequence[Any]
"""A name, or a name and its options: "batch", ["prelu", {"init": 0.2}]."""


class MonaiUNet(nn.Module):
    """Segment: float32 [B, in_channels, *spatial] in, scores float32 [B, out_channels, *spatial] out.

    Sides are multiples of the product of the strides. The arguments are MONAI's, by the names that they have there.

    Raises:
        ValueError: a norm, an activation or an option of one that is not known here; or lengths that do not fit.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        kernel_size: int = 3,
        up_kernel_size: int = 3,
        num_res_units: int = 0,
        act: Named = "prelu",
        norm: Named = "instance",
        dropout: float = 0.0,
        bias: bool = True,
        adn_ordering: str = "NDA",
    ) -> None:
        super().__init__()
        if spatial_dims not in _CONV or len(channels) < 2 or len(strides) < len(channels) - 1:
            raise ValueError(f"{spatial_dims} spatial axes, {len(channels)} widths and {len(strides)} strides")
        self._dims = spatial_dims
        self._kernel, self._up_kernel = kernel_size, up_kernel_size
        self._units = num_res_units
        self._norm, self._act = _named(norm, _NORMS), _named(act, _ACTIVATIONS)
        self._dropout, self._bias, self._order = dropout, bias, adn_ordering.upper()
        if set(self._order) - set("NDA"):
            raise ValueError(f"adn_ordering {adn_ordering!r}: letters of N, D, A")
        self.model = self._level(in_channels, out_channels, list(channels), list(strides), top=True)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.model(image)
        return scores

    def _level(self, taken: int, given: int, widths: list[int], strides: list[int], *, top: bool) -> nn.Sequential:
        width, stride = widths[0], strides[0]
        if len(widths) > 2:
            inner: nn.Module = self._level(width, width, widths[1:], strides[1:], top=False)
            joined = 2 * width
        else:
            inner, joined = self._down(width, widths[1], 1), width + widths[1]
        return nn.Sequential(self._down(taken, width, stride), _Beside(inner), self._up(joined, given, stride, top=top))

    def _down(self, taken: int, given: int, stride: int) -> nn.Module:
        if not self._units:
            return self._conv(taken, given, stride)
        return self._residual(taken, given, stride, self._units, bare_end=False)

    def _up(self, taken: int, given: int, stride: int, *, top: bool) -> nn.Module:
        conv = _GROW[self._dims](
            taken, given, self._up_kernel, stride, self._up_kernel // 2, output_padding=stride - 1, bias=self._bias
        )
        grown = self._dressed(conv, given, bare=top and not self._units)
        if not self._units:
            return grown
        return nn.Sequential(grown, self._residual(given, given, 1, 1, bare_end=top))

    def _residual(self, taken: int, given: int, stride: int, units: int, *, bare_end: bool) -> nn.Module:
        convs = nn.Sequential()
        for unit in range(units):
            last = bare_end and unit == units - 1
            source, step = (given, 1) if unit else (taken, stride)
            convs.add_module(f"unit{unit}", self._conv(source, given, step, bare=last))
        if stride == 1 and taken == given:
            return _Residual(convs, nn.Identity())
        kernel = 1 if stride == 1 else self._kernel
        return _Residual(convs, _CONV[self._dims](taken, given, kernel, stride, kernel // 2, bias=self._bias))

    def _conv(self, taken: int, given: int, stride: int, *, bare: bool = False) -> nn.Sequential:
        conv = _CONV[self._dims](taken, given, self._kernel, stride, self._kernel // 2, bias=self._bias)
        return self._dressed(conv, given, bare=bare)

    def _dressed(self, conv: nn.Module, width: int, *, bare: bool) -> nn.Sequential:
        parts = nn.Sequential()
        parts.add_module("conv", conv)
        if not bare:
            parts.add_module("adn", self._norm_drop_act(width))
        return parts

    def _norm_drop_act(self, width: int) -> nn.Sequential:
        (norm, norm_options), (act, act_options) = self._norm, self._act
        made = nn.Sequential()
        for letter in self._order:
            if letter == "N":
                made.add_module("N", _NORMS[norm][self._dims](width, **norm_options))
            elif letter == "A":
                made.add_module("A", _ACTIVATIONS[act](**act_options))
            elif self._dropout:
                made.add_module("D", nn.Dropout(self._dropout))
        return made


class _Beside(nn.Module):
    """What goes in, and what the inner level makes of it, one after the other along the channels."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, self.submodule(features)], dim=1)


class _Residual(nn.Module):
    def __init__(self, conv: nn.Module, residual: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.residual = residual

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.conv(features) + self.residual(features)
        return found


def _named(said: Named, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    given: Sequence[Any] = [said] if isinstance(said, str) else said
    name, options = str(given[0]).lower(), dict(given[1]) if len(given) > 1 else {}
    if name not in known:
        raise ValueError(f"{name!r} is not one of {', '.join(known)}")
    if unknown := sorted(set(options) - _OPTIONS[name]):
        raise ValueError(f"{name} has no option {unknown[0]!r} here")
    return name, options
