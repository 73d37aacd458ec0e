"""Train `nuclei-segmenter` on the CPU: nuclei of fluorescence and stained images, told apart by their borders.

Steps count, not the clock, so that a run on a busy machine gives the same weights; it goes on from its checkpoint.
"""

import argparse
import logging
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cycle import Average, learning_rate, optimiser_for
from isocenter.networks.nucleus_unet import WIDTHS, NucleusUNet
from nuclei_data import LABELS, Cropper, read_fields

log = logging.getLogger("nuclei")


class Threads:
    """One thread or all of them, whichever is faster now: where others compute too, one that waits delays all."""

    ROUND = 30
    """Steps from one trial to the next."""

    def __init__(self, most: int) -> None:
        self._choices = (1, most)
        self._took_s: dict[int, float] = {}
        self._step, self._began_s = 0, time.monotonic()
        torch.set_num_threads(most)

    def step(self) -> None:
        """Called before each step: two with each number of threads, then the better one for the rest of the round."""
        now_s = time.monotonic()
        place = self._step % self.ROUND
        if place in (2, 4):  # the second step with a number counts; the first one sets itself up
            self._took_s[self._choices[place // 2 - 1]] = now_s - self._began_s
        if place in (0, 2):
            torch.set_num_threads(self._choices[place // 2])
        elif place == 4:
            torch.set_num_threads(min(self._took_s, key=self._took_s.__getitem__))
        self._step, self._began_s = self._step + 1, now_s


def loss_of(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of the three classes, and the soft Dice of the foreground, crop by crop."""
    each = functional.cross_entropy(logits, classes, reduction="none")
    entropy = (each * weights).sum() / weights.sum()
    found = 1.0 - logits.softmax(dim=1)[:, 0]
    truth = (classes > 0).float()
    shared = (found * truth).sum(dim=(1, 2))
    dice = (2.0 * shared + 50.0) / (found.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) + 50.0)
    total: Tensor = entropy + 0.5 * (1.0 - dice.mean())
    return total


def train(arguments: argparse.Namespace) -> NucleusUNet:
    """Train to the last step, from the checkpoint if there is one; gives the averaged weights."""
    torch.manual_seed(arguments.seed)
    fields = read_fields(arguments.images)["training"]
    module = NucleusUNet(len(LABELS), widths=tuple(arguments.widths))
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(module)
    optimiser = optimiser_for(module, arguments.rate, arguments.decay)
    step = 0
    if arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint, weights_only=True)
        step = state["step"]
        # A new cycle begins where the last one came to rest.
        module.load_state_dict(state["average" if step == arguments.cycle_from else "module"])
        average.module.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
    cropper = Cropper(fields, arguments.seed + step, changed=arguments.changed)
    log.info("%d images for training, from step %d", len(fields), step)
    module.train()
    threads = Threads(arguments.threads)
    began_s, losses = time.monotonic(), []
    while step < arguments.steps:
        threads.step()
        for group in optimiser.param_groups:
            progress = (step - arguments.cycle_from) / (arguments.steps - arguments.cycle_from)
            group["lr"] = learning_rate(progress, arguments.rate, rise=0.05)
        images, classes, weights = (torch.from_numpy(part) for part in cropper.batch(arguments.batch, arguments.side))
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            logits = module(images.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), classes, weights)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 2.0)
        optimiser.step()
        step += 1
        average.update(module, step=step, decay=arguments.average)
        losses.append(float(loss.detach()))
        if step % arguments.keep_every == 0 or step == arguments.steps:
            log.info(
                "step %d, %d threads, %.0f s, loss %.4f",
                step,
                torch.get_num_threads(),
                time.monotonic() - began_s,
                np.mean(losses[-200:]),
            )
            _keep(arguments, module, average, optimiser, step)
    return average.module


def _keep(
    arguments: argparse.Namespace,
    module: nn.Module,
    average: Average[NucleusUNet],
    optimiser: torch.optim.Optimizer,
    step: int,
) -> None:
    file: Path = arguments.checkpoint
    state = {
        "widths": list(arguments.widths),
        "module": module.state_dict(),
        "average": average.module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    # A half-written file must never stand under the name that is read.
    partial = file.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(file)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """What a run is told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder with index.csv")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="where a run goes on from")
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--steps", type=int, default=18000)
    parser.add_argument(
        "--cycle-from", type=int, default=0, metavar="STEP", help="where the cycle of the learning rate began"
    )
    parser.add_argument(
        "--changed", type=float, default=0.6, metavar="SHARE", help="how often crops are augmented, of the usual"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="CHANNELS", help="level by level")
    parser.add_argument("--bf16", action="store_true", help="convolutions in bfloat16, where the processor has it")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=160, help="side of a crop in px, a multiple of 16")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.02, help="weight decay")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the weight average")
    parser.add_argument("--keep-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--threads", type=int, default=2, help="at most")
    return parser.parse_args(argv)


def main() -> None:
    """Train."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    cv2.setNumThreads(1)
    train(arguments)


if __name__ == "__main__":
    main()
