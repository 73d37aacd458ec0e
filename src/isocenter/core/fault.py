"""The root of everything that can go wrong; see `isocenter.core.errors`."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeAlias

Detail: TypeAlias = "str | int | float | bool | Sequence[Detail] | Mapping[str, Detail] | None"


class IsocenterError(Exception):
    """The root: a sentence for people, a code and details for programs."""

    code: ClassVar[str] = "error"
    holds_s: float = 0.0
    """For so many seconds, whoever asks the same would hear the same."""

    def __init__(
        self, message: str, *, details: Mapping[str, Detail] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Detail] = dict(details or {})
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.details, self.retry_after_s)


def _rebuild(
    kind: type[IsocenterError], message: str, details: Mapping[str, Detail], retry_after_s: float | None
) -> IsocenterError:
    return kind(message, details=details, retry_after_s=retry_after_s)


def without_frames(error: IsocenterError) -> IsocenterError:
    """The same error without tracebacks, its causes included.

    A traceback holds the frames that raised, and these hold images: an answer that waits to be read, or a cycle that
    waits for the garbage collector, would keep hundreds of megabytes alive.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
