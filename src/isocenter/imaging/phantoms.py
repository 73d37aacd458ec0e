"""Brain-MRI-like phantom slices: seeded pictures with a known class and a known lesion, for demos, tests and training.

The anatomy is drawn in a head frame: x runs to the image's right, y downwards (to the back of the head), and the scalp
lies at radius 1. Nothing here is a patient, and nothing here should be read as one.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Field = NDArray[np.float32]
_Values = float | NDArray[np.floating[Any]]
_Pair = tuple[float, float]  # x, y in the head frame

CLASSES = ("Glioma", "Meningioma", "Pituitary", "No Tumor")

_EDGE = 0.016  # width of an edge in the head frame: no scanner draws a sharper one
_BRAIN_EDGE = 0.845  # radius of the inner table of the skull
_LEVELS = ("ventricles", "convexity", "base")
_LEVEL_ODDS = {
    "Glioma": (0.7, 0.3, 0.0),
    "Meningioma": (0.65, 0.35, 0.0),
    "Pituitary": (0.0, 0.0, 1.0),
    "No Tumor": (0.45, 0.25, 0.3),
}


@dataclass(frozen=True, slots=True)
class BrainPhantom:
    """One slice: pixels uint8 [H, W], its class, the lesion's mask bool [H, W], and the seed it came from."""

    pixels: NDArray[np.uint8]
    label: str
    lesion: NDArray[np.bool_]
    seed: int


class _Contrast(NamedTuple):
    """Brightness of each tissue under one pulse sequence, 0 black to 1 white."""

    scalp: float
    bone: float
    muscle: float
    csf: float
    gray: float
    white: float
    dura: float
    mass: float
    necrosis: float
    oedema: float


_CONTRASTS = (  # like T1, T1 with contrast agent, and T2
    _Contrast(0.82, 0.09, 0.33, 0.12, 0.38, 0.57, 0.36, 0.88, 0.15, 0.32),
    _Contrast(0.78, 0.07, 0.34, 0.11, 0.34, 0.47, 0.72, 0.95, 0.13, 0.27),
    _Contrast(0.46, 0.05, 0.22, 0.88, 0.50, 0.33, 0.14, 0.99, 0.20, 0.66),
)
_CONTRAST_ODDS = (0.25, 0.5, 0.25)


