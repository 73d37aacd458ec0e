"""Train `brain-tumor-3d` on the CPU: lesions in head scans, drawn ones and real ones with lesions planted into them.

Heads are drawn while it trains. The rate falls with the steps or with the clock, whichever is
farther, so that a run of a given time ends where it should; it goes on from its checkpoint.

Under `python -m torch.distributed.run --nproc-per-node 2`, each process learns from crops of its own, with one thread,
and all take the mean of their gradients: where cores are slow to wait for each other, that sees more crops a minute.
"""

import argparse
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from brain_tumor_data import LABELS, Cropper, Sample, read_heads, samples
from cycle import Average, learning_rate, optimiser_for
from isocenter.networks.lesion_unet import LesionUNet3d

log = logging.getLogger("brain_tumor")

FIRST_SEED = 100_000
"""Training takes this one and those that follow, as many as it has steps; the report takes far higher ones."""
SEEDS_APART = 500_000
"""From the seeds of one process to those of the next."""
CROPS = ((4, 48), (2, 64), (2, 80))
"""How many of which side a step takes; the norms see nearly a window's statistics in the last ones, as a server's do.

Never one alone: torch has a slow convolution for that.
"""
SHARES = (0.4, 0.25, 0.35)
LONGEST_STEP_S = 10.0


def loss_of(logits: Tensor, classes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, and the soft Dice of each crop; the mean Dice of those with a lesion; and what is seen.

    Lesions are no heavier than the rest but for small ones: a class that is heavier is seen where it is not. A healthy
    crop has a Dice as well: whatever is seen in it lowers that to next to nothing.
    """
    truth = classes.float()
    each = functional.cross_entropy(logits, classes, reduction="none") * (1.0 + (weights - 1.0) * truth)
    found = logits.softmax(dim=1)[:, 1]
    voxels = truth.sum(dim=(1, 2, 3))
    dice = (2.0 * (found * truth).sum(dim=(1, 2, 3)) + 1.0) / (found.sum(dim=(1, 2, 3)) + voxels + 1.0)
    total: Tensor = 4.0 * each.mean() + (1.0 - dice).mean()
    there = (voxels > 0).float()
    return total, ((dice * there).sum() / there.sum().clamp(min=1.0)).detach(), found.detach()


class Together:
    """The processes of this run, if it has several."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1:
            dist.init_process_group("gloo")
        self.rank = dist.get_rank() if self.count > 1 else 0

    def average_gradients(self, module: nn.Module) -> None:
        """Give every process the mean of all gradients."""
        if self.count == 1:
            return
        gradients = [each.grad for each in module.parameters() if each.grad is not None]
        flat = torch.cat([each.flatten() for each in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def agreed(self, value: float) -> float:
        """What the first process says: they have to end at the same step."""
        if self.count == 1:
            return value
        said = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(said, 0)
        return float(said)


class Run:
    """A training run: its network, what it learns from, and how far it has come."""

    def __init__(self, arguments: argparse.Namespace, together: Together) -> None:
        self.arguments = arguments
        self.together = together
        torch.manual_seed(arguments.seed)
        self.network = LesionUNet3d(len(LABELS)).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = Average(self.network)
        self.optimiser = optimiser_for(self.network, arguments.rate, arguments.decay)
        self.step, self.spent_s = 0, 0.0
        self.sizes = np.random.default_rng(arguments.seed)
        if arguments.checkpoint.exists():
            state = torch.load(arguments.checkpoint, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.average.module.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.spent_s = state["step"], state["spent_s"]

    def train(self) -> None:
        """Train until the steps or the time are used up."""
        arguments = self.arguments
        heads = read_heads(arguments.heads) if arguments.heads else []
        rank = self.together.rank
        first_seed = FIRST_SEED + self.step + SEEDS_APART * rank
        incoming: Iterator[Sample] = samples(heads, first_seed, share_t2=arguments.share_t2)
        cropper = Cropper(arguments.seed + self.step + SEEDS_APART * rank, most=arguments.held)
        for _ in range(arguments.begin_with):
            cropper.hold(next(incoming))
        log.info("%d real heads, %d samples to begin with, from step %d", len(heads), len(cropper), self.step)
        self.network.train()
        told: list[tuple[float, float]] = []
        kept_s = time.monotonic()
        while (progress := self._progress()) < 1.0:
            began_s = time.monotonic()
            if self.step % arguments.fresh_every == 0:
                cropper.hold(next(incoming))
            told.append(self._one_step(cropper, learning_rate(progress, arguments.rate, rise=0.04, least=0.0)))
            # A step that took longer was stopped on the way: that is no training time.
            self.spent_s += min(time.monotonic() - began_s, LONGEST_STEP_S)
            if rank == 0 and (time.monotonic() - kept_s > arguments.keep_every_s or self._share() >= 1.0):
                kept_s = time.monotonic()
                loss = sum(each for each, _ in told) / len(told)
                seen = [dice for _, dice in told if dice > 0]
                mean = sum(seen) / max(1, len(seen))
                log.info("step %d, %.0f s, loss %.4f, soft Dice %.3f", self.step, self.spent_s, loss, mean)
                told.clear()
                self._keep()

    def _progress(self) -> float:
        return self.together.agreed(self._share())

    def _share(self) -> float:
        arguments = self.arguments
        return float(max(self.step / arguments.steps, self.spent_s / (60.0 * arguments.minutes)))

    def _one_step(self, cropper: Cropper, rate: float) -> tuple[float, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch = cropper.batch(*CROPS[self.sizes.choice(len(CROPS), p=SHARES)])
        values, classes, weights = (torch.from_numpy(part) for part in batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.arguments.bf16):
            logits = self.network(values.contiguous(memory_format=torch.channels_last_3d))
        loss, dice, found = loss_of(logits.float(), classes, weights)
        cropper.note(found.numpy())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.together.average_gradients(self.network)
        nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimiser.step()
        self.step += 1
        self.average.update(self.network, step=self.step, decay=self.arguments.average)
        return float(loss.detach()), float(dice)

    def _keep(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent_s": self.spent_s,
        }
        # A half-written file must never stand under the name that is read.
        partial = self.arguments.checkpoint.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.arguments.checkpoint)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """What a run is told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=Path, metavar="DIR", help="folder with real heads; none if left out")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="where a run goes on from")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--minutes", type=float, default=120.0, help="the time after which it ends anyway")
    parser.add_argument("--rate", type=float, default=5e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.02, help="weight decay")
    parser.add_argument("--average", type=float, default=0.99, help="decay of the weight average")
    parser.add_argument("--bf16", action="store_true", help="convolutions in bfloat16, where the processor has it")
    parser.add_argument("--held", type=int, default=240, help="samples kept in memory")
    parser.add_argument("--begin-with", type=int, default=60, help="samples drawn before the first step")
    parser.add_argument("--fresh-every", type=int, default=5, metavar="STEPS", help="a new sample each so many steps")
    parser.add_argument("--share-t2", type=float, default=1 / 3, help="of the drawn samples")
    parser.add_argument("--keep-every-s", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2, help="of one process; of several, each has one")
    return parser.parse_args(argv)


def main() -> None:
    """Train."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    together = Together()
    torch.set_num_threads(arguments.threads if together.count == 1 else 1)
    Run(arguments, together).train()


if __name__ == "__main__":
    main()
