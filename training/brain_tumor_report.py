"""Make the package of `brain-tumor-3d` from a checkpoint, measure it as it is served, and write its card.

What is fixed by hand stands in the package's `model.yaml`: steps, windows, the rule for what a finding is. Scans are
measured one by one through the whole path, from the bytes of a file to the checked answer; each one's figures are kept
in a file, so that a measurement that was interrupted goes on.
"""

import argparse
import json
import logging
import math
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brain_tumor_data import LABELS, NO_HEAD, REAL_HEADS, STEPS, prepared, read_heads
from isocenter import SyncService
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.nifti_write import nifti_of
from isocenter.imaging.codecs.volume_files import read_volume
from isocenter.imaging.limits import VolumeLimits
from isocenter.imaging.phantom_lesions import Lesion
from isocenter.imaging.phantom_planting import plant
from isocenter.imaging.phantoms_3d import CONTRASTS, KINDS, head_scan
from isocenter.imaging.volume import Volume
from isocenter.measure.percentiles import nearest_rank
from isocenter.networks.export import answer, check, to_onnx
from isocenter.networks.lesion_unet import LesionUNet3d
from isocenter.repository.integrity import sha256_of
from isocenter.repository.manifest import read_manifest

log = logging.getLogger("brain_tumor_report")

FIRST_SEED = 9_700_000
"""Training has seen 100,000 and as many as it has steps, 600,000 to 635,000, and 810,000 to 840,000; the rule was
chosen with those from 8,000,000 on, and earlier weights were measured with those from 9,000,000 to 9,600,000 on."""
PLANTED_SEEDS = range(8)
"""From `FIRST_SEED` on, into each real head."""
GOLDEN_SEED = 100
GOLDEN_SIDE = 32
LARGE_ML = 1.0
NEAR_VOXELS = 6
TIMEOUT_S = 120.0


def network_of(checkpoint: Path) -> tuple[LesionUNet3d, dict[str, Any]]:
    """The averaged weights of a checkpoint, and the whole of it."""
    state = torch.load(checkpoint, weights_only=True)
    network = LesionUNet3d(len(LABELS))
    network.load_state_dict(state["average"])
    return network.eval(), state