@dataclass(slots=True)
class _Canvas:
    """A slice in the making: brightness, lesion mask, and the head frame at every pixel."""

    rng: Generator
    side_px: int
    contrast: _Contrast
    image: Field
    lesion: NDArray[np.bool_]
    x: Field
    y: Field
    radius: Field
    angle: Field

    def paint(self, share: Field, value: _Values) -> None:
        """Lay `value` over the image where `share` (0..1) says so."""
        self.image += share * (np.asarray(value, np.float32) - self.image)

    def below(self, field: Field, edge: float, softness: float | None = None) -> Field:
        """Return 1 where `field` is under `edge`, 0 where over, and a ramp between."""
        ramp = (edge - field) / np.float32(_EDGE if softness is None else softness) + np.float32(0.5)
        return np.clip(ramp, 0.0, 1.0, out=ramp)

    def noise(self, cells: int) -> Field:
        """Return a smooth random field, about -1..1, with that many cells along a side."""
        return _smooth_noise(self.rng, cells, self.side_px)

    def polar_noise(self, around: int, outward: int) -> Field:
        """Return a smooth random field whose cells are laid around the head's centre, without a seam."""
        tile = self.rng.uniform(-1.0, 1.0, (outward + 3, around)).astype(np.float32)
        padded = np.concatenate([tile[:, -2:], tile, tile[:, :3]], axis=1)
        columns = (self.angle + np.float32(math.pi)) * np.float32(around / (2.0 * math.pi)) + np.float32(2.0)
        rows = self.radius * np.float32(outward) + np.float32(1.0)
        field = cv2.remap(padded, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(field, np.float32)

    def ellipse(self, x: float, y: float, semi_x: float, semi_y: float, turn: float = 0.0) -> Field:
        """Return the elliptic distance from a centre: 1 on the outline. `turn` is in radians, clockwise on screen."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        along, across = (dx * cos + dy * sin) / np.float32(semi_x), (dy * cos - dx * sin) / np.float32(semi_y)
        return np.asarray(np.hypot(along, across), np.float32)

    def blob(self, outline: Field, size: float) -> Field:
        """Return the share inside an elliptic distance of 1, whose edge is as soft as any other edge."""
        return self.below(outline, 1.0, _EDGE / size)

    def oval(self, value: _Values, at: _Pair, semi: _Pair, turn: float = 0.0, share: float = 1.0) -> None:
        """Paint an ellipse."""
        self.paint(np.float32(share) * self.blob(self.ellipse(*at, *semi, turn), min(semi)), value)


def brain_slice(seed: int, *, label: str | None = None, side_px: int = 224) -> BrainPhantom:
    """Draw the phantom of a seed; the same seed, label and side give the same pixels.

    Without `label` the seed draws one of `CLASSES`. Raises ValueError for another label, a negative seed, or a side
    under 64 px, where lesions could no longer be seen.

    >>> phantom = brain_slice(1_000_000, label="Meningioma")
    >>> phantom.pixels.shape, phantom.label, bool(phantom.lesion.any())
    ((224, 224), 'Meningioma', True)
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative")
    if side_px < 64:
        raise ValueError(f"side of {side_px} px is under 64 px")
    if label is None:
        label = CLASSES[int(np.random.default_rng(seed).integers(len(CLASSES)))]
    elif label not in CLASSES:
        raise ValueError(f"label {label!r} is none of {', '.join(CLASSES)}")
    rng = np.random.default_rng((seed, CLASSES.index(label)))
    level = _LEVELS[int(rng.choice(len(_LEVELS), p=_LEVEL_ODDS[label]))]
    canvas = _blank(rng, side_px)
    place = _lesion_place(rng, label)
    if level != "base" and label != "No Tumor":
        _displace(canvas, place, strength=0.4)
    _draw_shell(canvas)
    if level == "base":
        _draw_base(canvas)
    else:
        _draw_hemispheres(canvas, ventricles=level == "ventricles")
    if label != "No Tumor":
        _DRAW_LESION[label](canvas, place)
    return BrainPhantom(pixels=_scan(canvas), label=label, lesion=canvas.lesion, seed=seed)


def _smooth_noise(rng: Generator, cells: int, side_px: int) -> Field:
    # Drawn on the cells, not on the pixels: a phantom keeps its anatomy when its side changes.
    grid = rng.uniform(-1.0, 1.0, (cells + 2, cells + 2)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (side_px, side_px), interpolation=cv2.INTER_CUBIC), np.float32)


def _blank(rng: Generator, side_px: int) -> _Canvas:
    """Choose the head's size, place, tilt, outline and contrast, and lay its frame over the pixels."""
    half_width = rng.uniform(0.62, 0.80)
    half_height = min(0.95, half_width * rng.uniform(1.10, 1.30))
    tilt = rng.normal(0.0, 0.07)
    steps = ((np.arange(side_px) + 0.5) * (2.0 / side_px) - 1.0).astype(np.float32)
    across, down = np.meshgrid(steps - np.float32(rng.normal(0, 0.02)), steps - np.float32(rng.normal(0, 0.02)))
    cos, sin = np.float32(math.cos(tilt)), np.float32(math.sin(tilt))
    x = (across * cos + down * sin) / np.float32(half_width)
    y = (down * cos - across * sin) / np.float32(half_height)
    x = x * (1.0 + np.float32(rng.uniform(-0.07, 0.07)) * y)  # wider at the front or at the back
    x, y = (axis + np.float32(0.022) * _smooth_noise(rng, 4, side_px) for axis in (x, y))
    contrast = _CONTRASTS[int(rng.choice(len(_CONTRASTS), p=_CONTRAST_ODDS))]
    radius = np.power(np.abs(x) ** 2.15 + np.abs(y) ** 2.15, 1 / 2.15).astype(np.float32)
    x, y = x.astype(np.float32), y.astype(np.float32)
    image, lesion = np.zeros_like(radius), np.zeros(radius.shape, np.bool_)
    return _Canvas(rng, side_px, contrast, image, lesion, x, y, radius, np.arctan2(y, x).astype(np.float32))


class _Place(NamedTuple):
    """Where a lesion sits in the head frame, and how large it is."""

    x: float
    y: float
    size: float
    on_falx: bool = False


