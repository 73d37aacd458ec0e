"""Files as torch writes them, of one small classifier. Import it after `pytest.importorskip("torch")`."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

IMAGE = (3, 16, 16)
PORTS = {
    "inputs": [{"name": "image", "dtype": "float32", "shape": list(IMAGE)}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": [4]}],
}


def classifier(width: int = 8) -> nn.Module:
    """Two convolutions, a mean over each picture, four scores; the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            *(
                nn.Conv2d(3, width, 3, 2, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1),
                nn.ReLU(),
            ),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)),
        ).eval()


def large(megabytes: int) -> nn.Module:
    """One matrix product with so many MB of weights."""

    class Large(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.product = nn.Linear(64, megabytes * 2**20 // 4 // 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            means: torch.Tensor = self.product(x).mean(dim=1, keepdim=True)
            return means

    return Large().eval()


class InDouble(nn.Module):  # type: ignore[misc, unused-ignore]
    """A matrix product in 64 bits, between casts."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(IMAGE[0] * IMAGE[1] * IMAGE[2], 4).double()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 3, 16, 16] to [B, 4]."""
        scores: torch.Tensor = self.product(image.flatten(1).double()).float()
        return scores


class Picky(nn.Module):  # type: ignore[misc, unused-ignore]
    """One more than its input, if that has four values."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ones", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 4] to the same."""
        return x + self.get_buffer("ones")


def write_picky(file: Path) -> Path:
    """`Picky` as TorchScript that does not say which tensors it has."""
    return write_script(file, Picky(), (4,), ports=None)


def write_script(file: Path, network: nn.Module, shape: tuple[int, ...] = IMAGE, ports: Any = PORTS) -> Path:
    """As TorchScript, traced."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, torch.zeros(2, *shape))
        extra = {"isocenter.json": json.dumps(ports).encode()} if ports else {}
        torch.jit.save(traced, str(file), _extra_files=extra)
    return file


def write_program(file: Path, network: nn.Module, shape: tuple[int, ...] = IMAGE) -> Path:
    """As an exported program with an open batch axis."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            network, (torch.zeros(2, *shape),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        torch.export.save(program, str(file))
    return file
