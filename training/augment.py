"""Slices as other scanners, resizers and viewers might have delivered them."""

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from isocenter.networks.slice_resnet import INPUT_SIDE_PX


class Augmenter:
    """Turn uint8 planes into training input as other scanners, resizers and viewers might have delivered them."""

    def __init__(self, seed: int) -> None:
        self._numpy = np.random.default_rng(seed)
        self._torch = torch.Generator().manual_seed(seed)

    def __call__(self, pixels: np.ndarray, *, side_px: int) -> Tensor:
        """Return float32 [N, 1, side_px, side_px] in 0..1 for pixels uint8 [N, H, W]."""
        recompressed = np.stack([self._recompress(plane) for plane in pixels])
        planes = torch.from_numpy(recompressed).unsqueeze(1).float() / 255.0
        if side_px < planes.shape[-1]:
            planes = functional.interpolate(
                planes, size=(side_px, side_px), mode="bilinear", antialias=True, align_corners=False
            )
        planes = self._erase(self._degrade(self._move(planes)))
        return self._rescale(planes)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self._torch) * (high - low) + low

    def _chosen(self, count: int, share: float) -> Tensor:
        return torch.rand(count, generator=self._torch) < share

    def _recompress(self, plane: np.ndarray) -> np.ndarray:
        if self._numpy.random() > 0.2:
            return plane
        quality = int(self._numpy.integers(50, 95))
        _, encoded = cv2.imencode(".jpg", plane, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE))

    def _move(self, planes: Tensor) -> Tensor:
        count = len(planes)
        angle = self._uniform(count, -0.2, 0.2)
        scale = torch.exp(self._uniform(count, math.log(0.86), math.log(1.17)))
        aspect = torch.exp(self._uniform(count, -0.08, 0.08))
        left_right = 1.0 - 2.0 * self._chosen(count, 0.5).float()
        shear = self._uniform(count, -0.03, 0.03)
        cos, sin = torch.cos(angle), torch.sin(angle)
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = cos * scale * aspect * left_right
        theta[:, 0, 1] = (shear - sin) * scale
        theta[:, 1, 0] = sin * scale * left_right
        theta[:, 1, 1] = cos * scale / aspect
        theta[:, :, 2] = torch.rand(count, 2, generator=self._torch) * 0.16 - 0.08
        grid = functional.affine_grid(theta, list(planes.shape), align_corners=False)
        return functional.grid_sample(planes, grid, mode="bilinear", align_corners=False)

    def _degrade(self, planes: Tensor) -> Tensor:
        """Blur one part of the batch, take another through a smaller size, and add noise to a third."""
        count, side_px = len(planes), planes.shape[-1]
        order = torch.randperm(count, generator=self._torch)
        smaller, blurred, noisy = order[: count // 8], order[count // 8 : count // 5], order[count // 5 : count // 3]
        inner_px = int(side_px * float(self._uniform(1, 0.55, 0.95)))
        down = functional.interpolate(
            planes[smaller], size=(inner_px, inner_px), mode="bilinear", antialias=True, align_corners=False
        )
        planes[smaller] = functional.interpolate(down, size=(side_px, side_px), mode="bicubic", align_corners=False)
        sigma_px = float(self._uniform(1, 0.3, 0.9)) * side_px / INPUT_SIDE_PX
        taps = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma_px) ** 2)
        taps = taps / taps.sum()
        rows = functional.conv2d(planes[blurred], taps.view(1, 1, 7, 1), padding=(3, 0))
        planes[blurred] = functional.conv2d(rows, taps.view(1, 1, 1, 7), padding=(0, 3))
        sigma = self._uniform(len(noisy), 0.0, 0.025).view(-1, 1, 1, 1)
        planes[noisy] += sigma * torch.randn(planes[noisy].shape, generator=self._torch)
        return planes

    def _erase(self, planes: Tensor) -> Tensor:
        side_px = planes.shape[-1]
        for index in torch.nonzero(self._chosen(len(planes), 0.2)).flatten().tolist():
            height_px, width_px = self._numpy.integers(side_px // 12, side_px // 5, size=2)
            top, left = self._numpy.integers(0, side_px - side_px // 5, size=2)
            planes[index, :, top : top + height_px, left : left + width_px] = float(self._numpy.uniform(0.0, 0.4))
        return planes

    def _rescale(self, planes: Tensor) -> Tensor:
        """Change brightness, contrast and gamma; stretch some planes between percentiles as a viewer's window does."""
        count = len(planes)
        planes = planes.clamp(0.0, 1.0)
        stretched = torch.nonzero(self._chosen(count, 0.2)).flatten()
        if len(stretched):
            flat = planes[stretched].flatten(1)[:, ::7].sort(dim=1).values
            low = flat[:, int(flat.shape[1] * 0.001)].view(-1, 1, 1, 1)
            high_at = float(self._uniform(1, 0.985, 0.9995))
            high = flat[:, int(flat.shape[1] * high_at)].view(-1, 1, 1, 1)
            planes[stretched] = ((planes[stretched] - low) / (high - low).clamp(min=0.05)).clamp(0.0, 1.0)
        gamma = torch.exp(self._uniform(count, -0.25, 0.25)) * self._chosen(count, 0.5)
        gamma = torch.where(gamma == 0.0, torch.ones(()), gamma).view(-1, 1, 1, 1)
        gain = torch.exp(self._uniform(count, -0.2, 0.2)).view(-1, 1, 1, 1)
        offset = (self._uniform(count, -0.03, 0.03) * self._chosen(count, 0.3)).view(-1, 1, 1, 1)
        return (planes.clamp(min=1e-4).pow(gamma) * gain + offset).clamp(0.0, 1.0)