def _lesion_place(rng: Generator, label: str) -> _Place:
    side = 1.0 if rng.random() < 0.5 else -1.0
    if label == "Glioma":
        size = rng.uniform(0.17, 0.27)
        return _Place(x=side * rng.uniform(0.22, 0.46), y=rng.uniform(-0.42, 0.42), size=size)
    if label == "Meningioma":
        size = rng.uniform(0.16, 0.26)
        if rng.random() < 0.25:
            back = 1.0 if rng.random() < 0.4 else -1.0
            return _Place(x=side * 0.62 * size, y=back * rng.uniform(0.42, 0.60), size=size, on_falx=True)
        direction, reach = rng.uniform(-math.pi, math.pi), _BRAIN_EDGE - 0.5 * size
        return _Place(x=reach * math.cos(direction), y=reach * math.sin(direction), size=size)
    return _Place(x=rng.normal(0.0, 0.015), y=rng.uniform(-0.27, -0.19), size=rng.uniform(0.125, 0.21))


def _displace(canvas: _Canvas, place: _Place, *, strength: float) -> None:
    """Push the anatomy away from a mass; the skull, which does not give, stays."""
    dx, dy = canvas.x - np.float32(place.x), canvas.y - np.float32(place.y)
    near = np.exp(-(dx * dx + dy * dy) / np.float32((1.5 * place.size) ** 2))
    pull = np.float32(strength) * near * canvas.below(canvas.radius, 0.72, 0.3)
    canvas.x, canvas.y = canvas.x - pull * dx, canvas.y - pull * dy


def _draw_shell(canvas: _Canvas) -> None:
    """Scalp, skull with its marrow, dura, and the fluid under it."""
    tissue, rng = canvas.contrast, canvas.rng
    outward = canvas.radius + np.float32(0.018) * canvas.polar_noise(9, 1)
    skull = rng.uniform(0.915, 0.935)
    canvas.paint(canvas.below(outward, 1.0), tissue.scalp * (1.0 + 0.12 * canvas.noise(12)))
    canvas.paint(canvas.below(outward, skull), tissue.bone)
    marrow = canvas.below(np.abs(outward - np.float32((skull + _BRAIN_EDGE + 0.012) / 2)), 0.012, 0.02)
    canvas.paint(marrow * (0.55 + 0.45 * canvas.polar_noise(14, 1)), 0.55 * tissue.scalp)
    canvas.paint(canvas.below(canvas.radius, _BRAIN_EDGE + 0.012), tissue.dura)
    canvas.paint(canvas.below(canvas.radius, _BRAIN_EDGE), tissue.csf)


def _draw_hemispheres(canvas: _Canvas, *, ventricles: bool) -> None:
    """Folded cortex round white matter, the fissure between the halves, and, lower down, nuclei and ventricles."""
    tissue, rng = canvas.contrast, canvas.rng
    atrophy = rng.uniform(0.0, 1.0)
    depth = np.float32(_BRAIN_EDGE) - canvas.radius
    folds = np.abs(canvas.polar_noise(38, 5) + np.float32(0.65) * canvas.noise(20))
    reach = np.clip(1.0 - depth / np.float32(rng.uniform(0.34, 0.48)), 0.0, 1.0)  # sulci end before the deep white
    cortex = canvas.below(folds, 0.27, 0.16) * np.clip(1.8 * reach, 0.0, 1.0)
    ribbon = np.maximum(cortex, canvas.below(depth, 0.055, 0.03))
    sulci = canvas.below(folds, 0.045 + 0.055 * atrophy, 0.10) * np.clip(2.0 * reach - 0.45, 0.0, 1.0)
    brain = canvas.below(canvas.radius, _BRAIN_EDGE - 0.018 - 0.014 * atrophy)
    canvas.paint(brain, tissue.white * (1.0 + 0.05 * canvas.noise(9) + 0.04 * canvas.noise(40)))
    canvas.paint(ribbon * brain, tissue.gray * (1.0 + 0.06 * canvas.noise(30)))
    if ventricles:
        _draw_nuclei(canvas)
    canvas.paint(sulci * brain, tissue.csf * 0.85 + tissue.gray * 0.15)
    wander = np.abs(canvas.x + np.float32(0.02) * canvas.noise(7))
    gap = 0.012 + 0.010 * atrophy
    fissure = canvas.below(wander, gap) * brain
    if ventricles:
        fissure *= 1.0 - canvas.below(np.abs(canvas.y + np.float32(0.02)), 0.42, 0.05)
    canvas.paint(canvas.below(wander, gap + 0.035, 0.04) * np.sign(fissure), tissue.gray)
    canvas.paint(fissure, tissue.csf)
    canvas.paint(canvas.below(wander, 0.006) * np.sign(fissure), tissue.dura)
    if ventricles:
        _draw_ventricles(canvas, width=rng.uniform(0.75, 1.35) + 0.25 * atrophy)


