"""What a caller says beside the image, checked before anything is sent."""

import re
from numbers import Real
from typing import Any, Final
from urllib.parse import quote

from isocenter.core.errors import BadRequest

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What a server takes; for any other it makes one of its own, by which the caller would find nothing."""
_LONGEST_SHOWN: Final = 64


def given(**values: object) -> dict[str, str]:
    """What was said, as the query of a request; what is None was not.

    >>> given(model="cells", page=0, channel=None)
    {'model': 'cells', 'page': '0'}

    Raises:
        BadRequest: a text that UTF-8 cannot write.
    """
    return {name: _text(name, value) for name, value in values.items() if value is not None}


def model_path(model: str, version: int | None) -> str:
    """The path of one version; of the highest if none is said.

    Raises:
        BadRequest: a name that UTF-8 cannot write.
    """
    path = f"/v1/models/{quote(_text('model', model), safe='')}"
    return path if version is None else f"{path}/versions/{quote(_text('version', version), safe='')}"


def check(timeout_s: object, request_id: object) -> None:
    """See that both can be sent.

    Raises:
        BadRequest: one of them cannot.
    """
    if wrong := wrong_timeout(timeout_s):
        raise BadRequest(wrong)
    if request_id is not None and not (isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id)):
        raise BadRequest(f"request_id {_shown(request_id)}; 1 to 128 letters of ASCII, digits and . _ : - are allowed")


def wrong_timeout(timeout_s: object) -> str:
    """Why that is no timeout in seconds; nothing if it is one, or None.

    >>> wrong_timeout(2.5), wrong_timeout(0)
    ('', 'timeout_s 0; a positive number of seconds is allowed')
    """
    seconds: Any = timeout_s
    is_number = isinstance(timeout_s, Real) and not isinstance(seconds, bool)
    if seconds is None or (is_number and seconds > 0):
        return ""
    return f"timeout_s {_shown(timeout_s)}; a positive number of seconds is allowed"


def _text(name: str, value: object) -> str:
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{name} {_shown(value)}; text that UTF-8 can write is allowed") from error
    return text


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"
