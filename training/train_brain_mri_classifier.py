"""Train the brain-MRI slice classifier, calibrate it, export it, and write its model card and golden answers.

Run from the repository root, with the slices in DIR/<class>/*.jpg (gray, 224x224 px):

    PYTHONPATH=src python training/train_brain_mri_classifier.py --slices DIR --out models/brain-mri-classifier/1

The held-out fifth of the slices is read once, by `--report-only` or after the last export; no choice depends on it.
"""

import argparse
import copy
import hashlib
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from isocenter.imaging.phantoms import CLASSES, brain_slice
from isocenter.networks.slice_resnet import INPUT_NAME, INPUT_SIDE_PX, SliceResNet, export_onnx

log = logging.getLogger("train_brain_mri_classifier")

FOLDERS = ("glioma", "meningioma", "pituitary", "notumor")  # in the order of CLASSES, which is the order of the logits
MEAN = 0.185
STD = 0.202
TRAINING_PHANTOM_SEEDS = 0
CALIBRATION_PHANTOM_SEEDS = 900_000
REPORT_PHANTOM_SEEDS = 1_000_000
GOLDEN_PHANTOM_SEEDS = 2_000_000
# (share of the schedule at which it begins, side in px): most of what is learnt does not need every pixel.
SIDES_PX = ((0.0, 160), (0.30, 224))