def _draw_nuclei(canvas: _Canvas) -> None:
    gray = canvas.contrast.gray
    for side in (-1.0, 1.0):
        canvas.oval(gray, (side * 0.13, 0.10), (0.10, 0.14), side * 0.3, 0.8)
        canvas.oval(gray, (side * 0.30, -0.04), (0.075, 0.20), side * -0.18, 0.8)
        canvas.oval(gray, (side * 0.165, -0.22), (0.045, 0.11), side * -0.35, 0.7)
        canvas.oval(canvas.contrast.csf, (side * 0.60, -0.06), (0.16, 0.03), side * 0.25)  # the Sylvian fissure


def _draw_ventricles(canvas: _Canvas, *, width: float) -> None:
    tissue, rng = canvas.contrast, canvas.rng
    for side in (-1.0, 1.0):
        own = width * rng.uniform(0.9, 1.1)
        canvas.oval(tissue.csf, (side * 0.085 * own, -0.27), (0.045 * own, 0.17), side * -0.42)
        canvas.oval(tissue.csf, (side * 0.055 * own, -0.08), (0.035 * own, 0.16), side * 0.10)
        canvas.oval(tissue.csf, (side * 0.19, 0.33), (0.050 * own, 0.17), side * 0.50)
    septum = canvas.below(np.abs(canvas.x), 0.008) * canvas.blob(canvas.ellipse(0.0, -0.18, 0.06, 0.2), 0.1)
    canvas.oval(tissue.csf, (0.0, 0.10), (0.02 * width, 0.11))
    canvas.paint(np.float32(0.8) * septum, tissue.white)
    canvas.oval(0.5 * (tissue.dura + tissue.scalp), (0.0, 0.27), (0.025, 0.025), share=0.8)  # the pineal gland


def _draw_base(canvas: _Canvas) -> None:
    """A slice at the sella: orbits and sinuses in front, temporal lobes aside, brain stem and cerebellum behind."""
    tissue, rng = canvas.contrast, canvas.rng
    canvas.paint(
        canvas.below(canvas.radius, _BRAIN_EDGE + 0.02), tissue.bone + 0.10 * tissue.muscle * (1.0 + canvas.noise(16))
    )
    for side in (-1.0, 1.0):
        _draw_orbit(canvas, side)
        lobe = canvas.blob(canvas.ellipse(side * 0.49, -0.10, 0.295, 0.345, side * 0.22), 0.3)
        folds = np.abs(canvas.noise(15))
        canvas.paint(lobe, tissue.gray * (1.0 + 0.06 * canvas.noise(30)))
        core = canvas.blob(canvas.ellipse(side * 0.47, -0.09, 0.21, 0.26, side * 0.22) + 0.28 * canvas.noise(13), 0.1)
        canvas.paint(core * canvas.below(-folds, -0.10, 0.2), tissue.white * (1.0 + 0.05 * canvas.noise(30)))
        canvas.paint(lobe * canvas.below(folds, 0.045, 0.08) * 0.75, tissue.csf)
    walls = canvas.below(np.abs(canvas.noise(22)), 0.10, 0.12)
    canvas.oval(0.02 + 0.45 * tissue.scalp * walls, (0.0, -0.60), (0.135, 0.22))  # the sinuses
    canvas.oval(tissue.csf, (0.0, 0.43), (0.66, 0.37))
    _draw_cerebellum(canvas)
    points = np.cos(5.0 * np.arctan2(canvas.x, -canvas.y - 0.2))  # the suprasellar cistern is a star
    cistern = canvas.ellipse(0.0, -0.20, 0.20, 0.16) - np.float32(0.22) * points
    canvas.paint(canvas.blob(cistern.astype(np.float32), 0.15), tissue.csf)
    for side in (-1.0, 1.0):
        canvas.oval(1.2 * tissue.bone, (side * 0.50, 0.17), (0.27, 0.050), side * 0.38)
        canvas.oval(0.9 * tissue.dura, (side * rng.uniform(0.12, 0.15), -0.26), (0.028, 0.028))
    canvas.oval(tissue.gray, (0.0, -0.24), (0.055, 0.035))  # the healthy gland: gray, and smaller than any tumour
    stem = canvas.ellipse(0.0, 0.09, 0.165, 0.135) + np.float32(0.05) * canvas.noise(8)
    canvas.paint(canvas.blob(stem, 0.15), (0.5 * tissue.gray + 0.5 * tissue.white) * (1.0 + 0.05 * canvas.noise(20)))
    canvas.oval(0.8 * tissue.dura, (0.0, -0.045), (0.022, 0.022))


