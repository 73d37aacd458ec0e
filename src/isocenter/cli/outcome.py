"""What became of one file: the answer, in the shape of the HTTP body, or the problem."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from isocenter.core.errors import IsocenterError
    from isocenter.serving.predict import Prediction


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exactly one of `answer` and `error` is there."""

    file: Path
    answer: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The path in letters that can be written; a file name may hold bytes that are none."""
        return str(self.file).encode("utf-8", "replace").decode()

    def as_json(self) -> dict[str, Any]:
        """One object a file, the same for an answer from here and from a server."""
        if self.answer is not None:
            return {"file": self.name, **self.answer}
        return {"file": self.name, "error": self.error}


Tell: TypeAlias = Callable[[int, Outcome], None]
"""Called with the place of a file in the list and what became of it, in the order of finishing."""


def answered(file: Path, found: "Prediction", *, request_id: str, total_s: float) -> Outcome:
    """An answer from this process, with the keys of `POST /predict`."""
    return Outcome(file, answer=found.as_json(request_id=request_id, total_s=total_s))


def refused(file: Path, error: "IsocenterError") -> Outcome:
    """A typed refusal."""
    return failed(file, error.code, error.message, dict(error.details))


def failed(file: Path, code: str, message: str, details: dict[str, Any] | None = None) -> Outcome:
    """Any other end."""
    return Outcome(file, error={"code": code, "message": message, "details": details or {}})


def percent(confidence: float) -> str:
    """A probability for people; what is not certain is never rounded up to certainty.

    >>> percent(0.8731), percent(0.99997), percent(1.0)
    ('87.3 %', '> 99.9 %', '100.0 %')
    """
    return "> 99.9 %" if 0.9995 <= confidence < 1.0 else f"{confidence * 100:.1f} %"


class InOrder:
    """Passes outcomes on in the order of the files, each as soon as all before it are there."""

    def __init__(self, then: Callable[[Outcome], None]) -> None:
        self._then = then
        self._early: dict[int, Outcome] = {}
        self._next = 0

    def __call__(self, index: int, outcome: Outcome) -> None:
        """Take one outcome in."""
        self._early[index] = outcome
        while self._next in self._early:
            self._then(self._early.pop(self._next))
            self._next += 1