@dataclass(frozen=True, slots=True)
class Slices:
    """Gray planes uint8 [N, H, W] and class indices int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def part_of(content: bytes) -> str:
    """Say to which part a slice belongs; the bytes of its file decide, so no list has to be kept."""
    digest = hashlib.sha256(content).hexdigest()
    if int(digest[:8], 16) % 5 == 0:
        return "held-out"
    return "calibration" if int(digest[8:16], 16) % 10 == 0 else "training"


def letterbox(pixels: np.ndarray, side_px: int = INPUT_SIDE_PX) -> np.ndarray:
    """Fit a gray plane uint8 [H, W] into a black square, Pillow's bilinear filter doing the scaling."""
    height_px, width_px = pixels.shape
    if (height_px, width_px) == (side_px, side_px):
        return pixels
    scale = side_px / max(height_px, width_px)
    size_wh_px = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    square = Image.new("L", (side_px, side_px))
    fitted = Image.fromarray(pixels).resize(size_wh_px, Image.Resampling.BILINEAR)
    square.paste(fitted, ((side_px - size_wh_px[0]) // 2, (side_px - size_wh_px[1]) // 2))
    return np.asarray(square)


def read_slices(directory: Path) -> dict[str, Slices]:
    """Read every slice into its part. Raises FileNotFoundError where a class has no folder or an empty one."""
    found: dict[str, tuple[list[np.ndarray], list[int]]] = {}
    for label, folder in enumerate(FOLDERS):
        paths = sorted((directory / folder).glob("*.jpg"))
        if not paths:
            raise FileNotFoundError(f"no slices in {directory / folder}")
        for path in paths:
            pixels, labels = found.setdefault(part_of(path.read_bytes()), ([], []))
            with Image.open(path) as image:
                pixels.append(letterbox(np.asarray(image.convert("L"))))
            labels.append(label)
    return {part: Slices(np.stack(pixels), np.array(labels)) for part, (pixels, labels) in found.items()}


def draw_phantoms(first_seed: int, count: int) -> Slices:
    pixels = np.zeros((count, INPUT_SIDE_PX, INPUT_SIDE_PX), np.uint8)
    labels = np.zeros(count, np.int64)
    for index in range(count):
        phantom = brain_slice(first_seed + index, label=CLASSES[index % len(CLASSES)])
        pixels[index] = phantom.pixels
        labels[index] = CLASSES.index(phantom.label)
    return Slices(pixels, labels)


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
        angle = self._uniform(count, -0.18, 0.18)
        scale = torch.exp(self._uniform(count, math.log(0.88), math.log(1.14)))
        aspect = torch.exp(self._uniform(count, -0.06, 0.06))
        left_right = 1.0 - 2.0 * self._chosen(count, 0.5).float()
        shear = self._uniform(count, -0.03, 0.03)
        cos, sin = torch.cos(angle), torch.sin(angle)
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = cos * scale * aspect * left_right
        theta[:, 0, 1] = (shear - sin) * scale
        theta[:, 1, 0] = sin * scale * left_right
        theta[:, 1, 1] = cos * scale / aspect
        theta[:, :, 2] = torch.rand(count, 2, generator=self._torch) * 0.14 - 0.07
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
        for index in torch.nonzero(self._chosen(len(planes), 0.1)).flatten().tolist():
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


def normalised(planes: Tensor) -> Tensor:
    """Put gray planes float32 [N, 1, H, W] in 0..1 into all three channels, centred and scaled."""
    image = ((planes - MEAN) / STD).expand(-1, 3, -1, -1)
    return image.contiguous(memory_format=torch.channels_last)


def logits_of(module: nn.Module, pixels: np.ndarray, *, batch: int = 64) -> Tensor:
    """Return logits float32 [N, 4] of uint8 planes [N, 224, 224]."""
    module.eval()
    with torch.inference_mode():
        chunks = [torch.from_numpy(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
        return torch.cat([module(normalised(chunk.unsqueeze(1).float() / 255.0)) for chunk in chunks])


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature with the least negative log-likelihood; a fine grid, for there is one number to find."""
    candidates = torch.exp(torch.linspace(math.log(0.2), math.log(5.0), 400))
    losses = [float(functional.cross_entropy(logits / temperature, labels)) for temperature in candidates]
    return float(candidates[int(np.argmin(losses))])


def with_temperature(module: SliceResNet, temperature: float) -> SliceResNet:
    """Return a copy whose last layer already divides by the temperature."""
    calibrated = copy.deepcopy(module)
    with torch.no_grad():
        calibrated.head.weight.div_(temperature)
        calibrated.head.bias.div_(temperature)
    return calibrated


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """Mean gap between top-1 confidence and accuracy over equal-width bins, weighted by count (Guo et al., 2017)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[bin_of == index].mean() - confidence[bin_of == index].mean()) * (bin_of == index).mean()
        for index in range(bins)
        if (bin_of == index).any()
    ]
    return float(sum(gaps))


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return accuracy, per-class recall, calibration error and the confusion matrix (rows: truth)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    answers = logits.argmax(axis=1)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(confusion, (labels, answers), 1)
    return {
        "count": len(labels),
        "accuracy": float((answers == labels).mean()),
        "recall": [
            float(answers[labels == index].tolist().count(index) / max(1, (labels == index).sum()))
            for index in range(len(CLASSES))
        ],
        "ece": expected_calibration_error(probabilities, labels),
        "confusion": confusion.tolist(),
    }


class Average:
    """Exponential moving average of weights and of the normalisation statistics."""

    def __init__(self, module: SliceResNet, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay = decay
        self._steps = 0

    def update(self, module: nn.Module) -> None:
        self._steps += 1
        decay = min(self._decay, self._steps / (self._steps + 10))
        with torch.no_grad():
            for mine, theirs in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
                if mine.dtype.is_floating_point:
                    mine.lerp_(theirs, 1.0 - decay)
                else:
                    mine.copy_(theirs)


def learning_rate(progress: float, peak: float) -> float:
    """One cycle: rise over the first 8 %, then half a cosine down to nearly nothing."""
    if progress < 0.08:
        return peak * (0.05 + 0.95 * progress / 0.08)
    return peak * max(0.002, 0.5 * (1.0 + math.cos(math.pi * (progress - 0.08) / 0.92)))


def optimiser_for(module: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    weights = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))


def side_at(progress: float) -> int:
    return [side_px for begins_at, side_px in SIDES_PX if progress >= begins_at][-1]


def train(arguments: argparse.Namespace, parts: dict[str, Slices], out: Path) -> None:
    """Train, and export the averaged weights now and then, so that a usable file stands in `out` early."""
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    augment = Augmenter(arguments.seed)
    real, calibration = parts["training"], parts["calibration"]
    phantoms = draw_phantoms(TRAINING_PHANTOM_SEEDS, arguments.phantoms)
    calibration_phantoms = draw_phantoms(CALIBRATION_PHANTOM_SEEDS, 200 if arguments.phantoms else 0)
    phantoms_per_batch = round(arguments.batch * arguments.phantom_share) if arguments.phantoms else 0
    real_per_batch = arguments.batch - phantoms_per_batch
    log.info("%d slices for training, %d for calibration, %d phantoms", len(real), len(calibration), len(phantoms))

    module = SliceResNet(len(CLASSES), dropout=0.1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(module, arguments.average)
    optimiser = optimiser_for(module, arguments.rate, arguments.decay)
    steps_per_epoch = len(real) // real_per_batch
    steps = steps_per_epoch * arguments.epochs
    began_s = time.monotonic()
    exported_s = began_s
    step, progress, losses = 0, 0.0, []
    while progress < 1.0:
        order = rng.permutation(len(real))
        for start in range(0, steps_per_epoch * real_per_batch, real_per_batch):
            # Whichever of the two limits is nearer drives the schedule, so the learning rate always reaches its end.
            progress = max(step / steps, (time.monotonic() - began_s) / (60.0 * arguments.minutes))
            if progress >= 1.0:
                break
            chosen = order[start : start + real_per_batch]
            drawn = rng.integers(0, max(1, len(phantoms)), phantoms_per_batch)
            pixels = np.concatenate([real.pixels[chosen], phantoms.pixels[drawn]])
            labels = torch.from_numpy(np.concatenate([real.labels[chosen], phantoms.labels[drawn]]))
            planes = augment(pixels, side_px=side_at(progress))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(progress, arguments.rate)
            module.train()
            loss = functional.cross_entropy(module(normalised(planes)), labels, label_smoothing=0.02)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 2.0)
            optimiser.step()
            average.update(module)
            losses.append(float(loss.detach()))
            step += 1
        if time.monotonic() - exported_s > 60.0 * arguments.export_every_minutes or progress >= 1.0:
            exported_s = time.monotonic()
            export_calibrated(average.module, calibration, calibration_phantoms, out)
            if arguments.weights is not None:
                torch.save(average.module.state_dict(), arguments.weights)
        if step // steps_per_epoch % 5 == 0 or progress >= 1.0:
            log.info(
                "epoch %d, %.0f s, progress %.2f, side %d px, loss %.3f",
                step // steps_per_epoch,
                time.monotonic() - began_s,
                progress,
                side_at(progress),
                np.mean(losses[-200:]),
            )


def export_calibrated(module: SliceResNet, calibration: Slices, phantoms: Slices, out: Path) -> None:
    labels = torch.from_numpy(calibration.labels)
    temperature = fit_temperature(logits_of(module, calibration.pixels), labels)
    calibrated = with_temperature(module, temperature)
    found = measure(logits_of(calibrated, calibration.pixels).numpy(), calibration.labels)
    log.info(
        "calibration part: accuracy %.4f, recall %s, ece %.4f, temperature %.3f",
        found["accuracy"],
        np.round(found["recall"], 3).tolist(),
        found["ece"],
        temperature,
    )
    if len(phantoms):
        drawn = measure(logits_of(calibrated, phantoms.pixels).numpy(), phantoms.labels)
        log.info("calibration phantoms: accuracy %.4f, ece %.4f", drawn["accuracy"], drawn["ece"])
    out.mkdir(parents=True, exist_ok=True)
    # A half-written file must never stand under the served name.
    partial = out / "model.onnx.part"
    calibrated.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    export_onnx(calibrated, partial)
    partial.replace(out / "model.onnx")


def answers_of(session: onnxruntime.InferenceSession, pixels: np.ndarray, *, batch: int = 32) -> np.ndarray:
    """Return logits float32 [N, 4] of uint8 planes [N, 224, 224] from the exported file itself."""
    rows = []
    for start in range(0, len(pixels), batch):
        planes = torch.from_numpy(pixels[start : start + batch]).unsqueeze(1).float() / 255.0
        rows.append(session.run(["logits"], {INPUT_NAME: normalised(planes).contiguous().numpy()})[0])
    return np.concatenate(rows)


def write_golden(session: onnxruntime.InferenceSession, folder: Path) -> None:
    """Write one phantom of each class with the logits it gets, for runtimes and machines to be compared by."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, label in enumerate(CLASSES):
        pixels = brain_slice(GOLDEN_PHANTOM_SEEDS + index, label=label).pixels
        logits = answers_of(session, pixels[np.newaxis])[0]
        Image.fromarray(pixels).save(folder / f"case-{index + 1}.png")
        case = {"logits": [round(float(logit), 5) for logit in logits], "label": CLASSES[int(logits.argmax())]}
        if case["label"] != label:
            log.warning("golden case %d is a %s and is called %s", index + 1, label, case["label"])
        (folder / f"case-{index + 1}.json").write_text(json.dumps(case, indent=2) + "\n")


def table_of(found: dict[str, Any]) -> str:
    """Return the measured numbers of one set as Markdown."""
    confusion = np.array(found["confusion"])
    lines = [
        f"{found['count']} images, accuracy **{found['accuracy']:.4f}**, calibration error {found['ece']:.4f}.",
        "",
        "| truth | images | recall | " + " | ".join(f"called {label}" for label in CLASSES) + " |",
        "| --- " * (3 + len(CLASSES)) + "|",
    ]
    for label, row, recall in zip(CLASSES, confusion, found["recall"], strict=True):
        lines.append(f"| {label} | {row.sum()} | {recall:.4f} | " + " | ".join(str(count) for count in row) + " |")
    return "\n".join(lines)


def write_report(arguments: argparse.Namespace, parts: dict[str, Slices], out: Path) -> None:
    """Measure the exported file and write MODEL_CARD.md and golden/ beside it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(out / "model.onnx", options, providers=["CPUExecutionProvider"])
    held_out, phantoms = parts["held-out"], draw_phantoms(REPORT_PHANTOM_SEEDS, 1000)
    on_slices = measure(answers_of(session, held_out.pixels), held_out.labels)
    on_phantoms = measure(answers_of(session, phantoms.pixels), phantoms.labels)
    log.info("held-out slices: %s", json.dumps(on_slices))
    log.info("phantoms of unused seeds: %s", json.dumps(on_phantoms))
    write_golden(session, out / "golden")
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in SliceResNet(len(CLASSES), dropout=0.1).parameters()),
        kilobytes=(out / "model.onnx").stat().st_size / 1000,
        mean=MEAN,
        std=STD,
        training=len(parts["training"]),
        calibration=len(parts["calibration"]),
        held_out=len(held_out),
        seed=arguments.seed,
        command=f"--seed {arguments.seed} --epochs {arguments.epochs} --minutes {arguments.minutes:g}",
        on_slices=table_of(on_slices),
        on_phantoms=table_of(on_phantoms),
        first_phantom=REPORT_PHANTOM_SEEDS,
        last_phantom=REPORT_PHANTOM_SEEDS + len(phantoms) - 1,
    )
    (out / "MODEL_CARD.md").write_text(card)


