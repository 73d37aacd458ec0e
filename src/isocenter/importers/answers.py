"""What a bare file cannot say of its model: asked once, a flag for each, and nothing guessed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from isocenter.core.errors import ImportRefused

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to know."""

    flag: str
    """The option that answers it, without dashes."""
    text: str
    choices: tuple[str, ...] = ()
    """The only answers, where there are few."""


Ask: TypeAlias = Callable[[Question, Callable[[str], object]], str]
"""Puts a question to a person, again until the answer can be read; gives the answer as text."""

TASK: Final = Question("task", "What does it do?", ("classification", "segmentation", "tensors"))
LABELS: Final = Question("labels", "Labels, in the order of the output, separated by commas")
ACTIVATION: Final = Question("activation", "What makes its output probabilities?", ("softmax", "sigmoid", "none"))
MEAN: Final = Question("mean", "Mean that is subtracted from scaled samples, one a channel (0 if none)")
STD: Final = Question("std", "Standard deviation they are then divided by, one a channel (1 if none)")
SCALE: Final = Question("scale", "Factor of the samples before that (1/255 takes 0..255 to 0..1; 1 if none)")
SIZE: Final = Question("size", "Size of its input in pixels: height,width")
COLOR: Final = Question("color", "Colour of its input", ("gray", "rgb"))
RESIZE: Final = Question("resize", "How is a picture brought to that size?", ("stretch", "letterbox", "crop"))
CHANNELS: Final = Question("channels", "Names of the input channels, in order, separated by commas")
THRESHOLD: Final = Question("threshold", "From which probability on has a voxel a label?")
FOLDS: Final = Question("folds", "Which folds answer together?")
LAYOUT: Final = Question("layout", "Where are the channels of its input?", ("first", "last"))


class Answers:
    """What was said on the command line, and whom to ask for the rest."""

    def __init__(self, given: Mapping[str, str | None], ask: Ask | None = None) -> None:
        """`given` by flag; `ask` is None where nobody is there to be asked."""
        self._given = {flag: text for flag, text in given.items() if text is not None}
        self._ask = ask
        self._used: set[str] = set()

    def unused(self) -> list[str]:
        """Flags that were given and nobody wanted to know."""
        return sorted(set(self._given) - self._used)

    def get(self, question: Question, read: Callable[[str], T]) -> T:
        """The answer to a question.

        Raises:
            ImportRefused: nobody has answered it; or the answer cannot be read.
        """
        text = self._said(question)
        if text is None and self._ask is not None:
            text = self._given[question.flag] = self._ask(question, lambda said: _checked(question, read, said))
        if text is None:
            raise ImportRefused(
                f"the file does not say, and nothing is guessed: {_first_lower(question.text)}: "
                f"--{question.flag} {'|'.join(question.choices) or '…'}",
                details={"flag": f"--{question.flag}"},
            )
        return _checked(question, read, text)

    def given(self, question: Question, read: Callable[[str], T]) -> T | None:
        """The answer, if it was given without being asked for."""
        text = self._said(question)
        return None if text is None else _checked(question, read, text)

    def _said(self, question: Question) -> str | None:
        self._used.add(question.flag)
        return self._given.get(question.flag)


def _checked(question: Question, read: Callable[[str], T], text: str) -> T:
    try:
        if question.choices and text not in question.choices:
            raise ValueError(f"one of {', '.join(question.choices)}")
        return read(text)
    except ValueError as error:
        raise ImportRefused(f"--{question.flag} {text!r}: {error}", details={"flag": f"--{question.flag}"}) from error


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def words(text: str) -> list[str]:
    """Words between commas.

    >>> words("no finding, nodule")
    ['no finding', 'nodule']
    """
    found = [word.strip() for word in text.split(",")]
    if not all(found) or len(set(found)) != len(found):
        raise ValueError("words that differ, separated by commas")
    return found


def numbers(text: str) -> list[float]:
    """Numbers between commas; a fraction is one.

    >>> numbers("0.5, 1/4")
    [0.5, 0.25]
    """
    return [_number(word) for word in text.split(",")]


def number(text: str) -> float:
    """One number above 0.

    >>> number("1/255") == 1 / 255
    True
    """
    found = _number(text)
    if found <= 0:
        raise ValueError("a number above 0")
    return found


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    try:
        found = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise ValueError("numbers, separated by commas") from None
    if not math.isfinite(found):
        raise ValueError("numbers that are finite")
    return found


def size(text: str) -> list[int]:
    """Whole numbers from 1 between commas or x, first axis first.

    >>> size("224x224"), size("512,640")
    ([224, 224], [512, 640])
    """
    found = [int(word) for word in text.replace("x", ",").split(",") if word.strip().isdecimal()]
    if not found or len(found) != text.replace("x", ",").count(",") + 1 or min(found) < 1:
        raise ValueError("whole numbers, such as 224,224")
    return found


def per_channel(values: Sequence[float], channels: int, flag: str) -> list[float]:
    """One value a channel; a single one holds for all.

    Raises:
        ImportRefused: another number of them.
    """
    if len(values) not in (1, channels):
        raise ImportRefused(f"--{flag} has {len(values)} values, the input has {channels} channels")
    return list(values) if len(values) == channels else list(values) * channels
