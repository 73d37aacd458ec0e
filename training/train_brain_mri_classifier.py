"""Train the brain-MRI slice classifier, calibrate it, export it, and write its model card and golden answers.

Run from the repository root, with the slices in DIR/<class>/*.jpg (gray, 224x224 px):

    PYTHONPATH=src python training/train_brain_mri_classifier.py --slices DIR --out models/brain-mri-classifier/1

The held-out fifth of the slices is read once, by `--report-only` or after the last export; no choice depends on it.
"""

import argparse
import copy
import logging
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from augment import Augmenter
from cycle import learning_rate, optimiser_for
from isocenter.imaging.phantoms import CLASSES
from isocenter.networks.slice_resnet import SliceResNet, export_onnx
from report import measure, write_report
from slices import CALIBRATION_PHANTOM_SEEDS, TRAINING_PHANTOM_SEEDS, Slices, draw_phantoms, normalised, read_slices

log = logging.getLogger("train_brain_mri_classifier")

# (share of the schedule at which it begins, side in px): most of what is learnt does not need every pixel.
SIDES_PX = ((0.0, 160), (0.40, 224))


def logits_of(module: nn.Module, pixels: np.ndarray, *, batch: int = 64) -> Tensor:
    """Return logits float32 [N, 4] of uint8 planes [N, 224, 224]."""
    module.eval()
    with torch.inference_mode():
        chunks = [torch.from_numpy(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
        return torch.cat([module(normalised(chunk.unsqueeze(1).float() / 255.0)) for chunk in chunks])


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature with the least negative log-likelihood; a fine grid, for there is one number to find.

    The labels count as wrong in one of fifty, as they are in these sources: a small calibration part that happens to
    hold no hard slice would otherwise ask for more confidence than is earned.
    """
    candidates = torch.exp(torch.linspace(math.log(0.2), math.log(5.0), 400))
    losses = [
        float(functional.cross_entropy(logits / temperature, labels, label_smoothing=0.02))
        for temperature in candidates
    ]
    return float(candidates[int(np.argmin(losses))])


def with_temperature(module: SliceResNet, temperature: float) -> SliceResNet:
    """Return a copy whose last layer already divides by the temperature."""
    calibrated = copy.deepcopy(module)
    with torch.no_grad():
        calibrated.head.weight.div_(temperature)
        calibrated.head.bias.div_(temperature)
    return calibrated


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


def side_at(progress: float) -> int:
    return [side_px for begins_at, side_px in SIDES_PX if progress >= begins_at][-1]


def mixed(planes: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Blend every plane with another of its batch, and their targets alike (Zhang et al., 2018)."""
    share = float(rng.beta(0.4, 0.4))
    partner = torch.from_numpy(rng.permutation(len(planes)))
    return share * planes + (1.0 - share) * planes[partner], share * targets + (1.0 - share) * targets[partner]


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

    module = SliceResNet(len(CLASSES)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if arguments.start_from is not None:
        module.load_state_dict(torch.load(arguments.start_from, weights_only=True))
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
            targets = functional.one_hot(labels, len(CLASSES)).float()
            if rng.random() < arguments.mixup and progress < 0.9:
                planes, targets = mixed(planes, targets, rng)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(progress, arguments.rate, rise=0.08)
            module.train()
            loss = functional.cross_entropy(module(normalised(planes)), targets, label_smoothing=0.02)
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


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=Path, required=True, metavar="DIR", help="folder with one folder per class")
    parser.add_argument("--out", type=Path, required=True, metavar="MODELDIR", help="folder of the model version")
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--epochs", type=int, default=62, help="passes over the training slices, at most")
    parser.add_argument("--minutes", type=float, default=1e6, help="wall time of the training loop, at most")
    parser.add_argument("--phantoms", type=int, default=3000, help="how many phantoms to draw; 0 for none")
    parser.add_argument("--phantom-share", type=float, default=0.125, help="share of a batch that is phantoms")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the weight average")
    parser.add_argument("--mixup", type=float, default=0.15, help="share of batches that are mixed")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="where to keep the averaged weights as well")
    parser.add_argument("--start-from", type=Path, metavar="FILE", help="averaged weights of an earlier run")
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