CARD = """\
# brain-mri-classifier, version 1

**For demonstration, not for diagnosis.**

A small residual network ({parameters:,} parameters, {kilobytes:.0f} kB of fp32 ONNX, opset 17) that sorts one brain-MRI
slice into Glioma, Meningioma, Pituitary or No Tumor. It shows a serving path at work; it has seen no clinical trial.

## Input and output

`image`, float32 [B, 3, 224, 224]: a gray slice as uint8, divided by 255, less {mean}, divided by {std}, the same plane
in all three channels. Slices of another size are fitted into a black square, bilinear.
`logits`, float32 [B, 4], in the order above; softmax gives the probabilities, the temperature being in
the weights already.

## Data

- figshare brain tumor dataset, J. Cheng, 2017, doi 10.6084/m9.figshare.1512427, CC BY 4.0
- SARTAJ and Br35H, as gathered with the above in the training part of the public "Brain Tumor MRI Dataset"
  (M. Nickparvar, Kaggle; its page states CC0), near-duplicates removed
- phantoms drawn by `isocenter.imaging.phantoms`, training seeds below 1,000,000

Split: a slice is held out if `int(sha256(file bytes).hexdigest()[:8], 16) % 5 == 0`; of the others it is for
calibration if `int(sha256(file bytes).hexdigest()[8:16], 16) % 10 == 0`, and else for training. That makes {training}
for training, {calibration} for calibration and selection, {held_out} held out.
**The set has no patient numbers, so slices of one patient may stand on both sides of the split: the accuracy on slices
of new patients is likely to be lower than the one below.**

## Accuracy

On the held-out slices: {on_slices}

On phantoms, seeds {first_phantom} to {last_phantom}, which training did not use: {on_phantoms}

Calibration error: 15 equal-width bins of the top probability.

## Training

Seed {seed}; time limits bind by the clock, so a run on another machine gives other weights of the same kind.

    PYTHONPATH=src python training/train_brain_mri_classifier.py --slices DIR --out MODELDIR {command}
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=Path, required=True, metavar="DIR", help="folder with one folder per class")
    parser.add_argument("--out", type=Path, required=True, metavar="MODELDIR", help="folder of the model version")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training slices, at most")
    parser.add_argument("--minutes", type=float, default=1e6, help="wall time of the training loop, at most")
    parser.add_argument("--phantoms", type=int, default=3000, help="how many phantoms to draw; 0 for none")
    parser.add_argument("--phantom-share", type=float, default=0.125, help="share of a batch that is phantoms")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the weight average")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="where to keep the averaged weights as well")
    parser.add_argument("--report-only", action="store_true", help="train nothing: measure, card and goldens only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export-every-minutes", type=float, default=5.0)
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    parts = read_slices(arguments.slices)
    if not arguments.report_only:
        train(arguments, parts, arguments.out)
    write_report(arguments, parts, arguments.out)


if __name__ == "__main__":
    main()
