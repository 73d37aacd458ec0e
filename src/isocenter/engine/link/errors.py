"""Errors as plain data, and back: a typed one arrives as the same class."""

from collections.abc import Iterator
from typing import Any, Final

from isocenter.core.errors import IsocenterError

INTERNAL: Final = "internal"
"""The code of an exception that is none of our typed errors: a defect."""


def error_to_json(error: Exception) -> list[Any]:
    """Code, message, details, retry-after; of a foreign exception no more than its class."""
    if isinstance(error, IsocenterError):
        return [error.code, error.message, error.details, error.retry_after_s]
    return [INTERNAL, type(error).__name__, {}, None]


def error_from_json(data: list[Any]) -> Exception:
    """The same error, of the class that its code belongs to."""
    code, message, details, retry_after_s = data
    kind = _KINDS.get(code)
    if kind is None:
        return RuntimeError(f"the engine process met an unexpected {message}")
    return kind(message, details=details, retry_after_s=retry_after_s)


def _below(kind: type[IsocenterError]) -> Iterator[type[IsocenterError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _below(each)


# Those of the core: a program may have imported others, as the client's, which go by codes of the server.
_KINDS: Final = {kind.code: kind for kind in _below(IsocenterError) if kind.__module__.startswith("isocenter.core.")}