def write_package(network: LesionUNet3d, out: Path) -> None:
    """Write `model.onnx`, its digest and the golden case; the rest of the folder stays as it is."""
    from isocenter.runtimes.base import SessionOptions
    from isocenter.runtimes.registry import open_runtime

    assert read_manifest(out / "model.yaml").steps == STEPS, "the manifest has other steps than the training"
    with tempfile.TemporaryDirectory() as scratch:
        made = to_onnx(network, Path(scratch), item_shape=(1, 32, 32, 32), input_name="volume", free_sides=True)
        shutil.copyfile(made, out / "model.onnx")
    manifest = out / "model.yaml"
    text = re.sub(r'(?<=  sha256: ")[0-9a-f]{64}', sha256_of(out / "model.onnx"), manifest.read_text(), count=1)
    manifest.write_text(text)
    session = open_runtime("onnxruntime").open(out / "model.onnx", SessionOptions(precision="fp32"))
    check(network, lambda batch: np.asarray(session.run({"volume": batch})["logits"]), (1, 32, 48, 64))
    (out / "golden").mkdir(exist_ok=True)
    phantom = head_scan(GOLDEN_SEED, kind="ring", contrast="t1c")
    values, numbers = prepared(phantom.volume, phantom.truth)
    middle = np.argwhere(numbers > 0).mean(axis=0).astype(int)
    first = [
        int(np.clip(at - GOLDEN_SIDE // 2, 0, size - GOLDEN_SIDE))
        for at, size in zip(middle, values.shape, strict=True)
    ]
    item = values[tuple(slice(at, at + GOLDEN_SIDE) for at in first)][np.newaxis]
    np.save(out / "golden" / "case-1.input.npy", item)
    np.save(out / "golden" / "case-1.output.npy", answer(network, item[np.newaxis])[0])


@contextmanager
def served(package: Path) -> Iterator[SyncService]:
    """The package alone, as a server has it."""
    with tempfile.TemporaryDirectory() as models:
        shutil.copytree(package, Path(models) / package.parent.name / package.name)
        with SyncService(models) as service:
            yield service


def measure(service: SyncService, volume: Volume, truth: Array, lesions: Sequence[Lesion]) -> dict[str, Any]:
    """Answer one scan, from the bytes of a file; how well it went."""
    voxels = volume.voxels[0]
    kept = voxels if voxels.dtype in (np.uint8, np.uint16) else voxels.astype(np.float32)
    data = nifti_of(kept, volume.geometry)
    began_s = time.perf_counter()
    found = service.segment_scan(data, timeout=TIMEOUT_S, formats=("json", "nifti"))
    took_s = time.perf_counter() - began_s
    assert found.findings is not None
    mask = found.segmentation.of("tumor")
    return {
        "present": found.findings.present,
        "probability": found.findings.probability,
        "volume_ml": found.findings.volume_ml,
        "lesions_found": len(found.findings.lesions),
        "removed_ml": found.findings.removed_ml,
        "windows": found.segmentation.windows,
        "took_s": took_s,
        "stages_s": found.stages_s,
        "dice": dice(mask, truth > 0) if lesions else None,
        "lesions": [
            {"kind": each.kind, "volume_ml": each.volume_ml, **of_lesion(mask, truth, number)}
            for number, each in enumerate(lesions, start=1)
        ],
    }


def dice(mask: Array, truth: Array) -> float:
    """Of two masks; 1 where both are empty."""
    total = int(np.count_nonzero(mask)) + int(np.count_nonzero(truth))
    return 2.0 * int(np.count_nonzero(mask & truth)) / total if total else 1.0


def of_lesion(mask: Array, truth: Array, number: int) -> dict[str, Any]:
    """Dice of one lesion with what was found in its box and 6 voxels round it, other lesions' voxels left out."""
    own = truth == number
    if not own.any():
        return {"dice": 0.0, "found": False}
    places = [np.flatnonzero(own.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    box = tuple(slice(max(0, int(at[0]) - NEAR_VOXELS), int(at[-1]) + NEAR_VOXELS + 1) for at in places)
    near = mask[box] & ((truth[box] == number) | (truth[box] == 0))
    return {"dice": dice(near, own[box]), "found": bool((near & own[box]).any())}


def measure_phantoms(service: SyncService, first_seed: int, count: int, kept: "Kept", at_most: int) -> None:
    """Those that have no figures yet."""
    for seed in range(first_seed, first_seed + count):
        name = f"phantom-{seed}"
        if name in kept.figures or not kept.takes(at_most):
            continue
        phantom = head_scan(seed)
        found = measure(service, phantom.volume, phantom.truth, phantom.lesions)
        kept.add(name, {"kind": phantom.kind, "contrast": phantom.contrast, **found})


def measure_real(service: SyncService, directory: Path, first_seed: int, kept: "Kept", at_most: int) -> None:
    """The real heads as they are, and with lesions planted into them; and what is no head."""
    if (directory / NO_HEAD).exists() and "no-head" not in kept.figures and kept.takes(at_most):
        other = read_volume(directory / NO_HEAD, limits=VolumeLimits())
        kept.add("no-head", {"kind": "none", **measure(service, other, np.zeros(other.geometry.shape, np.uint8), ())})
    for head_name, head in zip(REAL_HEADS, read_heads(directory), strict=True):
        empty = np.zeros(head.geometry.shape, np.uint8)
        for seed in (None, *PLANTED_SEEDS):
            name = f"real-{head_name}-{'healthy' if seed is None else first_seed + seed}"
            if name in kept.figures or not kept.takes(at_most):
                continue
            if seed is None:
                kept.add(name, {"kind": "healthy", **measure(service, head, empty, ())})
                continue
            planted = plant(head, first_seed + seed)
            kinds = "several" if len(planted.lesions) > 1 else planted.lesions[0].kind
            found = measure(service, planted.volume, planted.truth, planted.lesions)
            kept.add(name, {"kind": kinds, **found})


class Kept:
    """Figures by scan, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.figures: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
        self._begun = len(self.figures)

    def takes(self, at_most: int) -> bool:
        """Whether one more may be measured in this run."""
        return len(self.figures) - self._begun < at_most

    def add(self, name: str, figures: dict[str, Any]) -> None:
        """Keep the figures of a scan."""
        self.figures[name] = figures
        partial = self._file.with_suffix(".part")
        partial.write_text(json.dumps(self.figures, indent=1))
        partial.replace(self._file)
        worst = min((each["dice"] for each in figures["lesions"]), default=None)
        log.info("%s %s: present %s, worst Dice %s, %.2f s", name, figures["kind"], figures["present"], worst,
                 figures["took_s"])  # fmt: skip

    def of(self, start: str) -> list[dict[str, Any]]:
        """Those whose name begins so."""
        return [each for name, each in self.figures.items() if name.startswith(start)]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Sensitivity, false alarms, Dice of lesions above 1 ml, and how long it took."""
    ill = [row for row in rows if row["lesions"]]
    well = [row for row in rows if not row["lesions"]]
    lesions = [lesion for row in ill for lesion in row["lesions"]]
    large = [lesion["dice"] for lesion in lesions if lesion["volume_ml"] > LARGE_ML]
    small = [lesion["found"] for lesion in lesions if lesion["volume_ml"] <= LARGE_ML]
    scans = [row["dice"] for row in ill if sum(each["volume_ml"] for each in row["lesions"]) > LARGE_ML]
    times_s = sorted(row["took_s"] for row in rows)
    return {
        "scans": len(rows),
        "ill": len(ill),
        "well": len(well),
        "sensitivity": _mean([float(row["present"]) for row in ill]),
        "false_alarms": _mean([float(row["present"]) for row in well]),
        "lesions": len(lesions),
        "large": len(large),
        "dice_large": _mean(large),
        "dice_large_p10": float(np.percentile(large, 10)) if large else math.nan,
        "dice_scans": _mean(scans),
        "small": len(small),
        "small_found": _mean([float(each) for each in small]),
        "p50_s": nearest_rank(times_s, 0.5) if times_s else math.nan,
        "p95_s": nearest_rank(times_s, 0.95) if times_s else math.nan,
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def table_of(rows: Sequence[dict[str, Any]], by: str, names: Sequence[str]) -> str:
    """Figures by kind or contrast, as Markdown."""
    lines = [
        f"| {by} | scans | answered present | lesions above 1 ml | their Dice, mean |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        found = [row for row in rows if row[by] == name]
        if not found:
            continue
        each = summary(found)
        said = sum(row["present"] for row in found)
        dice_large = f"{each['dice_large']:.3f}" if each["large"] else ""
        lines.append(f"| {name} | {len(found)} | {said} | {each['large']:.0f} | {dice_large} |")
    return "\n".join(lines)


def write_card(out: Path, kept: Kept, network: LesionUNet3d, state: dict[str, Any]) -> None:
    """MODEL_CARD.md from the figures that are there."""
    phantoms, real = kept.of("phantom-"), kept.of("real-")
    healthy = [f"{name.removeprefix('real-').removesuffix('-healthy')}" for name, row in kept.figures.items()
               if name.startswith("real-") and not row["lesions"] and row["present"]]  # fmt: skip
    manifest = read_manifest(out / "model.yaml")
    assert manifest.sliding is not None
    card = CARD.format(
        parameters=sum(each.numel() for each in network.parameters()),
        kilobytes=(out / "model.onnx").stat().st_size / 1000,
        threshold=manifest.output.foreground_threshold,
        roi=" x ".join(map(str, manifest.sliding.roi)),
        steps=state["step"],
        minutes=state["spent_s"] / 60.0,
        first_seed=FIRST_SEED,
        no_head=", ".join("*present*" if row["present"] else "*absent*" for row in kept.of("no-head")) or "by nobody",
        by_kind=table_of(phantoms, "kind", KINDS),
        by_contrast=table_of(phantoms, "contrast", CONTRASTS),
        false_on_real=", ".join(healthy) or "none",
        **summary(phantoms),
        **{f"real_{key}": value for key, value in summary(real).items()},
    )
    (out / "MODEL_CARD.md").write_text(card)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """What a run is told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="PACKAGE", help="folder with model.yaml")
    parser.add_argument("--figures", type=Path, required=True, metavar="FILE", help="where figures are kept")
    parser.add_argument("--heads", type=Path, metavar="DIR", help="folder with real heads; none if left out")
    parser.add_argument("--scans", type=int, default=90)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--at-most", type=int, default=1_000_000, metavar="N", help="scans measured in this run")
    parser.add_argument("--write-package", action="store_true", help="from the checkpoint, before anything is measured")
    parser.add_argument("--write-card", action="store_true", help="from the figures that are there at the end")
    return parser.parse_args(argv)


def main() -> None:
    """Write the package, measure it, write its card."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    network, state = network_of(arguments.checkpoint)
    if arguments.write_package:
        write_package(network, arguments.out)
    kept = Kept(arguments.figures)
    with served(arguments.out) as service:
        measure_phantoms(service, arguments.first_seed, arguments.scans, kept, arguments.at_most)
        if arguments.heads:
            measure_real(service, arguments.heads, arguments.first_seed, kept, arguments.at_most)
    for start in ("phantom-", "real-"):
        log.info("%s %s", start, {key: round(value, 4) for key, value in summary(kept.of(start)).items()})
    if arguments.write_card:
        write_card(arguments.out, kept, network, state)


CARD = """\
# brain-tumor-3d, version 1

**For demonstration, not for diagnosis. It has learned from drawn heads, not from patients.**

A small 3-D U-Net ({parameters:,} parameters, {kilobytes:.0f} kB of fp32 ONNX, opset 17) that finds lesions in head
scans of one sequence, like T1, T1 with contrast agent or T2, and says whether there are any.

## Input and output

A scan of one channel. It is turned to RAS, resampled to 2 mm with the filter widened, and standardized by its voxels
other than 0. `volume`, float32 [B, 1, D, H, W], sides multiples of 16; the server answers windows of {roi} voxels that
overlap by a quarter. `logits`, float32 [B, 2, D, H, W]: background, tumor; softmax gives the probabilities, which go
back onto the grid of the scan linearly. From {threshold:g} on, a voxel is tumor. Oedema is no part of the mask. What a
finding is stands in the manifest under `output.findings`.

## Data

Phantoms, drawn by `isocenter.imaging.phantoms_3d`: heads that differ in size, tilt, folds, ventricles and vessels,
lesions with an enhancing rim and a dead core, even ones, faint ones, and several at once, of 0.1 to 60 ml; shading,
noise, resolution and contrast varied; some without skull, some with empty air. One sample in four was one of two real
healthy heads (T1; T1 with contrast agent and without skull; of a collection under a free licence, not shipped), bent in
contrast and scaled, half of them with lesions planted by `isocenter.imaging.phantom_planting`. **No scan of a patient
with a tumour was used, and none was measured.** Weights began at random.

## Quality

Measured as it is served, from the bytes of a `.nii.gz` file to the checked mask, on {scans:.0f} phantoms of 256 x 256 x
128 voxels, seeds from {first_seed} on, which training has not seen: `isocenter phantoms --kind scan` draws the same.

| | |
| --- | --- |
| Dice of the {large:.0f} lesions above 1 ml, mean | {dice_large:.3f} (a tenth are below {dice_large_p10:.3f}) |
| Dice of scans with more than 1 ml, mean | {dice_scans:.3f} |
| sensitivity: scans with lesions answered *present* | {sensitivity:.3f} of {ill:.0f} |
| false alarms: healthy scans answered *present* | {false_alarms:.3f} of {well:.0f} |
| the {small:.0f} lesions of 1 ml and less, touched by the mask | {small_found:.3f} |

{by_kind}

{by_contrast}

Earlier weights were measured on other nineties: from 9000000 on (Dice of lesions above 1 ml 0.846, sensitivity 0.964,
false alarms 0 of 35) and from 9100000 on (0.784, 0.980, 2 of 39); the next ones from 9200000 on (0.863, 46 of 46, 3
of 44) and from 9300000 on (0.836, 44 of 46, 1 of 44), and, with the rule that is shipped, from 9400000 on (0.882, 53
of 53, 1 of 37). Training went on because of these. The weights that are shipped were measured on the ninety above
alone.

That a voxel is tumor from {threshold:g} on, and a finding from 0.3 ml on, was chosen with the weights before these,
on 120 phantoms from 8100001 on, 68 with lesions. With these, the volume found there is 1.01 of the true one (median
of 68 scans; with those before 1.00), Dice of the 77 lesions above 1 ml is 0.866 (0.852), 67 of 68 are found (67) and
1 of 52 healthy ones is called ill (1).

Time, from the call to the answer, on two cores: p50 {p50_s:.2f} s, p95 {p95_s:.2f} s (n={scans:.0f}).

Beside it, on the two real heads of the training: as they are, false alarms: {false_on_real}. With lesions planted by
unused seeds ({real_ill:.0f} scans): sensitivity {real_sensitivity:.3f}, Dice of the {real_large:.0f} lesions above 1 ml
{real_dice_large:.3f}. **These heads were seen in training: on another head, expect less.** The scan of a fruit, which
is no head, is answered {no_head}.

## Limits

- Real tumours look different from drawn ones. What the model says of a patient's scan means nothing.
- Lesions in T2 are outlined less well than the others. Of those of 1 ml and less, many are missed; below 0.3 ml none
  is a finding.
- Bright vessels, a bright pituitary gland, thick dura or an unusual skull may be taken for lesions.
- Other parts of the body are answered too; the server cannot see that they are no heads.
- One sequence at a time; it does not ask which.

## Training

{steps:,} steps, each of 4 crops of 48 voxels a side, 2 of 64 or 2 of 80, {minutes:.0f} minutes on two cores: mirrored
left to right, brightness, contrast and noise varied. Of the crops away from lesions, half are drawn where a lesion
was seen last and there was none. The weights that are shipped came in several goes: the first two, of 5,840 steps,
had more of the small crops and no such places; up to step 11,893, five of six phantoms were drawn at 2 mm; up to
12,926 there were 686 samples, all drawn as scans are, and 1 crop of 96 in place of 2 of 80; since then there are
fresh samples beside them. From step 16,431 on two processes took the mean of their gradients, up to step 23,809. At
step 20,788 the mean of the weights after 19,551 steps and of those then, chosen by 60 phantoms from 8100001 on, began
two further cycles with nearly half of the drawn heads in T2: 3,021 steps, and 9,793 of one process on one core, 41
minutes, with convolutions in bfloat16. Each run draws other crops than one that was interrupted.

    PYTHONPATH=src python -m torch.distributed.run --nproc-per-node 2 \\
        training/brain_tumor.py --heads DIR --checkpoint FILE --steps 20788 --minutes 236
    PYTHONPATH=src python \\
        training/brain_tumor.py --heads DIR --checkpoint FILE --steps {steps} --minutes {minutes:.0f} \\
        --rate 4e-4 --share-t2 0.45 --average 0.998 --bf16
    PYTHONPATH=src python training/brain_tumor_report.py --heads DIR --checkpoint FILE --figures FILE \\
        --out models/brain-tumor-3d/1 --write-package --write-card
"""

if __name__ == "__main__":
    main()
