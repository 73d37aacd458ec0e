"""The picture of `isocenter inspect`: three slices through the middle of each volume, and where its slices lie.

Slices are shown in radiological convention: the patient's right is on the left, front and head are above. One scale for
the three. Nothing in it says who the patient is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from isocenter.core.tensor import Array
from isocenter.imaging.codecs.slice_track import SliceTrack
from isocenter.imaging.volume import Volume

_WIDTH: Final = 1_000
_SIDE: Final = 300
"""Of the square that a slice is fitted into, px."""
_EDGE: Final = 24
_TITLE: Final = 58
_STRIP: Final = 96
_CUT_PERCENT: Final = 0.5
_BARS_MM: Final = (200.0, 100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)

_GROUND, _BLACK = (24, 26, 30), (0, 0, 0)
_BRIGHT, _DIM, _TICK = (235, 236, 238), (150, 155, 163), (120, 170, 220)
_BAD, _DOUBLED = (239, 83, 80), (255, 183, 77)


@dataclass(frozen=True, slots=True)
class Shown:
    """What is drawn of one volume. `volume` is None where it cannot be read; then `says` tells why."""

    title: str
    says: str
    bad: bool
    volume: Volume | None
    track: SliceTrack | None


class View(NamedTuple):
    """One slice as it is shown: gray values [H, W], mm between rows and columns, letters at its edges."""

    name: str
    pixels: Array
    spacing_mm: tuple[float, float]
    left: str
    right: str
    top: str
    bottom: str


def draw(volumes: Iterable[Shown]) -> Image.Image:
    """All volumes under one another. One is held at a time."""
    bands = [_band(each) for each in volumes]
    picture = Image.new("RGB", (_WIDTH, sum(band.height for band in bands)), _GROUND)
    top = 0
    for band in bands:
        picture.paste(band, (0, top))
        top += band.height
    return picture


def views_of(volume: Volume) -> tuple[View, View, View]:
    """The middle slices across the three axes of the body, nearest to them where the grid is oblique.

    The first channel is shown. Slices are views of the voxels: nothing is resampled.
    """
    voxels, spacing_mm = _along_lps(volume)
    x, y, z = (size // 2 for size in voxels.shape)
    mm_x, mm_y, mm_z = spacing_mm
    return (
        View("axial", voxels[:, :, z].T, (mm_y, mm_x), "R", "L", "A", "P"),
        View("coronal", voxels[:, y, ::-1].T, (mm_z, mm_x), "R", "L", "S", "I"),
        View("sagittal", voxels[x, :, ::-1].T, (mm_z, mm_y), "A", "P", "S", "I"),
    )


def _along_lps(volume: Volume) -> tuple[Array, tuple[float, float, float]]:
    """The first channel with its axes towards left, back and head, and the spacing along them."""
    codes, spacing_mm = volume.geometry.axcodes, volume.geometry.spacing_mm
    order = [next(axis for axis, code in enumerate(codes) if code in pair) for pair in ("LR", "PA", "SI")]
    voxels = volume.voxels[0].transpose(order)
    for axis, source in enumerate(order):
        if codes[source] in "RAI":
            voxels = np.flip(voxels, axis)
    x, y, z = (spacing_mm[source] for source in order)
    return voxels, (x, y, z)


def _band(shown: Shown) -> Image.Image:
    view_height = _SIDE + 2 * _EDGE if shown.volume is not None else 0
    strip_height = _STRIP if shown.track is not None else 0
    band = Image.new("RGB", (_WIDTH, _TITLE + view_height + strip_height + 16), _GROUND)
    pen = ImageDraw.Draw(band)
    pen.text((_EDGE, 12), _fitted(shown.title, 18, _WIDTH - 2 * _EDGE), fill=_BRIGHT, font=_font(18))
    color = _BAD if shown.bad else _DIM
    pen.text((_EDGE, 36), _fitted(shown.says, 14, _WIDTH - 2 * _EDGE), fill=color, font=_font(14))
    if shown.volume is not None:
        _draw_views(band, pen, views_of(shown.volume), _TITLE)
    if shown.track is not None:
        _draw_track(pen, shown.track, _TITLE + view_height)
    return band


def _draw_views(band: Image.Image, pen: ImageDraw.ImageDraw, views: Sequence[View], top: int) -> None:
    px_per_mm = min(
        _SIDE / (size * mm) for view in views for size, mm in zip(view.pixels.shape, view.spacing_mm, strict=True)
    )
    shades = _gray([view.pixels for view in views])
    step = (_WIDTH - _EDGE) // len(views)
    for number, (view, gray) in enumerate(zip(views, shades, strict=True)):
        left, above = _EDGE + number * step, top + _EDGE
        pen.rectangle((left, above, left + _SIDE, above + _SIDE), fill=_BLACK)
        rows, columns = gray.shape
        width = max(1, round(columns * view.spacing_mm[1] * px_per_mm))
        height = max(1, round(rows * view.spacing_mm[0] * px_per_mm))
        scaled = Image.fromarray(gray).resize((width, height), Image.Resampling.BILINEAR)
        band.paste(scaled.convert("RGB"), (left + (_SIDE - width) // 2, above + (_SIDE - height) // 2))
        middle, half = (left + _SIDE // 2, above + _SIDE // 2), _SIDE // 2
        for letter, x, y, anchor in (
            (view.left, middle[0] - half + 4, middle[1], "lm"),
            (view.right, middle[0] + half - 4, middle[1], "rm"),
            (view.top, middle[0], middle[1] - half + 4, "mt"),
            (view.bottom, middle[0], middle[1] + half - 4, "mb"),
        ):
            pen.text((x, y), letter, fill=_DOUBLED, font=_font(16), anchor=anchor, stroke_width=2, stroke_fill=_BLACK)
        pen.text((left, above - 5), view.name, fill=_DIM, font=_font(13), anchor="ls")
    _draw_bar(pen, (_EDGE, top + _EDGE + _SIDE + 12), px_per_mm)


def _draw_bar(pen: ImageDraw.ImageDraw, at: tuple[int, int], px_per_mm: float) -> None:
    length_mm = next((mm for mm in _BARS_MM if mm * px_per_mm <= _SIDE / 2), _BARS_MM[-1])
    x, y = at
    end = x + round(length_mm * px_per_mm)
    pen.line((x, y, end, y), fill=_BRIGHT, width=2)
    for edge in (x, end):
        pen.line((edge, y - 4, edge, y + 4), fill=_BRIGHT, width=2)
    pen.text((end + 8, y), f"{length_mm:g} mm", fill=_BRIGHT, font=_font(13), anchor="lm")


def _draw_track(pen: ImageDraw.ImageDraw, track: SliceTrack, top: int) -> None:
    """A tick a slice, from the first to the last along the normal; what is uneven is red, what is doubled orange."""
    left, right, middle = _EDGE, _WIDTH - _EDGE, top + 56
    length_mm = track.along_mm[-1] - track.along_mm[0]
    px_per_mm = (right - left) / length_mm if length_mm > 0 else 0.0
    most_aside_mm = max(track.aside_mm)
    # Tilted slices climb, at the angle that they have if the strip is long enough to show it.
    climb = 0.0 if most_aside_mm < 0.1 else min(px_per_mm, 24 / most_aside_mm)
    points = [
        (left + round(along * px_per_mm), middle - round(aside * climb))
        for along, aside in zip(track.along_mm, track.aside_mm, strict=True)
    ]
    pen.line((left, middle + 12, right, middle + 12), fill=_DIM)
    for number in track.uneven:
        (start, _), (end, _) = points[number - 1], points[number]
        pen.rectangle((start, middle + 9, max(end, start + 2), middle + 15), fill=_BAD)
    for x, y in points:
        pen.line((x, y - 10, x, y + 10), fill=_TICK)
    for number in track.doubled:
        x, y = points[number]
        pen.line((x, y - 18, x, y + 10), fill=_DOUBLED, width=3)
    pen.text((left, top + 14), said_of(track), fill=_DIM, font=_font(13), anchor="lm")
    pen.text((left, middle + 18), "0", fill=_DIM, font=_font(12), anchor="lt")
    pen.text((right, middle + 18), f"{length_mm:.1f} mm", fill=_DIM, font=_font(12), anchor="rt")


def said_of(track: SliceTrack) -> str:
    """A track in words.

    >>> said_of(SliceTrack(series=1, volume=0, along_mm=(0, 2, 4, 8, 8), aside_mm=(0,) * 5, tilt_deg=0.0))
    '5 slices, 2 mm apart; 1 gap of 4 mm, about 1 slice missing; 1 doubled'
    """
    median = track.median_gap_mm
    parts = [f"{len(track.along_mm)} slices" + (f", {median:.4g} mm apart" if median is not None else "")]
    if uneven := [track.gaps_mm[number - 1] for number in track.uneven]:
        sizes = f"{min(uneven):.4g}" + (f" to {max(uneven):.4g}" if max(uneven) - min(uneven) > 0.01 else "")
        missing = f", about {track.missing} slice{'s' if track.missing > 1 else ''} missing" if track.missing else ""
        parts.append(f"{len(uneven)} gap{'s' if len(uneven) > 1 else ''} of {sizes} mm{missing}")
    if track.doubled:
        parts.append(f"{len(track.doubled)} doubled")
    if track.tilt_deg is not None and track.tilt_deg > 0.1:
        parts.append(f"tilted by {track.tilt_deg:.2f} degrees")
    return "; ".join(parts)


def _gray(slices: Sequence[Array]) -> list[Array]:
    """Slices as uint8, all through one window between two percentiles."""
    values = [np.asarray(each, np.float32) for each in slices]
    finite = np.concatenate([each[np.isfinite(each)] for each in values])
    if not finite.size:
        return [np.zeros(each.shape, np.uint8) for each in values]
    low, high = np.percentile(finite, (_CUT_PERCENT, 100.0 - _CUT_PERCENT))
    scale = 255.0 / max(float(high - low), 1e-12)
    return [
        np.clip((np.nan_to_num(each, nan=low, posinf=high, neginf=low) - low) * scale, 0, 255).astype(np.uint8)
        for each in values
    ]


def _fitted(text: str, size: int, room_px: float) -> str:
    """The beginning of a text that fits."""
    if _font(size).getlength(text) <= room_px:
        return text
    while text and _font(size).getlength(f"{text}…") > room_px:
        text = text[:-1]
    return f"{text}…"


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ValueError("this Pillow has no FreeType, which a picture needs for its letters")
    return font
