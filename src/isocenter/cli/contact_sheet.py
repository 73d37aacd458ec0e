"""All images of a run with their predictions, as one picture for people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from isocenter.cli.console import one_line
from isocenter.cli.outcome import Outcome, percent
from isocenter.cli.segment_places import tails
from isocenter.core.errors import IsocenterError
from isocenter.core.tensor import Array
from isocenter.imaging.codecs.raster import decode
from isocenter.imaging.limits import ImageLimits

Color: TypeAlias = tuple[int, int, int]

MAX_TILES: Final = 180
_COLUMNS: Final = 6
_FEWEST_COLUMNS: Final = 4  # below that the title has no room
_MARGIN: Final = 36
_GAP: Final = 20
_THUMB: Final = 232
_SMOOTHING: Final = 4
_PAD: Final = 12
_TILE_W: Final = _THUMB + 2 * _PAD
_TILE_H: Final = _PAD + _THUMB + 96
_HEADER_H: Final = 124
_PURPOSE: Final = "for demonstration, not for diagnosis"
_CUT_PERCENT: Final = 0.5
"""What is cut off at either end of the intensities where there are more than 8 bits."""

_GROUND: Final[Color] = (13, 15, 20)
_CARD: Final[Color] = (24, 28, 36)
_BEHIND: Final[Color] = (0, 0, 0)
_TRACK: Final[Color] = (45, 51, 63)
_BRIGHT: Final[Color] = (238, 241, 246)
_DIM: Final[Color] = (143, 152, 168)
_WARN: Final[Color] = (240, 178, 72)
_WARN_GROUND: Final[Color] = (58, 44, 20)
_BAD: Final[Color] = (239, 99, 92)
# Told apart by most colour-blind eyes as well (after Okabe and Ito), lightened for a dark ground.
_CLASSES: Final[tuple[Color, ...]] = (
    (242, 142, 92), (94, 180, 245), (92, 207, 164), (226, 210, 96), (214, 143, 206), (160, 170, 255),
)  # fmt: skip


def draw(outcomes: Sequence[Outcome], *, max_tiles: int = MAX_TILES) -> Image.Image:
    """One tile a file, in their order; beyond `max_tiles` the title says how many are not shown."""
    shown = outcomes[:max_tiles]
    columns = min(_COLUMNS, max(_FEWEST_COLUMNS, len(shown)))
    rows = -(-len(shown) // columns)
    width = 2 * _MARGIN + columns * _TILE_W + (columns - 1) * _GAP
    height = _HEADER_H + rows * _TILE_H + (rows - 1) * _GAP + _MARGIN
    sheet = _Sheet(Image.new("RGB", (width, height), _GROUND), _colors(outcomes))
    sheet.title(outcomes, len(shown))
    # Two patients may have a slice of one name: as much of each path as tells it from the others.
    names = tails([outcome.file for outcome in outcomes])
    for index, (outcome, name) in enumerate(zip(shown, names, strict=False)):
        row, column = divmod(index, columns)
        sheet.tile(
            outcome, one_line(str(name)), _MARGIN + column * (_TILE_W + _GAP), _HEADER_H + row * (_TILE_H + _GAP)
        )
    return sheet.image


@dataclass(frozen=True, slots=True)
class _Sheet:
    image: Image.Image
    colors: dict[str, Color]

    @property
    def pen(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def title(self, outcomes: Sequence[Outcome], shown: int) -> None:
        """What answered, how often it said what, and what this is not for."""
        right = self.image.width - _MARGIN
        answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
        models = list(dict.fromkeys(f"{answer['model']}  v{answer['version']}" for answer in answers))
        self.pen.text((_MARGIN, 30), ", ".join(models) or "no answer", fill=_BRIGHT, font=_font(28))
        total = f"{len(outcomes)} images" if len(outcomes) != 1 else "1 image"
        if shown < len(outcomes):
            total = f"first {shown} of {len(outcomes)} images"
        self.pen.text((right, 33), total, fill=_BRIGHT, font=_font(20), anchor="ra")
        self.pen.text((right, 78), _PURPOSE, fill=_DIM, font=_font(17), anchor="ra")
        room = right - _font(17).getlength(_PURPOSE) - 48
        x = float(_MARGIN)
        counts = Counter(str(answer["prediction"]) for answer in answers)
        entries = [(label, counts[label], color) for label, color in self.colors.items()]
        if len(answers) < len(outcomes):
            entries.append(("refused", len(outcomes) - len(answers), _BAD))
        for label, count, color in entries:
            words = f"{label}  {count}"
            if x + 19 + _font(17).getlength(words) > room:
                self.pen.text((x, 78), "…", fill=_DIM, font=_font(17))
                break
            self._fill((round(x), 83), (13, 13), 6, color if count else _TRACK)
            self.pen.text((x + 19, 78), words, fill=_BRIGHT if count else _DIM, font=_font(17))
            x += 19 + _font(17).getlength(words) + 24

    def tile(self, outcome: Outcome, name: str, x: int, y: int) -> None:
        """One image and what was said about it."""
        self._fill((x, y), (_TILE_W, _TILE_H), 12, _CARD)
        left, top = x + _PAD, y + _PAD
        self._fill((left, top), (_THUMB, _THUMB), 6, _BEHIND)
        thumb = thumbnail(outcome.file, _THUMB)
        if thumb is not None:
            at = (left + (_THUMB - thumb.width) // 2, top + (_THUMB - thumb.height) // 2)
            self.image.paste(thumb, at, _rounded(thumb.size, 6))
        if outcome.answer is not None:
            self._answer(outcome.answer, left, top + _THUMB)
        else:
            self._problem(outcome.error or {}, left, top, with_image=thumb is not None)
        self.pen.text((left, top + _THUMB + 64), shorten(name, _font(14), _THUMB), fill=_DIM, font=_font(14))

    def _fill(self, at: tuple[int, int], size: tuple[int, int], radius: int, color: Color) -> None:
        self.image.paste(color, (*at, at[0] + size[0], at[1] + size[1]), _rounded(size, radius))

    def _answer(self, answer: dict[str, Any], left: int, below: int) -> None:
        label, confidence = str(answer["prediction"]), float(answer["confidence"])
        color = self.colors[label]
        odds = percent(confidence)
        room = _THUMB - _font(16).getlength(odds) - 12
        self.pen.text((left, below + 12), shorten(label, _font(20), room), fill=_BRIGHT, font=_font(20))
        self.pen.text((left + _THUMB, below + 15), odds, fill=color, font=_font(16), anchor="ra")
        self._fill((left, below + 44), (_THUMB, 8), 4, _TRACK)
        self._fill((left, below + 44), (max(8, round(_THUMB * min(1.0, confidence))), 8), 4, color)
        if answer["warnings"]:
            self._tag([str(warning["code"]) for warning in answer["warnings"]], left, below)

    def _tag(self, codes: list[str], left: int, below: int) -> None:
        """What was noticed about the image, on its lower edge."""
        text = codes[0] if len(codes) == 1 else f"{codes[0]} +{len(codes) - 1}"
        text = shorten(text.replace("_", " "), _font(13), _THUMB - 28)
        self._fill((left + 8, below - 29), (round(_font(13).getlength(text)) + 16, 22), 11, _WARN_GROUND)
        self.pen.text((left + 16, below - 18), text, fill=_WARN, font=_font(13), anchor="lm")

    def _problem(self, problem: dict[str, Any], left: int, top: int, *, with_image: bool) -> None:
        below = top + _THUMB
        self.pen.text((left, below + 12), "refused", fill=_BAD, font=_font(20))
        code = shorten(str(problem.get("code", "")).replace("_", " "), _font(16), _THUMB)
        self.pen.text((left, below + 40), code, fill=_BAD, font=_font(16))
        if with_image:
            return
        middle = left + _THUMB / 2
        lines = _wrap(str(problem.get("message", "")), _font(14), _THUMB - 36)[:7]
        self.pen.multiline_text(
            (middle, top + _THUMB / 2),
            "\n".join(lines),
            fill=_DIM,
            font=_font(14),
            anchor="mm",
            align="center",
            spacing=5,
        )


def thumbnail(file: Path, side_px: int) -> Image.Image | None:
    """The image inside a square, its aspect kept; None if it cannot be read."""
    try:
        pixels = decode(file.read_bytes(), limits=ImageLimits()).pixels
    except (OSError, IsocenterError):
        return None
    return fit(Image.fromarray(to_eight_bits(pixels)).convert("RGB"), side_px)


def fit(image: Image.Image, side_px: int) -> Image.Image:
    """Scaled so that the longer side is `side_px`; a needle keeps at least one pixel of width."""
    scale = side_px / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def to_eight_bits(pixels: Array) -> npt.NDArray[np.uint8]:
    """Pixels that a screen can show: deeper ones through a window between two percentiles."""
    if pixels.dtype == np.uint8:
        return pixels
    values = pixels.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(pixels.shape, np.uint8)
    low, high = np.percentile(finite, (_CUT_PERCENT, 100.0 - _CUT_PERCENT))
    shown = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255.0 / max(high - low, 1e-12))
    return np.asarray(np.clip(shown, 0.0, 255.0).round(), np.uint8)


def shorten(text: str, font: ImageFont.FreeTypeFont, room_px: float) -> str:
    """A text that fits, its middle left out: the ends of file names are what tells them apart."""
    if font.getlength(text) <= room_px:
        return text
    for keep in range(len(text) - 1, 1, -1):
        head = -(-keep // 2)
        short = f"{text[:head]}…{text[len(text) - (keep - head) :]}"
        if font.getlength(short) <= room_px:
            return short
    return "…"


def _wrap(text: str, font: ImageFont.FreeTypeFont, room_px: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= room_px:
            lines[-1] = longer
        else:
            lines.append(shorten(word, font, room_px))
    return lines


def _colors(outcomes: Sequence[Outcome]) -> dict[str, Color]:
    """One colour a label, in the order in which the model names its labels."""
    labels = dict.fromkeys(label for each in outcomes if each.answer for label in each.answer["probabilities"])
    return {label: _CLASSES[index % len(_CLASSES)] for index, label in enumerate(labels)}


@lru_cache
def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """A mask with soft round corners: Pillow draws hard ones, so it is drawn larger and scaled down."""
    width, height = size[0] * _SMOOTHING, size[1] * _SMOOTHING
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, height - 1), radius=radius * _SMOOTHING, fill=255)
    return mask.resize(size, Image.Resampling.BOX)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ValueError("this Pillow has no FreeType, which a contact sheet needs for its letters")
    return font