def _draw_orbit(canvas: _Canvas, side: float) -> None:
    tissue = canvas.contrast
    fat = 0.85 * tissue.scalp * (1.0 + 0.08 * canvas.noise(20))
    canvas.oval(fat, (side * 0.315, -0.57), (0.165, 0.205), side * 0.45)
    canvas.oval(tissue.muscle, (side * 0.255, -0.46), (0.020, 0.13), side * 0.45)
    canvas.oval(tissue.muscle, (side * 0.345, -0.66), (0.135, 0.115))
    canvas.oval(0.9 * tissue.csf + 0.05, (side * 0.345, -0.66), (0.112, 0.094))


def _draw_cerebellum(canvas: _Canvas) -> None:
    tissue = canvas.contrast
    outline = canvas.ellipse(0.0, 0.45, 0.60, 0.31) + np.float32(0.04) * canvas.noise(9)
    inward = np.hypot(np.abs(canvas.x) - np.float32(0.12), canvas.y - np.float32(0.22))
    leaves = np.sin(np.float32(34.0) * inward + np.float32(1.6) * canvas.noise(8)).astype(np.float32)
    body = canvas.blob(outline, 0.35)
    canvas.paint(body, tissue.gray * (1.0 + 0.05 * canvas.noise(30)))
    for side in (-1.0, 1.0):
        core = canvas.blob(canvas.ellipse(side * 0.24, 0.40, 0.20, 0.14, side * 0.35) + 0.3 * canvas.noise(12), 0.12)
        canvas.paint(core, tissue.white)
    canvas.paint(0.30 * body * canvas.below(-leaves, -0.72, 0.3), tissue.csf)
    canvas.paint(canvas.below(np.abs(canvas.x), 0.045, 0.04) * canvas.below(outline, 0.75, 0.1), 0.95 * tissue.gray)
    canvas.oval(tissue.csf, (0.0, 0.255), (0.055, 0.034))  # the fourth ventricle


def _draw_glioma(canvas: _Canvas, place: _Place) -> None:
    """Within the brain: ragged, uneven, mostly a bright rim round a dark dead core, swelling about it."""
    tissue, rng = canvas.contrast, canvas.rng
    turn, stretch = rng.uniform(0.0, math.pi), rng.uniform(0.8, 1.2)
    plain = canvas.ellipse(place.x, place.y, place.size * stretch, place.size / stretch, turn)
    ragged = plain + np.float32(0.20) * canvas.noise(9) + np.float32(0.13) * canvas.noise(17)
    brain = canvas.below(canvas.radius, _BRAIN_EDGE - 0.05)
    fingers = plain + np.float32(0.45) * canvas.noise(8)
    swelling = canvas.below(fingers, rng.uniform(1.45, 1.9), 0.35) * brain
    canvas.paint(rng.uniform(0.65, 0.95) * swelling, tissue.oedema * (1.0 + 0.06 * canvas.noise(30)))
    body = canvas.blob(ragged, place.size) * brain
    canvas.paint(body, tissue.mass * (1.0 + 0.16 * canvas.noise(26) + 0.10 * canvas.noise(44)))
    if rng.random() < 0.75:
        core = canvas.below(ragged + np.float32(0.20) * canvas.noise(13), rng.uniform(0.60, 0.76), 0.16)
        canvas.paint(0.95 * core * brain, tissue.necrosis * (1.0 + 0.25 * canvas.noise(24)))
    else:
        holes = canvas.below(canvas.noise(20), -0.12, 0.25) * canvas.below(ragged, 0.92, 0.1)
        canvas.paint(0.9 * holes * brain, tissue.necrosis * 1.3)
    canvas.lesion |= body > 0.5


