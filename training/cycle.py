"""What the training runs share: one cycle of the learning rate, the optimiser, and the mean of the weights."""

import math
from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def learning_rate(progress: float, peak: float, *, rise: float, least: float = 0.002) -> float:
    """One cycle: up over the share `rise` of the run, then half a cosine down to `least` of the peak."""
    if progress < rise:
        return peak * (0.05 + 0.95 * progress / rise)
    return peak * max(least, 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - rise) / (1.0 - rise)))))


def optimiser_for(module: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW; norms and biases do not decay."""
    weights = [each for each in module.parameters() if each.ndim > 1]
    others = [each for each in module.parameters() if each.ndim <= 1]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))


class Average(Generic[Module]):
    """The running mean of a module's weights; of its norms' statistics too."""

    def __init__(self, module: Module) -> None:
        self.module = deepcopy(module).eval()

    @torch.no_grad()
    def update(self, module: Module, *, step: int, decay: float) -> None:
        """Lean on the newest weights early, on the mean later."""
        decay = min(decay, (1 + step) / (20 + step))
        for mine, theirs in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if mine.dtype.is_floating_point:
                mine.lerp_(theirs, 1.0 - decay)
            else:
                mine.copy_(theirs)
