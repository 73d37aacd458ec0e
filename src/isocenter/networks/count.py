"""What a network costs on paper: its parameters, and its multiply-adds at one input shape."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True)
class Count:
    """Of a whole network; multiply-adds are those of convolutions and linear layers, as papers count them.

    Norms, activations, pooling and resizing are left out, and so is the addition of a bias. What papers call FLOPs is
    this number, as a rule; where a multiplication and an addition are counted apart, it is twice as large.
    """

    parameters: int
    """Everything that training changes; not the running means of norms."""
    multiply_adds: int
    by_layer: dict[str, int]
    """Multiply-adds of each layer; one that runs twice counts twice."""


def count(network: nn.Module, item_shape: Sequence[int]) -> Count:
    """Count a network at one item of a shape without batch axis, such as (3, 224, 224).

    Nothing is computed: a copy of the network runs on torch's `meta` device, which knows shapes only.
    """
    ghost = copy.deepcopy(network).to("meta").eval()
    found: dict[str, int] = {}

    def watch(name: str, layer: nn.Module) -> None:
        def seen(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = found.get(name, 0) + _multiply_adds(layer, inputs[0], output)

        layer.register_forward_hook(seen)

    for name, layer in ghost.named_modules():
        if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
            watch(name, layer)
    with torch.inference_mode():
        ghost(torch.empty(1, *item_shape, device="meta"))
    parameters = sum(each.numel() for each in network.parameters())
    return Count(parameters, sum(found.values()), found)


def _multiply_adds(layer: Any, taken: Tensor, given: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return given.numel() * int(layer.in_features)
    # Weight [out, in/groups, *kernel]; transposed [in, out/groups, *kernel]: the rest is what one value is part of.
    each = layer.weight[0].numel()
    return each * (taken.numel() if isinstance(layer, _TRANSPOSED) else given.numel())