def _draw_meningioma(canvas: _Canvas, place: _Place) -> None:
    """On the dura: smooth, even and bright, broad-based on skull or falx, a fluid cleft round it, a tail beside it."""
    tissue, rng = canvas.contrast, canvas.rng
    outline = canvas.ellipse(place.x, place.y, place.size, place.size * rng.uniform(0.88, 1.12))
    outline = outline + np.float32(0.09) * canvas.noise(7)
    within = canvas.below(canvas.radius, _BRAIN_EDGE + 0.004)
    if rng.random() < 0.4:
        swelling = canvas.below(outline + np.float32(0.35) * canvas.noise(8), 1.45, 0.3)
        canvas.paint(0.7 * swelling * canvas.below(canvas.radius, _BRAIN_EDGE - 0.05), tissue.oedema)
    canvas.paint(0.8 * canvas.below(outline, 1.09, 0.10) * within, tissue.csf)
    if place.on_falx:
        within = within * canvas.below(np.float32(-math.copysign(1.0, place.x)) * canvas.x, 0.004)
        base = np.abs(canvas.x)
        along = np.abs(canvas.y - np.float32(place.y)) / np.float32(place.size)
    else:
        base = np.abs(canvas.radius - np.float32(_BRAIN_EDGE - 0.006))
        turned = np.mod(canvas.angle - np.float32(math.atan2(place.y, place.x) - math.pi), np.float32(2 * math.pi))
        along = np.abs(turned - np.float32(math.pi)) * np.float32(0.8 / place.size)
    tail = canvas.below(base, 0.020, 0.02) * canvas.below(along, rng.uniform(1.3, 1.9), 0.5)
    canvas.paint(tail * canvas.below(canvas.radius, _BRAIN_EDGE + 0.015), tissue.mass)
    body = canvas.blob(outline, place.size) * within
    canvas.paint(body, tissue.mass * (1.0 - 0.04 + 0.06 * canvas.noise(18)))
    canvas.lesion |= body > 0.5


def _draw_pituitary_mass(canvas: _Canvas, place: _Place) -> None:
    """In the sella, on the midline: round or with a few lobes, bright and nearly even."""
    tissue, rng = canvas.contrast, canvas.rng
    semi_x, semi_y = place.size * rng.uniform(0.9, 1.15), place.size * rng.uniform(0.8, 1.0)
    outline = canvas.ellipse(place.x, place.y, semi_x, semi_y)
    for _ in range(int(rng.integers(0, 3))):
        lobe_x, lobe_y = place.x + rng.uniform(-0.5, 0.5) * semi_x, place.y + rng.uniform(-0.6, 0.6) * semi_y
        outline = np.minimum(outline, canvas.ellipse(lobe_x, lobe_y, 0.7 * semi_x, 0.7 * semi_y))
    outline = outline + np.float32(0.08) * canvas.noise(14)
    canvas.paint(0.7 * canvas.below(outline, 1.16, 0.15), tissue.csf)
    body = canvas.blob(outline, place.size)
    canvas.paint(body, tissue.mass * (1.0 - 0.06 + 0.09 * canvas.noise(22)))
    canvas.lesion |= body > 0.5


def _scan(canvas: _Canvas) -> NDArray[np.uint8]:
    """Make the drawing a measurement: partial volumes, coil shading, receiver noise, and a viewer's brightness."""
    rng, side_px = canvas.rng, canvas.side_px
    seen = cv2.GaussianBlur(np.maximum(canvas.image, 0.0), (0, 0), rng.uniform(0.55, 0.95) * side_px / 224)
    shading = 1.0 + rng.uniform(0.03, 0.14) * canvas.noise(2)
    real, imaginary = rng.normal(0.0, rng.uniform(0.006, 0.022), (2, side_px, side_px)).astype(np.float32)
    # Magnitude of a complex signal: Gaussian in tissue, Rayleigh in air (Gudbjartsson and Patz, 1995).
    magnitude = np.hypot(seen * shading.astype(np.float32) + real, imaginary)
    brightness = np.power(np.clip(magnitude, 0.0, 1.0), rng.uniform(0.88, 1.15)) * rng.uniform(0.80, 1.02)
    return np.asarray((np.clip(brightness, 0.0, 1.0) * 255.0).round(), np.uint8)


_DRAW_LESION = {"Glioma": _draw_glioma, "Meningioma": _draw_meningioma, "Pituitary": _draw_pituitary_mass}
